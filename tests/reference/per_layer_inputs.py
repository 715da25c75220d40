"""Per-layer inputs of Gemma 3n, 4 E2B and E4B, and EmbeddingGemma 2: a small vector per token and layer,
computed before layer 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blocks
from .model import Model

Array = NDArray[Any]


def per_layer_inputs(model: Model, ids: Array, embedded: Array) -> Array:
    """[n, L, P] of ids [n] and their scaled embeddings [n, d]."""
    width = model.config.per_layer_input_size
    shape = (len(ids), len(model.config.layers), width)
    of_context = model.linear(embedded, "per_layer_model_projection") * embedded.dtype.type(
        embedded.shape[-1] ** -0.5
    )
    of_context = model.norm(of_context.reshape(shape), "per_layer_projection_norm")
    table = model.weights.get("embed_tokens_per_layer")
    if table is None:  # EmbeddingGemma 2
        return of_context
    of_token = table[np.where(ids < len(table), ids, 0)] * embedded.dtype.type(width**0.5)
    return (of_context + of_token.reshape(shape)) * embedded.dtype.type(2**-0.5)


def per_layer_branch(model: Model, index: int, x: Array, p: Array) -> Array:
    """The part that layer `index` adds to the residual: x [n, d] and its per-layer inputs p [n, P] -> [n,
    d]."""
    at = f"layers.{index}"
    gate = model.linear(x, f"{at}.per_layer_input_gate")
    gated = blocks.activation(model.config, gate) * p
    return model.norm(model.linear(gated, f"{at}.per_layer_projection"), f"{at}.post_per_layer_input_norm")
