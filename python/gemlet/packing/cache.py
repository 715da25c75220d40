"""Packed weights and parsed vocabularies kept between starts: ``load(..., cache=True)``.

The cache is ``$XDG_CACHE_HOME/gemlet/packed`` (``~/.cache/gemlet/packed``), a folder per entry, named by its
key: a hash of what the packed form depends on. That is the configuration, the formats, the version of gemlet,
and of each file of the source its tensors' places, its size, the times of its last changes and samples of its
content. The path is no part of it. A source that changed has another key; what nobody asks for any more
leaves as the longest unused. A vocabulary has an entry of its own, whose key is a hash of all it was read
from; so has what ``weights="auto"`` makes of float16, which depends on every value.

An entry appears by renaming, whole or not at all, and leaves by unlinking, which a process that has it mapped
does not notice. A lock file for each entry keeps processes from packing the same source twice; one for all
keeps them from evicting at once. Whatever is wrong with the cache, its disk or its rights costs the cache,
never the model: a warning, and loading goes on without.

With the weights lies a stamp: the file's size, its time of modification and the CRC-32 of its bytes. Where
the first two are as they were, the file is used as it is, which takes milliseconds; where they are not
(somebody edited the file, or copied the cache), it is read, and used if the CRC is right, else made again.
What goes wrong below the file system, a bit that rots on the disk, changes no time and is not looked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemlet.errors import GemletError, InvalidRequestError, ModelFileError, TensorError

if TYPE_CHECKING:
    from gemlet import _core
    from gemlet._vocabulary import Vocabulary
    from gemlet.checkpoint import TensorFiles
    from gemlet.packed import PackedCheckpoint
    from gemlet.progress import Progress
    from gemlet.source import ModelSource

__all__ = [
    "cache_folder",
    "cache_limit",
    "keep_vocabulary",
    "kept_vocabulary",
    "know_float16",
    "packed_copy",
    "vocabulary_key",
]

_DEFAULT_LIMIT = "20GB"
_SAMPLES = 64  # of a file, spread over it: what a file rewritten within one tick of the clock differs in
_SAMPLE_BYTES = 4096
_STAMP = "stamp"
_CHUNK = 1 << 24


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
        with _locked(f"{entry}.lock"):
            found = _open(entry, source)  # another process may have made it meanwhile
            if found is None:
                _make(entry, source, builder, weights, progress)
                found = _open(entry, source)
            _evict(folder, limit)
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

    entry = os.path.join(cache_folder(), f"tokenizer-{key}")
    try:
        found = replace(read_stored(os.path.join(entry, STORED_FILE)), source=source)
    except (OSError, GemletError):
        return None
    _was_used(entry)
    return found


def keep_vocabulary(key: str, vocabulary: Vocabulary) -> None:
    """Keeps what SentencePiece has taken under ``key``, if the cache has room for it and can be written."""
    from gemlet._stored_vocabulary import STORED_FILE, write_stored

    if cache_limit() >= 2 * len(vocabulary.proto):
        _keep(f"tokenizer-{key}", lambda made: write_stored(os.path.join(made, STORED_FILE), vocabulary))


def know_float16(source: ModelSource) -> None:
    """Makes ``source.kept`` say of its float16 matrices whether bfloat16 has all their values: as the cache
    says, or else by reading them, for the next time."""
    names = source.float16_matrices()
    if not names or not cache_limit():
        return
    places = [source.checkpoint.tensors[name] for name in names]
    digest = hashlib.sha256(repr(places).encode())
    _add_files(digest, [(source.checkpoint, file) for file in sorted({info.file for info in places})])
    name = f"float16-{digest.hexdigest()[:32]}"
    path = os.path.join(cache_folder(), name, "formats.json")
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        source.kept.update({name: {"bf16": "bf16", "f32": "f32"}[found[name]] for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        formats = json.dumps({name: source.kept_format(name) for name in names})
        _keep(name, lambda made: Path(made, "formats.json").write_text(formats, "utf-8"))
    else:
        _was_used(os.path.dirname(path))


def _keep(name: str, write: Callable[[str], object]) -> None:
    """Makes the small entry ``name``; not being able to is none to speak of: the weights' entry meets the
    same, and warns."""
    folder = cache_folder()
    entry = os.path.join(folder, name)
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with _locked(f"{entry}.lock"):
            with _made(entry) as made:
                write(made)
            _evict(folder, cache_limit())


def _was_used(entry: str) -> None:
    """Sets the time of the folder, by which the longest unused are found."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def _open(entry: str, source: ModelSource) -> PackedCheckpoint | None:
    """The entry, now the last one used; None if it is not there or not whole."""
    from gemlet.packed import PackedCheckpoint

    try:
        if not _is_as_made(entry):
            return None
        found = PackedCheckpoint(entry, source.config, table_elsewhere=True)
    except (OSError, ValueError, ModelFileError, TensorError):
        return None
    _was_used(entry)
    return found


