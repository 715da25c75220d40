"""Tensors in float64 are read as float32, to which the reference casts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.checkpoint.tensor_files import numbers
from support.adapters import ADAPTERS, base_of, read_golden
from support.tiny_models import CONFIGS, logits_of, safetensors_bytes, weights_of, write_folder

TABLE = "model.embed_tokens_per_layer.weight"


def wide(tensors: dict[str, NDArray[Any]], *kept: str) -> dict[str, NDArray[Any]]:
    return {
        name: values.astype(np.float64) if values.dtype == np.float32 and name not in kept else values
        for name, values in tensors.items()
    }


@pytest.mark.parametrize("weights", ["f32", "q8"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_in_float64(tmp_path: Path, family: str, weights: str) -> None:
    tensors = weights_of(CONFIGS[family])
    expected = logits_of(write_folder(tmp_path / "a", CONFIGS[family]), weights=weights)
    path = write_folder(tmp_path / "b", CONFIGS[family], tensors=wide(tensors, TABLE))
    np.testing.assert_array_equal(logits_of(path, weights=weights, cache=False), expected)
    gemlet.convert(path, tmp_path / "c", weights=weights, threads=1)
    np.testing.assert_array_equal(logits_of(tmp_path / "c"), expected)


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_the_per_layer_table_in_float64_is_converted(tmp_path: Path, family: str) -> None:
    expected = logits_of(write_folder(tmp_path / "a", CONFIGS[family]), weights="f32")
    path = write_folder(tmp_path / "b", CONFIGS[family], tensors=wide(weights_of(CONFIGS[family])))
    with pytest.raises(gemlet.UnsupportedError, match=f"{TABLE}' is F64.*Run gemlet convert"):
        gemlet.load(path)
    gemlet.convert(path, tmp_path / "c", weights="f32", threads=1)
    np.testing.assert_array_equal(logits_of(tmp_path / "c"), expected)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    tensors = wide(weights_of(CONFIGS["gemma"]))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = 1e39
    with pytest.raises(gemlet.TensorError, match=name):
        gemlet.load(write_folder(tmp_path, CONFIGS["gemma"], tensors=tensors), cache=False)


@pytest.mark.parametrize(
    "name", ["gemma3-plain", "gemma3-saved", "gemma3-tokens", "gemma3-table", "gemma4-table"]
)
def test_an_adapter_in_float64(tmp_path: Path, name: str) -> None:
    with Checkpoint(ADAPTERS / name, file="adapter_model.safetensors") as opened:
        tensors = {tensor: numbers(*opened.read(tensor)) for tensor in opened.tensors}
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(wide(tensors)))
    (tmp_path / "adapter_config.json").write_text((ADAPTERS / name / "adapter_config.json").read_text())
    ids, _ = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        if any("embed_tokens_per_layer" in tensor for tensor in tensors):
            with pytest.raises(gemlet.TensorError, match=r"embed_tokens_per_layer.* is F64"):
                model.load_adapter(tmp_path)
            return
        model.load_adapter(ADAPTERS / name, name="narrow")
        model.load_adapter(tmp_path, name="wide")
        found = [model.logits(ids, adapter=one) for one in ("narrow", "wide")]
    np.testing.assert_array_equal(*found)
    with gemlet.load(base_of(name), weights="f32", threads=1, merge_adapter=tmp_path) as merged:
        np.testing.assert_allclose(merged.logits(ids), found[0], rtol=1e-3, atol=1e-3)
