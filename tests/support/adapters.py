"""The golden adapters, what they give beside a model, and writing others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from golden.folders import HERE, read_tensors
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from support.tiny_models import safetensors_bytes

Floats = NDArray[np.float32]
ADAPTERS = HERE / "adapters"
NAMES = sorted(folder.name for folder in ADAPTERS.iterdir())
ON_270M = [name for name in NAMES if name.startswith("gemma3-") and name != "gemma3-regex"]
REORDERED = 5e-5  # two float32 evaluations of the same thing


def base_of(name: str) -> Path:
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    return HERE / str(config["base_model_name_or_path"])


def read_golden(name: str) -> tuple[list[int], Floats]:
    golden = read_tensors(ADAPTERS / name / "golden.safetensors")
    return golden["ids"].tolist(), golden["logits"]


def difference(got: Floats, expected: Floats) -> float:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def core_adapter(model: gemlet.Model, name: str | None) -> _core.Adapter | None:
    return model._adapters.find(name)


def write_adapter(folder: Path, config: Any, tensors: dict[str, NDArray[Any]]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder
