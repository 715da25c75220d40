"""The RoPE types ``llama3`` and ``yarn``: each has a table of frequencies that does not depend on the text.

The formulas are those of transformers' ``modeling_rope_utils.py``. As there, each step is rounded to float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gemlet.base.arrays import NDArray, np

__all__ = ["Llama3", "Yarn"]


def _powers(theta: float, head_dim: int) -> NDArray[np.float32]:
    """float32 [head_dim / 2]: theta ** (2 i / head_dim)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (theta ** exponents.astype(np.float64)).astype(np.float32)


class Llama3(NamedTuple):
    """Long waves are stretched by ``factor``, short ones stay as they are, and those between are mixed.

    A wave is long if the context of the pretraining has fewer than ``low`` of them, and short if the context
    has more than ``high``.
    """

    factor: float
    low: float
    high: float
    pretrained_context: float

    @property
    def attention_factor(self) -> float:
        return 1.0

    def frequencies(self, theta: float, head_dim: int) -> tuple[float, ...]:
        """The ``head_dim / 2`` angles per position.

        >>> table = Llama3(8.0, 1.0, 4.0, 8192.0).frequencies(5e5, 128)
        >>> table[0], round(5e5 ** (-126 / 128) / table[-1], 4)
        (1.0, 8.0)
        """
        plain = 1 / _powers(theta, head_dim)
        waves = np.float32(2 * math.pi) * (1 / plain)  # in tokens; two steps, like in PyTorch
        is_long = waves > np.float32(self.pretrained_context / self.low)
        is_short = waves < np.float32(self.pretrained_context / self.high)
        factor = np.float32(self.factor)
        turns = np.float32(self.pretrained_context) * (1 / waves)
        share = (turns - np.float32(self.low)) / np.float32(self.high - self.low)
        mixed = (1 - share) * plain / factor + share * plain
        table = np.where(is_long, plain / factor, np.where(is_short, plain, mixed))
        return tuple(table.tolist())


class Yarn(NamedTuple):
    """Pairs that turn more than ``fast`` times in the context of the pretraining stay as they are. Those that
    turn less than ``slow`` times are stretched by ``factor``. Those between are mixed.

    Queries and keys are multiplied by ``attention_factor``, so scores have its square.
    """

    factor: float
    fast: float
    slow: float
    pretrained_context: float
    attention_factor: float
    whole_pairs: bool  # the bounds between the three kinds are rounded to whole pairs

    def frequencies(self, theta: float, head_dim: int) -> tuple[float, ...]:
        """The ``head_dim / 2`` angles per position.

        >>> table = Yarn(4.0, 32.0, 1.0, 8192.0, 1.0, True).frequencies(1e6, 256)
        >>> table[0], round(1e6 ** (-254 / 256) / table[-1], 4)
        (1.0, 4.0)
        """

        def pair_that_turns(times: float) -> float:
            return (
                head_dim * math.log(self.pretrained_context / (times * 2 * math.pi)) / (2 * math.log(theta))
            )

        first, last = pair_that_turns(self.fast), pair_that_turns(self.slow)
        if self.whole_pairs:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001
        pairs = np.arange(head_dim // 2, dtype=np.float32)
        kept = 1 - np.clip((pairs - np.float32(first)) / np.float32(last - first), 0, 1)
        powers = _powers(theta, head_dim)
        plain, stretched = 1 / powers, 1 / (np.float32(self.factor) * powers)
        return tuple((stretched * (1 - kept) + plain * kept).tolist())
