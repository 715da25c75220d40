"""Functions that core/test_dispatch.py runs in separate processes."""

from __future__ import annotations

import os
from typing import Any

import gemlet
from gemlet import _core


def use_the_forced_tier() -> tuple[str, dict[str, Any], list[float]]:
    """The CPU tier of a model, the core's description of the machine, and some logits."""
    with gemlet.load(threads=1) as model:
        logits = model.logits([2, 100, 200, 300])
    return model.tier, dict(_core.cpu_info()), logits[-1, :8].tolist()


def load_the_demo() -> None:
    gemlet.load()


def use_one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    threads, reason = _core.default_threads()
    assert threads == 1, reason
    assert reason.startswith("min(affinity 1, "), reason
    assert _core.cpu_info()["physical_cores"] == 1
    with gemlet.load() as model:
        assert model.threads == 1
        model.generate("The", max_tokens=2)
