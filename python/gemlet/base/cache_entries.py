"""The folder of cache entries: how an entry is made, locked, used and removed.

An entry is a folder in ``$XDG_CACHE_HOME/gemlet/packed`` (by default ``~/.cache/gemlet/packed``). A new entry
is made under another name and then renamed, so an entry is always complete. Entries are removed by unlinking,
which does not disturb a process that has mapped their files. Each entry has a lock file, so that two
processes do not make the same entry at the same time. One more lock for the folder allows only one process at
a time to evict entries. The least recently used entries are evicted first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator

from gemlet.base.handlers import only_in, undisturbed
from gemlet.base.sizes import parse_memory
from gemlet.errors import InvalidRequestError

__all__ = ["cache_folder", "cache_limit"]

_DEFAULT_LIMIT = "20GB"
_PATIENCE = 600.0  # the most seconds to wait for a lock; enough for another process to pack the largest model
_LOOK = 0.05  # seconds between two attempts to take a lock


def cache_folder() -> str:
    """The folder of the entries, which may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says to ignore an empty or relative path
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "gemlet", "packed")


def own_folder(*, make: bool = False) -> str:
    """:func:`cache_folder`, created if it is missing and ``make`` is set. Raises OSError if another user owns
    it or may write to it, because that user could put other weights there."""
    folder = cache_folder()
    for path in (os.path.dirname(folder), folder):
        if make:
            with contextlib.suppress(FileExistsError):
                os.makedirs(path, mode=0o700)
        status = os.stat(path)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{path} belongs to another user")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(errno.EPERM, f"others may write to it: chmod go-w {path}")
    return folder


def own_entry(name: str) -> str:
    """The path of the entry ``name``. Raises OSError if the entry does not exist, or if it contains anything
    but regular files of this user."""
    entry = os.path.join(own_folder(), name)
    if not stat.S_ISDIR(os.lstat(entry).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", entry)
    with os.scandir(entry) as files:
        for file in files:
            status = file.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "not a file of this user", file.path)
    return entry


def cache_limit() -> int:
    """The largest size of the cache in bytes, from ``GEMLET_CACHE_SIZE``: a number of bytes, text like "5GB",
    or "0" for no cache.

    Raises :class:`InvalidRequestError` if the variable is not a size.
    """
    text = os.environ.get("GEMLET_CACHE_SIZE", "").strip() or _DEFAULT_LIMIT
    if text == "0":
        return 0
    try:
        return parse_memory(text)
    except InvalidRequestError:
        raise InvalidRequestError(
            f'GEMLET_CACHE_SIZE is {text!r}; expected a number of bytes, a size like "5GB", or 0 for no cache'
        ) from None


def keep_entry(name: str, write: Callable[[str], object]) -> None:
    """Makes the small entry ``name``: ``write`` is called with the path of the new folder. A failure is
    silent, because making the entry of the weights fails for the same reason and warns."""
    with contextlib.suppress(OSError):
        folder = own_folder(make=True)
        entry = os.path.join(folder, name)
        process = os.getpid()
        with locked(f"{entry}.lock"):
            with new_entry(entry, process) as made, only_in(process, made):
                write(made)
            evict(folder, cache_limit())


def remove_entry(entry: str) -> bool:
    """Removes an entry. Returns False if the entry stays because a process is making it now. Processes that
    use the entry are not disturbed."""
    with locked(f"{entry}.lock", wait=False) as free:
        if free:
            _remove(entry)
    return not os.path.lexists(entry)


def mark_used(entry: str) -> None:
    """Sets the entry's time of last use, by which :func:`evict` chooses."""
    with contextlib.suppress(OSError):
        os.utime(entry)


@contextlib.contextmanager
def new_entry(entry: str, process: int) -> Iterator[str]:
    """Makes a new folder and yields its path. If the block raises no exception, the folder then replaces
    ``entry``. The caller holds the entry's lock. ``process`` is the id of the process that makes the
    entry."""
    made = f"{entry}.tmp"
    try:
        with only_in(process, made):
            _remove(made)  # a killed process may have left it
            os.mkdir(made, mode=0o700)
        yield made
        with only_in(process, made):
            _remove(entry)
            os.rename(made, entry)
    finally:
        with undisturbed():
            if os.getpid() == process:
                _remove(made)


def _remove(path: str) -> None:
    """Removes a folder, a file or a link, as far as possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def evict(folder: str, limit: int) -> None:
    """Removes what killed processes left, then the least recently used entries until the rest is within
    ``limit``. Locked entries stay, such as the one that this process has just made."""
    with locked(os.path.join(folder, "lock")):
        entries: list[tuple[int, int, str]] = []
        for name in os.listdir(folder):
            path, lock = os.path.join(folder, name), os.path.join(folder, name.partition(".")[0] + ".lock")
            if name.endswith((".tmp", ".lock")):
                with locked(lock, wait=False) as free:
                    if free and path != lock:  # locked() removes the lock file
                        _remove(path)
            with contextlib.suppress(OSError):  # it is not a folder, or another process has removed it
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    size = sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(path))
                    entries.append((status.st_mtime_ns, size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit:
                break
            if not path.endswith(".tmp"):
                with locked(f"{path}.lock", wait=False) as free:
                    if free:
                        _remove(path)
                        total -= size


@contextlib.contextmanager
def locked(path: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock ``path`` within the block and yields True. If another process holds the lock and
    ``wait`` is False, yields False without the lock. The system releases the lock when the process ends, even
    by a crash."""
    process = os.getpid()
    held: list[int] = []  # the locked file
    until = time.monotonic() + (_PATIENCE if wait else 0)
    try:
        while True:
            with only_in(process, path):
                held += _try_to_lock(path)
            if held or not wait:
                break
            if time.monotonic() > until:
                problem = f"another process has held {path} for {_PATIENCE:.0f} seconds"
                raise TimeoutError(errno.ETIMEDOUT, problem)
            time.sleep(_LOOK)
        yield bool(held)
    finally:
        with undisturbed():
            for descriptor in held:
                if os.getpid() == process:  # forked processes have the descriptor as well
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)


def _try_to_lock(path: str) -> list[int]:
    """Opens and locks the file ``path``. Returns a list with its descriptor, or an empty list if another
    process holds the lock. Only the process that holds the lock removes the file."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        is_there = False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "the lock is not a regular file", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held the lock may have removed the file since it was opened here.
            is_there = os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except BlockingIOError:
            return []
        except FileNotFoundError:
            pass
        finally:
            if not is_there:
                os.close(descriptor)
        if is_there:
            return [descriptor]
