"""Gemma 3n and 4 from disk: stacked experts, the table that stays in its file, and tensors that are not
read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.errors import ModelFileError, TensorError
from support.tiny_models import CONFIGS, weights_of, write_folder

pytestmark = pytest.mark.tier

IDS = [2, 17, 5, 80, 33, 9, 41, 7, 64, 3, 3, 95]  # ids from 90 on are beyond the per-layer table of Gemma 3n
FAMILIES = ("gemma3n_text", "gemma4_text", "gemma4_experts")
TABLE = "model.embed_tokens_per_layer.weight"


def logits_of(folder: Path, **arguments: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    with gemlet.load(folder, weights="f32", threads=1, **arguments) as model:
        return model.logits(IDS)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- Published folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_part_of_a_multimodal_model(tmp_path: Path, family: str) -> None:
    text = CONFIGS[family]
    plain = write_folder(tmp_path / "plain", text)
    towers = ["vision_tower", "audio_tower", "embed_vision", "embed_audio"]
    towers += ["vision_embedder"] if family.startswith("gemma4") else []
    tensors = weights_of(text, "model.language_model.") | {
        f"model.{tower}.some.weight": np.zeros((3, 5), np.float32) for tower in towers
    }
    outer = text["model_type"].removesuffix("_text")
    config = {
        "model_type": outer,
        "text_config": text,
        "vision_config": {},
        "audio_config": None,
        "eos_token_id": [1, 6],
    }
    multimodal = write_folder(tmp_path / "multimodal", config, tensors=tensors)
    np.testing.assert_array_equal(logits_of(plain), logits_of(multimodal))
    with gemlet.load(multimodal, threads=1) as model:
        assert model.end_ids == {1, 6}
        assert model.config.model_type == outer


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_projections_of_layers_that_share_keys_are_not_read(tmp_path: Path, family: str) -> None:
    tensors = weights_of(CONFIGS[family])
    last = "model.layers.2.self_attn"
    assert f"{last}.k_proj.weight" not in tensors
    leftovers = {
        f"{last}.{name}.weight": np.full(3, np.nan, np.float32) for name in ("k_proj", "v_proj", "k_norm")
    }
    clean = write_folder(tmp_path / "clean", CONFIGS[family])
    full = write_folder(tmp_path / "full", CONFIGS[family], tensors=tensors | leftovers)
    np.testing.assert_array_equal(logits_of(clean), logits_of(full))
    other = {"model.layers.2.self_attn.v_norm.weight": np.zeros(3, np.float32)}
    with pytest.raises(TensorError, match=r"unexpected tensor 'model\.layers\.2\.self_attn\.v_norm"):
        gemlet.load(write_folder(tmp_path / "other", CONFIGS[family], tensors=tensors | other))


# --- Experts ------------------------------------------------------------------------------------------------


def test_experts_packed_in_small_blocks_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma4_experts"])
    whole = logits_of(folder)
    monkeypatch.setattr("gemlet.packing.blocks._BLOCK_BYTES", 1)  # sixteen rows at a time
    np.testing.assert_array_equal(logits_of(folder), whole)


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_each_expert_gets_its_own_weights(tmp_path: Path, part: str) -> None:
    """If the experts and the rows of the router change their order together, the model is the same."""
    tensors = weights_of(CONFIGS["gemma4_experts"])
    exact = logits_of(write_folder(tmp_path / "exact", CONFIGS["gemma4_experts"], tensors=tensors))
    order = [3, 0, 4, 2, 1]
    moved, half = dict(tensors), dict(tensors)
    for i in range(3):
        router = [f"model.layers.{i}.router.{name}" for name in ("proj.weight", "per_expert_scale")]
        experts = [f"model.layers.{i}.experts.{name}" for name in ("gate_up_proj", "down_proj")]
        for name in router + experts:
            moved[name] = tensors[name][order]
        half[f"model.layers.{i}.experts.{part}"] = moved[f"model.layers.{i}.experts.{part}"]
    same = logits_of(write_folder(tmp_path / "moved", CONFIGS["gemma4_experts"], tensors=moved))
    np.testing.assert_allclose(same, exact, atol=1e-5 * np.abs(exact).max())
    other = logits_of(write_folder(tmp_path / "half", CONFIGS["gemma4_experts"], tensors=half))
    assert np.abs(other - exact).max() > 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize("weights", ["f32", "bf16", "bf12", "q8", "q4"])
def test_an_expert_that_is_not_finite(tmp_path: Path, weights: str) -> None:
    tensors = weights_of(CONFIGS["gemma4_experts"])
    name = "model.layers.1.experts.down_proj"
    tensors[name][4, 63, 39] = np.inf
    folder = write_folder(tmp_path, CONFIGS["gemma4_experts"], tensors=tensors)
    with pytest.raises(TensorError, match=rf"model\.safetensors: tensor '{name}': .*experts\.4\.down"):
        gemlet.load(folder, weights=weights, threads=1)


def test_a_stack_of_the_wrong_shape(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma4_experts"])
    name = "model.layers.1.experts.gate_up_proj"
    for shape in ((4, 80, 64), (5, 64, 80), (400, 64)):
        wrong = tensors | {name: np.zeros(shape, np.float32)}
        with pytest.raises(TensorError, match=rf"'{name}' has shape .*expected \[5, 80, 64\]"):
            gemlet.load(write_folder(tmp_path, CONFIGS["gemma4_experts"], tensors=wrong))


# --- The per-layer table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_the_table_is_read_while_the_model_runs_and_closed_with_it(tmp_path: Path, family: str) -> None:
    tensors = weights_of(CONFIGS[family])
    folder = write_folder(tmp_path, CONFIGS[family], tensors=tensors)
    gemlet.load(folder, threads=1).close()
    before = open_files()
    with gemlet.load(folder, weights="f32", threads=1) as model:
        assert open_files() == before + 1
        first = model.logits(IDS)
        data = bytearray((folder / "model.safetensors").read_bytes())
        at = data.index(tensors[TABLE].tobytes())
        data[at : at + tensors[TABLE].nbytes] = bytes(tensors[TABLE].nbytes)  # every row becomes zero
        rewrite(folder / "model.safetensors", bytes(data))
        assert np.abs(model.logits(IDS) - first).max() > 1e-3 * np.abs(first).max()
    assert open_files() == before


def rewrite(path: Path, data: bytes) -> None:
    """Changes the file in place, and sets its time back; a new mode explains that of the status."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(status.st_mode ^ 0o040)


