"""Runs a chat template that came with a model file: :func:`run_template`.

A template is a program by a stranger. It runs in Jinja's immutable sandbox, and that in a process of its own
(:mod:`gemlet.chat.template_worker`) which may use less than a second of the CPU and a bounded memory for a
request. A loop that does not end, a number of a billion digits and whatever else a template can think of
therefore costs that much, and never this process. The process starts with the first template and serves the
later ones, too.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gemlet.chat import template_worker
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError

__all__ = ["EXTRA", "OVERRIDE", "Rendered", "can_run_templates", "run_template"]

EXTRA = "pip install 'jinja2>=3.1.6', the extra \"templates\" of gemlet"
OVERRIDE = "give another with chat_template=..., or a prompt of your own to generate()"
_MEMORY = 128 << 20  # bytes beside what the request itself takes
_MOST_REQUEST = 64 << 20
_MOST_TEXT = 4 << 20  # characters, beside what the conversation has
_START_SECONDS = 60.0  # on a machine that is busy
_WALL_SECONDS = 30.0  # where the second of CPU time does not pass: a stopped process, a machine that swaps
_PACKAGES = ("jinja2", "markupsafe")
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "SYSTEMROOT")


@dataclass(frozen=True)
class Rendered:
    """What a template made of some sets of variables.

    Attributes:
        names: the variables that it reads.
        texts: the text for each set, or the error: :class:`InvalidRequestError` where the template refuses
            it, :class:`UnsupportedError` where the template itself is not to be run.
    """

    names: frozenset[str]
    texts: list[str | GemletError]


def can_run_templates() -> bool:
    """Whether jinja2 is installed.

    >>> can_run_templates()
    True
    """
    return all(_folder_of(package) is not None for package in _PACKAGES)


def run_template(template: str, variables: Sequence[Mapping[str, Any]]) -> Rendered:
    """Renders ``template`` once for each of ``variables``, which hold nothing but JSON.

    Raises:
        UnsupportedError: jinja2 is not installed, the template is no Jinja, takes too long or too much
            memory, or reaches for what the sandbox does not give.
        InvalidRequestError: the variables are larger than 64 MB.

    >>> run_template("{{ bos_token }}{{ messages[0].content }}", [{"bos_token": "<bos>", "messages": [
    ...     {"role": "user", "content": "Hi"}]}]).texts
    ['<bos>Hi']
    """
    values = [dict(mapping) for mapping in variables]
    asked = {"template": template, "texts": values, "longest": 0, "memory": 0}
    size = len(json.dumps(asked))
    if size > _MOST_REQUEST:
        raise InvalidRequestError(f"messages: {size} bytes; a chat template takes up to {_MOST_REQUEST}")
    asked |= {"longest": _MOST_TEXT + 4 * size, "memory": _MEMORY + 16 * size}
    line = json.dumps(asked).encode() + b"\n"
    # JSON has up to 12 bytes for a character; errors are short.
    answer = _process.ask(line, 12 * (_MOST_TEXT + 5 * size) + 2000 * len(values))
    if "error" in answer:
        raise _error(answer)
    return Rendered(
        frozenset(answer["names"]),
        [result["text"] if "text" in result else _error(result) for result in answer["results"]],
    )


def _error(result: Mapping[str, Any]) -> GemletError:
    kind, message = result["error"], result["message"]
    if kind == "refused":
        return InvalidRequestError(f"the model's chat template refuses these messages: {message}")
    if kind == "failed":
        return InvalidRequestError(f"the model's chat template fails on these messages: {message}")
    why = {
        "syntax": "is not valid Jinja",
        "unsafe": "does what a template may not do",
        "budget": "takes too much time or memory",
    }[kind]
    return UnsupportedError(f"the model's chat template {why}: {message}; {OVERRIDE}")


class _Process:
    """The worker, started when it is first asked. Threads take turns; a forked child starts its own, and so
    does a signal handler that asks while its thread waits for an answer."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_asking = False
        self._running: Any = None

    def ask(self, line: bytes, most: int) -> dict[str, Any]:
        with self._lock:
            if self._is_asking:
                with contextlib.closing(_Process()) as another:
                    return another.ask(line, most)
            self._is_asking = True
            try:
                return self._ask(line, most)
            finally:
                self._is_asking = False

    def _ask(self, line: bytes, most: int) -> dict[str, Any]:
        if self._running is None or self._running.poll() is not None:
            self.close()
            self._running = _start()
        try:
            answer = _exchange(self._running, line, most, _WALL_SECONDS)
        except BaseException:
            self.close()  # or a later request would get the answer to this one
            raise
        if answer is None:
            self.close()
            raise _error({"error": "budget", "message": "its process was ended"})
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            for stream in (running.stdin, running.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            running.kill()
            running.wait()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and so is a lock that some thread of it holds."""
        self._lock = threading.RLock()
        self._is_asking = False
        running, self._running = self._running, None
        if running is not None:
            running.returncode = 0  # so that nobody waits for it here
            for stream in (running.stdin, running.stdout):
                with contextlib.suppress(OSError):
                    stream.close()


def _folder_of(package: str) -> str | None:
    """The folder or archive that ``package`` is installed in; nothing is imported."""
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            return os.path.dirname(os.path.dirname(spec.origin))
    return None


def _start() -> Any:
    import subprocess

    folders = []
    for package in _PACKAGES:
        folder = _folder_of(package)
        if folder is None:
            raise UnsupportedError(
                f"this model has a chat template of its own, which needs {package} to run: {EXTRA}; or "
                + OVERRIDE
            )
        folders.append(folder)
    running: Any = None
    with contextlib.suppress(OSError, ValueError):
        if not sys.executable:
            raise ValueError
        running = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", template_worker.__file__, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,  # Ctrl-C on the terminal is for this process alone
        )
        hello = _exchange(running, b"", 1000, _START_SECONDS)
        if hello is not None and hello + b"\n" == template_worker.HELLO:
            return running
    if running is not None:
        running.kill()
        running.wait()
        running.stdin.close()
        running.stdout.close()
    raise UnsupportedError(
        f"this model has a chat template of its own, and the process that would run it did not start "
        f"({sys.executable or 'this program'} -I {template_worker.__file__}); {EXTRA}; or {OVERRIDE}"
    )


def _exchange(running: Any, line: bytes, most: int, seconds: float) -> bytes | None:
    """Sends ``line`` and reads one back; None where the process has ended, or takes too long."""
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


_process = _Process()
atexit.register(_process.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)
