"""Packed weights kept between starts: ``load(..., cache=True)``.

An entry of the cache (:mod:`gemlet.base.cache_entries`) is named by its key: a hash of what the packed form
depends on. That is the configuration, the formats, the version of gemlet, and of each file of the model
its tensors' places, its size, the times of its last changes and samples of its content. The path is no part
of it. A model whose files changed has another key. What ``weights="auto"`` makes of float16 and
bfloat16 has an entry of its own, as it depends on every value.

Whatever is wrong with the cache, its disk or its rights costs the cache, never the model: a warning, and
loading goes on without.

With the weights lies a stamp: the file's size, its time of modification and the CRC-32 of its bytes. Where
the first two are as they were, the file is used as it is, which takes milliseconds; where they are not
(somebody edited the file, or copied the cache), it is read, and used if the CRC is right, else made again.
What goes wrong below the file system, a bit that rots on the disk, changes no time and is not looked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zlib
from typing import TYPE_CHECKING

from gemlet.base.cache_entries import (
    cache_folder,
    cache_limit,
    evict,
    keep_entry,
    locked,
    mark_used,
    new_entry,
    own_entry,
    own_folder,
)
from gemlet.base.files import read_from_start
from gemlet.base.handlers import only_in
from gemlet.base.late import hashlib
from gemlet.base.progress import Progress, reporting
from gemlet.checkpoint.safetensors_files import SINGLE_FILE, Checkpoint
from gemlet.errors import GemletError, ModelFileError, TensorError
from gemlet.packing.blocks import stored_bytes
from gemlet.packing.digest import add_files, digest_of_source
from gemlet.packing.kept import note_source
from gemlet.packing.write import write_packed
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.packed_file import PackedCheckpoint

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["know_formats", "packed_copy"]

_STAMP = "stamp"
_VALUED = {name: name for name in ("bf12", "bf16", "f32")}
_CHUNK = 1 << 24


def packed_copy(
    files: ModelFiles, builder: _core.ModelBuilder, *, weights: str, progress: Progress
) -> PackedCheckpoint | None:
    """The packed form of ``files`` from the cache, made now if it is not there; None where there is no cache
    to be had, after a warning. ``builder`` has no memory of its own.

    What is wrong with the files or the request raises as loading without the cache would.
    """
    limit = cache_limit()
    if sum(nbytes for _, nbytes in builder.packed_sizes().values()) > limit:
        return None
    key = _key(files, builder, weights)
    try:
        folder = own_folder(make=True)
        entry = os.path.join(folder, key)
        if (found := _open(entry, files)) is not None:
            return found
        with locked(f"{entry}.lock"):
            found = _open(entry, files)  # another process may have made it meanwhile
            if found is None:
                _make(entry, files, builder, weights, progress)
                found = _open(entry, files)
            evict(folder, limit)
        return found
    except OSError as problem:
        reason = problem.strerror or problem
        warnings.warn(
            f"cache=True: {cache_folder()} cannot be used ({reason}); loading without it", stacklevel=5
        )
        return None


def know_formats(files: ModelFiles) -> None:
    """Enters the formats of the matrices whose values decide about them in ``files.known_formats``. The cache
    tells them; if it does not, they are read, and kept for the next time.
    """
    names = files.valued_matrices()
    if not names or not cache_limit():
        return
    places = [files.checkpoint.tensors[name] for name in names]
    digest = hashlib.sha256(repr(places).encode())
    add_files(digest, [(files.checkpoint, file) for file in sorted({info.file for info in places})])
    name = f"formats-{digest.hexdigest()[:32]}"
    try:
        path = os.path.join(own_entry(name), "formats.json")
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        files.known_formats.update({name: _VALUED[found[name]] for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        formats = json.dumps({name: files.auto_format(name) for name in names})

        def write(made: str) -> None:
            with open(os.path.join(made, "formats.json"), "w", encoding="utf-8") as file:
                file.write(formats)

        keep_entry(name, write)
    else:
        mark_used(os.path.dirname(path))


def _open(entry: str, files: ModelFiles) -> PackedCheckpoint | None:
    """The entry, now the last one used; None if it is not there or not whole."""
    try:
        if not _is_as_made(own_entry(os.path.basename(entry))):
            return None
        found = PackedCheckpoint(Checkpoint(entry), files.config, table_elsewhere=True)
    except (OSError, ValueError, ModelFileError, TensorError):
        return None
    mark_used(entry)
    return found


def _make(
    entry: str, files: ModelFiles, builder: _core.ModelBuilder, weights: str, progress: Progress
) -> None:
    process = os.getpid()
    with new_entry(entry, process) as made, reporting(progress, "loading", stored_bytes(files)) as advance:
        path = os.path.join(made, SINGLE_FILE)
        try:
            crc = write_packed(path, files, builder, advance, weights=weights, table=False, process=process)
        except GemletError as problem:
            if isinstance(problem.__cause__, OSError):  # the cache's disk, not the model's files
                raise problem.__cause__ from None
            raise
        with only_in(process, made):
            _stamp(made, crc)
            note_source(made, files.name)


def _stamp(entry: str, crc: int) -> None:
    """Writes down that the weights file as it is now has this CRC."""
    status = os.stat(os.path.join(entry, SINGLE_FILE))
    with open(os.path.join(entry, _STAMP), "w", encoding="ascii") as file:
        file.write(f"{status.st_size} {status.st_mtime_ns} {crc}")


def _is_as_made(entry: str) -> bool:
    """Whether the weights file holds what was written: by its stamp, or else by reading it. Raises OSError or
    ValueError where there is no file or no stamp.
    """
    with open(os.path.join(entry, _STAMP), "rb") as file:
        size, modified, crc = map(int, read_from_start(file.fileno(), 99).split())
    found = 0
    with open(os.path.join(entry, SINGLE_FILE), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) == (size, modified):
            return True
        if status.st_size != size:
            return False
        for start in range(0, size, _CHUNK):
            found = zlib.crc32(os.pread(file.fileno(), _CHUNK, start), found)
    if found == crc:
        with contextlib.suppress(OSError):
            _stamp(entry, crc)
    return found == crc


def _key(files: ModelFiles, builder: _core.ModelBuilder, weights: str) -> str:
    return digest_of_source(files, builder, weights).hexdigest()[:32]
