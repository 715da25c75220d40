"""What a model keeps of texts that have ended: :class:`PrefixCacheOptions`, :func:`folder_for_texts`."""

from __future__ import annotations

import os
import stat
from typing import Any

from gemlet.base.records import record
from gemlet.errors import InvalidRequestError

__all__ = ["PrefixCacheOptions", "folder_for_texts"]

_MOST_MEMORY = 2 * 10**9  # bytes, if nobody says how many


@record(frozen=True)
class PrefixCacheOptions:
    """Where keys and values are kept, and how much of them.

    Attributes:
        memory: bytes; 0: none; None: a quarter of what all texts share, but at most 2 GB.
        folder: where they are kept on disk too; None: nowhere.
        folder_bytes: the most that is kept there.
        model_digest: 32 bytes of all that keys and values depend on, by which another process knows the model
            again; empty: not known, and nothing leaves the process.
    """

    memory: int | None = None
    folder: str | None = None
    folder_bytes: int = 0
    model_digest: bytes = b""

    def for_engine(self, room: int) -> dict[str, Any]:
        """The engine's arguments, where all texts share ``room`` bytes."""
        kept = min(room // 4, _MOST_MEMORY) if self.memory is None else self.memory
        folder = self.folder if self.model_digest and kept else None
        return {
            "kv_bytes": room + (self.memory or 0),
            "prefix_cache_bytes": kept,
            "prefix_cache_folder": None if folder is None else os.fsencode(folder),  # perhaps no UTF-8
            "prefix_cache_folder_bytes": self.folder_bytes,
            "model_digest": self.model_digest,
        }


def folder_for_texts(path: str) -> str:
    """``path`` as an absolute path of a folder, made if it is missing, for this user alone.

    Raises :class:`InvalidRequestError` for one that others may write to: they could change what a model says.
    """
    path = os.path.abspath(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
    except OSError as problem:
        raise InvalidRequestError(f"prefix_cache: {path} cannot be used: {problem.strerror}") from None
    if status.st_uid != os.geteuid():
        raise InvalidRequestError(f"prefix_cache: {path} does not belong to this user; name another folder")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidRequestError(f"prefix_cache: others may write to {path}; chmod go-w {path}")
    return path
