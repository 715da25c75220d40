"""Makes small random models through the C++ core's interface, without files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlet import _core

VOCAB, HIDDEN, CONTEXT = 96, 64, 200


def int32(*ids: int) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


def layer_config(**changes: Any) -> _core.LayerConfig:
    values: dict[str, Any] = {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "query_scale": 0.25,
        "rope_theta": 10_000.0,
        "sliding_window": 8,
        "qk_norm": True,
        "post_norms": True,
    }
    return _core.LayerConfig(**{**values, **changes})


def model_config(*layers: _core.LayerConfig, **changes: Any) -> _core.ModelConfig:
    """The configuration of a small model. By default, it has one sliding and one global layer."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "max_context": CONTEXT,
        "rms_norm_eps": 1e-6,
        "embedding_scale": 8.0,
        "norm_offset": 1.0,
        "layers": list(layers) or [layer_config(), layer_config(sliding_window=0)],
    }
    return _core.ModelConfig(**{**values, **changes})


def builder_of(
    config: _core.ModelConfig | None = None, weights: str = "f32", **changes: Any
) -> _core.ModelBuilder:
    values: dict[str, Any] = {
        "config": config or model_config(),
        "weights": weights,
        "embedding": weights,
        "kv_cache": "f32",
        "threads": 1,
    }
    return _core.ModelBuilder(**{**values, **changes})


def random_core(
    config: _core.ModelConfig | None = None, max_context: int = CONTEXT, **changes: Any
) -> _core.Model:
    builder = builder_of(config or model_config(max_context=max_context), **changes)
    builder.add_random(seed=1)
    return builder.finish()


def sampler(**changes: Any) -> _core.Sampler:
    values: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 1,
    }
    return _core.Sampler(**{**values, **changes})
