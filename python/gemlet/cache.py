"""Packed weights and parsed vocabularies kept between starts: ``load(..., cache=True)``.

The cache is ``$XDG_CACHE_HOME/gemlet/packed`` (``~/.cache/gemlet/packed``), a folder per entry, named by its
key: a hash of what the packed form depends on. That is the configuration, the formats, the version of gemlet,
and of each file of the source its tensors' places, its size, its time of modification and samples of its
content. The path is no part of it. A source that changed has another key; what nobody asks for any more
leaves as the longest unused. A vocabulary has an entry of its own, whose key is a hash of all it was read
from.

An entry appears by renaming, whole or not at all, and leaves by unlinking, which a process that has it mapped
does not notice. One lock file keeps processes from packing the same source twice, or evicting at once.
Whatever is wrong with the cache, its disk or its rights costs the cache, never the model: a warning, and
loading goes on without.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from gemlet.errors import GemletError, InvalidRequestError, ModelFileError, TensorError

if TYPE_CHECKING:
    from gemlet import _core
    from gemlet._vocabulary import Vocabulary
    from gemlet.packed import PackedCheckpoint
    from gemlet.progress import Progress
    from gemlet.source import ModelSource

__all__ = [
    "cache_folder",
    "cache_limit",
    "keep_vocabulary",
    "kept_vocabulary",
    "packed_copy",
    "vocabulary_key",
]

_DEFAULT_LIMIT = "20GB"
_SAMPLES = 64  # of a file, spread over it: what a file rewritten within one tick of the clock differs in
_SAMPLE_BYTES = 4096
_ABANDONED = 24 * 3600.0  # seconds after which what a killed process left is removed


def cache_folder() -> str:
    """Where the entries are; the folder may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification's rule for an empty or a relative path
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "gemlet", "packed")


def cache_limit() -> int:
    """Bytes the cache may have, from ``GEMLET_CACHE_SIZE``: "0" for none, a number of bytes or text like
    "5GB".

    Raises :class:`InvalidRequestError` for what is no size.
    """
    from gemlet.memory import parse_memory

    text = os.environ.get("GEMLET_CACHE_SIZE", "").strip() or _DEFAULT_LIMIT
    if text == "0":
        return 0
    try:
        return parse_memory(text)
    except InvalidRequestError:
        raise InvalidRequestError(
            f'GEMLET_CACHE_SIZE is {text!r}; expected bytes, or text like "5GB", or 0'
        ) from None


def packed_copy(
    source: ModelSource, builder: _core.ModelBuilder, *, weights: str, progress: Progress
) -> PackedCheckpoint | None:
    """The packed form of ``source`` from the cache, made now if it is not there; None where there is no cache
    to be had, after a warning. ``builder`` has no memory of its own.

    What is wrong with the source or the request raises as loading without the cache would.
    """
    limit = cache_limit()
    if sum(nbytes for _, nbytes in builder.packed_sizes().values()) > limit:
        return None
    key = _key(source, builder, weights)
    folder = cache_folder()
    entry = os.path.join(folder, key)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if (found := _open(entry, source)) is not None:
            return found
        with _locked(folder):
            found = _open(entry, source)  # another process may have made it meanwhile
            if found is None:
                shutil.rmtree(entry, ignore_errors=True)  # damaged, or nothing
                _make(entry, source, builder, weights, progress)
                found = _open(entry, source)
            _evict(folder, limit, keep=key)
        return found
    except OSError as problem:
        warnings.warn(
            f"cache=True: {folder} cannot be used ({problem.strerror or problem}); loading without it",
            stacklevel=4,
        )
        return None


