"""Gemma 4's mixture of experts, which runs in addition to the dense MLP."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blocks
from .model import Model

Array = NDArray[Any]


def experts(model: Model, index: int, x: Array) -> Array:
    """The sum of the chosen experts: residual x [n, d] -> [n, d]. The router gets x, the experts its norm."""
    at = f"layers.{index}"
    gates = route(model, index, x)  # [n, E], 0 where not chosen
    gate_up, down = model.weights[f"{at}.experts_gate_up"], model.weights[f"{at}.experts_down"]
    u = model.norm(x, f"{at}.pre_moe_norm")
    total = np.zeros_like(x)
    for expert in range(gates.shape[1]):
        rows = np.flatnonzero(gates[:, expert])
        gate, up = np.split(u[rows] @ gate_up[expert].T, 2, axis=-1)  # [rows, m] each
        total[rows] += gates[rows, expert, None] * (
            (blocks.activation(model.config, gate) * up) @ down[expert].T
        )
    return total


def route(model: Model, index: int, x: Array) -> Array:
    """[n, E]: the weight of each expert for a token."""
    at, count = f"layers.{index}", model.config.layers[index].experts_per_token
    t = model.norm(x, None) * model.weights[f"{at}.router_scale"] * x.dtype.type(x.shape[-1] ** -0.5)
    shares = blocks.softmax(model.linear(t, f"{at}.router_proj"))  # over all E
    best = np.argsort(-shares, axis=-1, kind="stable")[:, :count]
    chosen = np.take_along_axis(shares, best, axis=-1)
    gates = np.zeros_like(shares)
    np.put_along_axis(gates, best, chosen / chosen.sum(axis=-1, keepdims=True), axis=-1)
    return gates * model.weights[f"{at}.router_per_expert_scale"]  # after the shares were scaled to the sum 1
