"""Runs programs in a separate process with limits: :class:`LimitedProcess`.

A chat template or a grammar from a stranger may take any amount of time and memory, or crash the process that
runs it. So it runs in another process, whose time and memory are limited. That process starts at the first
request and also answers later requests.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from gemlet.base.late import selectors
from gemlet.errors import GemletError

__all__ = ["LimitedProcess", "folder_of"]

_START_SECONDS = 60.0  # a busy machine takes long
# The most seconds to wait for an answer. The program limits its own CPU time; this limit is for a process
# that uses none, because it is stopped or the machine swaps.
_WALL_SECONDS = 30.0
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "SYSTEMROOT")  # environment variables


class LimitedProcess:
    """A program that starts at the first request. Only one thread at a time asks. A forked child starts its
    own process. A signal handler that asks while its thread waits for an answer also gets its own process.

    Args:
        program: a Python file that answers each line of its input with one line of output, both in JSON.
        hello: the first line that the program must write, which shows that it works.
        folders: returns the program's arguments, which are the folders of its packages. If a package is not
            installed, it raises the error that says so.
        not_started: makes the error to raise if the program does not start. Its argument says why.
    """

    def __init__(
        self,
        program: str,
        hello: bytes,
        folders: Callable[[], Sequence[str]],
        not_started: Callable[[str], GemletError],
    ) -> None:
        self._lock = threading.RLock()
        self._is_asking = False
        self._exiting_thread: int | None = None
        self._running: Any = None
        self._of = program, hello, folders, not_started

    def end_with_python(self) -> LimitedProcess:
        """From now on, the program ends with this process, and forked processes do not use the program.
        Returns this object."""
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)
        return self

    def ask(self, line: bytes, most: int) -> dict[str, Any] | None:
        """The answer to ``line``. None if the answer is longer than ``most`` bytes or takes too long, or if
        the process ends without an answer."""
        try:
            with self._lock:
                if self._is_asking:
                    with contextlib.closing(LimitedProcess(*self._of)) as another:
                        return another.ask(line, most)
                self._is_asking = True
                try:
                    return self._ask(line, most)
                finally:
                    self._is_asking = False
        finally:
            if self._exiting_thread not in (None, threading.get_ident()):
                # Python is exiting, so this is a daemon thread. An error that it raised now would be printed
                # while Python closes stderr, which can abort the process.
                threading.Event().wait()

    def _ask(self, line: bytes, most: int) -> dict[str, Any] | None:
        if self._running is None or self._running.poll() is not None:
            self.close()
            self._running = self._start()
        try:
            answer = _exchange(self._running, line, most, _WALL_SECONDS)
        except BaseException:
            self.close()  # otherwise a later request would get the answer to this one
            raise
        if answer is None:
            self.close()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        running, self._running = self._running, None
        if running is not None:
            for stream in (running.stdin, running.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            running.kill()
            running.wait()

    def _at_exit(self) -> None:
        """Ends the process. A daemon thread that is waiting for an answer then waits forever
        (:meth:`ask`)."""
        self._exiting_thread = threading.get_ident()
        if not self._is_asking:
            self.close()
        elif (running := self._running) is not None:
            running.kill()  # its streams stay open, because the thread still uses them
            running.wait()

    def _forget(self) -> None:
        """Is called in a forked child. The process belongs to the parent, and a thread of the parent may hold
        the lock."""
        self._lock = threading.RLock()
        self._is_asking = False
        self._exiting_thread = None
        running, self._running = self._running, None
        if running is not None:
            running.returncode = 0  # so that subprocess does not wait for a process of the parent
            for stream in (running.stdin, running.stdout):
                with contextlib.suppress(OSError):
                    stream.close()

    def _start(self) -> Any:
        import subprocess

        program, hello, folders, not_started = self._of
        arguments = folders()
        running: Any = None
        why = "sys.executable is empty"
        try:
            if sys.executable:
                running = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-X", "utf8", program, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    cwd="/",
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    start_new_session=True,  # Ctrl-C on the terminal must reach only this process
                )
                said = _exchange(running, b"", 1000, _START_SECONDS)
                if said is not None and said + b"\n" == hello:
                    return running
                why = "it wrote something else first" if said is not None else _end_of(running)
        except (OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        if running is not None:
            running.kill()
            running.wait()
            running.stdin.close()
            running.stdout.close()
        raise not_started(why)


def _end_of(running: Any) -> str:
    """Why a program has said nothing."""
    until = time.monotonic() + 1.0  # its output ends a little before the program does
    while (code := running.poll()) is None:
        if time.monotonic() > until:
            return f"it wrote nothing for {_START_SECONDS:g} seconds"
        time.sleep(0.01)
    return f"it ended with exit code {code}"


def folder_of(package: str) -> str | None:
    """The folder or archive that ``package`` is installed in; nothing is imported."""
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            return os.path.dirname(os.path.dirname(spec.origin))
    return None


def _exchange(running: Any, line: bytes, most: int, seconds: float) -> bytes | None:
    """Sends ``line`` and reads one line back; None if the process has ended or takes too long."""
    until = time.monotonic() + seconds
    unsent = memoryview(line)
    got: list[bytes] = []
    size = 0
    source, sink = running.stdout, running.stdin
    os.set_blocking(source.fileno(), False)
    os.set_blocking(sink.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        if unsent:
            selector.register(sink, selectors.EVENT_WRITE, "sink")
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data == "sink":
                    try:
                        unsent = unsent[os.write(sink.fileno(), unsent[: 1 << 16]) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        return None
                    if not unsent:
                        selector.unregister(sink)
                    continue
                try:
                    data = os.read(source.fileno(), 1 << 16)
                except BlockingIOError:
                    continue
                size += len(data)
                if not data or size > most:
                    return None
                got.append(data)
                if data.endswith(b"\n"):
                    return b"".join(got)[:-1]
    return None
