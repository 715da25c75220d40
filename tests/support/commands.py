"""Runs the ``gemlet`` command in a separate process, or in the process of the test."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from unittest.mock import patch

import pytest

from gemlet.cli import main
from support.waiting import PATIENCE

PROMPT = "The door opened"
GEMLET = [sys.executable, "-m", "gemlet"]


def run(
    *arguments: str, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*GEMLET, *arguments],
        input=b"" if stdin is None else stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
        check=False,
    )


def run_here(
    capsys: pytest.CaptureFixture[str], *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Like ``run``, but in this process, which is faster for tests with many wrong command lines."""
    with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))):
        try:
            code = main([*arguments])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    shown = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, shown.out.encode(), shown.err.encode())


def failed(done: subprocess.CompletedProcess[bytes], code: int = 1) -> str:
    """Checks that a command failed with ``code`` and one line on standard error. Returns the line."""
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert done.stdout == b""
    assert error.startswith("gemlet: error: ")
    assert error.count("\n") == 1
    return error
