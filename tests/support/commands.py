"""The ``gemlet`` command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

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


def failed(done: subprocess.CompletedProcess[bytes], code: int = 1) -> str:
    """The one line on standard error with which a command fails."""
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert done.stdout == b""
    assert error.startswith("gemlet: error: ")
    assert error.count("\n") == 1
    return error
