"""The logits after each token of a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import MemoryLimitError, TensorError

__all__ = ["all_logits"]

# Rows of logits computed at a time: bounds the core's own buffer to 128 * vocab_size floats (134 MB for
# Gemma 3).
_CHUNK = 128


def all_logits(
    core: _core.Model, adapter: _core.Adapter | None, tokens: NDArray[np.int32], source: str
) -> NDArray[np.float32]:
    """float32 ``[n, vocab_size]`` for int32 ``[n]``; :meth:`gemlet.Model.logits` has the errors."""
    vocab_size = core.config.vocab_size
    try:
        result = np.empty((len(tokens), vocab_size), dtype=np.float32)
    except MemoryError:
        size = len(tokens) * vocab_size * 4
        raise MemoryLimitError(
            f"logits: {len(tokens)} rows of {vocab_size} need {size} bytes; pass fewer ids"
        ) from None
    sequence = _core.TokenSequence(core, adapter)
    try:
        for start in range(0, len(tokens), _CHUNK):
            stop = start + _CHUNK
            sequence.extend(tokens[start:stop], logits="all")
            result[start:stop] = sequence.logits()
            _check_finite(result[start:stop], start, source)
    finally:
        sequence.close()
    return result


def _check_finite(rows: NDArray[np.float32], first: int, source: str) -> None:
    if not np.isfinite([rows.min(), rows.max()]).all():  # one NaN makes both NaN
        bad = first + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise TensorError(
            f"{source}: the logits after token {bad} are not finite; the weights are damaged, or too large "
            "for their format"
        )
