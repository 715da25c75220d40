"""Functions that loading/test_cache.py runs in separate processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import gemlet


def load_in_four_processes(source: Path) -> list[int]:
    """Loads the same model in four processes. The result has a 1 for each process that packed the model, and
    a 0 for each process that found the model in the cache."""
    children = []
    seen = [0]

    def progress(done: int, total: int) -> None:
        seen.append(done)

    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            model = gemlet.load(source, threads=1, weights="q4", cache=True, progress=progress)
            model.logits([1, 2, 3])
            os._exit(1 if seen[-1] else 0)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def kill_while_packing(source: Path) -> None:
    pid = os.fork()
    if pid == 0:
        gemlet.load(
            source,
            threads=1,
            cache=True,
            progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL),
        )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def wait_while_packing(source: Path) -> None:
    """Begins to pack a model, prints a line, and finishes packing when standard input ends."""
    waited = False

    def wait(done: int, total: int) -> None:
        nonlocal waited
        if not waited:
            waited = True
            print("packing", flush=True)
            sys.stdin.readline()

    gemlet.load(source, threads=1, cache=True, progress=wait).close()
