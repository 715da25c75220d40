"""Runs Python in a process of its own, for what a test process cannot do to itself: end, hang, fork, be short of
memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

TIMEOUT = 60.0


def run_python(code: str, *, timeout: float = TIMEOUT, **environment: str) -> str:
    """What ``code`` prints. A crash, a traceback or a hang fails the test and shows what the process said."""
    done = start_python(code, timeout=timeout, **environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def start_python(code: str, *, timeout: float = TIMEOUT, **environment: str) -> subprocess.CompletedProcess[Any]:
    """Runs ``code`` with this process's modules and environment, a few variables added."""
    paths = os.pathsep.join(path for path in sys.path if path)
    settings = {key: value for key, value in os.environ.items() if key != "GEMLET_CPU"}
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        env={**settings, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
