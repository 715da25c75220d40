"""
What only tests and benchmarks use.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing
import typing_extensions

import gemlet._core

__all__: list[str] = [
    "Context",
    "MatmulRun",
    "Step",
    "assistant_logits",
    "batch_logits",
    "bytes_read",
    "cache_bytes",
    "choose_tier",
    "conformer_taps",
    "distribution",
    "forward",
    "guard_memory",
    "guess",
    "kernel_attention",
    "kernel_blocks",
    "kernel_entries",
    "kernel_matmul",
    "kernel_roundtrip",
    "kernel_rowwise",
    "kv_formats",
    "limit_kv_cache",
    "measure_peak",
    "mobilenet_taps",
    "parameter_count",
    "parse_nodes",
    "peek",
    "plan_steps",
    "prefix",
    "rope_table",
    "siglip_taps",
    "taps",
    "weight_formats",
    "write_with_drafts",
]

class MatmulRun:
    """
    One matmul kernel on one thread with made-up numbers, for benchmarks.
    """
    def __init__(
        self,
        *,
        tier: str,
        operation: str,
        rows: typing.SupportsInt | typing.SupportsIndex,
        outputs: typing.SupportsInt | typing.SupportsIndex,
        cols: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def run(self) -> None:
        """
        Multiplies once.
        """
    @property
    def multiply_adds(self) -> int:
        """
        Multiply-adds of a run.
        """
    @property
    def weight_bytes(self) -> int:
        """
        Bytes of weights that a run reads.
        """

class Context:
    """
    The keys and values of one sequence, which forward() advances.
    """
    def __init__(self, model: gemlet._core.Model, adapter: gemlet._core.Adapter | None = None) -> None: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def length(self) -> int: ...

class Step:
    """
    New tokens of a context, for forward().
    """
    def __init__(
        self,
        context: Context,
        ids: numpy.ndarray | typing_extensions.Buffer | list[int],
        *,
        logits: str = "last",
        soft_rows: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, numpy.ndarray]
        ] = [],
        spans: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        ] = [],
        cancel_at: str = "",
    ) -> None: ...

def assistant_logits(
    target: gemlet._core.Model,
    assistant: gemlet._core.Model,
    ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    count: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[list[int], numpy.typing.NDArray[numpy.float32]]:
    """
    The most likely draft tokens of an assistant after some ids, one by one, and its logits, float32 [count, vocab].
    """

def batch_logits(
    model: gemlet._core.Model,
    ids: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    adapters: collections.abc.Sequence[gemlet._core.Adapter | None],
) -> list[numpy.typing.NDArray[numpy.float32]]:
    """
    Logits of fresh contexts that go through one forward pass together, float32 [len(ids[i]), vocab] each.
    """

def bytes_read(model: gemlet._core.Model) -> int:
    """
    Bytes of matrices, keys and values that all forward passes so far have read.
    """

def cache_bytes(sequence: gemlet._core.TokenSequence) -> int:
    """
    Bytes of the blocks with the keys and values of a context.
    """

def choose_tier(
    *,
    features: collections.abc.Sequence[str],
    xcr0: typing.SupportsInt | typing.SupportsIndex,
    forced: str | None = None,
) -> tuple[str, list[str]]:
    """
    (tier, supported tiers) of a machine described by feature names and XCR0.
    """

def conformer_taps(
    tower: gemlet._core.Conformer,
    features: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    valid: typing.SupportsInt | typing.SupportsIndex,
) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
    """
    Intermediate activations of a sound in the encoder by name, float32 [rows, dim].
    """

def distribution(
    sampler: gemlet._core.Sampler,
    logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    history: numpy.ndarray | typing_extensions.Buffer | list[int],
) -> list[tuple[int, float]]:
    """
    What Sampler.sample() draws from: pairs (token id, probability).
    """

def forward(steps: collections.abc.Sequence[Step]) -> list[numpy.typing.NDArray[numpy.float32] | None]:
    """
    One pass over several contexts: the logits that each step wants, float32 [rows, vocab], or None if it was cancelled. A step is cancelled when the pass makes the tap that its `cancel_at` names; 'start': before the pass.
    """

def guard_memory() -> None:
    """
    Models that are made from now on keep their memory closed while no operation of the backend runs. The process crashes when anything else reads or writes there.
    """

def guess(
    ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    lengths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    most: typing.SupportsInt | typing.SupportsIndex,
) -> list[list[int]]:
    """
    The draft tokens that PromptLookup proposes after the first `lengths[i]` ids of a text, for each length.
    """

def kernel_attention(
    *,
    tier: str,
    kv: str,
    q: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    keys: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    values: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    window: typing.SupportsInt | typing.SupportsIndex = 0,
    ahead: typing.SupportsInt | typing.SupportsIndex = 0,
    softcap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Attention of q [rows, head_dim] at `positions` over keys and values [tokens, head_dim]; kv is a format of the cache.
    """

