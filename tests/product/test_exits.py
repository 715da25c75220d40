"""Tests that a process ends cleanly in every way to end Python, even if daemon threads are running in gemlet.

If a daemon thread returns from the C++ core while Python ends, Python before version 3.14 ends the thread by
unwinding its stack. If a C++ destructor were on this stack, the process would abort.
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
def test_a_process_can_end_by_returning_from_the_main_thread(name: str, tmp_path: Path) -> None:
    check(name, "return", tmp_path)


def pairs() -> Iterator[ParameterSet]:
    """Pairs of a kind of work and a way to end. Only the slow tests run all pairs. The others run each way to
    end with one kind of work, and each kind of work with some ways to end."""
    names = ("chat", "prefill", "load")
    ends = ("exit", "raise", "os-exit", "close", "atexit-close", "late-close", "slow", "interrupt")
    for i, end in enumerate(ends):
        for j, name in enumerate(names):
            yield pytest.param(name, end, marks=() if j == i % len(names) else pytest.mark.slow)


@pytest.mark.parametrize(("name", "end"), list(pairs()))
def test_a_process_can_end_in_other_ways(name: str, end: str, tmp_path: Path) -> None:
    check(name, end, tmp_path)


@pytest.mark.parametrize("end", ["interrupt", "close", "sigterm", "sigterm-close"])
def test_an_http_server_with_a_thread_for_each_request(end: str) -> None:
    done = start_program(end_server, end)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_core_makes_errors_without_python_code() -> None:
    """The core makes errors in places where the thread must not be ended. Python code could end the
    thread."""
    for name in errors.__all__:
        ours = [kind for kind in getattr(errors, name).__mro__ if kind.__module__ == errors.__name__]
        assert not any({"__init__", "__new__"} & vars(kind).keys() for kind in ours)
