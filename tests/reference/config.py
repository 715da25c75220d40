"""config.json -> Config: what each layer computes. Only the forms and keys of the golden checkpoints are
read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

# A published config omits these values if they equal the defaults of the configuration class.
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
    "gemma3n_text": {
        "vocab_size": 262400,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
    },
    "embedding_gemma2_text": {
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 10_000.0},
            "full_attention": {"rope_theta": 1_000_000.0},
        },
    },
    "gemma4_text": {
        "vocab_size": 262144,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 10_000.0},
            "full_attention": {"rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
        },
        "hidden_size_per_layer_input": 256,
    },
}
CLASS_DEFAULTS["vaultgemma"] = CLASS_DEFAULTS["gemma2"]
CLASS_DEFAULTS["gemma4_unified_text"] = CLASS_DEFAULTS["gemma4_text"] | {
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}


@dataclass(frozen=True)
class Rope:
    theta: float
    factor: float = 1.0  # divides every angle (linear scaling)
    partial_factor: float = 1.0  # share of the pairs that rotate, from lane 0 on


@dataclass(frozen=True)
class Layer:
    """The values of one layer. In the shapes of weights, H = num_heads, K = num_kv_heads, h = head_dim."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float  # multiplies q . k
    rope: Rope
    sliding_window: int  # keys a query sees, itself included; 0 = all
    attention_softcap: float  # 0 = none
    qk_norm: bool
    post_norms: bool
    v_norm: bool = False
    key_is_value: bool = False  # without v_proj: values are the projected keys, before norm and rope
    kv_source: int | None = (
        None  # the earlier layer whose keys and values this layer reads; None = it has its own
    )
    sparsity_cutoff: float | None = (
        None  # gate values count from this many standard deviations above the mean on
    )
    experts_per_token: int = 0  # 0 = no mixture of experts in addition to the MLP
    layer_scalar: bool = False
    bidirectional: bool = False  # a query sees as many tokens ahead as back
    bidirectional_spans: bool = False  # tokens of a span, such as an image, see each other in both directions


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
    exact_gelu: bool = False  # the GELU with erf instead of tanh
    per_layer_input_size: int = 0  # P; 0 = no per-layer inputs
    altup_streams: int = 1  # S; 1 = neither AltUp nor LAuReL
    dense_layers: int = 0  # the number of matrices after the mean over the tokens, in an embedding model


def read_config(folder: Path) -> Config:
    """The configuration of the text model in a checkpoint folder of any published form."""
    raw = json.loads((folder / "config.json").read_text())
    tied = raw.get("tie_word_embeddings", True)
    raw = raw.get("text_config", raw)
    family = raw["model_type"]
    given = CLASS_DEFAULTS[family] | {key: value for key, value in raw.items() if value is not None}
    new = family not in ("gemma", "gemma2", "vaultgemma", "gemma3_text")

    embeds = family == "embedding_gemma2_text"
    both_ways = embeds or given.get("use_bidirectional_attention") is True
    window = given.get("sliding_window", 0)
    if both_ways:  # the file counts both sides, or one; a layer counts one side and the token itself
        window = (window if embeds else window // 2) + 1
    kinds = layer_types(family, given)
    layers = []
    for kind in kinds:
        local = kind == "sliding_attention"
        scalar = given.get("query_pre_attn_scalar", given["head_dim"])
        layers.append(
            Layer(
                num_heads=given["num_attention_heads"],
                num_kv_heads=given["num_key_value_heads"],
                head_dim=given["head_dim"],
                query_scale=1.0
                if new
                else scalar**-0.5,  # published 3n files have the key, but it has no effect
                rope=rope(family, given, kind),
                sliding_window=window if local else 0,
                # Gemma 3 has the key, but transformers does not use it. Published configs have null.
                attention_softcap=(
                    given["attn_logit_softcapping"] if family in ("gemma2", "vaultgemma") else 0.0
                ),
                qk_norm=new or family == "gemma3_text",
                post_norms=family not in ("gemma", "vaultgemma"),
                v_norm=new,
                bidirectional=both_ways,
                bidirectional_spans=has_spans(family, given, kind),
            )
        )
    if family == "gemma3n_text":
        layers = gemma3n_layers(layers, given)
    elif new:
        layers = gemma4_layers(layers, given)
    if new:
        layers = shared_keys(layers, given.get("num_kv_shared_layers", 0))
    return Config(
        vocab_size=given["vocab_size"],
        hidden_size=given["hidden_size"],
        rms_norm_eps=given["rms_norm_eps"],
        embedding_scale=given["hidden_size"] ** 0.5,
        norm_offset=0.0 if new else 1.0,
        final_softcap=given.get("final_logit_softcapping", 0.0),
        tied_embeddings=tied and given.get("tie_word_embeddings", True),
        layers=tuple(layers),
        exact_gelu=given.get("hidden_activation") == "gelu",
        per_layer_input_size=given.get("hidden_size_per_layer_input", 0),
        altup_streams=given["altup_num_inputs"] if family == "gemma3n_text" else 1,
        dense_layers=1 if embeds else len(list(folder.glob("*_Dense"))),
    )


def has_spans(family: str, given: dict[str, Any], kind: str) -> bool:
    """Whether the tokens of an image see each other: in all layers of Gemma 3, in local ones of some Gemma
    4."""
    rule = given.get("use_bidirectional_attention")
    if family.startswith("gemma4"):
        return rule == "vision" and kind == "sliding_attention"
    return family == "gemma3_text" and not rule


def layer_types(family: str, given: dict[str, Any]) -> list[str]:
    """The kind of each layer: from the list in the config, or from the family's pattern (every n-th is
    global)."""
    count = given["num_hidden_layers"]
    pattern = {
        "gemma": 1,
        "gemma2": 2,
        "vaultgemma": 2,
        "gemma3_text": given.get("sliding_window_pattern", 6),
        "gemma3n_text": 5,
        "embedding_gemma2_text": given.get("sliding_window_pattern", 6),
    }
    every = pattern.get(family, 6)
    rule = ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(count)]
    kinds = list(given.get("layer_types", rule))
    if family.startswith(("gemma4", "embedding_gemma2")):
        kinds[-1] = "full_attention"  # the last layer is global, whatever the list says
    return kinds


