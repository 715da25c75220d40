"""GGUF headers: the values in good files, and the typed errors for bad files."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemlet.checkpoint.gguf_format import MAX_ENTRIES, MAX_HEAD_BYTES, read_gguf
from gemlet.errors import GemletError, ModelFileError
from gemlet.tokenizer import Tokenizer
from support.tokenizer_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    gguf_entry,
    gguf_file,
    gguf_string,
    gguf_tensor,
    trained_gguf,
)

ENTRIES = [
    gguf_entry("general.architecture", STRING, "gemma3"),
    gguf_entry("u8", 0, 200),
    gguf_entry("i8", 1, -3),
    gguf_entry("u16", 2, 60000),
    gguf_entry("i16", 3, -300),
    gguf_entry("u32", U32, 1 << 31),
    gguf_entry("i32", I32, -7),
    gguf_entry("f32", F32, 0.5),
    gguf_entry("yes", BOOL, True),
    gguf_entry("u64", 10, 1 << 63),
    gguf_entry("i64", 11, -1),
    gguf_entry("f64", 12, 0.1),
    gguf_entry("numbers", ARRAY, (I32, [1, -2, 3])),
    gguf_entry("flags", ARRAY, (BOOL, [1, 0, 1])),
    gguf_entry("words", ARRAY, (STRING, ["a", "", "é▁"])),
    gguf_entry("nested", ARRAY, (ARRAY, [(I32, [1]), (STRING, ["x"])])),
]
TENSORS = [
    gguf_tensor("matrix", [32, 3], 2, 0),  # Q4_0, 3 rows of 18 bytes
    gguf_tensor("vector", [5], 0, 64),
]
DATA = bytes(range(64)) + np.arange(5, dtype="<f4").tobytes()
GOOD = gguf_file(ENTRIES, TENSORS, DATA)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def header(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def refused(folder: Path, data: bytes, *words: str) -> None:
    path = write(folder, data)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_metadata_of_every_type(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path, GOOD))
    found = dict(file.metadata)
    np.testing.assert_array_equal(found.pop("numbers"), [1, -2, 3])
    np.testing.assert_array_equal(found.pop("flags"), [True, False, True])
    nested = found.pop("nested")
    assert isinstance(nested, list)
    assert nested[0].tolist() == [1]
    assert nested[1] == ["x"]
    assert found == {
        "general.architecture": "gemma3",
        "u8": 200,
        "i8": -3,
        "u16": 60000,
        "i16": -300,
        "u32": 1 << 31,
        "i32": -7,
        "f32": 0.5,
        "yes": True,
        "u64": 1 << 63,
        "i64": -1,
        "f64": 0.1,
        "words": ["a", "", "é▁"],
    }
    assert (file.version, file.alignment) == (3, 32)


def test_tensors_are_read_from_the_places_in_the_directory(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    file = read_gguf(path)
    matrix, vector = file.tensors["matrix"], file.tensors["vector"]
    assert (matrix.shape, matrix.type, matrix.nbytes) == ((3, 32), "Q4_0", 54)
    assert (vector.shape, vector.type, vector.nbytes) == ((5,), "F32", 20)
    data = path.read_bytes()
    assert data[matrix.offset : matrix.offset + matrix.nbytes] == DATA[:54]
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 5, vector.offset), np.arange(5))


def test_another_alignment_and_version_2(tmp_path: Path) -> None:
    entries = [gguf_entry("general.alignment", U32, 64)]
    data = gguf_file(entries, [gguf_tensor("t", [2], 24, 64)], bytes(66), alignment=64)
    file = read_gguf(write(tmp_path, data[:4] + struct.pack("<I", 2) + data[8:]))
    assert (file.version, file.alignment, file.data_offset % 64) == (2, 64, 0)
    assert file.tensors["t"].offset == file.data_offset + 64


def test_get_names_the_key(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path, GOOD))
    assert file.get("i32", int) == -7
    assert file.get("absent", int, None) is None
    for key, kind in (("absent", int), ("f32", int), ("yes", int), ("words", str)):
        with pytest.raises(ModelFileError, match=key):
            file.get(key, kind)


def test_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        with pytest.raises(ModelFileError, match=r"model\.gguf"):
            read_gguf(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGML" + GOOD[4:], ["not a GGUF file"]),
        (header(0, 0, version=1), ["version 1"]),
        (header(0, 0, version=4), ["version 4"]),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), ["big-endian"]),
        (header(1 << 63, 0) + bytes(100), ["announces 9223372036854775808 tensors"]),
        (header(0, 1 << 63) + bytes(100), ["announces 9223372036854775808 metadata entries"]),
        (header(0, 1) + gguf_string(b"\xff") + bytes(20), ["metadata key 0", "UTF-8"]),
        (header(0, 1) + gguf_string("k" * 70000) + bytes(20), ["metadata key 0", "65535"]),
        (header(0, 1) + struct.pack("<Q", (1 << 64) - 1) + bytes(20), ["metadata key 0"]),
        (gguf_file([gguf_entry("k", BOOL, 2)]), ["k", "bool"]),
        (gguf_file([gguf_entry("k", ARRAY, (BOOL, [0, 7]))]), ["k", "bool", "7"]),
        (gguf_file([gguf_string("k") + struct.pack("<I", 13) + bytes(30)]), ["k", "type 13"]),
        (
            gguf_file([gguf_string("k") + struct.pack("<IIQ", ARRAY, 99, 0) + bytes(30)]),
            ["k", "element type 99"],
        ),
        (gguf_file([gguf_entry("k", U32, 1), gguf_entry("k", U32, 1)]), ["k", "twice"]),
        (gguf_file([gguf_string("k") + struct.pack("<IQ", STRING, 1 << 62) + bytes(30)]), ["k", "left"]),
        (gguf_file([gguf_entry("k", STRING, b"\xc3(")]), ["k", "UTF-8"]),
        (gguf_file([gguf_entry("k", ARRAY, (STRING, ["a", b"\xe2\x96"]))]), ["k[1]", "UTF-8"]),
        (gguf_file([gguf_entry("general.alignment", U32, 0)]), ["general.alignment"]),
        (gguf_file([gguf_entry("general.alignment", U32, 12)]), ["general.alignment"]),
        (gguf_file([gguf_entry("general.alignment", U32, 1 << 31)]), ["general.alignment"]),
        (gguf_file([gguf_entry("general.alignment", STRING, "32")]), ["general.alignment"]),
    ],
)
def test_wrong_metadata_are_refused(tmp_path: Path, data: bytes, words: list[str]) -> None:
    refused(tmp_path, data, *words)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, U32, I32, F32, BOOL, STRING, ARRAY, 10, 11, 12])
@pytest.mark.parametrize("count", [9, 1 << 32, 1 << 61, (1 << 64) - 1])
def test_array_counts_beyond_the_file(tmp_path: Path, kind: int, count: int) -> None:
    array = gguf_string("k") + struct.pack("<IIQ", ARRAY, kind, count) + bytes(8)
    refused(tmp_path, header(0, 1) + array, "k", str(count))


def test_a_string_in_an_array_beyond_the_file(tmp_path: Path) -> None:
    array = gguf_string("k") + struct.pack("<IIQ", ARRAY, STRING, 2) + gguf_string("a")
    refused(tmp_path, header(0, 1) + array + struct.pack("<Q", 1 << 63) + bytes(8), "k[1]")


@pytest.mark.parametrize("depth", [5, 5000, 200000])
def test_nested_arrays(tmp_path: Path, depth: int) -> None:
    nest = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", I32, 0)
    refused(tmp_path, header(0, 1) + gguf_string("k") + struct.pack("<I", ARRAY) + nest, "k", "deep")


def test_more_strings_than_any_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemlet.checkpoint.gguf_format.MAX_OBJECTS", 5)
    entries = [gguf_entry(key, ARRAY, (STRING, ["a"] * 3)) for key in "ab"]
    refused(tmp_path, gguf_file(entries), "b", "at most 5")


@pytest.mark.parametrize("value", [(STRING,), (ARRAY, F32)])
def test_metadata_in_a_hole_of_the_file(tmp_path: Path, value: tuple[int, ...]) -> None:
    """A hole of gigabytes takes no disk, but reading it would take gigabytes of memory."""
    size = 1 << 40
    kind = struct.pack(f"<{len(value)}I", *value)
    data = header(0, 1) + gguf_string("k") + kind + struct.pack("<Q", (size - 100) // 4)
    path = write(tmp_path, data)
    os.truncate(path, size)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=rf"k at byte .*expected at most {MAX_HEAD_BYTES}"):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("tensors", "entries"), [(1 << 20, 0), (0, 1 << 20)])
def test_more_entries_than_any_model(tmp_path: Path, tensors: int, entries: int) -> None:
    path = write(tmp_path, header(tensors, entries))
    os.truncate(path, 1 << 30)
    with pytest.raises(ModelFileError, match=f"announces .*; expected at most {MAX_ENTRIES}"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([gguf_tensor("t", [], 0, 0)], ["t", "0 dimensions"]),
        ([gguf_tensor("t", [1] * 5, 0, 0)], ["t", "5 dimensions"]),
        ([gguf_string("t") + struct.pack("<I", 1 << 31) + bytes(64)], ["t", "dimensions"]),
        ([gguf_tensor("t", [4, 0], 0, 0)], ["t", "[4, 0]; expected all above 0"]),
        ([gguf_tensor("t", [1 << 62, 1 << 62, 1 << 62, 1 << 62], 0, 0)], ["t", "ends at"]),
        ([gguf_tensor("t", [1 << 32, 1 << 32], 24, 0)], ["t", "ends at"]),
        ([gguf_tensor("t", [16], 0, (1 << 64) - 32)], ["t", "ends at"]),
        ([gguf_tensor("t", [17], 0, 0)], ["t", "ends at"]),
        ([gguf_tensor("t", [16], 0, 32)], ["t", "ends at"]),
        ([gguf_tensor("t", [4], 0, 4)], ["t", "multiple"]),
        ([gguf_tensor("t", [16], 77, 0)], ["t", "type 77"]),
        ([gguf_tensor("t", [16], 2, 0)], ["t", "Q4_0", "multiple of 32"]),
        ([gguf_tensor("t", [4], 0, 0), gguf_tensor("t", [4], 0, 32)], ["t", "twice"]),
        ([gguf_tensor("a", [16], 0, 0), gguf_tensor("b", [4], 0, 32)], ["a", "b", "overlap"]),
    ],
)
def test_a_wrong_tensor_directory_is_refused(tmp_path: Path, tensors: list[bytes], words: list[str]) -> None:
    refused(tmp_path, gguf_file([], tensors, bytes(64)), *words)


def test_a_path_that_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "empty", tmp_path / "absent", tmp_path / "nul\0"):
        with pytest.raises(ModelFileError, match=tmp_path.name):
            read_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_typed_error_or_none(tmp_path: Path, data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([GOOD, trained_gguf()]))
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 8))
        damaged[at : at + 8] = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 40)]))
    path = write(tmp_path, bytes(damaged))
    try:
        file = read_gguf(path)
        assert all(t.offset + t.nbytes <= len(damaged) for t in file.tensors.values())
        Tokenizer.from_file(path).encode("the door")
    except GemletError as error:
        message = str(error)
    else:
        message = str(path)
    assert str(path) in message


def test_a_file_cut_short_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader raises an error. Access to a mapping of the truncated file would end the process."""
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file([gguf_entry(f"key{i}", STRING, "x" * 50_000) for i in range(9)]))
    assert len(read_gguf(path).metadata) == 9
    pread, places = os.pread, []

    def cut(descriptor: int, count: int, place: int) -> bytes:
        places.append(place)
        if place > 100_000:
            os.truncate(path, 100_000)
        return pread(descriptor, count, place)

    monkeypatch.setattr(os, "pread", cut)
    with pytest.raises(ModelFileError, match=r"a\.gguf: was cut short while gemlet was reading it"):
        read_gguf(path)
    assert len(places) > 2
