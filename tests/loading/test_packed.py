"""Packed models: what convert() writes and where, and how the packed model behaves."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import gemlet
from gemlet.cli import main
from gemlet.errors import GemletError, InvalidRequestError, ModelFileError, TensorError
from gemlet.weights.formats import PRESETS
from gemlet.weights.packed_file import FORMAT_VERSION
from gemlet.weights.slots import PER_LAYER_TABLE
from support.processes import run_program
from support.programs import packed as programs
from support.tiny_models import CONFIGS, IDS, logits_of, read_header, weights_of, write_folder
from support.waiting import PATIENCE

pytestmark = pytest.mark.tier


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("weights", PRESETS)
def test_a_packed_model_gives_the_same_logits(tmp_path: Path, family: str, weights: str) -> None:
    source = write_folder(tmp_path / "source", CONFIGS[family], bf16=family == "gemma")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "top_k": 5}))
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    expected = logits_of(source, weights=weights)
    (source / "model.safetensors").unlink()
    with gemlet.load(tmp_path / "packed", threads=1) as model:
        assert model.weights == weights
        assert model.end_ids == {1, 7}
        assert model.generation_config.top_k == 5
        np.testing.assert_array_equal(model.logits(IDS), expected)
    np.testing.assert_array_equal(logits_of(tmp_path / "packed", weights=weights), expected)


def test_the_file_is_safetensors_with_aligned_tensors(packed: Path) -> None:
    header, data = read_header(packed / "model.safetensors")
    metadata = header.pop("__metadata__")
    assert metadata["gemlet_format"] == str(FORMAT_VERSION)
    assert metadata["gemlet_weights"] == "q4"
    described = json.loads(metadata["gemlet_tensors"])
    assert described["layers.1.down_proj"] == ["q4", [64, 96]]
    assert described["embed_tokens"] == ["q8", [96, 64]]
    assert described["final_norm"] == ["f32", [64]]
    assert described.keys() == header.keys()
    begin = (packed / "model.safetensors").stat().st_size - len(data)
    for entry in header.values():
        assert entry["dtype"] == "U8"
        assert (begin + entry["data_offsets"][0]) % 64 == 0
        assert entry["shape"] == [entry["data_offsets"][1] - entry["data_offsets"][0]]


@pytest.mark.parametrize("family", ["gemma", "gemma3n_text", "gemma4_text"])
@pytest.mark.parametrize("weights", ["f32", "bf12", "q4"])
def test_the_package_safetensors_reads_what_was_written(tmp_path: Path, family: str, weights: str) -> None:
    source = write_folder(tmp_path / "source", CONFIGS[family], bf16=True)
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    path = tmp_path / "packed" / "model.safetensors"
    header, data = read_header(path)
    metadata = header.pop("__metadata__")
    with safe_open(path, "numpy") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(header)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            part = file.get_slice(name)
            assert (part.get_dtype(), part.get_shape()) == (entry["dtype"], entry["shape"])
            if entry["dtype"] == "U8":
                assert file.get_tensor(name).tobytes() == data[begin:end]
            else:
                assert name == PER_LAYER_TABLE
                assert entry["dtype"] == "BF16"  # NumPy does not have this type


def test_an_embedding_with_its_own_format(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    gemlet.convert(source, tmp_path / "packed", weights="q4", embedding="q4", threads=1)
    expected = logits_of(source, weights="q4", embedding="q4")
    np.testing.assert_array_equal(logits_of(tmp_path / "packed"), expected)
    with pytest.raises(InvalidRequestError, match=r"embedding is 'q8', but .*packed is packed as 'q4'"):
        gemlet.load(tmp_path / "packed", embedding="q8")


def test_the_demo_model_with_its_tokenizer_and_chat_format(tmp_path: Path) -> None:
    gemlet.convert(None, tmp_path / "demo", weights="q8", threads=1)
    with gemlet.load(tmp_path / "demo", threads=1) as model, gemlet.load(weights="q8", threads=1) as demo:
        for one in (model, demo):
            assert one.tokenizer is not None
        message = [{"role": "user", "content": "Hello"}]
        options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        assert model.chat(message, **options).text == demo.chat(message, **options).text
        assert model.generation_config == demo.generation_config


def test_the_per_layer_table_stays_in_the_file(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma3n_text"], bf16=True)
    gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1)
    header, _ = read_header(tmp_path / "packed" / "model.safetensors")
    assert header[PER_LAYER_TABLE]["dtype"] == "BF16"
    assert list(header)[-1] == PER_LAYER_TABLE


def test_inspect(packed: Path) -> None:
    found = gemlet.inspect(packed)
    assert (found.weights, found.problem) == ("q4", None)
    assert found.stored == {"q4": 21, "f32": 19, "q8": 1}


def test_convert_does_not_overwrite_files(tmp_path: Path, packed: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for taken in ("file", "folder", "source"):
        with pytest.raises(ModelFileError, match=rf"{taken}: exists; expected a new folder"):
            gemlet.convert(source, tmp_path / taken)
    for destination in ("", "a\0b", 3):
        with pytest.raises(InvalidRequestError, match="destination is"):
            gemlet.convert(source, destination)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="is packed already, as q4"):
        gemlet.convert(packed, tmp_path / "again")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    gemlet.convert(source, tmp_path / "link", threads=1)
    assert (tmp_path / "link").is_symlink()
    gemlet.convert(source, tmp_path / "new" / "deep", threads=1)
    np.testing.assert_array_equal(logits_of(tmp_path / "empty"), logits_of(tmp_path / "new" / "deep"))


def test_a_mount_point_is_refused_before_anything_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: path == str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    with pytest.raises(ModelFileError, match=r"volume: is a mount point.*give a new folder in it"):
        gemlet.convert(None, tmp_path / "volume", progress=lambda done, total: pytest.fail("packs"))
    gemlet.convert(None, tmp_path / "volume" / "model", weights="q4", threads=1)


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma"])
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = np.nan
    source = write_folder(tmp_path / "source", CONFIGS["gemma"], tensors=tensors)
    with pytest.raises(TensorError, match=r"model\.safetensors: tensor 'model\.layers\.2\.mlp\.up_proj"):
        gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1)

    class EnoughError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1, progress=stop)
    assert os.listdir(tmp_path) == ["source"]


def test_conversions_to_one_place_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    together = threading.Barrier(2)
    failures: list[GemletError] = []

    def meet(done: int, total: int) -> None:
        if done == total:
            together.wait(timeout=PATIENCE)

    def convert() -> None:
        try:
            gemlet.convert(source, tmp_path / "packed", weights="q8", threads=1, progress=meet)
        except ModelFileError as problem:
            failures.append(problem)

    threads = [threading.Thread(target=convert) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 1
    assert sorted(os.listdir(tmp_path)) == ["packed", "source"]
    logits_of(tmp_path / "packed")


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_folder(tmp_path / "source", CONFIGS["gemma3n_text"])
    gemlet.convert(source, tmp_path / "packed", threads=1, progress=lambda *step: seen.append(step))
    header, data = read_header(source / "model.safetensors")
    done = [step for step, _ in seen]
    assert done == sorted(done)
    assert len(done) == len(header)
    assert seen[-1] == (len(data), len(data))
    seen.clear()
    with gemlet.load(source, threads=1, progress=lambda *step: seen.append(step)):
        assert seen[-1][0] == seen[-1][1] < len(data)  # the per-layer table is not read


def test_ctrl_c_while_converting(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    run_program(programs.convert_and_interrupt, source, tmp_path / "packed")
    assert os.listdir(tmp_path) == ["source"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    arguments = ["convert", str(source), str(tmp_path / "packed"), "--weights", "q8"]
    assert main(arguments) == 0
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "packed"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "q8"
