"""
The C++ core of gemlet. Private: use the gemlet package.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing
import typing_extensions

from . import testing

__all__: list[str] = [
    "KV_BLOCK_TOKENS",
    "LAYOUT_VERSION",
    "MAX_DRAFT_TOKENS",
    "MAX_THREADS",
    "MOST_SOUND_SECONDS",
    "PASS_TEXTS",
    "PASS_TOKENS",
    "SOUND_RATE",
    "Adapter",
    "AdapterBuilder",
    "Conformer",
    "ConformerConfig",
    "Engine",
    "FileRows",
    "Gemma4VisionConfig",
    "Gemma4VisionTower",
    "LayerConfig",
    "LogMel",
    "Media",
    "MobileNetBlock",
    "MobileNetConfig",
    "MobileNetTower",
    "Modality",
    "Model",
    "ModelBuilder",
    "ModelConfig",
    "News",
    "PieceEncoder",
    "PrefixCache",
    "Request",
    "Sampler",
    "SequenceBreakers",
    "SiglipConfig",
    "SiglipTower",
    "TokenSequence",
    "Turn",
    "UnifiedVisionEmbedder",
    "after_pieces",
    "available_memory",
    "check_device",
    "cpu_info",
    "cuda_info",
    "default_threads",
    "free_memory",
    "logprobs",
    "measure_read_bandwidth",
    "mono",
    "number_limits",
    "piece_encoder",
    "resize_image",
    "return_free_memory",
    "rises_to",
    "size_limits",
    "source_types",
    "testing",
    "widen",
]

class PieceEncoder:
    """
    Text to pieces, as SentencePiece does it.
    """
    def __len__(self) -> int: ...
    def encode(self, text: str) -> list[int]:
        """
        The ids of `text`.
        """

class LayerConfig:
    """
    The shape and rules of one layer. The fields are keywords.
    """
    def __init__(self, **kwargs: typing.Any) -> None: ...
    @property
    def activation_sparsity(self) -> float | None: ...
    @property
    def attention_softcap(self) -> float: ...
    @property
    def bidirectional_spans(self) -> bool: ...
    @property
    def expert_intermediate_size(self) -> int: ...
    @property
    def experts_per_token(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def key_is_value(self) -> bool: ...
    @property
    def kv_source(self) -> int: ...
    @property
    def layer_scalar(self) -> bool: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def post_norms(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def query_scale(self) -> float: ...
    @property
    def rope_frequencies(self) -> list[float]: ...
    @property
    def rope_partial_factor(self) -> float: ...
    @property
    def rope_scaling_factor(self) -> float: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def sliding_window(self) -> int: ...
    @property
    def v_norm(self) -> bool: ...

class ModelConfig:
    """
    A model as data. The fields are keywords; their values are checked.
    """
    def __init__(self, **kwargs: typing.Any) -> None: ...
    @property
    def altup_streams(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    @property
    def centroids(self) -> int: ...
    @property
    def centroids_per_token(self) -> int: ...
    @property
    def dense_sizes(self) -> list[int]: ...
    @property
    def embedding_scale(self) -> float: ...
    @property
    def exact_gelu(self) -> bool: ...
    @property
    def final_softcap(self) -> float: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def laurel_rank(self) -> int: ...
    @property
    def layers(self) -> list[LayerConfig]: ...
    @property
    def longest_span(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def norm_offset(self) -> float: ...
    @property
    def per_layer_input_size(self) -> int: ...
    @property
    def per_layer_vocab_size(self) -> int: ...
    @property
    def placeholder_ids(self) -> list[int]: ...
    @property
    def placeholders_read_as(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def target_size(self) -> int: ...
    @property
    def tied_embeddings(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...

class Adapter:
    """
    Low-rank corrections of a model's matrices; made by AdapterBuilder.
    """
    @property
    def bytes(self) -> int: ...
    @property
    def digest(self) -> str:
        """
        What AdapterBuilder.finish() was given, in hexadecimal.
        """

class Model:
    """
    Weights ready to run; made by ModelBuilder.
    """
    def adapter_scratch_bytes(self, max_rank: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        What adapters of at most this rank add to the scratch of a forward pass.
        """
    def bytes_per_token(self, *, depth: typing.SupportsInt | typing.SupportsIndex = 0) -> int:
        """
        Bytes that one decode step reads after `depth` tokens.
        """
    def close(self) -> None:
        """
        Gives the memory back.
        """
    def embed(
        self,
        texts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
        adapter: Adapter | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Embeddings of texts, each a list of token ids, that go through one forward pass together, not normalised: float32 [len(texts), embedding_size].
        """
    def memory(self) -> dict[str, int]:
        """
        Bytes by kind: weights, embedding (and output head), caches of all sequences, adapters, cache per token, cache per token inside the sliding windows.
        """
    def projection_inputs(
        self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        The inputs of the matrices of each layer for a text of its own: 'layers.0.q_proj' (also for k and v), 'o_proj', 'gate_proj' (also for up) and 'down_proj' -> float32 [tokens, columns].
        """
    @property
    def closed(self) -> bool: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def decode_threads(self) -> int: ...
    @property
    def kv_cache(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def tier(self) -> str: ...
    @property
    def weights(self) -> str: ...

class FileRows:
    """
    Rows of a tensor in an open file, read as they are packed; dtype as for ModelBuilder.add().
    """
    def __init__(
        self,
        *,
        descriptor: typing.SupportsInt | typing.SupportsIndex,
        offset: typing.SupportsInt | typing.SupportsIndex,
        shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        dtype: str,
        scales: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None,
    ) -> None:
        """
        `scales`: of integers ("i8", "i4", "i2", "i4x32") float32 [rows, scales of a row].
        """
    def fit_bf12(self, threads: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether bf12 has room for this matrix in bf16. No if it cannot be read.
        """

class ModelBuilder:
    """
    Builds a Model tensor by tensor.
    """
    def __init__(
        self,
        *,
        config: ModelConfig,
        weights: str,
        embedding: str,
        kv_cache: str,
        threads: typing.SupportsInt | typing.SupportsIndex,
        allocate: bool = True,
        decode_threads: typing.SupportsInt | typing.SupportsIndex = 0,
        formats: collections.abc.Mapping[str, str] = {},
        embedding_on_disk: bool = False,
        fewer_threads: bool = False,
        device: str = "cpu",
        exact_batches: bool = False,
        towers: collections.abc.Mapping[
            str, tuple[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], str]
        ] = {},
        beside: Model | None = None,
        rounded: collections.abc.Set[str] = set(),
    ) -> None:
        """
        `rounded`: matrices whose inputs and outputs are rounded to 8 bits, by the two scales in the slot "..._rounding". `towers`: tensors of towers by name, (shape, kind) each. A "matrix" is packed in the format of the weights, an "exact" one in f32; "floats" stay in float32, and a "norm" too, with the offset of the model's norms. `beside`: a model for which this one is to be a drafter; it computes where that one does.
        """
    @typing.overload
    def add(
        self, name: str, rows: FileRows, first_row: typing.SupportsInt | typing.SupportsIndex = 0
    ) -> None: ...
    @typing.overload
    def add(
        self,
        name: str,
        data: numpy.ndarray,
        dtype: str,
        first_row: typing.SupportsInt | typing.SupportsIndex = 0,
        balanced: bool = False,
    ) -> None:
        """
        Packs a tensor, or the next rows of one: a float32 array tagged 'f32', a uint16 array tagged 'bf16' or 'f16', or a uint8 array of GGUF's blocks tagged with their type in lower case, 'q4_0'. `balanced`: its columns are multiplied by their balance already.
        """
    def add_random(self, *, seed: typing.SupportsInt | typing.SupportsIndex, done: typing.Any = None) -> None:
        """
        Fills every empty slot with random values of trained weights' size. done(bytes) is called after each piece of their packed form; what it or a signal handler raises ends it.
        """
    def finish(self) -> Model:
        """
        The model; the builder is spent afterwards.
        """
    def map_file(self, descriptor: typing.SupportsInt | typing.SupportsIndex, path: str) -> None:
        """
        Maps the open file for use_packed().
        """
    @typing.overload
    def pack(
        self, name: str, rows: FileRows, first_row: typing.SupportsInt | typing.SupportsIndex = 0
    ) -> numpy.typing.NDArray[numpy.uint8]: ...
    @typing.overload
    def pack(
        self,
        name: str,
        data: numpy.ndarray,
        dtype: str,
        first_row: typing.SupportsInt | typing.SupportsIndex = 0,
        balanced: bool = False,
    ) -> numpy.typing.NDArray[numpy.uint8]:
        """
        Packs what add() would take into bytes for a file. The slot stays empty.
        """
    def packed_sizes(self) -> dict[str, tuple[str, int]]:
        """
        (format, bytes) of every slot in packed form.
        """
    def plan(
        self, table_type: str = "bf16", threads: typing.SupportsInt | typing.SupportsIndex = 0
    ) -> dict[str, int]:
        """
        Bytes that the model will take, by use. `table_type`: that of the per-layer table in its file. `threads`: those of a pass; 0: the builder's, or as many as this machine would get.
        """
    def set_per_layer_table(
        self,
        *,
        descriptor: typing.SupportsInt | typing.SupportsIndex,
        path: str,
        offset: typing.SupportsInt | typing.SupportsIndex,
        rows: typing.SupportsInt | typing.SupportsIndex,
        cols: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        kept: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ] = [],
        scales: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None,
    ) -> None:
        """
        The per-layer embedding table: it stays in its file, which is open, and is read by row; of `cols` values in a row only the runs `kept`, each (first, count), all if empty. `scales` as in FileRows.
        """
    def set_token_order(
        self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None:
        """
        Sets the token of each row of "embed_tokens", for an assistant with centroids.
        """
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """
        Expected shape of every slot still to be filled or filled.
        """
    def use_packed(
        self,
        name: str,
        offset: typing.SupportsInt | typing.SupportsIndex,
        bytes: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        Fills a slot with the packed form that lies in the mapped file, used in place.
        """

class AdapterBuilder:
    """
    Builds an Adapter of a model, matrix by matrix.
    """
    def __init__(self, model: Model) -> None: ...
    def add(
        self,
        name: str,
        *,
        a: numpy.ndarray,
        a_dtype: str,
        b: numpy.ndarray,
        b_dtype: str,
        scale: typing.SupportsFloat | typing.SupportsIndex,
        magnitudes: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
        bias: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
    ) -> None:
        """
        Packs A [rank, cols] and B [rows, rank] of a matrix; arrays and their tags as in ModelBuilder.add. `magnitudes` [rows] are DoRA's, empty for plain LoRA; `bias` [rows] is added to B (A x), or empty.
        """
    def add_norm(
        self, name: str, weight: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
    ) -> None:
        """
        Sets a weight that replaces that of a norm, in the form of the model's files.
        """
    @typing.overload
    def add_rows(
        self,
        name: str,
        rows: FileRows,
        *,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None:
        """
        The next rows of the embedding table ("embed_tokens") or the output head ("lm_head") that the adapter has instead of the model's: those of the tokens `ids`, ascending, or all of them. A multiple of 16 rows, but for the last ones.
        """
    @typing.overload
    def add_rows(
        self,
        name: str,
        data: numpy.ndarray,
        dtype: str,
        *,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None:
        """
        The same for rows in an array.
        """
    def finish(self, digest: bytes = b"") -> Adapter:
        """
        The adapter; the builder is spent afterwards. `digest`: 32 bytes of its content, by which a prefix cache on disk knows it.
        """
    def rows_bytes(self, name: str, count: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Bytes that add_rows() keeps for `count` rows; 0 for a name that it does not take.
        """
    def set_per_layer_table(
        self,
        *,
        descriptor: typing.SupportsInt | typing.SupportsIndex,
        path: str,
        offset: typing.SupportsInt | typing.SupportsIndex,
        rows: typing.SupportsInt | typing.SupportsIndex,
        cols: typing.SupportsInt | typing.SupportsIndex,
        dtype: str,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None:
        """
        Sets a table of per-layer embeddings that replaces the model's, or only its rows of the tokens `ids`; other arguments as in ModelBuilder.
        """
    def share_rows(self) -> None:
        """
        The output head takes the rows that replace those of the embedding table.
        """
    def tower_bytes(self, name: str, rank: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Further bytes of a tower's pass for a term of this rank, a bias included; 0 for a matrix of the text model.
        """
    def weight(self, name: str) -> numpy.typing.NDArray[numpy.float32]:
        """
        A matrix of the model as float32.
        """

class ConformerConfig:
    """
    The sizes of an audio encoder.
    """
    def __init__(
        self,
        *,
        family: str,
        bins: typing.SupportsInt | typing.SupportsIndex,
        first_channels: typing.SupportsInt | typing.SupportsIndex,
        second_channels: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        num_layers: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        conv_taps: typing.SupportsInt | typing.SupportsIndex,
        keys: typing.SupportsInt | typing.SupportsIndex,
        output_size: typing.SupportsInt | typing.SupportsIndex,
        reduction: typing.SupportsInt | typing.SupportsIndex,
        logit_cap: typing.SupportsFloat | typing.SupportsIndex,
        residual_weight: typing.SupportsFloat | typing.SupportsIndex,
        rms_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
        group_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
        clipped: bool,
    ) -> None: ...
    def activation_bytes(
        self,
        frames: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        weights: str,
    ) -> int:
        """
        Bytes of memory that encoding a sound takes, in a model of this hidden size with weights of that format.
        """
    def tokens(
        self,
        frames: typing.SupportsInt | typing.SupportsIndex,
        valid: typing.SupportsInt | typing.SupportsIndex,
    ) -> int:
        """
        Soft tokens of a sound with this many frames, of which the first `valid` count.
        """

class Conformer:
    """
    An audio encoder and its projection, in a loaded model.
    """
    def __init__(self, model: Model, config: ConformerConfig) -> None: ...
    def encode(
        self,
        features: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
        valid: typing.SupportsInt | typing.SupportsIndex,
        adapter: Adapter | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        From log-mel spectra, float32 [frames, bins], to soft tokens, float32 [tokens, hidden_size]. Ctrl-C ends it at the next layer.
        """

class Modality:
    """
    The projection of "vision" or "audio" into a loaded model, and a Gemma 3n's table of it.
    """
    def __init__(
        self,
        model: Model,
        name: str,
        *,
        width: typing.SupportsInt | typing.SupportsIndex,
        table_rows: typing.SupportsInt | typing.SupportsIndex,
        eps: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def embed(
        self,
        indices: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        adapter: Adapter | None = None,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Rows of the table as the text model takes them, float32 [n, hidden_size].
        """
    def project(
        self, rows: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], adapter: Adapter | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Soft tokens, float32 [n, hidden_size], of float32 [n, width].
        """

class LogMel:
    """
    Logarithms of mel spectra of sounds.
    """
    def __init__(
        self,
        *,
        frame_length: typing.SupportsInt | typing.SupportsIndex,
        hop_length: typing.SupportsInt | typing.SupportsIndex,
        fft_length: typing.SupportsInt | typing.SupportsIndex,
        bins: typing.SupportsInt | typing.SupportsIndex,
        min_frequency: typing.SupportsFloat | typing.SupportsIndex,
        max_frequency: typing.SupportsFloat | typing.SupportsIndex,
        floor: typing.SupportsFloat | typing.SupportsIndex,
        preemphasis: typing.SupportsFloat | typing.SupportsIndex,
        centred: bool,
    ) -> None: ...
    def count(self, samples: typing.SupportsInt | typing.SupportsIndex) -> tuple[int, int]:
        """
        How many frames a sound of this many samples has, and how many of them count.
        """
    def extract(
        self, samples: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]
    ) -> tuple[numpy.typing.NDArray[numpy.float32], int]:
        """
        The features of mono samples at 16 kHz, float32 [frames, bins], and how many frames count.
        """

class SequenceBreakers:
    """
    Short sequences of tokens across which a repetition does not count.
    """
    def __init__(
        self,
        groups: collections.abc.Sequence[
            tuple[
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            ]
        ],
    ) -> None:
        """
        Pairs (heads, tail): each of the ids `heads` followed by the ids `tail` is one of the sequences.
        """

class Sampler:
    """
    Chooses tokens from logits, and keeps the random state.
    """
    def __init__(
        self,
        *,
        temperature: typing.SupportsFloat | typing.SupportsIndex,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        typical_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        frequency_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        presence_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        dry_multiplier: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        dry_base: typing.SupportsFloat | typing.SupportsIndex = 1.75,
        dry_allowed_length: typing.SupportsInt | typing.SupportsIndex = 2,
        dry_breakers: SequenceBreakers | None = None,
        no_repeat_ngram: typing.SupportsInt | typing.SupportsIndex = 0,
        logit_bias: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
        ] = [],
        min_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        end_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        suppressed: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        vocab_limit: typing.SupportsInt | typing.SupportsIndex = 0,
        seed: typing.SupportsInt | typing.SupportsIndex,
        prompt_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def sample(
        self,
        logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
        history: numpy.ndarray | typing_extensions.Buffer | list[int],
    ) -> int:
        """
        The next token id from logits [vocab]. `history` is the text so far: the ids of the prompt, of which there are `prompt_tokens`, and those that were generated.
        """

class Turn:
    """
    A lock: `with turn as first:`, where `first` is False if this thread has it already.
    """
    def __enter__(self) -> bool: ...
    def __exit__(self, kind: typing.Any, error: typing.Any, traceback: typing.Any) -> None: ...
    def __init__(self) -> None: ...

class TokenSequence:
    """
    One context: its tokens and their keys and values.
    """
    def __init__(self, model: Model, adapter: Adapter | None = None) -> None: ...
    def cancel(self) -> None:
        """
        Makes a running extend, which is in another thread, raise CancelledError.
        """
    def close(self) -> None:
        """
        Frees the cache.
        """
    def extend(
        self,
        ids: numpy.ndarray | typing_extensions.Buffer | list[int],
        *,
        logits: str = "last",
        soft_rows: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, numpy.ndarray]
        ] = [],
        spans: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ] = [],
    ) -> None:
        """
        Appends tokens and keeps the logits of none, of the last or of all of them. `soft_rows`: pairs of a first token and float32 [rows, hidden_size], which replace the scaled embeddings there. `spans`: pairs (begin, end) of tokens that see each other in both directions, in the layers that do this.
        """
    def fork(self) -> TokenSequence:
        """
        Another context with the same tokens and logits, which shares the cache of them.
        """
    def logits(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        The logits of the last extend, float32 [rows, vocab].
        """
    def sample(self, sampler: Sampler) -> int:
        """
        The next token id from the last row of logits.
        """
    @property
    def length(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...

class Media:
    """
    Ready-made embeddings, as a tower makes them of an image or a sound. They take the place of tokens of a prompt.
    """
    def __init__(self, rows: numpy.ndarray, *, digest: bytes, sees_itself: bool) -> None:
        """
        `rows`: float32 [n, hidden]. `digest`: 32 bytes of all that the rows depend on, by which the prefix cache knows them. `sees_itself`: each of the tokens sees all of them, in the layers that look ahead; they go through one pass.
        """
    def __len__(self) -> int: ...

class PrefixCache:
    """
    Keys and values of texts that have ended.
    """
    def load(
        self,
        ids: numpy.ndarray | typing_extensions.Buffer | list[int],
        descriptor: typing.SupportsInt | typing.SupportsIndex,
        at: typing.SupportsInt | typing.SupportsIndex,
        *,
        media: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, Media]] = [],
        adapter: Adapter | None = None,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Keeps what save() has written from byte `at` to the end of the file. Returns the number of its tokens.
        """
    def nearest(
        self,
        ids: numpy.ndarray | typing_extensions.Buffer | list[int],
        *,
        media: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, Media]] = [],
        adapter: Adapter | None = None,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> tuple[int, int, list[int]]:
        """
        About the kept text with the longest beginning in common with `ids`: its tokens in common, how many of them a text can begin with, and a few tokens that follow them in the kept text.
        """
    def save(
        self,
        ids: numpy.ndarray | typing_extensions.Buffer | list[int],
        descriptor: typing.SupportsInt | typing.SupportsIndex,
        *,
        media: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, Media]] = [],
        adapter: Adapter | None = None,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Appends what is kept of a text to an open file. Returns the number of its tokens.
        """

class News:
    """
    A number that changes when a request has tokens to take, or has ended.
    """
    def __init__(self, *, readable: bool = False) -> None:
        """
        `readable`: with a file descriptor that is readable after each change, until clear().
        """
    def clear(self) -> None:
        """
        Makes the descriptor unreadable until the next change.
        """
    def fileno(self) -> int:
        """
        The descriptor, -1 if there is none.
        """
    @property
    def value(self) -> int: ...

class Request:
    """
    A text that the engine continues until the text ends or this object is destroyed.
    """
    def cancel(self) -> None:
        """
        Ends the text at the next opportunity.
        """
    def set_mask(
        self,
        position: typing.SupportsInt | typing.SupportsIndex,
        mask: typing.Annotated[numpy.typing.ArrayLike, numpy.uint32] | None,
        behind: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ) -> None:
        """
        Sets which ids may be the token after `position` others of a masked request: uint32 [n], a bit for each id, the lowest first; None: all. The engine does not choose the token until its mask is set. `behind`: the draft tokens among these others. A mask for a token that was chosen meanwhile changes nothing.
        """
    def take(self) -> tuple[list[int], str | None, numpy.typing.NDArray[numpy.float32] | None]:
        """
        What came since the last call: token ids, why the request has ended ('stop', 'length', 'context', 'cancelled', 'timeout', or None), and float32 rows [n, width] of logits or of an embedding, or None. Does not wait. Raises the error that ended it.
        """
    @property
    def cached_tokens(self) -> int: ...
    @property
    def guessed(self) -> tuple[int, list[int]]:
        """
        The number of chosen tokens of a masked request, and the draft tokens after them.
        """
    @property
    def guesses(self) -> tuple[int, int]:
        """
        The number of its draft tokens that went through passes, and the number of accepted ones.
        """
    @property
    def logprobs(self) -> list[tuple[float, list[tuple[int, float]]]]:
        """
        For each token of the last take(), if wanted: its log probability in the model's own distribution, and pairs (token id, log probability) of the likeliest tokens.
        """
    @property
    def read_tokens(self) -> int: ...
    @property
    def times(self) -> tuple[float, float, float, int, int]:
        """
        Seconds until its first pass, from there to the first token and from there to the last one; how many steps came after the first token, and how many tokens they chose, an end token too.
        """

class Engine:
    """
    Continues many texts of a model at once.
    """
    def __init__(
        self,
        model: Model,
        *,
        most_running: typing.SupportsInt | typing.SupportsIndex = 32,
        kv_bytes: typing.SupportsInt | typing.SupportsIndex = 9223372036854775807,
        prefix_cache_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        prefix_cache_folder: str | None = None,
        prefix_cache_folder_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        model_digest: bytes = b"",
        drafts: str = "paying",
        most_drafted: typing.SupportsInt | typing.SupportsIndex = 14,
        drafter: Model | None = None,
        draft_tokens: typing.SupportsInt | typing.SupportsIndex = 14,
        drafter_kv_bytes: typing.SupportsInt | typing.SupportsIndex = 9223372036854775807,
        drafter_cache_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        rehearsed: tuple[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            typing.SupportsFloat | typing.SupportsIndex,
        ]
        | None = None,
    ) -> None:
        """
        `most_running`: the most requests that advance together. `kv_bytes`: the limit for keys and values, in addition to one full context. `model_digest`: 32 bytes that name the model in the folder. `drafts`: when draft tokens are used: 'never', 'paying' (where it is faster) or 'always'; at most `most_drafted` in a step. `drafter`: a draft model built beside this one; it proposes at most `draft_tokens` tokens for a request at a time. `rehearsed`, for measurements: (the ids of the only text, the share of the drafter's tokens that are to be accepted).
        """
    def close(self) -> None:
        """
        Ends all requests ('cancelled') and waits for the worker.
        """
    def stats(self) -> dict[str, int | float]:
        """
        Counts since the engine began, and what is in use now.
        """
    def submit(
        self,
        prompt: numpy.ndarray | typing_extensions.Buffer | list[int],
        *,
        sampler: Sampler | None = None,
        news: News,
        wanted: str = "text",
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 1,
        end_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        adapter: Adapter | None = None,
        priority: typing.SupportsInt | typing.SupportsIndex = 0,
        timeout: typing.SupportsFloat | typing.SupportsIndex | None = None,
        most_unread: typing.SupportsInt | typing.SupportsIndex = 16,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
        logprobs: typing.SupportsInt | typing.SupportsIndex | None = None,
        first_row: typing.SupportsInt | typing.SupportsIndex = 0,
        masked: bool = False,
        media: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, Media]] = [],
    ) -> Request:
        """
        Begins a request about the token ids of a prompt [n]. `wanted`: 'text' continues it, 'logits' gives those after each token from number `first_row` on, 'embedding' is for models that make embeddings. `masked`: each token of a text waits for Request.set_mask(). `media`: (first token, Media) pairs, in order.
        """
    def wait(
        self,
        news: News,
        seen: typing.SupportsInt | typing.SupportsIndex,
        patience: typing.SupportsFloat | typing.SupportsIndex | None = None,
    ) -> None:
        """
        Waits until the news differ from `seen`, at most this many seconds. Signal handlers run meanwhile.
        """
    @property
    def prefix_cache(self) -> PrefixCache:
        """
        What it keeps of texts that have ended.
        """

class SiglipConfig:
    """
    The sizes of Gemma 3's vision tower.
    """
    def __init__(
        self,
        *,
        image_size: typing.SupportsInt | typing.SupportsIndex,
        patch_size: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        intermediate_size: typing.SupportsInt | typing.SupportsIndex,
        num_layers: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        layer_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
        tokens_per_side: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def activation_bytes(self, hidden_size: typing.SupportsInt | typing.SupportsIndex, weights: str) -> int:
        """
        Bytes that an image takes on its way, in a model of this hidden size with weights of that format.
        """

class SiglipTower:
    """
    Gemma 3's vision tower and projector, in a loaded model.
    """
    def __init__(self, model: Model, config: SiglipConfig) -> None: ...
    def encode(
        self, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], adapter: Adapter | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        From normalised pixels, float32 [size, size, 3], to soft tokens, float32 [tokens, hidden_size]. Ctrl-C ends it at the next layer.
        """

class Gemma4VisionConfig:
    """
    The sizes of Gemma 4's vision tower.
    """
    def __init__(
        self,
        *,
        patch_size: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        intermediate_size: typing.SupportsInt | typing.SupportsIndex,
        num_layers: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        num_kv_heads: typing.SupportsInt | typing.SupportsIndex,
        head_dim: typing.SupportsInt | typing.SupportsIndex,
        pool: typing.SupportsInt | typing.SupportsIndex,
        positions: typing.SupportsInt | typing.SupportsIndex,
        clipped: bool,
        standardize: bool,
        rope_theta: typing.SupportsFloat | typing.SupportsIndex,
        rms_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def activation_bytes(
        self,
        tokens: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        weights: str,
    ) -> int:
        """
        Bytes of memory that encoding an image of this many tokens takes.
        """

class Gemma4VisionTower:
    """
    Gemma 4's vision tower, in a loaded model.
    """
    def __init__(self, model: Model, config: Gemma4VisionConfig) -> None: ...
    def encode(
        self, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], adapter: Adapter | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        From pixels between 0 and 1, float32 [height, width, 3], of whole tokens, to soft tokens, float32 [tokens, hidden_size]. Ctrl-C ends it at the next layer.
        """

class UnifiedVisionEmbedder:
    """
    What makes soft tokens of an image in the unified Gemma 4, in a loaded model.
    """
    def __init__(
        self,
        model: Model,
        *,
        tile_size: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        positions: typing.SupportsInt | typing.SupportsIndex,
        rms_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def encode(
        self, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], adapter: Adapter | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        As Gemma4VisionTower.encode().
        """

class MobileNetBlock:
    """
    A block of Gemma 3n's vision tower.
    """
    def __init__(
        self,
        *,
        kind: str,
        in_channels: typing.SupportsInt | typing.SupportsIndex,
        out_channels: typing.SupportsInt | typing.SupportsIndex,
        inner: typing.SupportsInt | typing.SupportsIndex,
        start_kernel: typing.SupportsInt | typing.SupportsIndex,
        middle_kernel: typing.SupportsInt | typing.SupportsIndex,
        stride: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        head_dim: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class MobileNetConfig:
    """
    The sizes of Gemma 3n's vision tower.
    """
    def __init__(
        self,
        *,
        height: typing.SupportsInt | typing.SupportsIndex,
        width: typing.SupportsInt | typing.SupportsIndex,
        stem_channels: typing.SupportsInt | typing.SupportsIndex,
        stages: collections.abc.Sequence[collections.abc.Sequence[MobileNetBlock]],
        fused_inner: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        tokens_per_side: typing.SupportsInt | typing.SupportsIndex,
        rms_norm_eps: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def activation_bytes(self, hidden_size: typing.SupportsInt | typing.SupportsIndex, weights: str) -> int:
        """
        Bytes that an image takes on its way, in a model of this hidden size with weights of that format.
        """

class MobileNetTower:
    """
    Gemma 3n's vision tower and embedder, in a loaded model.
    """
    def __init__(self, model: Model, config: MobileNetConfig) -> None: ...
    def encode(
        self, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], adapter: Adapter | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        From pixels between 0 and 1, float32 [height, width, 3], to soft tokens, float32 [tokens, hidden_size]. Ctrl-C ends it at the next block.
        """

def after_pieces(data: bytes, at: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    The end of the run of pieces that begins at `at` in `data`, a file of SentencePiece.
    """

def available_memory(*, files: str = "") -> int:
    """
    Bytes of memory that this process may still take, of the machine's and within its cgroup's limit.
    """

def check_device(name: str) -> None:
    """
    Raises UnsupportedError if this build or this machine does not have the device.
    """

def cpu_info() -> dict[str, typing.Any]:
    """
    CPU features, tiers found, tier in use and why, kernel tiers, limits on threads.
    """

def cuda_info() -> dict[str, typing.Any]:
    """
    The CUDA version of the driver (0: none), why device 'cuda' is not used (None: it can be), and all GPUs.
    """

def default_threads(*, files: str = "") -> tuple[int, str]:
    """
    Threads used when none are asked for, and why. Tests keep /proc and /sys in the folder `files`.
    """

def free_memory(device: str) -> int:
    """
    Bytes of a GPU's memory that are free; 0 for 'cpu'.
    """

def logprobs(
    logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    ids: numpy.ndarray | typing_extensions.Buffer | list[int],
    top: typing.SupportsInt | typing.SupportsIndex,
) -> list[tuple[float, list[tuple[int, float]]]]:
    """
    For each row of logits [n, vocab] the log probability of a token id [n], and pairs (token id, log probability) of the `top` likeliest.
    """

def measure_read_bandwidth(
    *,
    threads: typing.SupportsInt | typing.SupportsIndex,
    megabytes: typing.SupportsInt | typing.SupportsIndex = 512,
) -> float:
    """
    Memory read bandwidth in GB/s.
    """

def mono(
    samples: numpy.ndarray,
    *,
    rate: typing.SupportsInt | typing.SupportsIndex,
    most: typing.SupportsInt | typing.SupportsIndex,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    float32 [n]: the mean of the channels of samples [frames] or [frames, channels], float32 or int16, at 16 kHz; at most the first `most`.
    """

def number_limits() -> dict[str, tuple[float, float]]:
    """
    (least, largest) value of the real fields of LayerConfig and ModelConfig.
    """

def piece_encoder(model: bytes) -> PieceEncoder:
    """
    The encoder of a SentencePiece model. None if SentencePiece refuses the model, or if the model is anything but byte-pair encoding of unchanged text.
    """

def resize_image(
    image: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8],
    *,
    height: typing.SupportsInt | typing.SupportsIndex,
    width: typing.SupportsInt | typing.SupportsIndex,
    filter: str,
) -> numpy.typing.NDArray[numpy.uint8]:
    """
    An image, uint8 [height, width, 3], in another size: 'bilinear' or 'bicubic' with antialiasing, the same levels as torchvision's.
    """

def return_free_memory() -> None:
    """
    Returns freed memory that malloc still holds to the system.
    """

def rises_to(data: bytes, last: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether the little-endian numbers of 32 bits in `data` never fall, and end with `last`.
    """

def size_limits() -> dict[str, tuple[int, int]]:
    """
    (least, largest) value of the integer fields of LayerConfig and ModelConfig; 'layers' is their number.
    """

def source_types() -> dict[str, tuple[int, int, str | None]]:
    """
    The types in which files may store tensors: name -> (values of a block, bytes of a block, the smallest format of weights that can hold every value of the type, or None).
    """

def widen(
    data: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], dtype: str
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Rows of a file's blocks, uint8 [rows, bytes], as float32 [rows, values].
    """

KV_BLOCK_TOKENS: int = 64
LAYOUT_VERSION: int = 2
MAX_DRAFT_TOKENS: int = 14
MAX_THREADS: int = 1024
MOST_SOUND_SECONDS: int = 3600
PASS_TEXTS: int = 32
PASS_TOKENS: int = 512
SOUND_RATE: int = 16000
__version__: str = "0.1.0"
