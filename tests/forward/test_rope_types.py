"""Models with the RoPE types llama3, yarn and dynamic, compared with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet.config import read_config
from golden.folders import HERE, read_golden, read_tensors
from golden.rope_types import ROPE_TYPES, RopeTypeCase, with_changes

pytestmark = pytest.mark.tier
TOLERANCE = 5e-5


@pytest.mark.parametrize("case", ROPE_TYPES, ids=lambda case: case.name)
def test_logits_agree_with_transformers(case: RopeTypeCase, tmp_path: Path) -> None:
    folder = tmp_path / case.folder
    shutil.copytree(HERE / case.folder, folder)
    config = with_changes(json.loads((folder / "config.json").read_text()), case.changes)
    (folder / "config.json").write_text(json.dumps(config))
    golden = read_tensors(HERE / "rope_types.safetensors")
    expected = golden[f"{case.name}.logits"]

    layers = read_config(folder).layers
    kind = [layer for layer in layers if bool(layer.sliding_window) == (case.kind == "sliding_attention")]
    frequencies = golden[f"{case.name}.frequencies"]
    if "dynamic" not in case.name:
        np.testing.assert_array_equal(np.float32(kind[0].rope_frequencies), frequencies)

    ids = read_golden(case.folder)["ids"].tolist()
    with gemlet.load(folder, weights="f32", kv_cache="f32", threads=1) as model:
        found = model.logits(ids)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < TOLERANCE * scale
    if "dynamic" not in case.name:  # the config as it was gives something else
        with gemlet.load(HERE / case.folder, weights="f32", kv_cache="f32", threads=1) as model:
            assert np.abs(model.logits(ids) - expected).max() > 10 * TOLERANCE * scale
