"""Tests that nothing hangs or crashes when a signal handler interrupts gemlet's work and uses gemlet
itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden.folders import HERE
from support.processes import run_program
from support.programs.forking_writers import WORKS, fork_while_writing
from support.programs.handlers import ACTIONS, interrupt_work


@pytest.mark.parametrize("name", ["stream", "prefill"])
def test_signals_may_come_while_the_main_thread_generates(name: str) -> None:
    run_program(interrupt_work, name, ACTIONS)


@pytest.mark.parametrize("name", ["chat", "logits", "embed", "load"])
def test_signals_may_come_while_the_main_thread_does_something_else(name: str) -> None:
    run_program(interrupt_work, name, ("close", "generate", "raise_error", "fork"))


@pytest.mark.parametrize("name", ["convert", "cache"])
def test_signals_may_come_while_the_main_thread_writes(tmp_path: Path, name: str) -> None:
    """If the signal handler forks, the forked process does not touch the folder that its parent is
    writing."""
    folders = {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run_program(interrupt_work, name, ("raise_error", "fork"), environment=folders)


@pytest.mark.parametrize("name", WORKS)
def test_a_forked_process_does_not_touch_a_folder_that_its_parent_writes(tmp_path: Path, name: str) -> None:
    model = str(HERE / "gemma3-1b")
    assert run_program(fork_while_writing, name, model, str(tmp_path), 15) > 5
