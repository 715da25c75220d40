"""Runs forward passes over several contexts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from support.inside import testing


def advance(*steps: testing.Step) -> list[NDArray[np.float32]]:
    """The logits of several steps that are computed together in one forward pass. No step may be
    cancelled."""
    logits = testing.forward(steps)
    assert all(rows is not None for rows in logits)
    return [rows for rows in logits if rows is not None]
