"""Small functions that every family uses. Modules call them as blocks.name, so that a test can replace
one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config, Rope

Array = NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float, offset: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * (offset + weight), over the last axis."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * (x.dtype.type(offset) + weight)


def gelu(x: Array) -> Array:
    """The tanh approximation, which all Gemma models were trained with."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))


def exact_gelu(x: Array) -> Array:
    """x times the probability that a normal number is smaller."""
    return x / 2 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * 2**-0.5))


def activation(config: Config, x: Array) -> Array:
    """The GELU of a text model."""
    return exact_gelu(x) if config.exact_gelu else gelu(x)


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softcap(x: Array, cap: float) -> Array:
    return x if cap == 0 else cap * np.tanh(x / cap)


def rope_frequencies(rope: Rope, head_dim: int) -> Array:
    """float32 [h/2]: theta^(-2i/h) / factor, 0 for the pairs that do not rotate.

    Each step is rounded to float32, as in the official implementation. At position 100,000, one bit in a
    frequency changes the angle visibly.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers / np.float32(rope.factor)
    frequencies[int(rope.partial_factor * head_dim // 2) :] = 0
    return frequencies


def rotate(x: Array, positions: Array, rope: Rope) -> Array:
    """RoPE on x [n, heads, h]: lane i is rotated with lane i + h/2 by position * frequency_i.

    The angle is rounded to float32 for every dtype of x, as in the official implementation.
    """
    half = x.shape[-1] // 2
    angle = positions.astype(np.float32)[:, None, None] * rope_frequencies(rope, x.shape[-1])  # [n, 1, h/2]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
