"""Gemma 3n's AltUp and LAuReL. AltUp has several residual streams x [S, n, d]; layers compute on one of
them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model import Model

Array = NDArray[Any]


def like(y: Array, target: Array) -> Array:
    """y with the magnitude of target, per token."""
    mean_square = np.mean(y * y, axis=-1, keepdims=True)
    magnitude = np.sqrt(np.mean(target * target, axis=-1, keepdims=True))
    return y * magnitude / np.sqrt(np.maximum(mean_square, y.dtype.type(1e-5)))


def open_streams(model: Model, embedded: Array) -> Array:
    """[n, d] -> [S, n, d]: the embedding itself and its projections."""
    count = model.config.altup_streams
    others = [like(model.linear(embedded, f"altup_projections.{k}"), embedded) for k in range(count - 1)]
    return np.stack([embedded, *others])


def close_streams(model: Model, x: Array) -> Array:
    """[S, n, d] -> [n, d]: the mean of stream 0 and the projections of the others."""
    count = model.config.altup_streams
    others = [like(model.linear(x[k + 1], f"altup_unembed_projections.{k}"), x[0]) for k in range(count - 1)]
    return np.mean(np.stack([x[0], *others]), axis=0)


def route(model: Model, index: int, t: Array) -> Array:
    """[n, d] -> [n, S]: the input of the mixing coefficients. It is divided by d, not by its root."""
    at = f"layers.{index}"
    scaled = model.norm(t, f"{at}.altup_router_norm") * t.dtype.type(1 / t.shape[-1])
    return np.tanh(model.linear(scaled, f"{at}.altup_router"))


def predict(model: Model, index: int, x: Array) -> Array:
    """y_k = x_k + sum over j of c[k, j] x_j, c from the active stream."""
    count = len(x)
    mixing = model.linear(route(model, index, x[0]), f"layers.{index}.altup_prediction_coefs")
    mixing = mixing.reshape(-1, count, count)  # [n, k, j]
    return x + np.einsum("nkj,jnd->knd", mixing, x)


def correct(model: Model, index: int, y: Array, activated: Array) -> Array:
    """x_k = y_k + c_k (z - y_0): every stream gets a share of the change of the active stream."""
    mixing = (
        model.linear(route(model, index, activated), f"layers.{index}.altup_correction_coefs") + 1
    )  # [n, S]
    return y + mixing.T[:, :, None] * (activated - y[0])


def laurel(model: Model, index: int, u: Array) -> Array:
    """u + norm(right(left u)): normed input u [n, d] -> [n, d]."""
    at = f"layers.{index}"
    low_rank = model.linear(model.linear(u, f"{at}.laurel_left"), f"{at}.laurel_right")
    return u + model.norm(low_rank, f"{at}.post_laurel_norm")


def with_laurel(branch: Array, learned: Array) -> Array:
    """The residual after attention: (y_0 + attention + laurel) / sqrt(2)."""
    return (branch + learned) * branch.dtype.type(2**-0.5)
