"""The tensors of a checkpoint folder under the slot names of csrc/MODEL.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import Config, Layer

Array = NDArray[Any]

PREFIXES = ("model.", "language_model.model.", "model.language_model.", "language_model.", "")
DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "I64": np.dtype("<i8")}

PER_LAYER_INPUTS = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
ALTUP = {
    "altup_prediction_coefs": "altup.prediction_coefs",
    "altup_correction_coefs": "altup.correction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_correct_scale": "altup.correct_output_scale",
    "laurel_left": "laurel.linear_left",
    "laurel_right": "laurel.linear_right",
    "post_laurel_norm": "laurel.post_laurel_norm",
}
EXPERTS = {
    "router_proj": "router.proj",
    "router_scale": "router.scale",
    "router_per_expert_scale": "router.per_expert_scale",
    "experts_gate_up": "experts.gate_up_proj",
    "experts_down": "experts.down_proj",
    "post_dense_norm": "post_feedforward_layernorm_1",
    "pre_moe_norm": "pre_feedforward_layernorm_2",
    "post_moe_norm": "post_feedforward_layernorm_2",
}


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of one file. A bfloat16 value becomes the float32 of the same value.

    Format: a length in 8 bytes (little-endian), that many bytes of JSON {name: {dtype, shape, data_offsets}},
    data.
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
    """Slot -> name in the file, without prefix and ".weight". One name in the file has two meanings."""
    names = {"embed_tokens": "embed_tokens", "final_norm": "norm"}
    if config.per_layer_input_size:
        whole = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
        names |= {name: name for name in whole}
    for k in range(config.altup_streams - 1):
        names |= {name: name for name in (f"altup_projections.{k}", f"altup_unembed_projections.{k}")}
    for index, layer in enumerate(config.layers):
        block = layer_names(layer)
        if config.per_layer_input_size:
            block |= {name: name for name in PER_LAYER_INPUTS}
        if config.altup_streams > 1:
            block |= ALTUP
        names |= {f"layers.{index}.{slot}": f"layers.{index}.{name}" for slot, name in block.items()}
    return names


def layer_names(layer: Layer) -> dict[str, str]:
    """Slot -> name of the tensors that every layer of this kind has."""
    names = {
        "pre_attention_norm": "input_layernorm",
        "q_proj": "self_attn.q_proj",
        "o_proj": "self_attn.o_proj",
        "pre_mlp_norm": "pre_feedforward_layernorm" if layer.post_norms else "post_attention_layernorm",
        **{p: f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")},
    }
    own_keys = layer.kv_source is None
    if own_keys:
        names |= {"k_proj": "self_attn.k_proj"}
    if own_keys and not layer.key_is_value:
        names |= {"v_proj": "self_attn.v_proj"}
    if layer.qk_norm:
        names |= {"q_norm": "self_attn.q_norm"} | ({"k_norm": "self_attn.k_norm"} if own_keys else {})
    if layer.post_norms:
        names |= {
            "post_attention_norm": "post_attention_layernorm",
            "post_mlp_norm": "post_feedforward_layernorm",
        }
    if layer.experts_per_token:
        names |= EXPERTS
    if layer.layer_scalar:
        names |= {"layer_scalar": "layer_scalar"}
    return names


def _of_embeddinggemma2(name: str) -> str:
    layer, _, part = name.rpartition(".")
    if part in PER_LAYER_INPUTS:
        return f"{layer}.ple_block.{part}"
    return f"ple.{name}" if name.startswith("per_layer_") else name


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
    # A parameter that is its own module has the suffix. A single parameter of a larger module does not.
    stored = {name.removesuffix(".weight"): tensor for name, tensor in stored.items()}
    prefix = next(p for p in PREFIXES if f"{p}embed_tokens" in stored)
    names = slot_names(config)
    if f"{prefix}layers.0.pre_feedforward_layernorm" in stored:  # VaultGemma uses this tensor name too
        names |= {
            f"layers.{i}.pre_mlp_norm": f"layers.{i}.pre_feedforward_layernorm"
            for i in range(len(config.layers))
        }
    if f"{prefix}embedding_projection" in stored:  # EmbeddingGemma 2
        del names["embed_tokens_per_layer"]
        names = {slot: _of_embeddinggemma2(name) for slot, name in names.items()}
        return {slot: stored[f"{prefix}{name}"] for slot, name in names.items()} | {
            "dense.0": stored[f"{prefix}embedding_projection"],
            "lm_head": stored[f"{prefix}embed_tokens"],
        }
    weights = {slot: stored[f"{prefix}{name}"] for slot, name in names.items()}
    for i in range(config.dense_layers):
        weights[f"dense.{i}"] = read_safetensors(folder / f"{i + 2}_Dense" / "model.safetensors")[
            "linear.weight"
        ]
    weights["lm_head"] = weights["embed_tokens"] if config.tied_embeddings else stored["lm_head"]
    return weights
