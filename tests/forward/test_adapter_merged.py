"""Adapters that are merged into a model, and adapters on the command line."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.packing.blocks import blocks
from gemlet.sources.opening import open_model_files
from golden.folders import HERE, TOLERANCE, read_tensors
from support.adapters import ADAPTERS, base_of, read_golden, write_adapter
from support.feeding import difference

pytestmark = pytest.mark.tier


def test_merged_tensors_are_the_sums_for_any_size_of_block() -> None:
    name = "gemma3-plain"
    tensors = read_tensors(ADAPTERS / name / "adapter_model.safetensors")
    at = "base_model.model.model.layers.2.mlp.up_proj.lora_"
    with (
        open_model_files(base_of(name)) as plain,
        open_model_files(base_of(name), merge_adapter=ADAPTERS / name) as merged,
    ):
        tensor = "model.layers.2.mlp.up_proj.weight"
        values, _ = plain.checkpoint.read(tensor)
        if values.dtype == np.uint16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        expected = values + 2.0 * (tensors[at + "B.weight"] @ tensors[at + "A.weight"])
        for size in (1, 5000, 1 << 25):
            blocks = [block.copy() for block, dtype in merged.read_rows(tensor, size) if dtype == "f32"]
            np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-5)
        assert merged.stored_weights() == plain.stored_weights()
        untouched = [block for block, _ in merged.read_rows("model.norm.weight", 1 << 20)]
        np.testing.assert_array_equal(untouched[0], plain.checkpoint.read("model.norm.weight")[0])


def test_merging_takes_little_memory(tmp_path: Path) -> None:
    """A matrix of 16 MB is merged in blocks. Loading takes less memory than the model does when it runs."""
    from support.real_shapes import write_real_shape_hole

    write_real_shape_hole(tmp_path / "model", "gemma3-1b")
    module = "model.layers.0.mlp.up_proj"
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": module}
    tensors = {
        f"base_model.model.{module}.lora_A.weight": np.ones((1, 1152), np.float32),
        f"base_model.model.{module}.lora_B.weight": np.ones((6912, 1), np.float32),
    }
    folder = write_adapter(tmp_path / "adapter", config, tensors)
    with open_model_files(tmp_path / "model", merge_adapter=folder) as source:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        rows = 0
        for block in blocks(source):
            rows += len(block.rows[0]) if block.part == "layers.0.up_proj" else 0
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert rows == 6912
    assert 8 << 20 < peak < 36 << 20


def test_converted_and_cached_models_have_the_adapter_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, base = ADAPTERS / "gemma3-plain", HERE / "gemma3-270m"
    ids, _ = read_golden(path.name)
    with gemlet.load(base, weights="q8", threads=1, merge_adapter=path) as merged:
        expected = merged.logits(ids)
    gemlet.convert(base, tmp_path / "q8", weights="q8", threads=1, merge_adapter=path)
    with gemlet.load(tmp_path / "q8", threads=1) as packed:
        np.testing.assert_array_equal(packed.logits(ids), expected)
        packed.load_adapter(ADAPTERS / "gemma3-rslora")  # another adapter, in addition to the merged one
        assert difference(packed.logits(ids, adapter="gemma3-rslora"), expected) > 0.1
    with pytest.raises(gemlet.InvalidRequestError, match="is packed"):
        gemlet.load(tmp_path / "q8", threads=1, merge_adapter=path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options: dict[str, Any] = {"weights": "q8", "threads": 1, "cache": True}
    with gemlet.load(base, **options) as plain:
        alone = plain.logits(ids)
    for _ in range(2):  # first written to the cache, then found there
        with gemlet.load(base, merge_adapter=path, **options) as cached:
            np.testing.assert_array_equal(cached.logits(ids), expected)
    with gemlet.load(base, merge_adapter=ADAPTERS / "gemma3-rslora", **options) as other:
        assert difference(other.logits(ids), expected) > 0.1
    with gemlet.load(base, **options) as plain:
        np.testing.assert_array_equal(plain.logits(ids), alone)


@pytest.mark.parametrize("name", ["gemma3-saved", "gemma3-tied", "gemma3-tokens", "gemma3-ends"])
def test_a_merged_output_head_of_its_own_is_in_what_is_converted_and_cached(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, base = ADAPTERS / name, HERE / "gemma3-270m"
    ids, golden = read_golden(name)
    with gemlet.load(base, weights="f32", threads=1, merge_adapter=path) as merged:
        expected = merged.logits(ids)
        assert merged.config.tie_word_embeddings == (name in ("gemma3-tied", "gemma3-tokens"))
    assert difference(expected, golden) < TOLERANCE
    gemlet.convert(base, tmp_path / "packed", weights="f32", threads=1, merge_adapter=path)
    with gemlet.load(tmp_path / "packed", threads=1) as packed:
        np.testing.assert_array_equal(packed.logits(ids), expected)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        with gemlet.load(base, weights="f32", threads=1, merge_adapter=path, cache=True) as cached:
            np.testing.assert_array_equal(cached.logits(ids), expected)


# --- The command line ---------------------------------------------------------------------------------------
def test_the_command_line_takes_an_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from gemlet.cli import main

    demo = gemlet.load()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 64, "target_modules": ["q_proj", "down_proj"]}
    tensors = random_adapter(demo, ("q_proj", "down_proj"), 2)
    demo.close()
    folder = write_adapter(tmp_path / "loud", config, tensors)
    command = ["generate", "The door opened", "--max-tokens", "8", "--temperature", "0", "--json"]
    texts = []
    for extra in ([], ["--adapter", str(folder)]):
        assert main([*command, *extra]) == 0
        texts.append(json.loads(capfd.readouterr().out)["token_ids"])
    assert texts[0] != texts[1]
    assert main([*command, "--adapter", str(tmp_path / "none")]) == 1
    assert "no such folder" in capfd.readouterr().err


def random_adapter(model: gemlet.Model, targets: tuple[str, ...], rank: int) -> dict[str, NDArray[Any]]:
    from gemlet.weights.hf_names import tensor_name
    from gemlet.weights.slots import expected_slots

    random = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}
    for slot, shape in expected_slots(model.config).items():
        if slot.endswith(targets):
            at = "base_model.model." + tensor_name(slot, model.config.family, "model.", "").removesuffix(
                "weight"
            )
            tensors[at + "lora_A.weight"] = random.normal(0, 1, (rank, shape[1])).astype(np.float32)
            tensors[at + "lora_B.weight"] = random.normal(0, 1, (shape[0], rank)).astype(np.float32)
    return tensors


def test_an_adapter_in_the_model_s_own_folder_is_merged_as_transformers_adds_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for source in (base_of("gemma3-plain"), ADAPTERS / "gemma3-plain"):
        for file in source.iterdir():
            if file.name != "golden.safetensors":
                shutil.copy(file, tmp_path / file.name)
    ids, expected = read_golden("gemma3-plain")
    with gemlet.load(tmp_path, weights="f32", kv_cache="f32", cache=False, threads=1) as model:
        assert difference(model.logits(ids), expected) < TOLERANCE
    assert "has an adapter beside the model. The adapter is merged into the model" in caplog.text
    assert f"adapter    {tmp_path}, merged into the model" in str(gemlet.inspect(tmp_path))
    with pytest.raises(gemlet.errors.InvalidRequestError, match="has its own adapter"):
        gemlet.load(tmp_path, merge_adapter=ADAPTERS / "gemma3-rslora", cache=False)
    (tmp_path / "adapter_model.safetensors").unlink()  # without weights there is no adapter
    with gemlet.load(tmp_path, weights="f32", cache=False, threads=1) as model:
        assert difference(model.logits(ids), expected) > 0.05
