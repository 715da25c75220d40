"""Google's quantized checkpoints, opened as they are published: tests/golden/quantized has tiny ones, with
the results of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from golden.folders import HERE, read_tensors

FOLDERS = HERE / "quantized"
GEMMA = ("gemma", "gemma-plain")
TOLERANCE = 2e-4


def golden(name: str) -> list[tuple[list[int], NDArray[Any], list[int]]]:
    found = read_tensors(FOLDERS / name / "golden.safetensors")
    return [
        (found[f"ids.{i}"].tolist(), found[f"logits.{i}"], found[f"greedy.{i}"].tolist()) for i in range(3)
    ]


def greedy(model: gemlet.Model, ids: list[int], count: int) -> list[int]:
    return list(model.generate(ids, max_tokens=count, temperature=0).token_ids)


def check(model: gemlet.Model, name: str, tolerance: float) -> None:
    for ids, logits, text in golden(name):
        np.testing.assert_allclose(model.logits(ids), logits, rtol=0, atol=tolerance)
        assert greedy(model, ids, len(text)) == text


@pytest.mark.parametrize("weights", ["auto", "f32"])
@pytest.mark.parametrize("name", GEMMA)
def test_weights_of_few_bits_with_rounded_activations(name: str, weights: str) -> None:
    with gemlet.load(FOLDERS / name, weights=weights, threads=1) as model:
        assert model.weights == ("r4" if weights == "auto" else "f32")
        check(model, name, TOLERANCE)


@pytest.mark.tier
@pytest.mark.parametrize("weights", ["auto", "f32"])
def test_weights_of_four_bits_with_a_scale_for_32(weights: str) -> None:
    with gemlet.load(FOLDERS / "w4a16", weights=weights, threads=1) as model:
        assert model.weights == ("w4a16" if weights == "auto" else "f32")
        check(model, "w4a16", TOLERANCE)
    info = gemlet.inspect(FOLDERS / "w4a16")
    assert info.kept_as == {"i4x32": "w4a16", "bf16": "bf16"}
    assert info.formats == {"weights": "w4a16", "embedding": "bf16", "kv_cache": "f32"}


def regrouped(folder: Path, *, groups: bool, dtype: str = "BF16") -> Path:
    """w4a16 with one scale for each row, which is stored once or, with ``groups``, for each 32 columns."""
    shutil.copytree(FOLDERS / "w4a16", folder)
    path = folder / "model.safetensors"
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data, at = json.loads(blob[8:start]), b"", 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        raw = blob[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        if name.endswith(".weight_scale"):
            scales = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view("<f4")
            scales = scales.reshape(entry["shape"])[:, :1]
            scales = np.repeat(scales, entry["shape"][1] if groups else 1, axis=1)
            raw = (scales.view("<u4") >> 16).astype("<u2").tobytes()
            if dtype == "F32":
                raw = (scales * np.float32(1.001)).tobytes()
            entry.update(shape=list(scales.shape), dtype=dtype)
        entry["data_offsets"] = [at, at + len(raw)]
        data, at = data + raw, at + len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def test_one_scale_for_a_row_equals_that_scale_for_each_group(tmp_path: Path) -> None:
    ids = golden("w4a16")[0][0]
    with gemlet.load(regrouped(tmp_path / "groups", groups=True), threads=1) as model:
        expected = model.logits(ids)
    with gemlet.load(regrouped(tmp_path / "rows", groups=False), threads=1) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)
    with gemlet.load(tmp_path / "rows", weights="f32", threads=1) as model:
        np.testing.assert_allclose(model.logits(ids), expected, rtol=0, atol=TOLERANCE)


def test_scales_that_float16_cannot_hold_are_kept_in_f32(tmp_path: Path) -> None:
    folder = regrouped(tmp_path / "f32", groups=True, dtype="F32")
    assert gemlet.inspect(folder).weights == "f32"
    ids = golden("w4a16")[0][0]
    with gemlet.load(folder, threads=1) as model, gemlet.load(folder, weights="f32", threads=1) as floats:
        assert model.weights == "f32"
        np.testing.assert_allclose(model.logits(ids), floats.logits(ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gemma", "gemma-plain", "w4a16"])
def test_a_packed_folder_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    gemlet.convert(FOLDERS / name, tmp_path / "packed")
    ids = golden(name)[0][0]
    with gemlet.load(FOLDERS / name, threads=1) as model:
        expected = model.logits(ids)
        memory = model.memory()
    with gemlet.load(tmp_path / "packed", threads=1) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)
        assert model.memory()["weights"] == memory["weights"]
        assert model.memory()["embedding"] == memory["embedding"]
    with gemlet.load(tmp_path / "packed", threads=1, embedding_on_disk=True) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)
    info = gemlet.inspect(tmp_path / "packed")
    assert info.weights == ("w4a16" if name == "w4a16" else "r4")


@pytest.mark.parametrize("name", GEMMA)
def test_the_cache_of_packed_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        with gemlet.load(FOLDERS / name, cache=True, threads=1) as model:
            check(model, name, TOLERANCE)


@pytest.mark.parametrize(("weights", "most"), [("bf16", 0.5), ("q8", 0.5), ("q4", 1.0)])
def test_other_formats_keep_the_rounding_of_activations(weights: str, most: float) -> None:
    """The results differ because the format rounds weights, and the rounding of activations amplifies
    this."""
    with gemlet.load(FOLDERS / "gemma", weights=weights, threads=1) as model:
        for ids, logits, _ in golden("gemma"):
            assert np.abs(model.logits(ids) - logits).mean() < most * np.abs(logits).mean()


def test_pieces_threads_and_batches_give_the_same_bits() -> None:
    ids = [2, *range(3, 60)]
    with gemlet.load(FOLDERS / "gemma", threads=1) as one, gemlet.load(FOLDERS / "gemma", threads=2) as two:
        expected = one.logits(ids)
        np.testing.assert_array_equal(two.logits(ids), expected)
        for length in (1, 2, 7, 17, 40):
            np.testing.assert_array_equal(one.logits(ids[:length]), expected[:length])


def test_formats_that_only_files_have_cannot_be_chosen() -> None:
    for weights in ("r8", "r4", "r2", "w4a16"):
        with pytest.raises(gemlet.InvalidRequestError, match=f"weights is '{weights}'; expected one of"):
            gemlet.load(weights=weights)
        with pytest.raises(gemlet.InvalidRequestError, match="embedding"):
            gemlet.load(embedding=weights)


def test_inspect_says_what_the_file_has() -> None:
    info = gemlet.inspect(FOLDERS / "gemma")
    assert info.kept_as == {"i4": "r4", "i2": "r2", "i8": "r8"}
    assert info.formats["embedding"] == "r2"
    assert info.formats["output"] == "r2"
    assert info.table_type == "i4"
    with gemlet.load(FOLDERS / "gemma", threads=1) as model:
        memory = model.memory()
        assert (info.plan.weights, info.plan.embedding) == (memory["weights"], memory["embedding"])


def changed(tmp_path: Path, name: str, change: Any) -> Path:
    """A copy of the folder in which ``change`` has changed the header of the tensors, and their data."""
    folder = tmp_path / "changed"
    shutil.copytree(FOLDERS / name, folder)
    path = folder / "model.safetensors"
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8:start]), bytearray(blob[start:])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return folder


UP = "model.language_model.layers.0.mlp.up_proj"


def rename(old: str, new: str) -> Any:
    def change(header: dict[str, Any], _data: bytearray) -> None:
        header[new] = header.pop(old)

    return change


def write(name: str, dtype: str, value: float) -> Any:
    def change(header: dict[str, Any], data: bytearray) -> None:
        begin = header[name]["data_offsets"][0]
        raw = np.array([value], dtype).tobytes()
        data[begin : begin + len(raw)] = raw

    return change


def reshape(name: str, shape: list[int]) -> Any:
    def change(header: dict[str, Any], _data: bytearray) -> None:
        header[name]["shape"] = shape

    return change


def retype(name: str, dtype: str) -> Any:
    def change(header: dict[str, Any], _data: bytearray) -> None:
        header[name]["dtype"] = dtype

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma", rename(f"{UP}.weight", f"{UP}.other"), "their integers, 'model.*up_proj.weight', are"),
        ("gemma", rename(f"{UP}.weight_scale", f"{UP}.scale"), "unexpected|has shape"),
        ("gemma", write(f"{UP}.weight_scale", "<f4", np.nan), "NaN"),
        ("gemma", write(f"{UP}.weight_scale", "<f4", np.inf), "infinity"),
        ("gemma", write(f"{UP}.input_activation_scale", "<f4", -1.0), "is -1.0; expected a finite number"),
        ("gemma", write(f"{UP}.output_activation_scale", "<f4", np.nan), "is nan; expected a finite number"),
        ("gemma", reshape(f"{UP}.weight_scale", [1, 32]), "expected F32 \\[32, n\\]"),
        ("gemma", reshape(f"{UP}.weight", [64, 16]), "is F32 .32, 1.; expected F32 .64, n."),
        ("gemma", reshape(f"{UP}.weight", [1024]), "expected two sizes above 0"),
        ("gemma", reshape(f"{UP}.weight", [1, 1024]), "has 64 columns"),
        ("gemma", retype(f"{UP}.weight", "I8"), "is I8"),
        ("gemma", reshape(f"{UP}.input_activation_scale", [1]), None),
        ("gemma", retype(f"{UP}.weight_scale", "I32"), "is I32"),
        ("w4a16", reshape(f"{UP}.weight_packed", [64, 4]), "expected BF16, F16 or F32 \\[64, n\\]"),
        ("w4a16", rename(f"{UP}.weight_shape", f"{UP}.weight_g_idx"), "actorder 'group'"),
        ("w4a16", retype(f"{UP}.weight_packed", "F32"), "expected I32"),
        ("w4a16", write(f"{UP}.weight_shape", "<i8", 31), "is \\[31, 64\\]; expected \\[32, 64\\]"),
        ("w4a16", rename(f"{UP}.weight_packed", f"{UP}.weight"), "I32|expected"),
    ],
)
def test_damaged_files(name: str, change: Any, message: str | None, tmp_path: Path) -> None:
    folder = changed(tmp_path, name, change)
    if message is None:
        gemlet.load(folder, threads=1).close()
        return
    with pytest.raises(gemlet.TensorError, match=message):
        gemlet.load(folder, threads=1)


def test_scales_that_are_absent_round_nothing(tmp_path: Path) -> None:
    def change(header: dict[str, Any], data: bytearray) -> None:
        names = [name for name in header if name.endswith("activation_scale")]
        for name in names:
            begin, end = header[name]["data_offsets"]
            data[begin:end] = np.zeros(1, "<f4").tobytes()

    def drop(header: dict[str, Any], data: bytearray) -> None:
        rest = {n: e for n, e in header.items() if not n.endswith("activation_scale")}
        kept, at = bytearray(), 0
        for entry in sorted(
            (e for n, e in rest.items() if n != "__metadata__"), key=lambda e: e["data_offsets"]
        ):
            begin, end = entry["data_offsets"]
            kept += data[begin:end]
            entry["data_offsets"] = [at, at + end - begin]
            at += end - begin
        header.clear()
        header.update(rest)
        data[:] = kept

    ids = golden("gemma")[0][0]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with gemlet.load(changed(tmp_path / "a", "gemma", change), threads=1) as zero:
        expected = zero.logits(ids)
    with gemlet.load(changed(tmp_path / "b", "gemma", drop), threads=1) as absent:
        np.testing.assert_array_equal(absent.logits(ids), expected)
    with gemlet.load(tmp_path / "b" / "changed", weights="f32", threads=1) as floats:
        np.testing.assert_allclose(floats.logits(ids), expected, rtol=0, atol=TOLERANCE)
