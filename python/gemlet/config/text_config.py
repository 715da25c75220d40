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
    """The text model that a ``config.json`` describes.

    Attributes:
        family: "gemma", "gemma2", "vaultgemma", "gemma3", "gemma3n", "gemma4" or "embeddinggemma2".
        model_type: the name in the file.
        vocab_size: the number of token ids.
        hidden_size: the width of the hidden states.
        max_position_embeddings: the longest text in tokens.
        rms_norm_eps: the epsilon of the norms.
        final_softcap: the cap on the logits; 0 means none.
        norm_offset: the number that is added to every norm weight. Gemma 1 to 3 store ``w`` and compute with
            ``1 + w``; in GGUF the 1 is already in the weights.
        tie_word_embeddings: the embedding table is also the output matrix.
        pad_token_id, bos_token_id: the ids of these tokens; None if the model has none.
        eos_token_ids: the tokens that end a text.
        layers: the layers, from the first one on.
        exact_gelu: the activation is the GELU with erf, not its approximation with tanh.
        per_layer_input_size: the width of the embedding that every layer has for itself; 0 means none.
        per_layer_vocab_size: the number of rows in the table of these embeddings; 0 means no table.
        altup_streams: the number of hidden states of a token; more than 1 in Gemma 3n.
        laurel_rank: the rank of Gemma 3n's LAuReL branch.
        bidirectional: the model is an embedding model, in which a token also sees later ones.
        dense_sizes: the output sizes of the matrices after the mean in an embedding model.
        projects_itself: the first of these matrices is a weight of the model itself.
        unit_vectors: embeddings are divided by their length.
        placeholder_ids: the ids that stand for images, videos and sound; the model never writes them.
        placeholders_read_as: the token whose embedding row a placeholder in a text has; None: its own row.
        text_ids: the number of ids that are embedded as text. Gemma 3n has ``tables`` for the ids after them.
            None: all ids are text.
        vision: the tower for images; None if the model has none.
        audio: the tower for sound; None if the model has none.
        tables: Gemma 3n's tables for the ids from ``text_ids`` on.
        quantization: the form in which the files have quantized weights (:mod:`gemlet.config.quantization`);
            None if the weights are not quantized.
        rounded: the core's names of the matrices whose inputs and outputs are rounded with fixed scales.
        exact_embedding_scale: the factor on embeddings is not rounded to bfloat16.
        verdict_ids: the two tokens with which ShieldGemma 2 says that an image breaks a policy, and that it
            follows the policy.
        target_size: the hidden size of the model that this one drafts for, whose keys and values it reads; 0
            if this is not an assistant.
        centroids: the number of groups into which the rows of an assistant's head are divided; 0 means none.
        centroids_per_token: the number of these groups that are multiplied for a token.
        passed_over: the keys of the file that gemlet does not know and that change nothing.

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
        """The inputs that the model takes besides text: "vision", "audio"."""
        found = {"vision": self.vision, "audio": self.audio}
        return frozenset(name for name, tower in found.items() if tower is not None)

    @property
    def num_layers(self) -> int:
        """The number of transformer layers."""
        return len(self.layers)

    @property
    def embedding_size(self) -> int:
        """The number of values in an embedding."""
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
    """``config`` without the towers that are not kept, and with only the ``tables`` of these names. None
    keeps the tables of the towers that are kept.

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
