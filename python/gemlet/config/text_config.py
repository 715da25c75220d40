"""The checked, frozen description of a text model: :class:`TextConfig`."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection

from gemlet import _core
from gemlet.base.front_door import public
from gemlet.base.records import field, record, replace
from gemlet.base.text import show
from gemlet.config.audio_config import AudioConfig, ModalityTable
from gemlet.config.layers import LayerSpec
from gemlet.config.vision_config import VisionConfig
from gemlet.errors import InvalidRequestError

__all__ = ["TextConfig", "embedding_scale"]


@record(frozen=True, repr=False)
class TextConfig:
    """The text model a ``config.json`` describes.

    ``family`` is "gemma", "gemma2", "vaultgemma", "gemma3", "gemma3n", "gemma4" or "embeddinggemma2";
    ``model_type`` is the name in the file. ``norm_offset`` is added to every norm weight (Gemma 1 to 3 store
    ``w`` and compute with ``1 + w``; in GGUF the 1 is in the weights).
    ``exact_gelu``: the GELU with erf, and not its approximation with tanh.
    ``final_softcap`` 0 means none. ``per_layer_input_size`` is the width of each layer's own token embedding,
    0 for none, and ``per_layer_vocab_size`` the rows of that table. ``altup_streams`` of more than 1 means
    layers of Gemma 3n, with a branch of rank ``laurel_rank``. ``bidirectional`` makes it an embedding model,
    with a matrix for each of ``dense_sizes`` outputs after the mean; with ``projects_itself``, the first of
    these is a weight of the model itself. ``unit_vectors`` says that embeddings are divided by their length.
    ``placeholder_ids`` stand for pictures, videos and sound, and are never written; in a text they have the
    rows of the token ``placeholders_read_as``, or their own rows if that is None. Ids from ``text_ids`` on
    are not embedded as text: Gemma 3n has other tables for them; None if all ids are text. ``vision`` is the
    tower for images, ``audio`` that for sound; None if the model has none. ``tables`` are Gemma 3n's tables
    for the ids from ``text_ids`` on. ``quantization`` is how the weights in the files are quantized
    (:mod:`gemlet.config.quantization`), None if they are not, and ``rounded`` the core's names of the
    matrices whose inputs and outputs are rounded with fixed scales. ``exact_embedding_scale``: the factor on
    embeddings is not rounded to bfloat16. ``verdict_ids`` are the two tokens with which ShieldGemma 2 says
    that an image breaks a policy, and that it follows it. ``target_size`` makes it an assistant, which drafts
    for a model of this hidden size and reads its keys and values; its head may be in groups of rows, one for
    each of ``centroids``, of which ``centroids_per_token`` are multiplied. ``passed_over`` are the keys of
    the file that gemlet does not know and that change nothing.

    >>> from gemlet.config import shape_config
    >>> config = shape_config("gemma3-1b")
    >>> config.num_layers, config.hidden_size, [layer.sliding_window for layer in config.layers[:6]]
    (26, 1152, [512, 512, 512, 512, 512, 0])
    """

    family: str
    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_softcap: float
    norm_offset: float
    tie_word_embeddings: bool
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    exact_gelu: bool = False
    per_layer_input_size: int = 0
    per_layer_vocab_size: int = 0
    altup_streams: int = 1
    laurel_rank: int = 0
    bidirectional: bool = False
    dense_sizes: tuple[int, ...] = ()
    projects_itself: bool = False
    unit_vectors: bool = True
    placeholder_ids: tuple[int, ...] = ()
    placeholders_read_as: int | None = None
    text_ids: int | None = None
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    tables: tuple[ModalityTable, ...] = ()
    quantization: str | None = None
    rounded: tuple[str, ...] = ()
    exact_embedding_scale: bool = False
    verdict_ids: tuple[int, int] | None = None
    target_size: int = 0
    centroids: int = 0
    centroids_per_token: int = 0
    passed_over: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __repr__(self) -> str:
        return (
            f"<gemlet.config.TextConfig {self.family} ({self.model_type}): {self.num_layers} layers, "
            f"hidden size {self.hidden_size}, vocabulary {self.vocab_size}, "
            f"context {self.max_position_embeddings}>"
        )

    @property
    def towers(self) -> frozenset[str]:
        """What the model takes besides text: "vision", "audio"."""
        found = {"vision": self.vision, "audio": self.audio}
        return frozenset(name for name, tower in found.items() if tower is not None)

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return len(self.layers)

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return self.dense_sizes[-1] if self.dense_sizes else self.hidden_size

    @property
    def _longest_span(self) -> int:
        looks_ahead = any(layer.bidirectional_spans for layer in self.layers)
        return self.vision.most_tokens if self.vision is not None and looks_ahead else 0

    @public
    def to_core(self, *, weights: str, max_context: int | None = None) -> _core.ModelConfig:
        """The core's form of this configuration for ``weights`` ("f32", "bf16", "q8", "q4", ...).

        ``max_context`` (tokens) defaults to what the file says.

        >>> from gemlet.config import shape_config
        >>> shape_config("gemma3-1b").to_core(weights="q4", max_context=4096).max_context
        4096
        """
        context = self.max_position_embeddings if max_context is None else max_context
        if not 1 <= context < 1 << 31:
            raise InvalidRequestError(f"max_context: got {show(max_context)}, expected 1 to 2147483647")
        return _core.ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_context=context,
            rms_norm_eps=self.rms_norm_eps,
            embedding_scale=embedding_scale(
                self.hidden_size, "f32" if self.exact_embedding_scale else weights
            ),
            layers=[_core.LayerConfig(**vars(layer)) for layer in self.layers],
            exact_gelu=self.exact_gelu,
            final_softcap=self.final_softcap,
            norm_offset=self.norm_offset,
            tied_embeddings=self.tie_word_embeddings,
            per_layer_input_size=self.per_layer_input_size,
            per_layer_vocab_size=self.per_layer_vocab_size,
            altup_streams=self.altup_streams,
            laurel_rank=self.laurel_rank,
            bidirectional=self.bidirectional,
            dense_sizes=list(self.dense_sizes),
            placeholder_ids=[] if self.placeholders_read_as is None else list(self.placeholder_ids),
            placeholders_read_as=self.placeholders_read_as or 0,
            longest_span=self._longest_span,
            target_size=self.target_size,
            centroids=self.centroids,
            centroids_per_token=self.centroids_per_token,
        )


def without_towers(
    config: TextConfig, *, vision: bool = False, audio: bool = False, tables: Collection[str] | None = None
) -> TextConfig:
    """``config`` without the towers that are not kept, and with only the ``tables`` of these names; None:
    those of the towers.

    >>> from gemlet.config import shape_config
    >>> without_towers(shape_config("gemma3-1b")).vision is None
    True
    """
    names = ["vision"] * vision + ["audio"] * audio if tables is None else tables
    kept = tuple(table for table in config.tables if table.name in names)
    return replace(
        config,
        vision=config.vision if vision else None,
        audio=config.audio if audio else None,
        tables=kept,
    )


@public
def embedding_scale(hidden_size: int, weights: str) -> float:
    """The factor on embedding rows: sqrt(hidden_size), rounded to bfloat16 unless ``weights`` is "f32".

    The reference keeps the factor in the type of the weights, and every released Gemma is bfloat16. Quantized
    weights stand for bfloat16 ones, so they take the rounded factor too.

    >>> embedding_scale(640, "bf16"), embedding_scale(1152, "q4")
    (25.25, 34.0)
    """
    if not 1 <= hidden_size < 1 << 31:
        raise InvalidRequestError(f"hidden_size: got {show(hidden_size)}, expected 1 to 2147483647")
    exact = math.sqrt(hidden_size)
    if weights == "f32":
        return exact
    (bits,) = struct.unpack("<I", struct.pack("<f", exact))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # round to nearest, ties to even
    (rounded,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(rounded)