def test_ids_beyond_the_table_take_its_first_row(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma3n_text"])
    longer = CONFIGS["gemma3n_text"] | {"vocab_size_per_layer_input": 96}
    table = np.concatenate([tensors[TABLE], np.repeat(tensors[TABLE][:1], 6, axis=0)])
    short = write_folder(tmp_path / "short", CONFIGS["gemma3n_text"], tensors=tensors)
    long = write_folder(tmp_path / "long", longer, tensors=tensors | {TABLE: table})
    np.testing.assert_array_equal(logits_of(short), logits_of(long))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_row_that_is_not_finite_is_found_when_it_is_used(tmp_path: Path, value: float, bf16: bool) -> None:
    tensors = weights_of(CONFIGS["gemma4_text"])
    tensors[TABLE][50, -1] = value
    folder = write_folder(tmp_path, CONFIGS["gemma4_text"], tensors=tensors, bf16=bf16)
    with gemlet.load(folder, threads=1) as model:
        good = model.logits(IDS)
        with pytest.raises(TensorError, match=r"model\.safetensors: row 50 of the table .*NaN or infinity"):
            model.logits([*IDS, 50])
        np.testing.assert_array_equal(model.logits(IDS), good)


def test_a_file_that_shrinks_under_a_running_model(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma4_text"])
    folder = write_folder(tmp_path, CONFIGS["gemma4_text"], tensors=tensors)
    with gemlet.load(folder, threads=1) as model:
        model.logits(IDS)
        os.truncate(folder / "model.safetensors", 100)
        with pytest.raises(ModelFileError, match=r"model\.safetensors: was cut short while it was in use"):
            model.logits(IDS)


def test_a_failed_load_leaves_no_file_open(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma4_text"])
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = np.nan
    folder = write_folder(tmp_path, CONFIGS["gemma4_text"], tensors=tensors)
    gemlet.load(write_folder(tmp_path / "good", CONFIGS["gemma4_text"]), threads=1).close()
    before = open_files()
    for _ in range(3):
        with pytest.raises(TensorError):
            gemlet.load(folder, threads=1)
    assert open_files() == before
