"""Reads small files, and refuses links that lead out of a model's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import BinaryIO

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError, ModelFileError

__all__ = [
    "check_links",
    "checked_path",
    "is_there",
    "no_waiting",
    "open_regular",
    "own_path",
    "read_from_start",
]

_MAX_PATH = 4096  # bytes
MAX_JSON_BYTES = 10 * 1024 * 1024
MAX_VOCABULARY_BYTES = 256 * 1024 * 1024  # bytes of a tokenizer.json; Gemma 3's has 33 MB


def checked_path(name: str, path: object, expected: str = "a path") -> str:
    """``path`` as text, with the home directory for ``~``. Raises :class:`InvalidRequestError`, naming the
    argument ``name``, for a value that cannot be a path: bytes, an empty text, a null byte, or a path that is
    too long for Linux.

    >>> checked_path("path", "demo")
    'demo'
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str) or not _may_be_a_path(text):
        raise InvalidRequestError(f"{name} is {show(path)}; expected {expected}")
    return own_path(text)


def _may_be_a_path(text: str) -> bool:
    try:
        return 0 < len(os.fsencode(text)) < _MAX_PATH and "\0" not in text
    except UnicodeError:  # a surrogate that stands for no byte
        return False


def own_path(path: str) -> str:
    """``path`` with a ``~`` at its beginning replaced by the home directory, as shells do."""
    return os.path.expanduser(path) if path.startswith("~") else path


def no_waiting(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` that does not wait at a FIFO. Regular files are not affected."""
    return os.open(path, flags | os.O_NONBLOCK)


def open_regular(path: str | bytes) -> BinaryIO:
    """Opens the regular file ``path`` for reading. Raises :class:`OSError` at once for a pipe, a device or
    anything else that may never begin or end."""
    file = open(path, "rb", opener=no_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def read_from_start(descriptor: int, most: int) -> bytes:
    """The first bytes of an open file, at most ``most``. The file's position is not used, because a process
    that a signal handler forks meanwhile shares the position."""
    parts: list[bytes] = []
    done = 0
    while done < most and (part := os.pread(descriptor, most - done, done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of the file ``path``. Raises :class:`ModelFileError` if it cannot be read or is larger than
    ``max_bytes``.
    """
    where = os.fspath(path)
    try:
        with open_regular(where) as file:
            size = os.fstat(file.fileno()).st_size
            # Reading one more byte than the size shows whether the file grew.
            data = read_from_start(file.fileno(), size + 1) if size <= max_bytes else None
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise ModelFileError(f"{where}: cannot be read: {reason}") from None
    if data is None or len(data) > max_bytes:
        raise ModelFileError(f"{where}: has more than {max_bytes} bytes; expected a smaller file")
    return data


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a file. Raises :class:`ModelFileError` for a broken link, as in a cache that lost a
    part, and for a folder or a pipe at this path. To ignore them could change the model.

    >>> is_there("README.md"), is_there("no such file")
    (True, False)
    """
    if os.path.isfile(path):
        return True
    if os.path.lexists(path):
        kind = "is a link that leads nowhere" if not os.path.exists(path) else "is not a regular file"
        raise ModelFileError(f"{os.fspath(path)}: {kind}")
    return False


# Files with these endings may be read, so check_links() checks them.
_READ = (".json", ".safetensors", ".model", ".gguf", ".jinja")
_MODULE = late_pattern(r"\d+_")  # the start of a module folder's name in the folder of an embedding model


def check_links(folder: str) -> None:
    """Raises :class:`ModelFileError` if a file in ``folder`` is a link to a place outside: an archive must
    not make gemlet read the user's other files. Links in the hub's cache lead to its ``blobs``, which counts
    as inside. ``GEMLET_FOLLOW_LINKS=1`` allows links to other places."""
    if os.environ.get("GEMLET_FOLLOW_LINKS") == "1":
        return
    root = os.path.realpath(folder)
    parent, above = os.path.split(os.path.dirname(root))
    inside = os.path.join(parent if above == "snapshots" else root, "")
    read = []
    with contextlib.suppress(OSError):  # other code reports a folder that cannot be read
        for name in os.listdir(folder):
            if _MODULE.match(name) and os.path.isdir(os.path.join(folder, name)):
                read += [name, *(os.path.join(name, file) for file in os.listdir(os.path.join(folder, name)))]
            elif name.endswith(_READ):
                read.append(name)
    for name in read:
        path = os.path.join(folder, name)
        if os.path.islink(path) and not (target := os.path.realpath(path)).startswith(inside):
            raise ModelFileError(
                f"{path}: is a link out of its folder, to {target}; copy the file, or set "
                "GEMLET_FOLLOW_LINKS=1 if you trust the folder"
            )
