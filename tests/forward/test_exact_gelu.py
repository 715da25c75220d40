"""Checkpoints that ask for the GELU with erf: every activation of a text model uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.config import parse_config
from golden.folders import EXACT_GELU, HERE, read_golden, read_tensors, with_exact_gelu
from reference.forward import forward
from reference.model import Model

pytestmark = pytest.mark.tier
# The two forms of GELU differ by 5e-4 and more here.
TOLERANCE = 5e-5


def error(logits: NDArray[Any], name: str) -> float:
    expected = read_tensors(HERE / "exact_gelu.safetensors")[name]
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", EXACT_GELU)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(HERE / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(with_exact_gelu(config)))
    ids = read_golden(name)["ids"]
    with gemlet.load(folder, weights="f32", kv_cache="f32", threads=1) as model:
        found = model.logits(ids.tolist())
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=1) as model:
        approximate = model.logits(ids.tolist())
    assert error(found, name) < TOLERANCE < error(approximate, name)
    assert error(forward(Model.open(folder), ids), name) < TOLERANCE


def test_the_keys_of_each_family_select_the_exact_gelu() -> None:
    def asks(model_type: str, **keys: Any) -> bool:
        return parse_config({"model_type": model_type, **keys}, where="config.json").exact_gelu

    assert asks("gemma2", hidden_activation="gelu")
    assert asks("gemma3_text", hidden_activation="gelu_python")
    assert not asks("gemma2", hidden_act="gelu")  # gemma2 does not read this key
    assert not asks("gemma", hidden_act="gelu")  # the config of the first Gemma 1
    assert asks("gemma", hidden_act="gelu_python")
    with pytest.raises(gemlet.ConfigError, match="hidden_activation is 'gelu'; expected"):
        asks("gemma", hidden_activation="gelu")
