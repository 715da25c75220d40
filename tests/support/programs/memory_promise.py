"""Functions that loading/test_memory_promise.py runs in separate processes."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import gemlet
from gemlet.loading.inspect import inspect


def load_and_generate(folder: Path, arguments: dict[str, Any], tokens: int) -> tuple[int, int, int]:
    """The peak memory in bytes, the memory plan in bytes, and the number of tokens that the model generated
    after a prompt of ``tokens`` tokens."""
    plan = inspect(folder, **arguments).plan
    with gemlet.load(folder, **arguments) as model:
        ids = [2] + [i * 37 % 200_000 for i in range(1, tokens)]
        answer = model.generate(ids, max_tokens=8, temperature=0, stop=[])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak, plan.total, answer.completion_tokens
