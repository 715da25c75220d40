"""The options of the prefix cache (:class:`PrefixCacheOptions`), and its folder
(:func:`folder_for_texts`)."""

from __future__ import annotations

import os
import stat
from typing import Any

from gemlet.base.records import record
from gemlet.errors import InvalidRequestError

__all__ = ["PrefixCacheOptions", "folder_for_texts"]

_MOST_MEMORY = 2 * 10**9  # the most bytes by default


@record(frozen=True)
class PrefixCacheOptions:
    """The limits of the prefix cache, which keeps the keys and values of sequences that have ended.

    Attributes:
        memory: the most bytes in memory. 0: nothing is kept. None: a quarter of the bytes for the keys and
            values of all sequences, but at most 2 GB.
        folder: a folder that also keeps the keys and values on disk; None: they are kept only in memory.
        folder_bytes: the most bytes in the folder.
        model_digest: a hash (32 bytes) of everything that keys and values depend on besides the tokens. Other
            processes recognize the model by this hash. If it is empty, nothing is written to disk.
    """

    memory: int | None = None
    folder: str | None = None
    folder_bytes: int = 0
    model_digest: bytes = b""

    def for_engine(self, room: int) -> dict[str, Any]:
        """The engine's arguments for the prefix cache. All sequences share ``room`` bytes of keys and
        values."""
        kept = min(room // 4, _MOST_MEMORY) if self.memory is None else self.memory
        # The path of the folder is given as bytes, because it need not be UTF-8.
        folder = self.folder if self.model_digest and kept else None
        return {
            "kv_bytes": room + (self.memory or 0),
            "prefix_cache_bytes": kept,
            "prefix_cache_folder": None if folder is None else os.fsencode(folder),
            "prefix_cache_folder_bytes": self.folder_bytes,
            "model_digest": self.model_digest,
        }


def folder_for_texts(path: str) -> str:
    """The absolute path of the folder ``path``. A missing folder is made, for this user only.

    Raises :class:`InvalidRequestError` if other users may write to the folder, because they could change the
    replies of a model.
    """
    path = os.path.abspath(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
    except OSError as problem:
        raise InvalidRequestError(
            f"prefix_cache: {path} cannot be used as a folder: {problem.strerror}; name another folder"
        ) from None
    if status.st_uid != os.geteuid():
        raise InvalidRequestError(f"prefix_cache: {path} does not belong to this user; name another folder")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidRequestError(
            f"prefix_cache: other users may write to {path}; run `chmod go-w {path}`, or name another folder"
        )
    return path