def kernel_blocks(
    *, dtype: str, data: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], format: str
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Rows of a file's blocks, uint8 [rows, bytes], loaded into a format and converted back to float32 [rows, values].
    """

def kernel_entries() -> list[tuple[str, str]]:
    """
    (operation, tier) of every kernel compiled in.
    """

def kernel_matmul(
    *,
    tier: str,
    operation: str,
    x: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    w: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    expand: bool = False,
    scale: typing.SupportsFloat | typing.SupportsIndex = 0.0,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    x [rows, cols] times w [outputs, cols] transposed, with the kernel that `tier` has for `operation`. `expand`: weights in bf12 are expanded to bf16 first, as for many rows.
    """

def kernel_roundtrip(
    *, format: str, w: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]
) -> numpy.typing.NDArray[numpy.float32]:
    """
    w in a weight format and back: float32 of the same shape.
    """

def kernel_rowwise(
    *,
    tier: str,
    operation: str,
    x: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    other: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    third: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    scalar: typing.SupportsFloat | typing.SupportsIndex,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    A row operation on x [dim]; `other` and `third` are its further operands.
    """

def kv_formats() -> list[str]:
    """
    The formats of the KV cache.
    """

def limit_kv_cache(model: gemlet._core.Model, bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    From now on the caches of all contexts together take no memory that would exceed this.
    """

def measure_peak(
    *, kind: str, threads: typing.SupportsInt | typing.SupportsIndex, tier: str | None = None
) -> float:
    """
    1e9 multiply-adds per second on registers alone, with numbers of the kind 'f32', 'bf16' or 'i8', by the tier in use.
    """

def mobilenet_taps(
    tower: gemlet._core.MobileNetTower, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]
) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
    """
    The same of Gemma 3n's tower, float32 [places, channels].
    """

def parameter_count(model: gemlet._core.Model) -> int: ...
def parse_nodes(list: str) -> int:
    """
    The NUMA nodes of a list like '0-1,4', as bits.
    """

def peek(model: gemlet._core.Model) -> int:
    """
    The first byte of a model's embedding, read without the backend.
    """

def plan_steps(
    model: gemlet._core.Model,
    requests: collections.abc.Sequence[
        tuple[
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ]
    ],
    seconds_of: typing.Any,
) -> list[tuple[float, list[tuple[int, int]]]]:
    """
    The steps that the engine's scheduler would make for requests, without computing anything: when each ends, in seconds, and how far it takes which requests. A request is its time of arrival, the tokens of its prompt and how many tokens it writes. They are in the order of arrival. seconds_of(rows): the time of a step.
    """

def prefix(
    sequence: gemlet._core.TokenSequence, blocks: typing.SupportsInt | typing.SupportsIndex
) -> gemlet._core.TokenSequence:
    """
    Another context with the first blocks * 64 tokens, which shares the cache of them.
    """

def rope_table(
    layer: gemlet._core.LayerConfig,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    """
    (cosines, sines), float32 [positions, head_dim / 2], of the angles by which a layer turns queries and keys.
    """

def siglip_taps(
    tower: gemlet._core.SiglipTower, pixels: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]
) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
    """
    Intermediate activations of an image in the tower by name, float32 [patches, hidden].
    """

def taps(
    model: gemlet._core.Model,
    ids: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    logits: str = "all",
    soft_rows: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, numpy.ndarray]] = [],
    spans: collections.abc.Sequence[
        tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
    ] = [],
) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
    """
    Intermediate activations of a fresh context by name, float32 [rows, dim]: as many rows as the pass computed there, which are all ids where `logits` is 'all'.
    """

def weight_formats() -> list[str]:
    """
    The formats of weights in memory.
    """

def write_with_drafts(
    texts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    prompts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seconds_of: typing.Any,
) -> tuple[list[float], int, int]:
    """
    Simulates an engine that generates these texts together with draft tokens. The first `prompts[i]` tokens of a text are its prompt. seconds_of(rows): the time of a step. Returns the seconds until the end of each text, the number of draft tokens and the number of accepted ones.
    """
