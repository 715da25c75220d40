"""Tests in which a process is forked while other threads are running in gemlet.

These threads do not exist in the forked process. But its memory contains the locks that the threads held and
the objects that they were changing. Neither may do harm.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.processes import run_program
from support.programs.forks import ACTIONS, fork_beside, fork_beside_an_import


@pytest.mark.slow
def test_a_process_can_fork_beside_a_thread_that_generates() -> None:
    run_program(fork_beside, "stream", ACTIONS)


@pytest.mark.parametrize("name", ["stream", "prefill", "logits", "embed", "chat", "load", "error"])
def test_a_process_can_fork_beside_other_threads(name: str) -> None:
    run_program(fork_beside, name, ["close"])


def test_a_process_can_fork_beside_a_thread_that_imports(tmp_path: Path) -> None:
    run_program(fork_beside_an_import, str(tmp_path))
