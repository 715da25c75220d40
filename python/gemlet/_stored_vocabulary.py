"""The tokenizer of a packed model: a :class:`Vocabulary` as it is, so that a start has nothing to work out.

``tokenizer.safetensors`` has the tensors (all U8) ``pieces``, the text of all ids with a separator between
them, ``types``, a byte for each id, ``model``, the SentencePiece model, and, where a list of merges is taken
literally, ``merges``, what a :class:`MergeEncoder` is made of in JSON. ``__metadata__`` has the version of
this layout, the rest of the vocabulary in JSON, and the SHA-256 of it all: damage is an error and never
other ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ._json import parse_json_object, show
from ._merges import MergeEncoder
from ._vocabulary import Vocabulary
from .checkpoint import Checkpoint
from .errors import TokenizerError

__all__ = ["STORED_FILE", "read_stored", "write_stored"]

STORED_FILE = "tokenizer.safetensors"
_VERSION = "1"
_IDS = ("bos_id", "eos_id", "pad_id", "unk_id")
_NAMES = ("control", "added")
_FLAGS = ("add_dummy_prefix", "may_cut")


def write_stored(path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
    """Writes the file ``path``. Raises ``OSError`` when that fails."""
    import numpy as np
    from safetensors.numpy import save

    text = "".join(vocabulary.pieces)
    separator = next(mark for mark in map(chr, range(0xD800)) if mark not in text)
    tensors = {
        "pieces": separator.join(vocabulary.pieces).encode(),
        "types": bytes(kind if 0 <= kind < 256 else 0 for kind in vocabulary.types),
        "model": vocabulary.proto,
    }
    if vocabulary.merge_encoder is not None:
        tensors["merges"] = json.dumps(vars(vocabulary.merge_encoder)).encode()
    rest = {name: getattr(vocabulary, name) for name in (*_IDS, *_NAMES, *_FLAGS)}
    described = json.dumps(rest | {"separator": separator})
    metadata = {
        "gemlet_tokenizer": _VERSION,
        "vocabulary": described,
        "sha256": _digest(described, tensors),
    }
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in tensors.items()}
    with open(path, "wb") as file:
        file.write(save(arrays, metadata))


def read_stored(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary in a file that :func:`write_stored` made.

    Raises :class:`TokenizerError` for one of another version, and one that is damaged or inconsistent,
    :class:`ModelFileError` or :class:`TensorError` for what is no safetensors file.
    """
    where = os.fspath(path)
    folder, name = os.path.split(where)
    with Checkpoint(folder, file=name) as checkpoint:
        metadata = checkpoint.metadata
        if metadata.get("gemlet_tokenizer") != _VERSION:
            raise TokenizerError(
                f"{where}: is of version {show(metadata.get('gemlet_tokenizer'))}; this gemlet reads version "
                f"{_VERSION}. Convert the original again with `gemlet convert`"
            )
        tensors = {
            name: checkpoint.read_bytes(info.file, info.begin, info.nbytes)
            for name, info in checkpoint.tensors.items()
        }
    described = metadata.get("vocabulary", "")
    if metadata.get("sha256") != _digest(described, tensors):
        raise TokenizerError(f"{where}: is damaged: its SHA-256 is another. Convert the original again")
    if tensors.keys() - {"merges"} != {"pieces", "types", "model"}:
        raise TokenizerError(f"{where}: holds {show(sorted(tensors))}; expected pieces, types and model")
    rest = _Rest(parse_json_object(described.encode(), where=where, error=TokenizerError), where)
    try:
        pieces = tensors["pieces"].decode().split(rest.separator())
    except UnicodeDecodeError:
        raise TokenizerError(f"{where}: the pieces are not valid UTF-8") from None
    if len(pieces) != len(tensors["types"]):
        raise TokenizerError(f"{where}: {len(pieces)} pieces and {len(tensors['types'])} types")
    rest.size = len(pieces)
    bos_id, eos_id, pad_id, unk_id = (rest.identifier(key) for key in _IDS)
    if unk_id is None:
        raise rest.wrong("unk_id", "an id")
    encoder = None
    if "merges" in tensors:
        merges = parse_json_object(tensors["merges"], where=where, error=TokenizerError)
        encoder = _merge_encoder(merges, rest)
    return Vocabulary(
        source=where,
        pieces=pieces,
        types=tensors["types"],
        control=rest.ids_of("control"),
        added=rest.ids_of("added"),
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        unk_id=unk_id,
        proto=tensors["model"],
        merge_encoder=encoder,
        add_dummy_prefix=rest.flag("add_dummy_prefix"),
        may_cut=rest.flag("may_cut"),
        checked=True,
    )


class _Rest:
    """Checked reads of the JSON part; ``size`` is the number of ids."""

    def __init__(self, values: Mapping[str, Any], where: str, size: int = 0) -> None:
        self.values = values
        self.where = where
        self.size = size

    def wrong(self, key: str, expected: str) -> TokenizerError:
        return TokenizerError(f"{self.where}: {key} is {show(self.values.get(key))}; expected {expected}")

    def separator(self) -> str:
        value = self.values.get("separator")
        if not isinstance(value, str) or len(value) != 1:
            raise self.wrong("separator", "a character")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not True and value is not False:
            raise self.wrong(key, "true or false")
        return value

    def is_id(self, value: object) -> bool:
        return type(value) is int and 0 <= value < self.size

    def identifier(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is not None and not self.is_id(value):
            raise self.wrong(key, f"an id below {self.size}, or null")
        return value

    def ids_of(self, key: str) -> dict[str, int]:
        value = self.values.get(key)
        if not isinstance(value, dict) or "" in value or not all(map(self.is_id, value.values())):
            raise self.wrong(key, f"an object of ids below {self.size}, none under an empty name")
        return value


def _merge_encoder(values: Mapping[str, Any], rest: _Rest) -> MergeEncoder:
    own = _Rest(values, rest.where, rest.size)
    merges, byte_ids, unk_id = values.get("merges"), values.get("byte_ids"), own.identifier("unk_id")
    if unk_id is None:
        raise own.wrong("unk_id", "an id")
    if not isinstance(merges, dict) or not all(type(rank) is int for rank in merges.values()):
        raise own.wrong("merges", "an object of ranks")
    if byte_ids is not None and not (
        isinstance(byte_ids, list) and len(byte_ids) == 256 and all(map(own.is_id, byte_ids))
    ):
        raise own.wrong("byte_ids", "256 ids, or null")
    return MergeEncoder(own.ids_of("pieces"), merges, unk_id=unk_id, byte_ids=byte_ids)


def _digest(described: str, tensors: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {len(tensors[name])} ".encode())
        digest.update(tensors[name])
    return digest.hexdigest()
