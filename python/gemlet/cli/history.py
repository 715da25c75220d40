"""The lines that the user typed into ``gemlet chat``, kept for the next time: :class:`History`.

The file is ``$XDG_STATE_HOME/gemlet/chat-history`` (``~/.local/state/gemlet/chat-history``). Each line is a
JSON string, because a message may have several lines. Only the user may read it. Without the file, for
example for lack of permission, there is no history; the chat goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

__all__ = ["History"]

_MOST = 1000  # messages that are kept
_MOST_BYTES = 1 << 20


def history_path() -> str:
    """The file with the history, which may not exist yet."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the specification's rule for an empty or a relative path
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "gemlet", "chat-history")


class History:
    """The messages of earlier chats, oldest first.

    Attributes:
        messages: at most 1000; control characters were removed from them.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path or history_path()
        self.messages: list[str] = []
        with contextlib.suppress(OSError):
            with os.fdopen(self._open(), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _MOST_BYTES))
                lines = file.read(_MOST_BYTES).splitlines()
            self.messages = [message for line in lines if (message := _read(line))][-_MOST:]
            if size > _MOST_BYTES or len(lines) > 2 * _MOST:
                self._write(self.messages, os.O_TRUNC)

    def add(self, message: str) -> bool:
        """Keeps a message; False if it repeats the last one."""
        if self.messages[-1:] == [message]:
            return False
        self.messages.append(message)
        with contextlib.suppress(OSError):
            self._write([message], os.O_APPEND)
        return True

    def _write(self, messages: list[str], how: int) -> None:
        with os.fdopen(self._open(how), "wb") as file:
            file.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def _open(self, how: int = 0) -> int:
        """A descriptor of the file, which is created if it is missing. Raises OSError for a link, for
        anything that is not a regular file, and for another user's file."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | how
        descriptor = os.open(self._path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise OSError(f"{self._path} is not a file of this user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(descriptor, 0o600)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _read(line: bytes) -> str | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, str):
        return None
    return "".join(c for c in message if c in "\n\t" or c.isprintable())
