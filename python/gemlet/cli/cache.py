"""``gemlet cache``: lists and removes the cache entries that the option ``--cache`` has saved."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from gemlet.base.cache_entries import cache_folder, cache_limit
from gemlet.base.sizes import size_text
from gemlet.cli.common import one_line, print_table
from gemlet.errors import InvalidRequestError
from gemlet.packing.kept import KeptEntry, kept_entries, remove_entries

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if it cannot remove an entry because another process is writing the
    entry."""
    entries = kept_entries()
    return _clear(entries, arguments.entries) if arguments.action == "clear" else _list(entries, arguments)


def _list(entries: list[KeptEntry], arguments: argparse.Namespace) -> int:
    total, limit = sum(entry.nbytes for entry in entries), cache_limit()
    if arguments.json:
        listed = [dataclasses.asdict(entry) for entry in entries]
        print(json.dumps({"folder": cache_folder(), "bytes": total, "limit": limit, "entries": listed}))
        return 0
    rows = [
        (
            entry.name[:20],
            size_text(entry.nbytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            one_line(entry.what + (f" of {entry.source}" if entry.source else "")),
        )
        for entry in entries
    ]
    if rows:
        print_table(("entry", "size", "last used", "what"), rows, right=(1,))
    print(
        f"{size_text(total)} of at most {size_text(limit)} (GEMLET_CACHE_SIZE) in {one_line(cache_folder())}"
    )
    return 0


def _clear(entries: list[KeptEntry], beginnings: list[str]) -> int:
    for beginning in beginnings:
        if not beginning or not any(entry.name.startswith(beginning) for entry in entries):
            raise InvalidRequestError(f"there is no entry {beginning!r}; gemlet cache list shows them")
    chosen = [
        entry for entry in entries if not beginnings or any(entry.name.startswith(b) for b in beginnings)
    ]
    busy = remove_entries([entry.name for entry in chosen])
    gone = [entry for entry in chosen if entry.name not in busy]
    count = f"{len(gone)} entr{'y' if len(gone) == 1 else 'ies'}"
    print(f"removed {count} with {size_text(sum(entry.nbytes for entry in gone))}")
    if busy:
        print(f"{len(busy)} in the making, which stayed")
    return 1 if busy else 0
