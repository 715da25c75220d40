"""Computes the logits after each token of a text: :func:`all_logits`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.errors import MemoryLimitError, TensorError
from gemlet.model.resident import Resident
from gemlet.model.rows import rows_of

__all__ = ["all_logits"]


def all_logits(
    resident: Resident,
    adapter: _core.Adapter | None,
    tokens: array[int],
    soft_rows: Sequence[tuple[int, NDArray[np.float32]]] = (),
    spans: Sequence[tuple[int, int]] = (),
) -> NDArray[np.float32]:
    """The logits after each of ``tokens``, float32 ``[n, vocab_size]``.

    Each pair in ``soft_rows`` is the index of a token, and rows that replace this token and the tokens after
    it. Each pair in ``spans`` is the first index and the index after the last token of an image. The tokens
    of a span attend to each other in both directions. :meth:`gemlet.Model.logits` lists the errors.
    """
    vocab_size = resident.vocab_size
    try:
        result = np.empty((len(tokens), vocab_size), dtype=np.float32)
    except MemoryError:
        size = len(tokens) * vocab_size * 4
        raise MemoryLimitError(
            f"logits: {len(tokens)} rows of {vocab_size} need {size} bytes; pass fewer ids"
        ) from None
    if soft_rows:
        context = _core.TokenSequence(resident.core, adapter)
        context.extend(tokens, logits="all", soft_rows=list(soft_rows), spans=list(spans))
        result[:] = context.logits()
        _check_finite(result, 0, resident.name)
        return result
    start = 0
    for _, rows in rows_of(resident, [tokens], adapter, "logits"):
        result[start : start + len(rows)] = rows
        _check_finite(rows, start, resident.name)
        start += len(rows)
    return result


def _check_finite(rows: NDArray[np.float32], first: int, source: str) -> None:
    if not np.isfinite([rows.min(), rows.max()]).all():  # one NaN makes both the minimum and the maximum NaN
        bad = first + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise TensorError(
            f"{source}: the logits after token {bad} are not finite; the weights are damaged, or too large "
            "for their format"
        )