def _make(
    entry: str, source: ModelSource, builder: _core.ModelBuilder, weights: str, progress: Progress
) -> None:
    from gemlet.checkpoint import SINGLE_FILE
    from gemlet.packing import source_bytes, write_packed
    from gemlet.progress import reporting

    with _made(entry) as made, reporting(progress, "loading", source_bytes(source)) as advance:
        path = os.path.join(made, SINGLE_FILE)
        try:
            crc = write_packed(path, source, builder, advance, weights=weights, table=False)
        except GemletError as problem:
            if isinstance(problem.__cause__, OSError):  # the cache's disk, not the source
                raise problem.__cause__ from None
            raise
        _stamp(made, crc)


def _stamp(entry: str, crc: int) -> None:
    """Writes down that the weights file as it is now has this CRC."""
    from gemlet.checkpoint import SINGLE_FILE

    status = os.stat(os.path.join(entry, SINGLE_FILE))
    with open(os.path.join(entry, _STAMP), "w", encoding="ascii") as file:
        file.write(f"{status.st_size} {status.st_mtime_ns} {crc}")


def _is_as_made(entry: str) -> bool:
    """Whether the weights file holds what was written: by its stamp, or else by reading it. Raises OSError or
    ValueError where there is no file or no stamp.
    """
    from gemlet.checkpoint import SINGLE_FILE

    with open(os.path.join(entry, _STAMP), encoding="ascii") as file:
        size, modified, crc = map(int, file.read(99).split())
    found = 0
    with open(os.path.join(entry, SINGLE_FILE), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) == (size, modified):
            return True
        if status.st_size != size:
            return False
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    if found == crc:
        with contextlib.suppress(OSError):
            _stamp(entry, crc)
    return found == crc


@contextlib.contextmanager
def _made(entry: str) -> Iterator[str]:
    """A new folder, which takes the place of whatever is at ``entry`` when all has gone well. For who holds
    the entry's lock."""
    made = f"{entry}.tmp"
    _remove(made)  # what a killed process left
    os.mkdir(made, mode=0o700)
    try:
        yield made
        _remove(entry)
        os.rename(made, entry)
    finally:
        _remove(made)


def _remove(path: str) -> None:
    """Removes what is there, a folder, a file or a link, as far as that can be done."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _evict(folder: str, limit: int) -> None:
    """Removes what killed processes left, and the longest unused entries until the rest is within ``limit``;
    nothing whose lock is held, such as the entry that this process has just made."""
    with _locked(os.path.join(folder, "lock")):
        entries: list[tuple[int, int, str]] = []
        for name in os.listdir(folder):
            path, lock = os.path.join(folder, name), os.path.join(folder, name.partition(".")[0] + ".lock")
            if name.endswith((".tmp", ".lock")):
                with _locked(lock, wait=False) as free:
                    if free and path != lock:  # which goes by itself
                        _remove(path)
            with contextlib.suppress(OSError):  # no folder, or gone meanwhile
                size = sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(path))
                entries.append((os.stat(path).st_mtime_ns, size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit:
                break
            if not path.endswith(".tmp"):
                with _locked(f"{path}.lock", wait=False) as free:
                    if free:
                        _remove(path)
                        total -= size


@contextlib.contextmanager
def _locked(path: str, *, wait: bool = True) -> Iterator[bool]:
    """While no other process is in here; False, and not alone, where one is and ``wait`` is not set. The lock
    of a process ends with it, however it ends."""
    descriptor = _lock(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)


def _lock(path: str, wait: bool) -> int | None:
    """The locked file ``path``, whose holder alone removes it; None if another has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_there = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who waited for a file that its holder has removed takes the new one, as all others do.
            is_there = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except BlockingIOError:
            return None
        except FileNotFoundError:
            pass
        finally:
            if not is_there:
                os.close(descriptor)
        if is_there:
            return descriptor


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
    _add_files(digest, files)
    return digest.hexdigest()[:32]


def _add_files(digest: hashlib._Hash, files: Iterable[tuple[TensorFiles, str]]) -> None:
    for opened, file in files:
        descriptor = opened.descriptor(file)
        status = os.fstat(descriptor)
        digest.update(repr((file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
        for sample in range(_SAMPLES):
            at = max(0, status.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, at))
