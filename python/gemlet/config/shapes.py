"""The published sizes as ``config.json`` objects, for random weights at real shapes, without a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SHAPES", "TOWER_SHAPES"]


def _gemma3(**keys: Any) -> dict[str, Any]:
    return {"model_type": "gemma3_text", "sliding_window": 1024} | keys


def _small_gemma3(**keys: Any) -> dict[str, Any]:
    """The text-only sizes: a smaller vocabulary table, context and window, and no RoPE scaling."""
    small = {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512}
    return _gemma3(num_attention_heads=4, num_key_value_heads=1, **small, **keys)


_LINEAR_8 = {"rope_type": "linear", "factor": 8.0}


def _gemma3n(layers: int, own_keys: int, width: int) -> dict[str, Any]:
    """The widths of E4B unless told otherwise; layers after the first ``own_keys`` share keys and values."""
    return {
        "model_type": "gemma3n_text",
        "num_hidden_layers": layers,
        "num_kv_shared_layers": layers - own_keys,
        "intermediate_size": width,
    }


def _gemma4(**keys: Any) -> dict[str, Any]:
    return {"model_type": "gemma4_text", "final_logit_softcapping": 30.0} | keys


def _large_gemma4(**keys: Any) -> dict[str, Any]:
    """The sizes without per-layer inputs: a longer context, a wider window, k = v in global layers."""
    large = {"max_position_embeddings": 262144, "sliding_window": 1024, "hidden_size_per_layer_input": 0}
    return _gemma4(attention_k_eq_v=True, use_bidirectional_attention="vision", **large, **keys)


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gemma-2b": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "gemma-7b": {"model_type": "gemma"},
    "gemma2-2b": {"model_type": "gemma2"},
    "gemma2-9b": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "gemma2-27b": {
        "model_type": "gemma2",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "gemma3-270m": _small_gemma3(hidden_size=640, intermediate_size=2048, num_hidden_layers=18),
    "gemma3-1b": _small_gemma3(hidden_size=1152, intermediate_size=6912, num_hidden_layers=26),
    "gemma3-4b": _gemma3(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, rope_scaling=_LINEAR_8
    ),
    "gemma3-12b": _gemma3(
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        rope_scaling=_LINEAR_8,
    ),
    "gemma3-27b": _gemma3(
        hidden_size=5376,
        intermediate_size=21504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
        rope_scaling=_LINEAR_8,
    ),
    "gemma3n-e2b": _gemma3n(layers=30, own_keys=20, width=8192),
    "gemma3n-e4b": _gemma3n(layers=35, own_keys=20, width=16384),
    "gemma4-e2b": _gemma4(
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=35,
        num_key_value_heads=1,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
    ),
    "gemma4-e4b": _gemma4(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=42,
        num_key_value_heads=2,
        num_kv_shared_layers=18,
    ),
    "gemma4-12b": _large_gemma4(
        model_type="gemma4_unified_text",
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=1,
    ),
    "gemma4-26b-a4b": _large_gemma4(
        hidden_size=2816,
        intermediate_size=2112,
        num_hidden_layers=30,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=2,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
    ),
    "gemma4-31b": _large_gemma4(
        hidden_size=5376,
        intermediate_size=21504,
        num_hidden_layers=60,
        num_attention_heads=32,
        num_key_value_heads=16,
        num_global_key_value_heads=4,
    ),
}

_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_SIGLIP = {"model_type": "gemma3", "vision_config": {**_SO400M, "image_size": 896, "patch_size": 14}}
_GEMMA3N = {
    "model_type": "gemma3n",
    "vision_config": {"architecture": "mobilenetv5_300m_enc"},
    "audio_config": {"hidden_size": 1536},
}
_SMALL_GEMMA4 = {
    "model_type": "gemma4",
    "vision_config": {"use_clipped_linears": True},
    "audio_config": {"hidden_size": 1024},
}
_LARGE_GEMMA4 = {
    "model_type": "gemma4",
    "vision_config": {**_SO400M, "num_key_value_heads": 16, "head_dim": 72, "standardize": True},
}
# The outer object of config.json for the sizes that see or hear.
TOWER_SHAPES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("gemma3-4b", "gemma3-12b", "gemma3-27b"), _SIGLIP),
    **dict.fromkeys(("gemma3n-e2b", "gemma3n-e4b"), _GEMMA3N),
    **dict.fromkeys(("gemma4-e2b", "gemma4-e4b"), _SMALL_GEMMA4),
    **dict.fromkeys(("gemma4-26b-a4b", "gemma4-31b"), _LARGE_GEMMA4),
    "gemma4-12b": {
        "model_type": "gemma4_unified",
        "vision_config": {"model_patch_size": 48},
        "audio_config": {"audio_embed_dim": 640},
    },
}
