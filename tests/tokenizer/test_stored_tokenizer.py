"""The tokenizer of a packed folder equals its source. A damaged file is an error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import gemlet
from gemlet import _core
from gemlet.errors import GemletError, ModelFileError, TokenizerError
from gemlet.tokenizer import Tokenizer
from gemlet.tokenizer.files import read_vocabulary
from gemlet.tokenizer.sentencepiece_model import _regular_pieces, parse_model
from gemlet.tokenizer.stored import STORED_FILE, _digest, read_stored, write_stored
from support.processes import run_program
from support.programs.stored_tokenizer import encode_in_threads_and_a_fork
from support.tiny_models import CONFIGS, write_folder
from support.tokenizer_files import (
    MARKERS,
    one_merge_each,
    tokenizer_json,
    trained_merges,
    trained_model,
    trained_pieces,
)

TEXTS = ("the door", " the\n\nlamp  and\t<start_of_turn>user\n[note]", "日本 é 😀\0", "<bos>x<|im_end|>", "")
ADDED = {
    "bos_token": "<bos>",
    "added_tokens_decoder": {
        "5": {"content": "<|im_end|>", "special": True},  # <unused0> in the model
        "420": {"content": "<image_soft_token>", "special": True},
        "423": {"content": "[note]", "special": False},
    },
}
Tensors = dict[str, np.ndarray[Any, Any]]


def trained_json(merges: Callable[[], list[str]]) -> bytes:
    pieces, _, types = trained_pieces()
    return json.dumps(tokenizer_json(pieces, types, merges())).encode()


VOCABULARIES: dict[str, dict[str, Callable[[], bytes]]] = {
    "model": {"tokenizer.model": trained_model},
    "added": {"tokenizer.model": trained_model, "tokenizer_config.json": lambda: json.dumps(ADDED).encode()},
    "space": {"tokenizer.model": lambda: trained_model(add_dummy_prefix=True)},
    "newline": {"tokenizer.model": lambda: trained_model(user_defined_symbols=(*MARKERS, "\nx"))},
    "json": {"tokenizer.json": lambda: trained_json(trained_merges)},
    "merges": {"tokenizer.json": lambda: trained_json(one_merge_each)},
}


def folder_of(path: Path, name: str) -> Path:
    path.mkdir(exist_ok=True)
    for file, content in VOCABULARIES[name].items():
        (path / file).write_bytes(content())
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / STORED_FILE
    write_stored(path, read_vocabulary(folder_of(tmp_path / "source", "added")))
    return path


def change(path: Path, alter: Callable[[Tensors, dict[str, Any]], object]) -> None:
    """Rewrites the file with a correct digest."""
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        rest = json.loads(file.metadata()["vocabulary"])
    alter(tensors, rest)
    described = json.dumps(rest)
    digest = _digest(described, {name: array.tobytes() for name, array in tensors.items()})
    save_file(tensors, path, {"gemlet_tokenizer": "1", "vocabulary": described, "sha256": digest})


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_stored_tokenizer_equals_its_source(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "source", name)
    write_stored(tmp_path / STORED_FILE, read_vocabulary(folder))
    assert (read_stored(tmp_path / STORED_FILE).merge_encoder is None) == (name != "merges")
    ours, theirs = Tokenizer.from_file(tmp_path), Tokenizer.from_file(folder)
    assert ours.source == str(tmp_path / STORED_FILE)
    for text in (*TEXTS, "the door opened\nx and\n" * 900):
        for trusted in (True, False):
            ids = theirs.encode(text, allow_control=trusted)
            assert ours.encode(text, allow_control=trusted) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_control=skip) == theirs.decode(ids, skip_control=skip)
    for key in ("vocab_size", "bos_id", "eos_id", "pad_id", "unk_id", "control_ids", "end_of_turn_id"):
        assert getattr(ours, key) == getattr(theirs, key), key
    pieces = [theirs.id_to_piece(i) for i in range(theirs.vocab_size)]
    assert [ours.id_to_piece(i) for i in range(ours.vocab_size)] == pieces
    assert [ours.piece_to_id(piece) for piece in pieces] == [theirs.piece_to_id(piece) for piece in pieces]
    assert [ours.decode([i]) for i in range(ours.vocab_size)] == [
        theirs.decode([i]) for i in range(len(pieces))
    ]


def test_a_packed_folder_has_the_tokenizer(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"] | {"vocab_size": 424})
    folder_of(source, "added")
    gemlet.convert(source, tmp_path / "packed", threads=1)
    files = sorted(file.name for file in (tmp_path / "packed").iterdir())
    assert files == ["config.json", "model.safetensors", STORED_FILE]
    with gemlet.load(tmp_path / "packed", threads=1) as model, gemlet.load(source, threads=1) as original:
        assert model.chat_format == original.chat_format
        assert model.tokenizer is not None
        assert model.tokenizer.encode("[note]") == [2, 423]
        assert model.end_ids == original.end_ids


# --- Damaged files ------------------------------------------------------------------------------------------


def test_damage_is_an_error(stored: Path) -> None:
    data = stored.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for end in (0, 7, 8, 100, header - 1, header, header + 1, len(data) - 1):
        stored.write_bytes(data[:end])
        with pytest.raises(GemletError, match=STORED_FILE):
            read_stored(stored)
    for at in (*range(0, header, 61), *range(header, len(data), 997), len(data) - 1):
        stored.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(GemletError, match=STORED_FILE):
            read_stored(stored)
    stored.write_bytes(data)
    read_stored(stored)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (
            lambda tensors, rest: tensors.pop("types"),
            r"has the tensors \['ends', 'model', 'pieces'\]; expected",
        ),
        (
            lambda tensors, rest: tensors.update(more=np.zeros(1, np.uint8)),
            "expected pieces, ends, types and",
        ),
        (
            lambda tensors, rest: tensors.update(types=tensors["types"][:-1]),
            "ends has 1696 bytes; expected 4 for each of 423",
        ),
        (lambda tensors, rest: tensors.update(types=np.zeros(0, np.uint8)), "each of 0 ids"),
        (lambda tensors, rest: tensors["ends"].__setitem__(9, 1), "the values of ends do not rise"),
        (
            lambda tensors, rest: tensors.update(pieces=tensors["pieces"][1:]),
            "the values of ends do not rise to",
        ),
        (lambda tensors, rest: rest.pop("unk_id"), "unk_id is None; expected an id"),
        (lambda tensors, rest: rest.update(bos_id=424), "bos_id is 424; expected an id below 424"),
        (lambda tensors, rest: rest.update(eos_id=-1), "eos_id is -1"),
        (lambda tensors, rest: rest.update(pad_id=True), "pad_id is True"),
        (lambda tensors, rest: rest.update(may_cut=1), "may_cut is 1; expected true or false"),
        (lambda tensors, rest: rest.pop("add_dummy_prefix"), "add_dummy_prefix is None"),
        (lambda tensors, rest: rest.update(control=[]), r"control is \[\]; expected an object with ids"),
        (lambda tensors, rest: rest["control"].update(x=9999), "control is .*ids below 424"),
        (lambda tensors, rest: rest["added"].update({"": 1}), "added is .*without an empty name"),
        (lambda tensors, rest: tensors.update(merges=np.frombuffer(b"[", np.uint8)), "not valid JSON"),
        (lambda tensors, rest: tensors["types"].__setitem__(2, 6), "byte piece 2 is '<bos>'"),
    ],
)
def test_parts_that_disagree(
    stored: Path, alter: Callable[[Tensors, dict[str, Any]], object], message: str
) -> None:
    change(stored, alter)
    with pytest.raises(TokenizerError, match=rf"{STORED_FILE}: .*{message}"):
        Tokenizer.from_file(stored.parent)


def test_merges_that_disagree(tmp_path: Path) -> None:
    path = tmp_path / STORED_FILE
    write_stored(path, read_vocabulary(folder_of(tmp_path / "source", "merges")))
    with safe_open(path, "numpy") as file:
        merges = json.loads(file.get_tensor("merges").tobytes())
    for key, value, message in (
        ("unk_id", None, "unk_id is None; expected an id"),
        ("unk_id", 420, "unk_id is 420"),
        ("merges", {"a b": "1"}, "merges is .*expected an object with ranks"),
        ("byte_ids", [1, 2], "byte_ids is .*expected 256 ids, or null"),
        ("byte_ids", [420] * 256, "byte_ids is"),
        ("pieces", {"a": 420}, "pieces is .*ids below 420"),
    ):
        text = np.frombuffer(json.dumps(merges | {key: value}).encode(), np.uint8)
        change(path, lambda tensors, rest, text=text: tensors.update(merges=text))
        with pytest.raises(TokenizerError, match=message):
            read_stored(path)


def test_other_versions_and_other_files(stored: Path) -> None:
    save_file({"a": np.zeros(3, np.uint8)}, stored, {"gemlet_tokenizer": "4"})
    with pytest.raises(TokenizerError, match=r"has version '4'; expected version 1 or 3\. Convert"):
        read_stored(stored)
    stored.unlink()
    stored.mkdir()
    with pytest.raises(ModelFileError, match="is not a regular file"):
        Tokenizer.from_file(stored.parent)


def test_a_model_that_sentencepiece_refuses(stored: Path) -> None:
    """With a correct digest, the file is not damaged."""
    change(stored, lambda tensors, rest: tensors.update(model=np.frombuffer(b"\x0a\xff", np.uint8)))
    with pytest.raises(TokenizerError, match=f"{STORED_FILE}: is not a SentencePiece model"):
        Tokenizer.from_file(stored.parent)


def test_a_model_with_more_pieces_than_the_file(stored: Path) -> None:
    further = np.frombuffer(field(0x0A, field(0x0A, b"further") + b"\x15\0\0\0\0"), np.uint8)
    for _ in range(4):
        change(
            stored, lambda tensors, rest: tensors.update(model=np.concatenate([tensors["model"], further]))
        )
    with pytest.raises(TokenizerError, match=f"{STORED_FILE}: SentencePiece"):
        Tokenizer.from_file(stored)


def test_a_piece_that_sentencepiece_would_not_survive(stored: Path) -> None:
    """SentencePiece recurses for each character of a piece. The core leaves such a model to SentencePiece."""
    long = field(0x0A, field(0x0A, b"x" * 12000) + b"\x18\x04")
    model = np.frombuffer(long + trained_model(add_dummy_prefix=True), np.uint8)
    change(stored, lambda tensors, rest: tensors.update(model=model))
    with pytest.raises(TokenizerError, match="is not a SentencePiece model: it has a piece of 12005 bytes"):
        Tokenizer.from_file(stored).encode("the door")
    change(stored, lambda tensors, rest: tensors.update(model=tensors["model"][:-9]))
    with pytest.raises(TokenizerError, match="is not a SentencePiece model: "):
        Tokenizer.from_file(stored).encode("the door")


def test_pieces_that_are_not_utf8(stored: Path) -> None:
    change(stored, lambda tensors, rest: tensors["pieces"][-6:].fill(0xFF))
    tokenizer = Tokenizer.from_file(stored.parent)
    assert set(tokenizer.id_to_piece(423)) == set(tokenizer.decode([423])) == {"\ufffd"}


def test_several_threads_and_a_fork(stored: Path) -> None:
    run_program(encode_in_threads_and_a_fork, stored.parent / "source", stored)


# --- The cache ----------------------------------------------------------------------------------------------


def test_the_cache_keeps_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMLET_CACHE_SIZE", raising=False)
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"] | {"vocab_size": 424})
    folder_of(source, "added")
    reads = []

    def counted(path: str) -> Any:
        reads.append(path)
        return read_vocabulary(path)

    monkeypatch.setattr("gemlet.tokenizer.files.read_vocabulary", counted)

    def ids(text: str = "the door[note]", **arguments: Any) -> list[int]:
        with gemlet.load(source, threads=1, **arguments) as model:
            assert model.tokenizer is not None
            assert model.tokenizer.source == str(source / "tokenizer.model")
            return model.tokenizer.encode(text)

    expected = ids()
    assert (ids(cache=True), ids(cache=True), len(reads)) == (expected, expected, 2)
    (entry,) = (tmp_path / "cache").rglob(STORED_FILE)
    entry.write_bytes(entry.read_bytes()[:-1])
    assert (ids(cache=True), ids(cache=True), len(reads)) == (expected, expected, 3)
    (source / "tokenizer_config.json").unlink()  # another vocabulary
    assert 423 not in ids(cache=True)
    assert len(reads) == 4
    (source / "tokenizer.model").write_bytes(b"\x0a\xff")  # a damaged tokenizer is not cached
    for _ in range(2):
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
            gemlet.load(source, threads=1, cache=True)
    assert len(list((tmp_path / "cache").rglob(STORED_FILE))) == 2
    monkeypatch.setenv("GEMLET_CACHE_SIZE", "100")
    folder_of(source, "space")
    assert ids("x", cache=True) == ids("x", cache=True)
    assert len(list((tmp_path / "cache").rglob(STORED_FILE))) == 2


# --- Reading a tokenizer.model ------------------------------------------------------------------------------

SETTINGS = b"\x12\x00\x1a\x00"


def field(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([tag]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"a", b"\n\x09\n\x02", b"\x0a\x0b\x0a\x00\x15", b"x" * 118, b"y" * 130])
            | st.binary(max_size=12),
            st.sampled_from([None, 1, 4, 6, 127, 300]),
            st.sampled_from(["usual", "type first", "no score", "further field"]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_pieces_in_every_layout(pieces: list[tuple[bytes, int | None, str]]) -> None:
    """Rows of the usual layout are found quickly, even if other data between them looks the same."""
    data, tags, ends = b"", [], []
    for text, kind, layout in pieces:
        typed = (
            b""
            if kind is None
            else b"\x18" + (bytes([kind]) if kind < 128 else bytes([kind & 127 | 128, kind >> 7]))
        )
        parts = [field(0x0A, text), b"\x15\x0a\x0b\x0a\x00", typed]
        if layout == "type first":
            parts.insert(0, parts.pop())
        if layout == "no score":
            del parts[1]
        if layout == "further field":
            parts.append(b"\x30\x07")
        tags.append(len(data))
        data += field(0x0A, b"".join(parts))
        ends.append(len(data))
    model = parse_model(data + SETTINGS)
    assert model.pieces == [text for text, _, _ in pieces]
    assert model.types == [1 if kind is None else kind for _, kind, _ in pieces]
    assert (model.tags, model.ends) == (tags, ends)


def test_the_core_and_the_reader_ignore_the_same_pieces() -> None:
    data, chance = bytearray(trained_model()), random.Random(0)
    for _ in range(50):
        data[chance.randrange(len(data))] = chance.randrange(256)
        whole = bytes(data)
        regular, _, _ = _regular_pieces(whole)
        for begin in (0, len(whole), len(whole) + 1, *chance.sample(regular.begins, 40)):
            end = begin
            while (run := regular.at(end)).stop:
                end = regular.ends[run.stop - 1]
            assert _core.after_pieces(whole, begin) == end
