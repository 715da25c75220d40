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


@pytest.mark.parametrize("action", ["close", "generate", "raise_error", "fork"])
def test_while_the_main_thread_loads(action: str) -> None:
    run_program(interrupt_work, "load", action)


@pytest.mark.parametrize("name", ["convert", "cache"])
def test_while_the_main_thread_writes(tmp_path: Path, name: str) -> None:
    """A handler that forks here is not promised to do no harm: until it notices, the child writes to the same
    folder."""
    folders = {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run_program(interrupt_work, name, "raise_error", environment=folders)
