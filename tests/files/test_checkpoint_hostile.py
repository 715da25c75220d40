"""Safetensors files and indexes with false contents, and the errors for them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.errors import GemletError, ModelFileError, TensorError
from support.tiny_models import (
    CONFIGS,
    logits_of,
    safetensors_bytes,
    weights_of,
    with_header,
    write_folder,
    write_index,
    write_safetensors,
    write_shards,
)

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1.5, -2.0], dtype=np.float32)


def entry(begin: int, end: int, shape: object = (2,), dtype: object = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    }


# --- false headers --------------------------------------------------------------------------------

DATA = bytes(16)
REFUSED: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "has 0 bytes"),
    ("seven bytes", bytes(7), "has 7 bytes"),
    ("header beyond the file", (1000).to_bytes(8, "little") + b"{}", "says that its header has 1000 bytes"),
    ("header of 2**64-1 bytes", b"\xff" * 8 + b"{}", "says that its header has 18446744073709551615 bytes"),
    ("not safetensors at all", b"PK\x03\x04" + bytes(100), "says that its header has"),
    ("Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("empty header", with_header(b"", DATA), "its header begins with b''"),
    ("not JSON", with_header(b"{]", DATA), r"\(header\): not valid JSON"),
    ("an array", with_header(b"[]", DATA), "expected a JSON object"),
    ("NaN", with_header(b'{"a": NaN}', DATA), "holds NaN"),
    ("not UTF-8", with_header(b'{"\xff": 1}', DATA), "not UTF-8"),
    ("deep", with_header(b'{"a":' + b"[" * 100000, DATA), "nested too deeply"),
    (
        "name twice",
        with_header(
            json.dumps({"a": entry(0, 8)})[:-1].encode() + b"," + json.dumps({"a": 1})[1:].encode(), DATA
        ),
        "'a' appears twice",
    ),
    ("metadata not an object", with_header({"__metadata__": [1]}, b""), r"__metadata__ is \[1\]"),
    ("metadata not of strings", with_header({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    ("entry not an object", with_header({"a": 3}, DATA), "'a' is 3"),
    ("missing field", with_header({"a": {"dtype": "F32", "shape": [2]}}, DATA), "'a' is"),
    ("extra field", with_header({"a": entry(0, 8) | {"x": 1}}, DATA), "'a' is"),
    ("unknown dtype", with_header({"a": entry(0, 8, dtype="F33")}, DATA), "'a' has dtype 'F33'"),
    ("dtype not a string", with_header({"a": entry(0, 8, dtype=["F32"])}, DATA), "'a' has dtype"),
    ("shape not a list", with_header({"a": entry(0, 8, shape="2")}, DATA), "'a' has shape '2'"),
    ("negative size", with_header({"a": entry(0, 8, shape=(-2, -1))}, DATA), "'a' has shape"),
    ("fractional size", with_header({"a": entry(0, 8, shape=(2.0,))}, DATA), "'a' has shape"),
    ("boolean size", with_header({"a": entry(0, 4, shape=(True,))}, DATA), "'a' has shape"),
    ("too many axes", with_header({"a": entry(0, 8, shape=(1,) * 8 + (2,))}, DATA), "'a' has shape"),
    ("size of 2**63", with_header({"a": entry(0, 8, shape=(1 << 63,))}, DATA), "'a' has shape"),
    (
        "product wraps to 8",
        with_header({"a": entry(0, 8, shape=((1 << 62) + 1, 4))}, DATA),
        "data_offsets span",
    ),
    ("shape larger than the bytes", with_header({"a": entry(0, 16, shape=(5,))}, DATA), "needs 20 bytes"),
    ("shape smaller than the bytes", with_header({"a": entry(0, 16, shape=(3,))}, DATA), "needs 12 bytes"),
    ("half a byte", with_header({"a": entry(0, 2, shape=(3,), dtype="F4")}, bytes(2)), "needs 2 bytes"),
    ("offsets not a pair", with_header({"a": entry(0, 8) | {"data_offsets": [0]}}, DATA), "data_offsets"),
    ("negative offset", with_header({"a": entry(-8, 0)}, DATA), "data_offsets"),
    ("offsets reversed", with_header({"a": entry(16, 8)}, DATA), r"data_offsets \[16, 8\]"),
    ("offset beyond the file", with_header({"a": entry(0, 24, (6,))}, DATA), "expected begin <= end <= 16"),
    (
        "offset of 2**62",
        with_header({"a": entry(1 << 62, (1 << 62) + 8)}, DATA),
        "expected begin <= end <= 16",
    ),
    ("hole at the start", with_header({"a": entry(8, 16)}, DATA), "'a' begins .* leaves a hole"),
    (
        "hole between",
        with_header({"a": entry(0, 4, (1,)), "b": entry(8, 16)}, DATA),
        "'b' begins .* leaves a hole",
    ),
    ("overlap", with_header({"a": entry(0, 12, (3,)), "b": entry(8, 16)}, DATA), "'b' .* overlaps"),
    (
        "two names of the same bytes",
        with_header({"a": entry(0, 16, (4,)), "b": entry(0, 16, (4,))}, DATA),
        "overlaps",
    ),
    ("bytes at the end", with_header({"a": entry(0, 8)}, DATA), "has .* bytes, but its tensors end at byte"),
    ("data without tensors", with_header({}, DATA), "expected nothing after them"),
    ("terminal escape in a name", with_header({"\x1b[2J": 1}, DATA), r"'\\x1b\[2J' is 1"),
]


@pytest.mark.parametrize(
    ("data", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises((ModelFileError, TensorError), match=message) as caught:
        Checkpoint(write_safetensors(tmp_path, data))
    text = str(caught.value)
    assert "model.safetensors" in text
    assert len(text) < 1000
    text.encode()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": A, "b": B})
    for length in range(len(whole)):
        with pytest.raises(GemletError):
            Checkpoint(write_safetensors(tmp_path, whole[:length]))


VALID = safetensors_bytes({"a": A, "b": B, "c": A.astype(np.float16)}, metadata={"format": "pt"})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(VALID)),
)
def test_damaged_files_end_in_a_typed_error_or_are_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    from safetensors import deserialize

    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    folder = tmp_path_factory.mktemp("damaged")
    for candidate in (bytes(data), bytes(data[:length])):
        write_safetensors(folder, candidate)
        try:
            with Checkpoint(folder) as opened:
                for name, info in opened.tensors.items():
                    if info.dtype in ("F32", "F16", "BF16"):
                        assert opened.read(name)[0].shape == info.shape
                names = list(opened.tensors)
        except (ModelFileError, TensorError):
            continue
        # gemlet accepts no file that the reference reader refuses.
        assert sorted(name for name, _ in deserialize(candidate)) == sorted(names)


# --- folders and indexes --------------------------------------------------------------------------


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"has no weights .* model\.safetensors"):
        Checkpoint(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere"):
        Checkpoint(tmp_path / "nowhere")


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be opened"):
        Checkpoint(tmp_path)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        Checkpoint(tmp_path)


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: (cannot be opened|is not a regular file)"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "c:model.safetensors",
        ".hidden.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        3,
        None,
    ],
)
def test_index_with_a_path(tmp_path: Path, file: object) -> None:
    write_index(tmp_path, {"a": file})
    with pytest.raises(
        ModelFileError, match=r"index\.json: weight_map puts tensor 'a' in .*; expected the plain"
    ):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFileError, match=r"index\.json: weight_map is"):
        Checkpoint(tmp_path)


def test_index_with_a_missing_shard(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-1.safetensors"})
    with pytest.raises(ModelFileError, match=r"model-1\.safetensors: cannot be opened: No such file"):
        Checkpoint(tmp_path)


def test_index_with_too_many_shards(tmp_path: Path) -> None:
    write_index(tmp_path, {f"t{i}": f"{i}.safetensors" for i in range(513)})
    with pytest.raises(ModelFileError, match="names 513 files; expected at most 512"):
        Checkpoint(tmp_path)


SHARDS: dict[str, dict[str, Any]] = {"1.safetensors": {"a": A}, "2.safetensors": {"b": B}}


@pytest.mark.parametrize("file", ["1.safetensors", "2.safetensors"])
def test_an_index_that_lists_a_missing_tensor(tmp_path: Path, file: str) -> None:
    write_shards(tmp_path, SHARDS)
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": file})
    with Checkpoint(tmp_path) as opened:
        assert set(opened.tensors) == {"a", "b"}
        assert opened.absent == {"c": file}
        assert opened.passed_over == ["c in model.safetensors.index.json"]


def test_the_index_may_list_a_missing_tensor(tmp_path: Path) -> None:
    """The missing tensor is an error only if the model needs it."""
    tensors = weights_of(CONFIGS["gemma"])
    write_folder(tmp_path / "whole", CONFIGS["gemma"], tensors=tensors)
    norm = tensors.pop("model.norm.weight")
    folder = write_folder(tmp_path / "model", CONFIGS["gemma"], tensors=tensors)
    (folder / "model.safetensors").unlink()
    write_shards(folder, {"1.safetensors": tensors, "2.safetensors": {"model.norm.weight": norm}})
    files = dict.fromkeys(tensors, "1.safetensors")
    write_index(folder, {**files, "model.norm.weight": "2.safetensors", "other": "1.safetensors"})
    np.testing.assert_array_equal(logits_of(folder), logits_of(tmp_path / "whole"))
    write_index(folder, {**files, "model.norm.weight": "1.safetensors"})
    with pytest.raises(TensorError, match=r"'model.norm.weight' is missing.* says that .* is in '1"):
        logits_of(folder)


@pytest.mark.parametrize(
    ("weight_map", "passed_over"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, []),  # names one file, so the other is not opened
        ({"a": "2.safetensors", "b": "1.safetensors"}, ["x in 1.safetensors"]),  # a and b are used
        ({"b": "2.safetensors", "x": "1.safetensors"}, ["a in 1.safetensors"]),
    ],
)
def test_tensors_are_found_despite_a_stale_index(
    tmp_path: Path, weight_map: dict[str, str], passed_over: list[str]
) -> None:
    """The index decides which tensors are read. The files decide where each tensor is."""
    write_shards(tmp_path, {"1.safetensors": {"a": A, "x": B}, "2.safetensors": {"b": B}})
    write_index(tmp_path, weight_map)
    if "2.safetensors" not in weight_map.values():
        with Checkpoint(tmp_path) as opened:
            assert opened.absent == {"b": "1.safetensors"}
        return
    with Checkpoint(tmp_path) as opened:
        assert set(opened.tensors) == set(weight_map)
        assert opened.passed_over == passed_over
        np.testing.assert_array_equal(opened.read("b")[0], B)


def test_a_tensor_in_two_shards_counts_where_the_index_says(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1.safetensors": {"a": A, "c": A}, "2.safetensors": {"a": A + 1, "b": B}})
    for file, values in (("1.safetensors", A), ("2.safetensors", A + 1)):
        write_index(tmp_path, {"a": file, "b": "2.safetensors", "c": "1.safetensors"})
        with Checkpoint(tmp_path) as opened:
            np.testing.assert_array_equal(opened.read("a")[0], values)
            assert len(opened.passed_over) == 1
