"""Runs the ``gemlet`` command on a pseudo-terminal, with simulated typing."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

import pytest

from support.commands import GEMLET
from support.processes import environment_of
from support.waiting import PATIENCE

_ENVIRONMENT = {"TERM": "xterm", "PYTHONUTF8": "1", "XDG_STATE_HOME": "/dev/null"}
# Makes standard input the controlling terminal, so that a typed Ctrl-C becomes SIGINT.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def open_terminal() -> tuple[int, int]:
    """The file descriptors of both sides of a pseudo-terminal. Skips the test if the system cannot open
    one."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be opened here: {error}")


def on_terminal(
    arguments: Sequence[str],
    answers: Sequence[tuple[str, str]] = (),
    *,
    command: Sequence[str] = GEMLET,
    **environment: str,
) -> tuple[int, str]:
    """Runs gemlet on a terminal, and types each answer when its text has appeared on the screen. Returns the
    exit code and all output. Checks that gemlet restores the settings of the terminal."""
    screen, far_side = open_terminal()
    settings = termios.tcgetattr(far_side)
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *command, *arguments],
        stdin=far_side,
        stdout=far_side,
        stderr=far_side,
        start_new_session=True,
        env=environment_of(**_ENVIRONMENT | environment),
    )
    os.close(far_side)
    seen = ""
    searched = 0
    waiting = list(answers)
    deadline = time.monotonic() + PATIENCE
    while True:
        ready, _, _ = select.select([screen], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            process.kill()
            process.wait()
            raise AssertionError(f"gemlet still runs; output: {seen!r}; answers not typed yet: {waiting}")
        try:
            data = os.read(screen, 65536)
        except OSError:  # on Linux, this means that the other side of the terminal is closed
            data = b""
        if not data:
            break
        seen += data.decode(errors="replace")
        while waiting and (found := seen.find(waiting[0][0], searched)) >= 0:
            searched = found + len(waiting[0][0])
            if waiting[0] == ("\n> ", "\x03"):
                # readline shows its prompt shortly before it handles signals. A Ctrl-C between the two has no
                # effect until the next key. A person could not type so fast.
                time.sleep(0.5)
            os.write(screen, waiting.pop(0)[1].encode())
    assert termios.tcgetattr(screen) == settings
    os.close(screen)
    code = process.wait(PATIENCE)
    assert not waiting, seen
    return code, seen.replace("\r\n", "\n")
