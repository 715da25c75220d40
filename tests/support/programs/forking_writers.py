"""Functions that product/test_handlers.py runs in separate processes: a signal handler forks the process
while it writes a folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gemlet

# The handler forks at calls in these modules, because a forked process could damage the folder there.
WRITERS = ("convert.py", "write.py", "cache.py", "cache_entries.py", "stored.py", "shutil.py", "tempfile.py")


def _convert(model: str, folder: Path) -> None:
    gemlet.convert(model, folder / "made", weights="q8", threads=1)


def _cache(model: str, folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    gemlet.load(model, weights="q8", threads=1, cache=True).close()


WORKS: dict[str, Callable[[str, Path], None]] = {"convert": _convert, "cache": _cache}


def fork_while_writing(name: str, model: str, folder: str, most: int) -> int:
    """Repeats the work ``name`` at most about ``most`` times, and forks at a later call each time. The forked
    process runs to its end before its parent continues. The parent must write the same files as without a
    fork. Returns the number of forked processes."""
    work = WORKS[name]
    steps = _count_steps(lambda: work(model, Path(folder, "alone")))
    alone = _contents(Path(folder, "alone"))
    parent, forked = os.getpid(), 0
    # The first calls are left out, because a process that is forked before the work begins does its own work.
    for at in range(3, steps, max(1, steps // most)):
        mine = Path(folder, str(at))
        forked += _run(lambda mine=mine: work(model, mine), at, parent)  # type: ignore[misc]
        found = _contents(mine)
        assert found == alone, (at, sorted(found), sorted(alone))
    return forked


def _run(work: Callable[[], None], at: int, parent: int) -> int:
    children: list[int] = []

    def fork(number: int, frame: FrameType | None) -> None:
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            children.append(child)

    signal.signal(signal.SIGUSR1, fork)
    try:
        _count_steps(work, at)
    except gemlet.CancelledError:
        assert os.getpid() != parent
    finally:
        if os.getpid() != parent:
            os._exit(sys.exc_info()[0] not in (None, gemlet.CancelledError))
    return len(children)


def _count_steps(work: Callable[[], None], at: int = 0) -> int:
    """Counts the calls in the modules ``WRITERS`` during the work, and sends a signal at call number
    ``at``."""
    count = 0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call") and frame.f_code.co_filename.endswith(WRITERS):
            count += 1
            if count == at:
                signal.raise_signal(signal.SIGUSR1)

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file of the folder, except files that contain times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stamp"
    }
