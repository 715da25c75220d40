"""Runs a function in a new process, for tests that may crash, hang, fork or run out of memory.

The functions are in ``support/programs``. They may also import this module.
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
    """The command that calls ``program`` with ``arguments`` and pickles its return value into ``result``."""
    call = base64.b64encode(pickle.dumps((program, arguments, result))).decode()
    return [sys.executable, "-X", "faulthandler", "-m", "support.programs", call]


def environment_of(**changes: str) -> dict[str, str]:
    """The environment for a process with the same modules and GEMLET_CPU as this one, and with
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
    """Calls ``program`` in a new process and waits until the process ends, with or without an error."""
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
    """Returns what ``program`` returns. If it crashes, raises or hangs, the test fails and shows its
    output."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        done = start_program(program, *arguments, timeout=timeout, environment=environment, result=result)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        returned: Any = pickle.loads(result.read_bytes())
        return returned


def in_fork(work: Callable[[], bool]) -> None:
    """Runs ``work`` in a forked process. Fails unless it returns True in time."""
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
    """The peak of this process's resident memory in MiB. (getrusage() also counts that of its parent.)"""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def limit_memory(more: float) -> None:
    """From now on, the process gets at most ``more`` MiB of address space in addition to what it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + int(more * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
