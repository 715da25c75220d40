"""Keeps packed weights between starts: ``load(..., cache=True)``.

The name of a cache entry (:mod:`gemlet.base.cache_entries`) is its key, a hash of everything on which the
packed weights depend: the configuration, the formats, the version of gemlet, and for each file of the model
the places of the tensors, the size, the times of the last changes, and samples of the content. The path of a
file is not part of the key. If a file of the model changes, the key changes. The formats that
``weights="auto"`` chooses for float16 and bfloat16 depend on every value, so they have a separate entry.

If anything is wrong with the cache, its disk or its permissions, the model still loads: there is a warning,
and loading continues without the cache.

Each entry has a stamp file beside the weights. The stamp has the size of the weights file, its time of
modification and the CRC-32 of its bytes. If size and time are unchanged, the weights file is used without
reading it, which takes milliseconds. If they differ, because somebody edited the file or copied the cache,
the file is read and its CRC is checked. If the CRC is wrong, the entry is made again. A bit that flips on the
disk changes no time, so it is not noticed.
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
    """Opens the packed weights of ``files`` in the cache. If there is no such entry, it is made first.
    Returns None, with a warning, if the cache cannot be used, and without one if the weights are larger than
    the cache's limit. ``builder`` has no memory for weights.

    Raises the same errors as loading without the cache.
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
            found = _open(entry, files)  # another process may have made it in the meantime
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
    """Fills ``files.known_formats`` with the formats of those matrices whose format depends on their values.
    The formats come from the cache. If the cache does not have them, the matrices are read, and the formats
    are put into the cache.
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
    """Opens the entry, and marks it as used now; None if it is missing or incomplete."""
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
    """Writes the stamp for the present weights file, whose CRC is ``crc``."""
    status = os.stat(os.path.join(entry, SINGLE_FILE))
    with open(os.path.join(entry, _STAMP), "w", encoding="ascii") as file:
        file.write(f"{status.st_size} {status.st_mtime_ns} {crc}")


def _is_as_made(entry: str) -> bool:
    """Whether the weights file is unchanged since it was written, according to its size and time, or else to
    its CRC. Raises OSError or ValueError if the file or the stamp is missing.
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
