"""Feeds token ids to a context in pieces, and computes the difference between two results."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gemlet
from support.core_models import int32
from support.inside import context_of

Floats = NDArray[np.float32]
REORDERED = (
    5e-5  # a bound for the relative difference of two float32 sums of the same values in different orders
)


def feed(model: gemlet.Model, ids: NDArray[Any], sizes: list[int]) -> Floats:
    """Feeds the ids to a new context in pieces of the given sizes, and returns the logits [n, vocab] of all
    ids. If ids are left, more pieces have the last size."""
    sequence = context_of(model)
    rows, at = [], 0
    try:
        for size in chain(sizes, repeat(sizes[-1])):
            if at >= len(ids):
                break
            sequence.extend(int32(*ids[at : at + size]), logits="all")
            rows.append(sequence.logits().copy())
            at += size
        assert sequence.length == len(ids)
        assert sequence.token_ids == ids.tolist()
    finally:
        sequence.close()
    return np.concatenate(rows)


def difference(got: Floats, expected: Floats) -> float:
    """The largest difference, relative to the largest expected value."""
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())
