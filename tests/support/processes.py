"""Runs a function in a new process, for tests that may crash, hang, fork or run out of memory.

The functions are in ``support/programs``, and may use this module too.
"""

from __future__ import annotations

import base64
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from support.waiting import PATIENCE

Result = TypeVar("Result")
TIMEOUT = 240.0


def command_of(program: Callable[..., object], *arguments: object, result: Path | None = None) -> list[str]:
    """The command line of a process that calls ``program`` with ``arguments`` and pickles the return value
    into the file ``result``."""
    call = base64.b64encode(pickle.dumps((program, arguments, result))).decode()
    return [sys.executable, "-X", "faulthandler", "-m", "support.programs", call]


def environment_of(**changes: str) -> dict[str, str]:
    """The environment for a new process: the same modules and GEMLET_CPU as in this process, and
    ``changes``."""
    modules = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": modules, **changes}


def start_program(
    program: Callable[..., object],
    *arguments: object,
    timeout: float = TIMEOUT,
    environment: Mapping[str, str] | None = None,
    result: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Calls ``program`` in a new process and waits until the process ends, with any exit code."""
    return subprocess.run(
        command_of(program, *arguments, result=result),
        env=environment_of(**(environment or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_program(
    program: Callable[..., Result],
    *arguments: object,
    timeout: float = TIMEOUT,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Calls ``program`` in a new process and returns its return value. If the process crashes, raises an
    error or hangs, the test fails and shows the output of the process."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        done = start_program(program, *arguments, timeout=timeout, environment=environment, result=result)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        returned: Any = pickle.loads(result.read_bytes())
        return returned


def in_fork(work: Callable[[], bool]) -> None:
    """Runs ``work`` in a forked process. The test fails if ``work`` does not return True in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(int(PATIENCE))
            code = 0 if work() else 2
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the forked process ended with {status}"


def resident() -> float:
    """The resident memory of this process in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """The peak of the resident memory of this process in MiB. getrusage() would include the peak of the
    parent process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def limit_memory(more: float) -> None:
    """Limits the address space of this process to its present size and ``more`` MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + int(more * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
