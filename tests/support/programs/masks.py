"""Functions that core/test_masks.py runs in separate processes."""

from __future__ import annotations

import warnings

import numpy as np

from gemlet import _core
from support.core_models import VOCAB, random_core
from support.engine_reader import Reader
from support.processes import in_fork

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads


def continue_in_a_fork() -> bool:
    """Forks the process while a request waits for its second mask. The request must continue in both
    processes."""
    reader = Reader(_core.Engine(random_core()))
    request = reader.submit([1, 2, 3], max_tokens=3, masked=True)
    only = [np.zeros((VOCAB + 31) // 32, np.uint32) for _ in range(3)]
    for token_id, mask in enumerate(only):
        mask[0] = 1 << token_id
    request.set_mask(0, only[2])
    found: list[int] = []
    while not found:
        seen = reader.news.value
        found += request.take()[0]
        if not found:
            reader.engine.wait(reader.news, seen, 10.0)

    def go_on() -> bool:
        text = [*found]
        request.set_mask(1, only[1])
        while len(text) < 3:
            seen = reader.news.value
            ids, reason, _ = request.take()
            text += ids
            if len(text) == 2 and ids:
                request.set_mask(2, only[0])
            elif reason is None:
                reader.engine.wait(reader.news, seen, 10.0)
        return text == [2, 1, 0]

    in_fork(go_on)
    return go_on()
