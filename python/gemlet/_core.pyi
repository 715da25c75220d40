from collections.abc import Callable, Sequence as _Seq
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

def cpu_info() -> dict[str, Any]: ...
def default_threads() -> tuple[int, str]: ...
def measure_read_bandwidth(*, threads: int, megabytes: int = 512) -> float: ...

@final
class LayerConfig:
    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        query_scale: float,
        rope_theta: float,
        rope_scaling_factor: float = 1.0,
        sliding_window: int = 0,
        attention_softcap: float = 0.0,
        qk_norm: bool = False,
        post_norms: bool = False,
    ) -> None: ...
    # read-only properties of the same names

@final
class ModelConfig:
    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        max_context: int,
        rms_norm_eps: float,
        embedding_scale: float,
        layers: _Seq[LayerConfig],
        final_softcap: float = 0.0,
        norm_offset: float = 0.0,
        tied_embeddings: bool = True,
    ) -> None: ...
    # read-only properties of the same names

@final
class ModelBuilder:
    def __init__(
        self, *, config: ModelConfig, weights: str, embedding: str, kv_cache: str, threads: int
    ) -> None: ...
    def tensors(self) -> dict[str, tuple[int, ...]]: ...  # slot -> expected shape
    def add(self, name: str, data: NDArray[Any], dtype: str) -> None: ...  # dtype "f32" (float32 array), "bf16"/"f16" (uint16 array)
    def add_random(self, *, seed: int) -> None: ...  # fills every slot with random weights (benchmarks)
    def finish(self) -> Model: ...

@final
class Model:
    config: ModelConfig
    threads: int
    weights: str
    tier: str
    def memory(self) -> dict[str, int]: ...  # bytes by kind: weights, embedding, kv_cache_per_token ...
    def bytes_per_token(self, *, depth: int = 0) -> int: ...  # bytes a decode step reads
    def taps(self, ids: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]: ...
    def close(self) -> None: ...

@final
class Sampler:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        seed: int,
        vocab_limit: int = 0,
    ) -> None: ...
    def sample(self, logits: NDArray[np.float32], history: NDArray[np.int32]) -> int: ...

@final
class Sequence:
    """One context: its tokens and their keys and values."""
    def __init__(self, model: Model) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...
    def extend(self, ids: NDArray[np.int32], *, logits: str = "last") -> None: ...  # "none" | "last" | "all"; GIL released; one call = one or more chunks
    def logits(self) -> NDArray[np.float32]: ...  # [rows, vocab] of the last extend
    def sample(self, sampler: Sampler) -> int: ...  # from the last row of logits; repetition history = token_ids
    def cancel(self) -> None: ...  # from another thread: a running extend raises CancelledError
    def close(self) -> None: ...
