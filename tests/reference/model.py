"""A model (configuration and weights) and its cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import blocks
from .config import Config, Layer, read_config
from .weights import read_weights

Array = NDArray[Any]


@dataclass
class Model:
    """Configuration and weights. All computations use the dtype of the weights."""

    config: Config
    weights: dict[str, Array]

    @classmethod
    def open(cls, folder: Path, dtype: Any = np.float32) -> Model:
        config = read_config(folder)
        weights = {name: w.astype(dtype) for name, w in read_weights(folder, config).items()}
        return cls(config, weights)

    def norm(self, x: Array, slot: str | None) -> Array:
        """RMSNorm with the weight of a slot, or without a weight for None."""
        if slot is None:
            return blocks.rms_norm(x, np.ones(1, x.dtype), self.config.rms_norm_eps, 0.0)
        return blocks.rms_norm(x, self.weights[slot], self.config.rms_norm_eps, self.config.norm_offset)

    def linear(self, x: Array, slot: str) -> Array:
        """W x for every row of x."""
        return x @ self.weights[slot].T


@dataclass
class Cache:
    """Keys and values of the tokens so far: layer -> ([T', K, h] after norm and rope, [T', K, h]), newest
    last.

    During a call, the cache grows by the call's tokens, so that layers which share another layer's keys find
    all of them. After the call, a sliding layer keeps the window - 1 tokens that the next query can still
    see.
    """

    length: int = 0
    layers: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def append(self, index: int, keys: Array, values: Array) -> None:
        if index in self.layers:
            keys = np.concatenate([self.layers[index][0], keys])
            values = np.concatenate([self.layers[index][1], values])
        self.layers[index] = (keys, values)

    def advance(self, tokens: int, layers: tuple[Layer, ...]) -> None:
        self.length += tokens
        for index, (keys, values) in self.layers.items():
            window = layers[index].sliding_window
            forget = max(0, len(keys) - (window - 1)) if window else 0
            self.layers[index] = (keys[forget:], values[forget:])
