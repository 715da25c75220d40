"""Adapters of PEFT that replace whole modules, and adapters with unusual initializations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.adapters.opening import open_adapter
from gemlet.errors import ConfigError
from gemlet.weights.hf_names import tensor_name
from gemlet.weights.slots import expected_slots
from golden.folders import TOLERANCE
from support.adapter_checks import refuse
from support.adapters import ADAPTERS, CONFIG, GEMMA3, adapter_tensors, base_of, read_golden
from support.adapters import write_adapter as write
from support.feeding import difference
from support.gguf_models import convert_folder
from support.inside import core_of
from support.tiny_models import CONFIGS, write_folder

pytestmark = pytest.mark.tier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_folder(tmp_path_factory.mktemp("model"), CONFIGS["gemma3_text"])
    with gemlet.load(folder, weights="f32", threads=1) as loaded:
        yield loaded


def test_a_module_that_is_saved_must_be_complete(tmp_path: Path, model: gemlet.Model) -> None:
    """PEFT takes every module whose name ends with a name in the list, and the modules inside it."""
    config = {**CONFIG, "modules_to_save": ["norm", "score"]}
    at = "base_model.model.model."
    norms = {
        f"{at}{module}.weight": np.ones(shape, np.float32)
        for slot, shape in expected_slots(model.config).items()
        if slot.endswith("norm")
        for module in [tensor_name(slot, "gemma3", "", "").removesuffix(".weight")]
        if module.endswith("norm")
    }
    path = write(tmp_path / "a", config, {**adapter_tensors(), **norms})
    with open_adapter(path, model.config) as files:
        assert set(files.terms.own_rows) == {s for s in expected_slots(model.config) if s.endswith("norm")}
    missing = dict(norms)
    del missing[f"{at}layers.1.self_attn.k_norm.weight"]
    path = write(tmp_path / "b", config, {**adapter_tensors(), **missing})
    refuse(path, model, gemlet.TensorError, "layers.1.self_attn.k_norm.weight", "missing")
    wrong = {**norms, f"{at}norm.weight": np.ones(3, np.float32)}
    path = write(tmp_path / "c", config, {**adapter_tensors(), **wrong})
    refuse(path, model, gemlet.TensorError, "norm.weight", "[3]")
    path = write(tmp_path / "d", {**CONFIG, "modules_to_save": ["mlp"]}, adapter_tensors())
    refuse(path, model, gemlet.TensorError, "mlp.gate_proj.lora_A.weight", "beside")
    both = {**adapter_tensors(), f"{at}layers.0.mlp.up_proj.weight": np.ones((1, 1), np.float32)}
    path = write(tmp_path / "e", tensors=both)
    refuse(path, model, gemlet.TensorError, "up_proj", "beside")
    score = {f"{at}score.weight": np.ones((2, 64), np.float32)}
    path = write(tmp_path / "f", config, {**adapter_tensors(), **norms, **score})
    refuse(path, model, gemlet.TensorError, "score.weight", "merge_and_unload()")


@pytest.mark.parametrize(
    "start", [True, "gaussian", "eva", "orthogonal", "mica", "lora_ga", "pissa", "OLoRA"]
)
def test_the_initialization_is_read_from_the_config(
    start: Any, tmp_path: Path, model: gemlet.Model, caplog: pytest.LogCaptureFixture
) -> None:
    others = {"loftq_config": {"loftq_bits": 4}, "lora_ga_config": {"direction": "ArB2r"}}
    path = write(tmp_path / "a", {**CONFIG, **others, "init_lora_weights": start})
    with open_adapter(path, model.config) as files:
        initial = {term.initial for term in files.terms.low_rank.values()}
    assert initial == {str(start).lower() if start in ("pissa", "OLoRA") else ""}
    assert ("lora_ga" in caplog.text) == (start == "lora_ga")


def test_an_initialization_that_changes_a_tied_head_is_refused(tmp_path: Path, model: gemlet.Model) -> None:
    """Otherwise the part would be subtracted from the embedding table, too."""
    at = "base_model.model.lm_head."
    tensors = {f"{at}lora_A.weight": np.ones((2, 64), np.float32)}
    tensors |= {f"{at}lora_B.weight": np.ones((96, 2), np.float32)}
    config = {**CONFIG, "target_modules": ["lm_head"], "init_lora_weights": "pissa"}
    path = write(tmp_path / "a", config, tensors)
    refuse(path, model, gemlet.ConfigError, "init_lora_weights", "lm_head", "merge_and_unload()")


@pytest.mark.parametrize("name", ["gemma3-norms", "gemma3n-norms", "gemma3n-linear"])
def test_gguf_has_some_weights_in_another_form(name: str, tmp_path: Path) -> None:
    """Norms of Gemma 3 with their 1 added, and the projections of Gemma 3n's streams as one stack."""
    ids, expected = read_golden(name)
    path = convert_folder(base_of(name), tmp_path / "model.gguf", "F32")
    with gemlet.load(path, weights="f32", threads=1) as loaded:
        loaded.load_adapter(ADAPTERS / name)
        assert difference(loaded.logits(ids, adapter=name), expected) < TOLERANCE
    with gemlet.load(path, weights="f32", threads=1, merge_adapter=ADAPTERS / name) as merged:
        assert difference(merged.logits(ids), expected) < TOLERANCE


