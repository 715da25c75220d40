"""One forward pass for Gemma 1, 2 and 3, prefill and decode alike. Shapes: csrc/MODEL.md, "Notation".

n tokens of this call, T' tokens whose keys are at hand, d hidden size, H / K query / kv heads, h head dim,
f MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config, Layer, read_config
from .weights import read_weights

Array = NDArray[Any]


@dataclass
class Model:
    """Configuration and weights; every computation happens in the dtype of the weights."""

    config: Config
    weights: dict[str, Array]

    @classmethod
    def open(cls, folder: Path, dtype: Any = np.float32) -> Model:
        config = read_config(folder)
        weights = {name: w.astype(dtype) for name, w in read_weights(folder, config).items()}
        return cls(config, weights)


@dataclass
class Cache:
    """Keys and values seen so far: layer -> ([T', K, h] after norm and rope, [T', K, h]), newest last.

    A sliding layer keeps the window - 1 tokens the next query can still see; the others keep everything.
    """

    length: int = 0
    layers: dict[int, tuple[Array, Array]] = field(default_factory=dict)


def rms_norm(x: Array, weight: Array, eps: float, offset: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * (offset + weight), over the last axis."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * (x.dtype.type(offset) + weight)


def gelu(x: Array) -> Array:
    """The tanh approximation, which all Gemma models were trained with."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softcap(x: Array, cap: float) -> Array:
    return x if cap == 0 else cap * np.tanh(x / cap)


def rotate(x: Array, positions: Array, theta: float, factor: float) -> Array:
    """RoPE on x [n, heads, h]: lane i turns with lane i + h/2 by position * theta^(-2i/h) / factor.

    Frequency and angle are rounded to float32 whatever the dtype of x: the official implementation does, and
    at far positions an exact angle is visibly another angle.
    """
    half = x.shape[-1] // 2
    frequency = (theta ** (-np.arange(half) / half) / factor).astype(np.float32)  # [h/2]
    angle = positions.astype(np.float32)[:, None, None] * frequency  # [n, 1, h/2]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(model: Model, index: int, x: Array, cache: Cache) -> Array:
    """Self-attention of one layer: normed x [n, d] -> o_proj output [n, d]; appends to the cache."""
    layer, eps, offset = model.config.layers[index], model.config.rms_norm_eps, model.config.norm_offset
    w = {p: model.weights[f"layers.{index}.{p}"] for p in ("q_proj", "k_proj", "v_proj", "o_proj")}
    n, h = len(x), layer.head_dim
    positions = np.arange(cache.length, cache.length + n)

    q = (x @ w["q_proj"].T).reshape(n, layer.num_heads, h)
    k = (x @ w["k_proj"].T).reshape(n, layer.num_kv_heads, h)
    v = (x @ w["v_proj"].T).reshape(n, layer.num_kv_heads, h)
    if layer.qk_norm:  # over each head's lanes, before rope
        q = rms_norm(q, model.weights[f"layers.{index}.q_norm"], eps, offset)
        k = rms_norm(k, model.weights[f"layers.{index}.k_norm"], eps, offset)
    q = rotate(q, positions, layer.rope_theta, layer.rope_factor)
    k = rotate(k, positions, layer.rope_theta, layer.rope_factor)

    if index in cache.layers:
        k = np.concatenate([cache.layers[index][0], k])
        v = np.concatenate([cache.layers[index][1], v])
    keep = layer.sliding_window - 1 if layer.sliding_window else len(k)
    cache.layers[index] = (k[max(0, len(k) - keep) :], v[max(0, len(v) - keep) :])

    k, v = spread(k, layer), spread(v, layer)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) * x.dtype.type(layer.query_scale)  # [H, n, T']
    scores = softcap(scores, layer.attention_softcap)  # before the mask
    scores = np.where(visible(layer, positions, len(k)), scores, -np.inf)
    mixed = softmax(scores) @ v.transpose(1, 0, 2)  # [H, n, h]
    return mixed.transpose(1, 0, 2).reshape(n, -1) @ w["o_proj"].T


def spread(x: Array, layer: Layer) -> Array:
    """[T', K, h] -> [T', H, h]: query head j reads kv head j // (H / K)."""
    return np.repeat(x, layer.num_heads // layer.num_kv_heads, axis=1)


def visible(layer: Layer, positions: Array, keys: int) -> Array:
    """[n, keys] of bool: may the query at positions[i] see the key? The newest key is at positions[-1]."""
    query, key = positions[:, None], np.arange(positions[-1] + 1 - keys, positions[-1] + 1)[None]
    causal = key <= query
    return causal & (key > query - layer.sliding_window) if layer.sliding_window else causal


def mlp(model: Model, index: int, x: Array) -> Array:
    """down(gelu(gate x) * up x): normed x [n, d] -> [n, d]."""
    gate, up, down = (model.weights[f"layers.{index}.{p}"] for p in ("gate_proj", "up_proj", "down_proj"))
    return (gelu(x @ gate.T) * (x @ up.T)) @ down.T


def forward(
    model: Model, ids: Array, cache: Cache | None = None, taps: dict[str, Array] | None = None
) -> Array:
    """Logits [n, vocab] of ids [n], which follow whatever the cache has seen.

    `taps`, if given, receives the named intermediate results of tests/golden.
    """
    config, weights = model.config, model.weights
    cache = Cache() if cache is None else cache
    taps = {} if taps is None else taps

    def norm(x: Array, name: str) -> Array:
        return rms_norm(x, weights[name], config.rms_norm_eps, config.norm_offset)

    x = weights["embed_tokens"][ids]
    x = taps["embed"] = x * x.dtype.type(config.embedding_scale)
    for index, layer in enumerate(config.layers):
        at = f"layers.{index}"
        branch = taps[f"{at}.attention"] = attention(model, index, norm(x, f"{at}.pre_attention_norm"), cache)
        x = x + (norm(branch, f"{at}.post_attention_norm") if layer.post_norms else branch)
        branch = taps[f"{at}.mlp"] = mlp(model, index, norm(x, f"{at}.pre_mlp_norm"))
        x = x + (norm(branch, f"{at}.post_mlp_norm") if layer.post_norms else branch)
        taps[f"{at}.output"] = x
    cache.length += len(ids)
    x = taps["final_norm"] = norm(x, "final_norm")
    logits = taps["logits"] = softcap(x @ weights["lm_head"].T, config.final_softcap)
    return logits


def greedy(model: Model, ids: Array, count: int) -> list[int]:
    """`count` ids by argmax after ids, with a cache; no id ends it."""
    cache, chosen = Cache(), []
    logits = forward(model, ids, cache)
    for _ in range(count):
        chosen.append(int(np.argmax(logits[-1])))
        logits = forward(model, np.array(chosen[-1:]), cache)
    return chosen
