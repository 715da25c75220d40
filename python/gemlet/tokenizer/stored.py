"""Stores the tokenizer of a packed model: a complete :class:`Vocabulary`, which is read without any work.

``tokenizer.safetensors`` has these tensors:

    pieces (U8)   the texts of all ids, one after the other
    ends (U32)    the end of each text in ``pieces``
    types (U8)    the type of each piece
    model (U8)    the SentencePiece model
    merges (U8)   the arguments of a :class:`MergeEncoder` in JSON, if the vocabulary has one

``__metadata__`` has the version of this layout, the rest of the vocabulary in JSON, and the SHA-256 of
everything. So damage gives an error and never other ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet import _core
from gemlet.base.arrays import np
from gemlet.base.handlers import importing
from gemlet.base.late import hashlib
from gemlet.base.strict_json import parse_json_object
from gemlet.base.text import show
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.errors import TokenizerError
from gemlet.tokenizer.merges import MergeEncoder
from gemlet.tokenizer.vocabulary import Vocabulary

__all__ = ["STORED_FILE", "TOKENIZER_FILES", "read_stored", "write_stored"]

STORED_FILE = "tokenizer.safetensors"
TOKENIZER_FILES = (STORED_FILE, "tokenizer.model", "tokenizer.json")  # the first that a folder has is read
_VERSIONS = ("1", "3")  # version 3 has "flags", which readers of version 1 would ignore
_MAX_BYTES = 64 << 20  # Gemma 4's has 8 MB; a hole in a file has a size, but takes no room on the disk
_IDS = ("bos_id", "eos_id", "pad_id", "unk_id")
_NAMES = ("control", "added")
_FLAGS = ("add_dummy_prefix", "may_cut")


def write_stored(path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
    """Writes the file ``path``. Raises ``OSError`` if it cannot be written."""
    with importing():
        from safetensors.numpy import save

    pieces = [piece.encode() for piece in vocabulary.pieces]
    tensors = {
        "pieces": b"".join(pieces),
        "ends": np.cumsum([len(piece) for piece in pieces], dtype="<u4").tobytes(),
        "types": bytes(kind if 0 <= kind < 256 else 0 for kind in vocabulary.types),
        "model": vocabulary.proto,
    }
    if vocabulary.merge_encoder is not None:
        tensors["merges"] = json.dumps(vars(vocabulary.merge_encoder)).encode()
    rest = {name: getattr(vocabulary, name) for name in (*_IDS, *_NAMES, *_FLAGS)}
    if vocabulary.flags:
        rest["flags"] = vocabulary.flags
    described = json.dumps(rest)
    metadata = {
        "gemlet_tokenizer": _VERSIONS[bool(vocabulary.flags)],
        "vocabulary": described,
        "sha256": _digest(described, tensors),
    }
    arrays = {name: np.frombuffer(data, "<u4" if name == "ends" else "u1") for name, data in tensors.items()}
    with open(path, "wb") as file:
        file.write(save(arrays, metadata))


def read_stored(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary in a file that :func:`write_stored` made.

    Raises :class:`TokenizerError` if the file has another version, is damaged or is inconsistent, and
    :class:`ModelFileError` or :class:`TensorError` if it is not a safetensors file.
    """
    where = os.fspath(path)
    folder, name = os.path.split(where)
    with Checkpoint(folder, file=name) as checkpoint:
        metadata = checkpoint.metadata
        if metadata.get("gemlet_tokenizer") not in _VERSIONS:
            raise TokenizerError(
                f"{where}: has version {show(metadata.get('gemlet_tokenizer'))}; expected version "
                f"{' or '.join(_VERSIONS)}. Convert the original again with `gemlet convert`"
            )
        if sum(info.nbytes for info in checkpoint.tensors.values()) > _MAX_BYTES:
            raise TokenizerError(f"{where}: is larger than a tokenizer; expected at most {_MAX_BYTES} bytes")
        tensors = {
            name: checkpoint.files.read(info.file, info.begin, info.nbytes)
            for name, info in checkpoint.tensors.items()
        }
    described = metadata.get("vocabulary", "")
    if metadata.get("sha256") != _digest(described, tensors):
        raise TokenizerError(
            f"{where}: is damaged: its SHA-256 is not the one that it was written with. Convert the original "
            "again with `gemlet convert`"
        )
    if tensors.keys() - {"merges"} != {"pieces", "ends", "types", "model"}:
        raise TokenizerError(
            f"{where}: has the tensors {show(sorted(tensors))}; expected pieces, ends, types and model"
        )
    size = len(tensors["types"])
    if len(tensors["ends"]) != 4 * size or not size:
        raise TokenizerError(
            f"{where}: ends has {len(tensors['ends'])} bytes; expected 4 for each of {size} ids"
        )
    if not _core.rises_to(tensors["ends"], len(tensors["pieces"])):
        raise TokenizerError(
            f"{where}: the values of ends do not rise to {len(tensors['pieces'])}, the bytes of pieces"
        )
    rest = _Rest(parse_json_object(described.encode(), where=where, error=TokenizerError), where, size)
    bos_id, eos_id, pad_id, unk_id = (rest.identifier(key) for key in _IDS)
    if unk_id is None:
        raise rest.wrong("unk_id", "an id")
    encoder = None
    if "merges" in tensors:
        merges = parse_json_object(tensors["merges"], where=where, error=TokenizerError)
        encoder = _merge_encoder(merges, rest)
    return Vocabulary(
        source=where,
        pieces=_Pieces(tensors["pieces"], tensors["ends"]),
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
        flags=rest.flags(),
        checked=True,
    )


class _Pieces(Sequence[str]):
    """The pieces. Each is made when it is used: 262,144 strings take 40 ms, and a reply needs few of them."""

    def __init__(self, text: bytes, ends: bytes) -> None:
        self._text = text
        self._ends = memoryview(ends).cast("I")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        begin = self._ends[index - 1] if index else 0
        return self._text[begin : self._ends[index]].decode("utf-8", "replace")


class _Rest:
    """Reads and checks values of the JSON part. ``size`` is the number of ids."""

    def __init__(self, values: Mapping[str, Any], where: str, size: int) -> None:
        self.values = values
        self.where = where
        self.size = size

    def wrong(self, key: str, expected: str) -> TokenizerError:
        return TokenizerError(f"{self.where}: {key} is {show(self.values.get(key))}; expected {expected}")

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
            raise self.wrong(key, f"an object with ids below {self.size} and without an empty name")
        return value

    def flags(self) -> dict[str, int]:
        value = self.values.get("flags", {})
        if not isinstance(value, dict) or not all(
            type(flags) is int and 0 < flags < 16 for flags in value.values()
        ):
            raise self.wrong("flags", "an object with numbers from 1 to 15")
        return value


def _merge_encoder(values: Mapping[str, Any], rest: _Rest) -> MergeEncoder:
    own = _Rest(values, rest.where, rest.size)
    merges, byte_ids, unk_id = values.get("merges"), values.get("byte_ids"), own.identifier("unk_id")
    if unk_id is None:
        raise own.wrong("unk_id", "an id")
    if not isinstance(merges, dict) or not all(type(rank) is int for rank in merges.values()):
        raise own.wrong("merges", "an object with ranks")
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