def rope(family: str, given: dict[str, Any], kind: str) -> Rope:
    """RoPE of one kind of layer, from `rope_parameters` (new form) or separate keys (old form)."""
    if "rope_parameters" in given:
        parameters = given["rope_parameters"]
        parameters = parameters.get(kind, parameters)
        return Rope(
            parameters["rope_theta"],
            parameters.get("factor", 1.0),
            parameters.get("partial_rotary_factor", 1.0),
        )
    if not family.startswith("gemma3"):
        return Rope(given.get("rope_theta", 10_000.0))
    if kind == "sliding_attention":
        return Rope(given["rope_local_base_freq"])
    return Rope(given["rope_theta"], given.get("rope_scaling", {}).get("factor", 1.0))


def gemma3n_layers(layers: list[Layer], given: dict[str, Any]) -> list[Layer]:
    """Activation sparsity: of normally distributed gate values, a share q would be cut off."""
    count = len(layers)
    shares = given.get(
        "activation_sparsity_pattern", [0.95] * 10 + [0.0] * (count - 10) if count > 10 else []
    )
    cutoffs = [NormalDist().inv_cdf(share) if share > 0 else None for share in shares] or [None] * count
    return [replace(layer, sparsity_cutoff=cutoff) for layer, cutoff in zip(layers, cutoffs, strict=True)]


def gemma4_layers(layers: list[Layer], given: dict[str, Any]) -> list[Layer]:
    """Head sizes of global layers, k = v, experts, the layer scalar."""
    keys_are_values = given.get("attention_k_eq_v", False)
    experts = given["top_k_experts"] if given.get("enable_moe_block") else 0
    changed = []
    for index, layer in enumerate(layers):
        layer = replace(layer, experts_per_token=experts, layer_scalar=True)
        if not layer.sliding_window:
            wider = {"head_dim": given["global_head_dim"]}
            # In Gemma 4 it only counts with k = v.
            counts = keys_are_values or given["model_type"] == "embedding_gemma2_text"
            if counts and "num_global_key_value_heads" in given:
                wider["num_key_value_heads"] = given["num_global_key_value_heads"]
            if (
                "per_layer_config" in given
            ):  # the form that transformers 5 writes; it replaces the two keys above
                overrides = {int(layer): value for layer, value in given["per_layer_config"].items()}
                wider = overrides.get(index, {})
            layer = replace(
                layer,
                head_dim=wider.get("head_dim", layer.head_dim),
                num_kv_heads=wider.get("num_key_value_heads", layer.num_kv_heads),
                key_is_value=keys_are_values,
            )
        changed.append(layer)
    return changed


def shared_keys(layers: list[Layer], shared: int) -> list[Layer]:
    """The last `shared` layers read the cache of the last earlier layer of their own kind."""
    own = layers[: len(layers) - shared]
    last = {bool(layer.sliding_window): index for index, layer in enumerate(own)}
    return own + [replace(layer, kv_source=last[bool(layer.sliding_window)]) for layer in layers[len(own) :]]
