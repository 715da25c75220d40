"""Safetensors, single and sharded, and files that change while they are open."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gemlet.checkpoint import safetensors_files, tensor_files
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.errors import ModelClosedError, ModelFileError, TensorError
from support.tiny_models import (
    CONFIGS,
    bf16_bits,
    safetensors_bytes,
    with_header,
    write_folder,
    write_safetensors,
    write_shards,
)

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1.5, -2.0], dtype=np.float32)


# --- what is read ---------------------------------------------------------------------------------


def test_float32(tmp_path: Path) -> None:
    with Checkpoint(
        write_safetensors(tmp_path, safetensors_bytes({"a": A, "b": B}, metadata={"format": "pt"}))
    ) as opened:
        assert list(opened.tensors) == ["a", "b"]
        assert opened.tensors["a"].shape == (3, 4)
        values, dtype = opened.read("a")
        assert dtype == "f32"
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, A)


def test_bfloat16_and_float16_are_returned_as_bits(tmp_path: Path) -> None:
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A}, bf16=True))) as opened:
        values, dtype = opened.read("a")
    assert (dtype, values.dtype) == ("bf16", np.uint16)
    np.testing.assert_array_equal(values, bf16_bits(A))
    half = A.astype(np.float16)
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": half}))) as opened:
        values, dtype = opened.read("a")
    assert (dtype, values.dtype) == ("f16", np.uint16)
    np.testing.assert_array_equal(values.view(np.float16), half)


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"b": B, "a": A, "none": np.zeros((0, 3), np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)
        np.testing.assert_array_equal(opened.read("b")[0], B)
        assert opened.read("none")[0].shape == (0, 3)


def test_scalar_and_empty_file(tmp_path: Path) -> None:
    with Checkpoint(
        write_safetensors(tmp_path, safetensors_bytes({"s": np.array(2.5, np.float32)}))
    ) as opened:
        assert opened.read("s")[0][()] == np.float32(2.5)
    with Checkpoint(write_safetensors(tmp_path, with_header({}, b""))) as opened:
        assert not opened.tensors


def test_large_reads_take_several_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "_READ_BYTES", 7)
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"b": B, "a": A}))) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)


def test_shards(tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": {"a": A}, "model-00002-of-00002.safetensors": {"b": B}}
    with Checkpoint(write_shards(tmp_path, shards)) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)
        np.testing.assert_array_equal(opened.read("b")[0], B)
        assert opened.tensors["b"].file == "model-00002-of-00002.safetensors"


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "feed").write_bytes(safetensors_bytes({"a": A}))
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "feed")
    with Checkpoint(snapshot) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)


def test_arrays_outlive_the_checkpoint(tmp_path: Path) -> None:
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A}))) as opened:
        values, _ = opened.read("a")
    np.testing.assert_array_equal(values, A)
    with pytest.raises(ModelClosedError, match=r"model\.safetensors: was read after"):
        opened.read("a")
    opened.close()  # a second close does nothing


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A}))):
        assert len(os.listdir("/proc/self/fd")) == before + 1
    with pytest.raises(ModelFileError):
        Checkpoint(write_safetensors(tmp_path, b"\xff" * 100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_unknown_tensor(tmp_path: Path) -> None:
    opened = Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A})))
    with opened, pytest.raises(TensorError, match="has no tensor 'b'"):
        opened.read("b")


def test_wrong_type_is_refused(tmp_path: Path) -> None:
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"ids": np.zeros(3, np.int64)}))) as opened:
        for use in (opened.dtype, opened.read):
            with pytest.raises(TensorError, match=r"safetensors: tensor 'ids' is I64; expected F32, BF16"):
                use("ids")


def test_a_header_larger_than_any_model_needs_is_not_parsed(tmp_path: Path) -> None:
    """Parsing ten megabytes of brackets would take a quarter of a gigabyte."""
    path = tmp_path / "model.safetensors"
    length = safetensors_files.MAX_HEADER_BYTES + 1
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"a":[')
        file.truncate(length + 100)
    with pytest.raises(ModelFileError, match=f"header has {length} bytes.* at most {length - 1}"):
        Checkpoint(tmp_path)


# --- files that change while they are open --------------------------------------------------------


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    large = np.zeros((64, 1024), np.float32)
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": large}))) as opened:
        os.truncate(tmp_path / "model.safetensors", 5000)
        with pytest.raises(ModelFileError, match="was cut short while gemlet was reading 'a'"):
            opened.read("a")


def test_file_rewritten_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A}))) as opened:
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(ModelFileError, match="was changed while gemlet was reading 'a'"):
            opened.read("a")


def test_a_file_replaced_after_opening_still_gives_the_old_bytes(tmp_path: Path) -> None:
    with Checkpoint(write_safetensors(tmp_path, safetensors_bytes({"a": A}))) as opened:
        other = tmp_path / "other"
        other.write_bytes(b"something else")
        other.replace(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(opened.read("a")[0], A)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"its shards$"),
        (["pytorch_model.bin"], "save the model again as safetensors"),
        (["consolidated.safetensors"], r"If 'consolidated\.safetensors' has all weights of the model"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "fetch the index too"),
        (["adapter_config.json", "adapter_model.safetensors"], r"load_adapter\(\)"),
    ],
)
def test_the_error_for_other_weights_says_what_to_do(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match=f"has no weights that gemlet reads.*{message}"):
        Checkpoint(tmp_path)


def test_an_index_beside_a_single_file_is_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, CONFIGS["gemma"])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}')
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.passed_over == ["model.safetensors.index.json"]


def test_the_error_for_an_unsupported_type_says_what_to_do(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    (tmp_path / "model.safetensors").write_bytes(with_header(header, b"ab"))
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(TensorError, match="load the bf16 original"):
        checkpoint.dtype("x")
