"""What an adapter has beside its low-rank terms: DoRA's magnitudes, and rows of the embedding table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gemlet
from support.adapter_checks import check, refuse
from support.adapters import CONFIG, adapter_tensors
from support.adapters import write_adapter as write
from support.tiny_models import CONFIGS, write_folder

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
END = "base_model.model.model.embed_tokens.{}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_folder(tmp_path_factory.mktemp("model"), CONFIGS["gemma3_text"])
    with gemlet.load(folder, weights="f32", threads=1) as loaded:
        yield loaded


def test_dora_has_magnitudes_that_are_finite_and_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "use_dora": True, "target_modules": "model.layers.0.self_attn.q_proj"}
    pair = {Q.format(factor): adapter_tensors()[Q.format(factor)] for factor in "AB"}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    refuse(write(tmp_path / "a", config, pair), model, gemlet.TensorError, name, "missing")
    ones = np.ones(128, np.float32)
    check(write(tmp_path / "b", config, {**pair, name: ones}), model)
    plain = {**config, "use_dora": False}
    refuse(write(tmp_path / "c", plain, {**pair, name: ones}), model, gemlet.TensorError, name, "use_dora")
    refuse(write(tmp_path / "d", config, {**pair, name: ones[1:]}), model, gemlet.TensorError, name, "127")
    wrong = {**pair, name: np.full(128, np.nan, np.float32)}
    refuse(write(tmp_path / "e", config, wrong), model, gemlet.TensorError, name, "NaN")


def test_the_rows_that_an_adapter_has_itself_must_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "modules_to_save": ["embed_tokens"]}
    name = END.format("weight")
    refuse(write(tmp_path / "a", config), model, gemlet.TensorError, name, "missing")
    rows = np.ones((96, 64), np.float32)
    check(write(tmp_path / "b", config, {**adapter_tensors(), name: rows}), model)
    more = {**adapter_tensors(), name: np.ones((99, 64), np.float32)}
    refuse(
        write(tmp_path / "c", config, more), model, gemlet.TensorError, name, "96 tokens", "merge_and_unload"
    )
    rows[95, 3] = np.nan
    path = write(tmp_path / "d", config, {**adapter_tensors(), name: rows})
    refuse(path, model, gemlet.TensorError, name, "NaN")


def test_the_tokens_that_an_adapter_has_itself_must_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "trainable_token_indices": [7, 3]}
    name = END.format("token_adapter.trainable_tokens_delta")
    refuse(write(tmp_path / "a", config), model, gemlet.TensorError, name, "missing")
    tensors = {**adapter_tensors(), name: np.ones((2, 64), np.float32)}
    check(write(tmp_path / "b", config, tensors), model)
    far = {**config, "trainable_token_indices": [7, 96]}
    refuse(
        write(tmp_path / "c", far, tensors), model, gemlet.ConfigError, "trainable_token_indices", "below 96"
    )
    more = {**config, "trainable_token_indices": [7, 3, 4]}
    refuse(write(tmp_path / "d", more, tensors), model, gemlet.TensorError, name, "[3, 64]")
    both = {**tensors, END.format("weight"): np.ones((96, 64), np.float32)}
    refuse(write(tmp_path / "e", config, both), model, gemlet.TensorError, name)


def test_rows_of_tokens_stand_in_the_order_of_the_file(tmp_path: Path, model: gemlet.Model) -> None:
    name = END.format("token_adapter.trainable_tokens_delta")
    rows = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    found = []
    for ids, order in (([7, 3], [0, 1]), ([3, 7], [1, 0])):
        config = {**CONFIG, "trainable_token_indices": ids}
        tensors = {**adapter_tensors(), name: rows[order]}
        model.load_adapter(write(tmp_path / f"{ids[0]}", config, tensors), "own")
        found.append(model.logits([2, 7, 3, 9], adapter="own"))
        model.unload_adapter("own")
    np.testing.assert_array_equal(found[0], found[1])
