"""One forward pass for every Gemma family, for prefill and decode. Shapes: csrc/MODEL.md, "Notation".

n is the number of tokens of this call, S the number of residual streams (1 except in Gemma 3n, where layers
compute on stream 0), d the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import altup, blocks, experts, mlp, per_layer_inputs
from . import attention as attending
from .model import Cache, Model

Array = NDArray[Any]


def forward(
    model: Model,
    ids: Array,
    cache: Cache | None = None,
    taps: dict[str, Array] | None = None,
    last_only: bool = False,
    soft_rows: Sequence[tuple[int, Array]] = (),
    spans: attending.Spans = (),
) -> Array:
    """Logits [n, vocab] of ids [n]. The ids follow the tokens in the cache.

    `taps`, if given, receives the named intermediate results of tests/golden. With `last_only` the result is
    the logits [1, vocab] of the last token, and the layers that share keys and values run for that token
    only. `soft_rows` are pairs of a first token and its ready-made embeddings [rows, d]. `spans` are pairs
    (begin, end) of tokens that see each other both ways. Both count from the first of `ids`.
    """
    config, weights = model.config, model.weights
    cache = Cache() if cache is None else cache
    taps = {} if taps is None else taps
    positions = np.arange(cache.length, cache.length + len(ids))

    embedded = weights["embed_tokens"][ids]
    embedded = taps["embed"] = embedded * embedded.dtype.type(config.embedding_scale)
    for first, rows in soft_rows:  # soft rows are not scaled
        embedded[first : first + len(rows)] = rows
    absolute = [(cache.length + begin, cache.length + end) for begin, end in spans]
    p = np.zeros((len(ids), len(config.layers), 0), embedded.dtype)
    if config.per_layer_input_size:
        p = per_layer_inputs.per_layer_inputs(model, ids, embedded)
        taps["per_layer_inputs"] = p.reshape(len(ids), -1)
    x = altup.open_streams(model, embedded)
    taps |= {f"stream.{k}": x[k] for k in range(1, len(x))}

    first_sharing = next((i for i, layer in enumerate(config.layers) if layer.kv_source is not None), None)
    for index in range(len(config.layers)):
        if last_only and index == first_sharing:
            x, p, positions = x[:, -1:], p[-1:], positions[-1:]
        x = decoder_layer(model, index, x, p[:, index], positions, cache, taps, absolute)
    cache.advance(len(ids), config.layers)

    merged = altup.close_streams(model, x[:, -1:] if last_only else x)
    normed = taps["final_norm"] = model.norm(merged, "final_norm")
    logits = taps["logits"] = blocks.softcap(normed @ weights["lm_head"].T, config.final_softcap)
    return logits


def embedding(model: Model, ids: Array, taps: dict[str, Array] | None = None) -> Array:
    """[D] of length 1 from an embedding model: the mean over all tokens, then the dense layers."""
    taps = {} if taps is None else taps
    forward(model, ids, taps=taps)
    del taps["logits"]
    x = taps["final_norm"].mean(axis=0)
    for i in range(model.config.dense_layers):
        x = model.linear(x, f"dense.{i}")
    return x / np.sqrt(np.sum(x * x))


def decoder_layer(
    model: Model,
    index: int,
    x: Array,
    p: Array,
    positions: Array,
    cache: Cache,
    taps: dict[str, Array],
    spans: attending.Spans,
) -> Array:
    """Streams x [S, n, d] and the per-layer inputs p [n, P] -> streams after the layer."""
    config, layer, at = model.config, model.config.layers[index], f"layers.{index}"
    streams = config.altup_streams > 1

    def post(branch: Array, slot: str) -> Array:
        return model.norm(branch, f"{at}.{slot}") if layer.post_norms else branch

    y = altup.predict(model, index, x) if streams else x
    u = model.norm(y[0], f"{at}.pre_attention_norm")
    branch = taps[f"{at}.attention"] = attending.attention(model, index, u, positions, cache, spans)
    z = y[0] + post(branch, "post_attention_norm")
    if streams:
        z = altup.with_laurel(z, altup.laurel(model, index, u))
    branch = taps[f"{at}.mlp"] = mlp.mlp(model, index, model.norm(z, f"{at}.pre_mlp_norm"))
    if layer.experts_per_token:
        routed = taps[f"{at}.moe"] = experts.experts(model, index, z)
        branch = model.norm(branch, f"{at}.post_dense_norm") + model.norm(routed, f"{at}.post_moe_norm")
    z = z + post(branch, "post_mlp_norm")

    x = altup.correct(model, index, y, z) if streams else z[None]
    if config.per_layer_input_size:
        x = add_per_layer_input(model, index, x, p)
    if layer.layer_scalar:
        x = x * model.weights[f"{at}.layer_scalar"]
    taps[f"{at}.output"] = x[0]
    taps |= {f"{at}.stream.{k}": x[k] for k in range(1, len(x))}
    return x


def add_per_layer_input(model: Model, index: int, x: Array, p: Array) -> Array:
    """In Gemma 4, the part is computed from the residual and added to it. In 3n, it is computed from stream 0
    and added to all other streams."""
    if len(x) == 1:
        return x + per_layer_inputs.per_layer_branch(model, index, x[0], p)
    seen = x[0] * model.weights[f"layers.{index}.altup_correct_scale"]
    added = per_layer_inputs.per_layer_branch(model, index, seen, p)
    return np.concatenate([x[:1], x[1:] + added])


def greedy(model: Model, ids: Array, count: int) -> list[int]:
    """The `count` ids that argmax chooses after ids, with a cache. No id ends the text."""
    cache, chosen = Cache(), []
    logits = forward(model, ids, cache)
    for _ in range(count):
        chosen.append(int(np.argmax(logits[-1])))
        logits = forward(model, np.array(chosen[-1:]), cache)
    return chosen
