"""The gated MLP. Some layers of Gemma 3n have activation sparsity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blocks
from .model import Model

Array = NDArray[Any]


def mlp(model: Model, index: int, x: Array) -> Array:
    """down(gelu(gate x) * up x): normed x [n, d] -> [n, d]."""
    at = f"layers.{index}"
    gate = model.linear(x, f"{at}.gate_proj")  # [n, f]
    cutoff = model.config.layers[index].sparsity_cutoff
    if cutoff is not None:
        gate = above_cut(gate, cutoff)
    return model.linear(
        blocks.activation(model.config, gate) * model.linear(x, f"{at}.up_proj"), f"{at}.down_proj"
    )


def above_cut(gate: Array, cutoff: float) -> Array:
    """max(g - (mean + cutoff * std), 0) over the lanes of each token: the part of g above the cut."""
    mean, deviation = (
        gate.mean(axis=-1, keepdims=True),
        gate.std(axis=-1, keepdims=True),
    )  # over all lanes, divided by f
    return np.maximum(gate - (mean + gate.dtype.type(cutoff) * deviation), 0)
