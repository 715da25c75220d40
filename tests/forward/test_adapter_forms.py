"""Adapters of mlx-lm and of llama.cpp give the same bits as the same adapter of PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemlet
from golden.folders import TOLERANCE
from support.adapter_forms import gguf_adapter, gguf_tensors, mlx_files, read_peft, write_mlx
from support.adapters import ADAPTERS, base_of, read_golden
from support.feeding import difference

pytestmark = pytest.mark.tier


# llama.cpp's adapters have no DoRA, no streams of AltUp and no towers.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gemma3-plain", "mlx"),
        ("gemma3-plain", "gguf"),
        ("gemma3-dora", "mlx"),
        ("gemma3n-linear", "mlx"),
        ("gemma3-towers", "mlx"),
    ],
)
def test_other_forms_of_an_adapter_give_the_same_results(name: str, form: str, tmp_path: Path) -> None:
    if form == "mlx":
        path = write_mlx(tmp_path / "a", *mlx_files(name))
    else:
        path = tmp_path / "a.gguf"
        path.write_bytes(gguf_adapter(gguf_tensors(name), read_peft(name)[0]["lora_alpha"]))
    ids, golden = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(ADAPTERS / name, "peft")
        adapter = model.load_adapter(path, "other")
        np.testing.assert_array_equal(model.logits(ids, adapter="other"), model.logits(ids, adapter="peft"))
        assert adapter.base_model == ("Gemma 3 270M" if form == "gguf" else base_of(name).name)
        assert bool(adapter.passed_over) == (name == "gemma3-towers")
    with gemlet.load(base_of(name), weights="f32", threads=1, merge_adapter=path) as merged:
        assert difference(merged.logits(ids), golden) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma4-linear", "gemma4-router"])
def test_gguf_adapters_of_every_linear_module(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_adapter(gguf_tensors(name), read_peft(name)[0]["lora_alpha"]))
    ids, golden = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(tmp_path, "mine")  # a folder with one GGUF file
        assert difference(model.logits(ids, adapter="mine"), golden) < TOLERANCE


def test_patterns_may_name_weights_instead_of_modules(tmp_path: Path) -> None:
    """PEFT's target_parameters may name the weights of linear modules. Then the patterns name them, too."""
    folder = tmp_path / "a"
    shutil.copytree(ADAPTERS / "gemma3-patterns", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_parameters"] = [f"{module}.weight" for module in config["target_modules"]]
    config["target_modules"] = []
    config["rank_pattern"] = {f"{name}.weight": rank for name, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {
        name if name.endswith("*") else f"{name}.weight": alpha
        for name, alpha in config["alpha_pattern"].items()
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    ids, golden = read_golden("gemma3-patterns")
    with gemlet.load(base_of("gemma3-patterns"), weights="f32", threads=1) as model:
        model.load_adapter(folder, "mine")
        assert difference(model.logits(ids, adapter="mine"), golden) < TOLERANCE


def test_mlx_adapts_the_output_head_with_the_table(tmp_path: Path) -> None:
    """mlx-lm computes the tied head with the table and the table's adapter."""
    random = np.random.default_rng(0)
    described, _ = mlx_files("gemma3-plain")
    described["lora_parameters"]["rank"] = 2
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((163, 2), (2, 40)))
    tensors = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": 0.05 * b}
    path = write_mlx(tmp_path / "a", described, tensors)
    base = base_of("gemma3-plain")
    with gemlet.load(base, weights="f32", threads=1) as model:
        model.load_adapter(path, "mine")
        beside, plain = model.logits([2, 7, 11], adapter="mine"), model.logits([2, 7, 11])
    with gemlet.load(base, weights="f32", threads=1, merge_adapter=path) as merged:
        assert difference(merged.logits([2, 7, 11]), beside) < TOLERANCE
    assert difference(beside, plain) > 0.05
