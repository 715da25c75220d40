"""Tests that the table in python/MACHINES.md, which says which model fits which machine, agrees with the
memory plan."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.paths import ROOT
from support.processes import environment_of

TOOL = ROOT / "python/tools/fits.py"


@pytest.mark.slow
def test_the_table_of_the_guide_agrees_with_the_memory_plan() -> None:
    command = [sys.executable, TOOL.as_posix(), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment_of())
    assert done.returncode == 0, done.stdout + done.stderr
