"""Keeps parsed vocabularies between starts. The key of a vocabulary is a hash of all files that it was read
from."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gemlet.base.cache_entries import cache_limit, keep_entry, mark_used, own_entry
from gemlet.base.late import hashlib
from gemlet.base.records import replace
from gemlet.errors import GemletError
from gemlet.tokenizer.stored import STORED_FILE, read_stored, write_stored
from gemlet.tokenizer.vocabulary import Vocabulary

__all__ = ["keep_vocabulary", "kept_vocabulary", "vocabulary_key"]

# Raise this number when gemlet begins to read another vocabulary from the same files.
_READER = 3


def vocabulary_key(contents: Mapping[str, bytes]) -> str:
    """The key of the vocabulary that is read from these files: path -> content. Only the file name
    in each path counts."""
    from gemlet import _core

    digest = hashlib.sha256(f"{_READER} {_core.__version__}".encode())
    for path, content in contents.items():
        digest.update(f" {os.path.basename(path)!r} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def kept_vocabulary(key: str, path: str) -> Vocabulary | None:
    """The vocabulary under ``key``, which was read from the file ``path``; None if the cache has no
    complete copy."""
    try:
        entry = own_entry(f"tokenizer-{key}")
        found = replace(read_stored(os.path.join(entry, STORED_FILE)), source=path)
    except (OSError, GemletError):
        return None
    mark_used(entry)
    return found


def keep_vocabulary(key: str, vocabulary: Vocabulary) -> None:
    """Keeps a vocabulary that SentencePiece has accepted under ``key``, if the cache has room and is
    writable."""
    if cache_limit() >= 2 * len(vocabulary.proto):
        keep_entry(f"tokenizer-{key}", lambda made: write_stored(os.path.join(made, STORED_FILE), vocabulary))
