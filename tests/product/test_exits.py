"""The process ends cleanly, however Python ends, even if threads that it does not wait for are in gemlet.

Before version 3.14, Python ends a thread that comes back from the core at that time by unwinding its stack.
No destructor of C++ may be in its way, or the process aborts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from gemlet import errors
from support.processes import start_program
from support.programs.exits import end_server, end_while_busy
from support.programs.works import WORKS

EXIT_CODES = {"exit": 3, "raise": 1, "slow": 255}


def check(name: str, end: str, folder: Path) -> None:
    done = start_program(end_while_busy, name, end, environment={"TMPDIR": str(folder)})
    assert done.returncode == EXIT_CODES.get(end, 0), done.stderr
    if end == "raise":
        assert done.stderr.rstrip().endswith("RuntimeError: on purpose")
    elif end == "interrupt":
        assert "KeyboardInterrupt" in done.stderr
    else:
        assert done.stderr == ""


@pytest.mark.parametrize("name", WORKS)
def test_a_process_may_end_when_the_main_thread_returns(name: str, tmp_path: Path) -> None:
    check(name, "return", tmp_path)


def pairs() -> Iterator[ParameterSet]:
    """Pairs of work and ends. In the normal tests, every end runs with one work, and every work with some
    ends."""
    names = ("chat", "prefill", "load")
    ends = ("exit", "raise", "os-exit", "close", "atexit-close", "late-close", "slow", "interrupt")
    for i, end in enumerate(ends):
        for j, name in enumerate(names):
            yield pytest.param(name, end, marks=() if j == i % len(names) else pytest.mark.slow)


@pytest.mark.parametrize(("name", "end"), list(pairs()))
def test_a_process_may_end_in_other_ways(name: str, end: str, tmp_path: Path) -> None:
    check(name, end, tmp_path)


@pytest.mark.parametrize("end", ["interrupt", "close", "sigterm", "sigterm-close"])
def test_an_http_server_with_a_thread_for_each_request(end: str) -> None:
    done = start_program(end_server, end)
    assert (done.returncode, done.stderr) == (0, "")


def test_making_an_error_runs_no_python_code() -> None:
    """The core makes errors where the thread must not be ended, and Python code could end it."""
    for name in errors.__all__:
        ours = [kind for kind in getattr(errors, name).__mro__ if kind.__module__ == errors.__name__]
        assert not any({"__init__", "__new__"} & vars(kind).keys() for kind in ours)
