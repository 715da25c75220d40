"""Lists and removes cache entries for the command ``gemlet cache``: :func:`kept_entries`,
:func:`remove_entries`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from gemlet.base.cache_entries import cache_folder, remove_entry
from gemlet.base.records import record
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.errors import GemletError

__all__ = ["KeptEntry", "kept_entries", "note_source", "remove_entries"]

_SOURCE = "source"
_MOST_CHARACTERS = 500


@record(frozen=True)
class KeptEntry:
    """An entry of the cache.

    Attributes:
        name: the name of its folder, a hash.
        what: the content, such as "weights q4", "vocabulary" or "formats".
        source: the name of the model from which the entry was made; None if the entry does not say.
        nbytes: the size of the entry in bytes.
        used: the time of the last use, in seconds since 1970.
    """

    name: str
    what: str
    source: str | None
    nbytes: int
    used: float


def note_source(folder: str, source: str) -> None:
    """Writes the name of the model, ``source``, into the ``folder`` of a new entry. Raises OSError if it
    cannot."""
    with open(os.path.join(folder, _SOURCE), "w", encoding="utf-8", errors="replace") as file:
        file.write(source[:_MOST_CHARACTERS])


def kept_entries() -> list[KeptEntry]:
    """All entries; the one used last comes first. Raises OSError if the folder cannot be read."""
    found = []
    folder = cache_folder()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.endswith((".lock", ".tmp")) or os.path.islink(path):
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # just removed, or not an entry
                sizes = [file.stat(follow_symlinks=False).st_size for file in os.scandir(path)]
                found.append(
                    KeptEntry(name, _what(path, name), _source(path), sum(sizes), os.stat(path).st_mtime)
                )
    return sorted(found, key=lambda entry: -entry.used)


def remove_entries(names: Collection[str]) -> list[str]:
    """Removes entries by name. Entries that another process is making at this time stay, and their names are
    returned. Models that use an entry keep working. Raises OSError if the folder cannot be written."""
    return [name for name in names if not remove_entry(os.path.join(cache_folder(), name))]


def _what(path: str, name: str) -> str:
    kind, _, rest = name.partition("-")
    if rest:
        return {"tokenizer": "vocabulary"}.get(kind, kind)
    try:
        with Checkpoint(path) as checkpoint:
            return f"weights {checkpoint.metadata.get('gemlet_weights', '')}".strip()
    except (GemletError, OSError):
        return "damaged weights"


def _source(path: str) -> str | None:
    try:
        with open(os.path.join(path, _SOURCE), encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError:
        return None
