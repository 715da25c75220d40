"""The tensors of a checkpoint folder under the slot names of csrc/MODEL.md, and golden.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config

Array = NDArray[Any]

PREFIXES = ("model.", "language_model.model.", "model.language_model.")
DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "I64": np.dtype("<i8")}


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of one file; bfloat16 comes back as the float32 of the same value.

    Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, data.
    """
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    tensors = {}
    for name, entry in json.loads(blob[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = np.frombuffer(blob[start + begin : start + end], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            data = (data.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = data.reshape(entry["shape"])
    return tensors


def slot_names(config: Config) -> dict[str, str]:
    """Slot -> name in the file, without prefix. The same file name means two things in two families."""
    names = {"embed_tokens": "embed_tokens", "final_norm": "norm"}
    for index, layer in enumerate(config.layers):
        block = {
            "pre_attention_norm": "input_layernorm",
            **{p: f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")},
            "pre_mlp_norm": "pre_feedforward_layernorm" if layer.post_norms else "post_attention_layernorm",
            **{p: f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")},
        }
        if layer.qk_norm:
            block |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
        if layer.post_norms:
            block |= {
                "post_attention_norm": "post_attention_layernorm",
                "post_mlp_norm": "post_feedforward_layernorm",
            }
        names |= {f"layers.{index}.{slot}": f"layers.{index}.{name}" for slot, name in block.items()}
    return names


def read_weights(folder: Path, config: Config) -> dict[str, Array]:
    """Slot -> float32 array, from one file or from shards."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    stored: dict[str, Array] = {}
    for file in files:
        stored |= read_safetensors(folder / file)
    prefix = next(p for p in PREFIXES if f"{p}embed_tokens.weight" in stored)
    weights = {slot: stored[f"{prefix}{name}.weight"] for slot, name in slot_names(config).items()}
    weights["lm_head"] = weights["embed_tokens"] if config.tied_embeddings else stored["lm_head.weight"]
    return weights
