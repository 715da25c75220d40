"""A context that needs no model."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np


class ScriptedSequence:
    """A context that gives the tokens of a script instead of those of a model."""

    def __init__(self, script: list[int]) -> None:
        self.script = iter(script)
        self.token_ids: list[int] = []
        self.calls: list[tuple[int, str]] = []
        self.closed = False
        self.cancelled = threading.Event()

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def extend(self, ids: Any, *, logits: str = "last") -> None:
        assert not self.closed
        assert ids.dtype == np.int32
        self.calls.append((len(ids), logits))
        self.token_ids += ids.tolist()

    def sample(self, sampler: object) -> int:
        return next(self.script)

    def cancel(self) -> None:
        assert not self.closed
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True
