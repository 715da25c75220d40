"""Only the operations of a backend use its memory: neither the model nor the engine reads or writes there.

In the processes of these tests, a backend gives out addresses of pages that cannot be read or written, as a
backend for a GPU does."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from support.processes import run_program, start_program
from support.programs.guarded import PARTS, guarded_results, peek, results

pytestmark = pytest.mark.tier


@pytest.mark.parametrize("part", PARTS)
def test_guarded_memory_changes_no_bit(part: str, tmp_path: Path) -> None:
    expected = results(part, tmp_path / "plain")
    found = run_program(guarded_results, part, tmp_path / "guarded")
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_read_without_the_backend_ends_the_process() -> None:
    assert run_program(peek, False) >= 0
    assert start_program(peek, True).returncode == -signal.SIGSEGV
