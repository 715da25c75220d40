"""Tests of a process that cannot start threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.processes import start_program
from support.programs.threads import KINDS, without_threads


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_cannot_start_threads_gets_errors(kind: str, tmp_path: Path) -> None:
    done = start_program(without_threads, kind, environment={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
