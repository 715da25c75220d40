"""Reads the golden adapters and their results, and writes other adapters, for the tests of LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlet.config import parse_config
from gemlet.weights.hf_names import tensor_name
from gemlet.weights.slots import expected_slots
from golden.folders import HERE, read_tensors
from support.tiny_models import CONFIGS, safetensors_bytes

Floats = NDArray[np.float32]
ADAPTERS = HERE / "adapters"
# The golden adapters that gemlet can use only merged: one replaces whole matrices, and one has DoRA on a
# table that gemlet reads from its file.
MERGED_ONLY = ["gemma3-modules", "gemma4-table-dora"]
NAMES = sorted(folder.name for folder in ADAPTERS.iterdir() if folder.name not in MERGED_ONLY)
Tensors = dict[str, NDArray[Any]]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(TARGETS)}
GEMMA3 = parse_config(CONFIGS["gemma3_text"], where="config.json")


def base_of(name: str) -> Path:
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    return HERE / str(config["base_model_name_or_path"])


ON_270M = [name for name in NAMES if base_of(name).name == "gemma3-270m"]


def read_golden(name: str) -> tuple[list[int], Floats]:
    golden = read_tensors(ADAPTERS / name / "golden.safetensors")
    return golden["ids"].tolist(), golden["logits"]


def adapter_tensors(config: Any = GEMMA3, rank: int = 2, prefix: str = "model.") -> Tensors:
    """The two LoRA factors for every matrix of a model. All elements of a factor have the same value."""
    tensors: Tensors = {}
    for slot, shape in expected_slots(config).items():
        if slot.rpartition(".")[2] in TARGETS:
            at = f"base_model.model.{tensor_name(slot, config.family, prefix, '').removesuffix('weight')}"
            tensors[f"{at}lora_A.weight"] = np.full((rank, shape[1]), 0.25, np.float32)
            tensors[f"{at}lora_B.weight"] = np.full((shape[0], rank), 0.5, np.float32)
    return tensors


def write_adapter(folder: Path, config: Any = None, tensors: Tensors | bytes | None = None) -> Path:
    """Writes the two files of an adapter. By default, the adapter fits the tiny Gemma 3."""
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (folder / "adapter_config.json").write_text(text)
    found = adapter_tensors() if tensors is None else tensors
    data = found if isinstance(found, bytes) else safetensors_bytes(found)
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder
