"""Self-attention of every family: grouped heads, windows, q/k/v norms, k = v, keys shared between layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blocks
from .config import Layer
from .model import Cache, Model

Array = NDArray[Any]
Spans = Sequence[tuple[int, int]]


def attention(model: Model, index: int, x: Array, positions: Array, cache: Cache, spans: Spans = ()) -> Array:
    """Normed x [n, d] at absolute positions [n] -> o_proj output [n, d].

    A layer with its own keys appends them to the cache. Its x has every token of the call. `spans` are
    absolute positions (begin, end).
    """
    layer, at, n = model.config.layers[index], f"layers.{index}", len(x)
    q = model.linear(x, f"{at}.q_proj").reshape(n, layer.num_heads, layer.head_dim)
    if layer.qk_norm:  # over each head's lanes, before rope
        q = model.norm(q, f"{at}.q_norm")
    q = blocks.rotate(q, positions, layer.rope)

    if layer.kv_source is None:
        cache.append(index, *keys_and_values(model, index, x, positions))
    k, v = cache.layers[index if layer.kv_source is None else layer.kv_source]

    k, v = spread(k, layer), spread(v, layer)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) * x.dtype.type(layer.query_scale)  # [H, n, T']
    scores = blocks.softcap(scores, layer.attention_softcap)  # before the mask
    scores = np.where(visible(layer, positions, len(k), spans), scores, -np.inf)
    mixed = blocks.softmax(scores) @ v.transpose(1, 0, 2)  # [H, n, h]
    return model.linear(mixed.transpose(1, 0, 2).reshape(n, -1), f"{at}.o_proj")


def keys_and_values(model: Model, index: int, x: Array, positions: Array) -> tuple[Array, Array]:
    """The new entries of a layer's cache: keys [n, K, h] after norm and rope, values [n, K, h]."""
    layer, at = model.config.layers[index], f"layers.{index}"
    shape = (len(x), layer.num_kv_heads, layer.head_dim)
    k = model.linear(x, f"{at}.k_proj").reshape(shape)
    v = k if layer.key_is_value else model.linear(x, f"{at}.v_proj").reshape(shape)
    if layer.qk_norm:
        k = model.norm(k, f"{at}.k_norm")
    if layer.v_norm:  # norm of v's projection; if k = v, of the projected keys before their own norm
        v = model.norm(v, None)
    return blocks.rotate(k, positions, layer.rope), v


def spread(x: Array, layer: Layer) -> Array:
    """[T', K, h] -> [T', H, h]: query head j reads kv head j // (H / K)."""
    return np.repeat(x, layer.num_heads // layer.num_kv_heads, axis=1)


def visible(layer: Layer, positions: Array, keys: int, spans: Spans = ()) -> Array:
    """[n, keys] of bool: whether the query at positions[i] sees the key. The newest key is at
    positions[-1]."""
    query, key = positions[:, None], np.arange(positions[-1] + 1 - keys, positions[-1] + 1)[None]
    back = key > query - layer.sliding_window if layer.sliding_window else key >= 0
    if layer.bidirectional:
        return back & (key < query + layer.sliding_window if layer.sliding_window else key >= 0)
    ahead = key <= query
    if layer.bidirectional_spans:
        for begin, end in spans:
            ahead |= (begin <= query) & (query < end) & (begin <= key) & (key < end)
    return back & ahead
