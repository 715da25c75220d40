"""Writes the golden adapters of PEFT in the formats of other tools: mlx-lm's folder and llama.cpp's GGUF
file.

This code follows the formats of these tools. It does not use gemlet's readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from golden.folders import read_tensors
from support.adapters import ADAPTERS, Tensors
from support.tiny_models import safetensors_bytes
from support.tokenizer_files import F32, STRING, gguf_entry, gguf_file, gguf_tensor

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "router.proj": "ffn_gate_inp",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
}


def read_peft(name: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration of a golden adapter, and its tensors. The names lack the prefix
    "base_model.model."."""
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    tensors = read_tensors(ADAPTERS / name / "adapter_model.safetensors")
    return config, {tensor.removeprefix("base_model.model."): values for tensor, values in tensors.items()}


def mlx_files(name: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration that mlx-lm would write for a golden adapter, and the tensors with mlx-lm's names."""
    config, peft = read_peft(name)
    described = {
        "fine_tune_type": "dora" if config["use_dora"] else "lora",
        "lora_parameters": {
            "rank": config["r"],
            "scale": config["lora_alpha"] / config["r"],
            "dropout": 0.0,
        },
        "model": config["base_model_name_or_path"],
        "num_layers": 16,
        "iters": 600,
        "learning_rate": 1e-5,
    }
    tensors = {}
    for tensor, values in peft.items():
        tensor = tensor.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")
        tensor = tensor.replace(".lora_magnitude_vector", ".m")
        tensors[tensor] = np.ascontiguousarray(values.T)
    return described, tensors


def write_mlx(folder: Path, described: Mapping[str, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(described))
    (folder / "adapters.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def gguf_tensors(name: str) -> Tensors:
    """The tensors of a golden adapter with llama.cpp's names."""
    tensors = {}
    for tensor, values in read_peft(name)[1].items():
        module, _, factor = tensor.removesuffix(".weight").rpartition(".lora_")
        place = module.removeprefix("model.").removeprefix("language_model.")
        if place.startswith("layers."):
            _, layer, kind = place.split(".", 2)
            place = f"blk.{layer}.{_GGUF_NAMES[kind]}"
        tensors[f"{place}.weight.lora_{factor.lower()}"] = values
    return {n.replace("per_layer_model_projection", "per_layer_model_proj"): t for n, t in tensors.items()}


def gguf_adapter(tensors: Tensors, alpha: float, changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A GGUF file of float32 tensors. ``changes`` maps a metadata key to another entry, or to None to omit
    the key."""
    entries: dict[str, bytes | None] = {
        "general.architecture": gguf_entry("general.architecture", STRING, "gemma3"),
        "general.type": gguf_entry("general.type", STRING, "adapter"),
        "general.base_model.0.name": gguf_entry("general.base_model.0.name", STRING, "Gemma 3 270M"),
        "adapter.type": gguf_entry("adapter.type", STRING, "lora"),
        "adapter.lora.alpha": gguf_entry("adapter.lora.alpha", F32, alpha),
        **(changes or {}),
    }
    directory, data = [], b""
    for name, values in tensors.items():
        directory.append(gguf_tensor(name, reversed(values.shape), 0, len(data)))
        data += values.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    return gguf_file([entry for entry in entries.values() if entry is not None], directory, data)
