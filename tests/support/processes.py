"""Python in a process of its own, for what a test cannot do to its own: crash, hang, fork, lack memory.

The code that runs there may import this module too.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

TIMEOUT = 60.0


def start_python(
    code: str, *, timeout: float = TIMEOUT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` with this process's modules and environment, so also with its GEMLET_CPU, and with the
    variables that are added."""
    modules = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": modules, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_python(code: str, *, timeout: float = TIMEOUT, **environment: str) -> str:
    """What ``code`` prints. If it crashes, raises or hangs the test fails and shows what it said."""
    done = start_python(code, timeout=timeout, **environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def in_fork(work: Callable[[], bool], seconds: int = 20) -> None:
    """Runs ``work`` in a forked process; fails unless it returns True in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the forked process ended with {status}"


def resident() -> float:
    """MiB of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def limit_memory(more: float) -> None:
    """From here on the process gets at most ``more`` MiB of address space beyond what it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + int(more * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