def vocabulary_key(contents: Mapping[str, bytes]) -> str:
    """The key of what is read from these files: path and content, the path's last part counting."""
    from gemlet import _core

    digest = hashlib.sha256(_core.__version__.encode())
    for path, content in contents.items():
        digest.update(f" {os.path.basename(path)!r} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def kept_vocabulary(key: str, source: str) -> Vocabulary | None:
    """The vocabulary under ``key``, read from the file ``source``; None if it is not there or not whole."""
    from gemlet._stored_vocabulary import STORED_FILE, read_stored

    path = os.path.join(cache_folder(), f"tokenizer-{key}", STORED_FILE)
    try:
        modified = os.stat(path).st_mtime_ns
        found = replace(read_stored(path), source=source)
    except (OSError, GemletError):
        return None
    _was_used(path, modified)
    return found


def keep_vocabulary(key: str, vocabulary: Vocabulary) -> None:
    """Keeps what SentencePiece has taken under ``key``, if the cache has room for it and can be written."""
    from gemlet._stored_vocabulary import STORED_FILE, write_stored

    limit, folder, name = cache_limit(), cache_folder(), f"tokenizer-{key}"
    if limit < 2 * len(vocabulary.proto):
        return
    entry = os.path.join(folder, name)
    made = f"{entry}.{os.getpid()}.tmp"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with _locked(folder):
            os.mkdir(made, mode=0o700)
            write_stored(os.path.join(made, STORED_FILE), vocabulary)
            shutil.rmtree(entry, ignore_errors=True)  # damaged, or another process was faster
            os.rename(made, entry)
            _evict(folder, limit, keep=name)
    except OSError:
        return  # the weights' entry meets the same, and warns
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _was_used(path: str, modified: int) -> None:
    """Sets the time of reading, which the file system may not keep by itself."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), modified))


def _open(entry: str, source: ModelSource) -> PackedCheckpoint | None:
    """The entry, now the last one used; None if it is not there or not whole."""
    from gemlet.checkpoint import SINGLE_FILE
    from gemlet.packed import PackedCheckpoint

    path = os.path.join(entry, SINGLE_FILE)
    try:
        modified = os.stat(path).st_mtime_ns
        found = PackedCheckpoint(entry, source.config, table_elsewhere=True)
    except (OSError, ModelFileError, TensorError):
        return None
    _was_used(path, modified)
    return found


def _make(
    entry: str, source: ModelSource, builder: _core.ModelBuilder, weights: str, progress: Progress
) -> None:
    from gemlet.checkpoint import SINGLE_FILE
    from gemlet.packing import source_bytes, write_packed
    from gemlet.progress import reporting

    made = f"{entry}.{os.getpid()}.tmp"
    try:
        os.mkdir(made, mode=0o700)
        with reporting(progress, "loading", source_bytes(source)) as advance:
            path = os.path.join(made, SINGLE_FILE)
            try:
                write_packed(path, source, builder, advance, weights=weights, table=False)
            except GemletError as problem:
                if isinstance(problem.__cause__, OSError):  # the cache's disk, not the source
                    raise problem.__cause__ from None
                raise
        os.rename(made, entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _evict(folder: str, limit: int, *, keep: str) -> None:
    """Removes the longest unused entries until the rest is within ``limit``, and what killed ones left."""
    entries: list[tuple[float, int, str]] = []
    total = 0
    for item in os.scandir(folder):
        if not item.is_dir(follow_symlinks=False):
            continue
        used, size = item.stat().st_mtime, 0
        for file in os.scandir(item.path):
            status = file.stat(follow_symlinks=False)
            used, size = max(used, status.st_atime), size + status.st_size
        if item.name.endswith(".tmp") and used < time.time() - _ABANDONED:
            shutil.rmtree(item.path, ignore_errors=True)
        elif item.name != keep:
            entries.append((used, size, item.path))
        total += size
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        shutil.rmtree(path, ignore_errors=True)
        total -= size


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """While no other process is in here. The lock of a process ends with it, however it ends."""
    descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _key(source: ModelSource, builder: _core.ModelBuilder, weights: str) -> str:
    from gemlet import _core
    from gemlet.adapter import WEIGHTS_FILE
    from gemlet.packing import FORMAT_VERSION

    checkpoint = source.checkpoint
    digest = hashlib.sha256()
    versions = (FORMAT_VERSION, _core.LAYOUT_VERSION, _core.__version__)
    digest.update(repr((versions, weights, source.config, sorted(builder.packed_sizes().items()))).encode())
    places = [(name, slot, checkpoint.tensors[name]) for name, slot in sorted(source.slots.items())]
    digest.update(repr((places, sorted(source.cuts.items()))).encode())
    files = [(checkpoint, file) for file in sorted({info.file for _, _, info in places})]
    if source.adapter is not None:
        digest.update(repr(sorted(source.merged.items())).encode())
        digest.update(repr(sorted(source.adapter.terms.items())).encode())
        files.append((source.adapter.checkpoint, WEIGHTS_FILE))
    for opened, file in files:
        descriptor = opened.descriptor(file)
        status = os.fstat(descriptor)
        digest.update(repr((file, status.st_size, status.st_mtime_ns)).encode())
        for sample in range(_SAMPLES):
            at = max(0, status.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, at))
    return digest.hexdigest()[:32]
