"""config.json -> Config: what each layer computes. Only the forms and keys the golden checkpoints have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Values a published config leaves out when they equal the ones of the configuration class.
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "rms_norm_eps": 1e-6},
    "gemma2": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
}


@dataclass(frozen=True)
class Layer:
    """Attention and norms of one layer. H = num_heads, K = num_kv_heads, h = head_dim in the shapes below."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float  # multiplies q . k
    rope_theta: float
    rope_factor: float  # divides every angle (linear scaling); 1 = none
    sliding_window: int  # keys a query sees, itself included; 0 = all
    attention_softcap: float  # 0 = none
    qk_norm: bool
    post_norms: bool


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    rms_norm_eps: float
    embedding_scale: float
    norm_offset: float  # added to every norm weight
    final_softcap: float  # 0 = none
    tied_embeddings: bool
    layers: tuple[Layer, ...]


def read_config(folder: Path) -> Config:
    """The text model's configuration of a checkpoint folder, whichever published form it has."""
    raw = json.loads((folder / "config.json").read_text())
    tied = raw.get("tie_word_embeddings", True)
    raw = raw.get("text_config", raw)
    family = raw["model_type"]
    given = CLASS_DEFAULTS[family] | {key: value for key, value in raw.items() if value is not None}

    layers = []
    for kind in layer_types(family, given):
        local = kind == "sliding_attention"
        theta, factor = rope(family, given, kind)
        layers.append(
            Layer(
                num_heads=given["num_attention_heads"],
                num_kv_heads=given["num_key_value_heads"],
                head_dim=given["head_dim"],
                query_scale=given.get("query_pre_attn_scalar", given["head_dim"]) ** -0.5,
                rope_theta=theta,
                rope_factor=factor,
                sliding_window=given["sliding_window"] if local else 0,
                # Gemma 3 has the key, but transformers does not apply it there; published configs hold null.
                attention_softcap=given["attn_logit_softcapping"] if family == "gemma2" else 0.0,
                qk_norm=family == "gemma3_text",
                post_norms=family != "gemma",
            )
        )
    return Config(
        vocab_size=given["vocab_size"],
        hidden_size=given["hidden_size"],
        rms_norm_eps=given["rms_norm_eps"],
        embedding_scale=given["hidden_size"] ** 0.5,
        norm_offset=1.0,
        final_softcap=given.get("final_logit_softcapping", 0.0),
        tied_embeddings=tied and given.get("tie_word_embeddings", True),
        layers=tuple(layers),
    )


def layer_types(family: str, given: dict[str, Any]) -> list[str]:
    """One kind per layer: the list in the config, else the family's pattern (every n-th layer is global)."""
    if "layer_types" in given:
        return list(given["layer_types"])
    every = {"gemma": 1, "gemma2": 2, "gemma3_text": given.get("sliding_window_pattern", 6)}[family]
    count = given["num_hidden_layers"]
    return ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(count)]


def rope(family: str, given: dict[str, Any], kind: str) -> tuple[float, float]:
    """(theta, factor) of one kind of layer, from `rope_parameters` (new) or the separate keys (old)."""
    if "rope_parameters" in given:
        parameters = given["rope_parameters"]
        parameters = parameters.get(kind, parameters)
        return parameters["rope_theta"], parameters.get("factor", 1.0)
    if family != "gemma3_text":
        return given.get("rope_theta", 10_000.0), 1.0
    if kind == "sliding_attention":
        return given["rope_local_base_freq"], 1.0
    return given["rope_theta"], given.get("rope_scaling", {}).get("factor", 1.0)