def test_a_converted_model_has_the_per_layer_table_of_the_adapter(tmp_path: Path) -> None:
    path = ADAPTERS / "gemma3n-norms"
    ids, expected = read_golden(path.name)
    gemlet.convert(base_of(path.name), tmp_path / "packed", weights="f32", threads=1, merge_adapter=path)
    with gemlet.load(tmp_path / "packed", threads=1) as packed:
        assert difference(packed.logits(ids), expected) < TOLERANCE


def test_the_per_layer_table_of_an_adapter_stays_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    shutil.copytree(ADAPTERS / "gemma4-table", path)
    ids, expected = read_golden("gemma4-table")
    with gemlet.load(base_of("gemma4-table"), weights="f32", threads=1) as loaded:
        plain = loaded.logits(ids)
        assert loaded.load_adapter(path).memory_bytes < 40_000
        assert difference(loaded.logits(ids, adapter="adapter"), expected) < TOLERANCE
        with (path / "adapter_model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(gemlet.ModelFileError, match=r"adapter_model\.safetensors: was changed"):
            loaded.logits(ids, adapter="adapter")
        np.testing.assert_array_equal(loaded.logits(ids), plain)


@pytest.mark.parametrize(
    ("slot", "weight", "message"),
    [
        ("layers.0.k_norm", [1.0] * 3, "has 3 values, expected"),
        ("final_norm", [float("nan")] * 64, "NaN or infinity"),
        ("layers.0.q_proj", [1.0] * 64, "not a norm"),
    ],
)
def test_the_core_takes_only_norms_that_fit(
    slot: str, weight: list[float], message: str, model: gemlet.Model
) -> None:
    builder = _core.AdapterBuilder(core_of(model))
    with pytest.raises(gemlet.TensorError, match=message):
        builder.add_norm(slot, weight)


def test_the_core_takes_no_table_that_the_model_does_not_have(tmp_path: Path, model: gemlet.Model) -> None:
    builder = _core.AdapterBuilder(core_of(model))
    (tmp_path / "rows").write_bytes(bytes(4096))
    with (
        open(tmp_path / "rows", "rb") as file,
        pytest.raises(gemlet.TensorError, match=r"embed_tokens_per_layer' has shape \[8, 8\]"),
    ):
        builder.set_per_layer_table(
            descriptor=file.fileno(), path="rows", offset=0, rows=8, cols=8, dtype="f32"
        )
    with pytest.raises(gemlet.TensorError, match="is not a matrix"):
        builder.weight("layers.0.q_norm")


@pytest.mark.parametrize("saved", ["lm_head", "head"])
def test_a_saved_head_does_not_replace_the_embedding(saved: str, tmp_path: Path, model: gemlet.Model) -> None:
    """A head that is saved in this way belongs to the adapter. The embedding table, which was the head
    before, stays."""
    tensors = {**adapter_tensors(), "base_model.model.lm_head.weight": np.ones((96, 64), np.float32)}
    path = write(tmp_path / "a", {**CONFIG, "modules_to_save": [saved]}, tensors)
    with open_adapter(path, model.config) as files:
        assert set(files.terms.own_rows) == {"lm_head"}


@pytest.mark.parametrize("key", ["kasa_config", "use_bdlora", "arrow_config"])
def test_a_variant_of_lora_is_refused_with_an_empty_configuration_too(tmp_path: Path, key: str) -> None:
    write(tmp_path, {**CONFIG, key: {}})  # PEFT fills in the defaults and computes the variant
    with pytest.raises(ConfigError, match=rf"{key} is \{{\}}; expected it not to be set"):
        open_adapter(tmp_path, GEMMA3)
