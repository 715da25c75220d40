"""Whatever a signal handler does in the middle of gemlet's work, nothing hangs and nothing crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.processes import run_program
from support.programs.handlers import ACTIONS, interrupt_work


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", ["stream", "prefill"])
def test_while_the_main_thread_generates(name: str, action: str) -> None:
    run_program(interrupt_work, name, action)


@pytest.mark.parametrize("action", ["close", "generate", "raise_error", "fork"])
@pytest.mark.parametrize("name", ["chat", "logits", "embed"])
def test_while_the_main_thread_does_something_else(name: str, action: str) -> None:
    run_program(interrupt_work, name, action)


# A process that a handler forks in the middle of loading or converting may hang there: it goes on with that
# work, and threads that the work waits for are not in it. That is not promised.
@pytest.mark.parametrize("action", ["close", "generate", "raise_error"])
def test_while_the_main_thread_loads(action: str) -> None:
    run_program(interrupt_work, "load", action)


def test_while_the_main_thread_converts(tmp_path: Path) -> None:
    run_program(interrupt_work, "convert", "raise_error", environment={"TMPDIR": str(tmp_path)})
