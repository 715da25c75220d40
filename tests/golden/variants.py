"""The tiny checkpoints of tests/golden, as data, with config.json in the form of published checkpoints.

Gemma 1, 2 and 3 are here. variants_gemma3n.py, variants_gemma4.py and variants_embedding.py have the rest.
Every variant represents one structure of published models. Dimensions are small. Most of them differ from
each other, so that a swapped pair is noticed. Most are not multiples of 16 or 32, so that no kernel can rely
on round sizes.

This file does not use torch, because the tests import it to know which folders must exist."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LOCAL, GLOBAL = "sliding_attention", "full_attention"
SIX = [LOCAL] * 5 + [GLOBAL]


@dataclass(frozen=True)
class Variant:
    """One golden folder. `config` is config.json. The other fields say how tensors are drawn and stored."""

    name: str
    why: str  # the structure that this variant represents
    config: dict[str, Any]
    tokens: int = 41
    rows: tuple[int, ...] | None = None  # the rows that the taps keep; None means all
    stored: str = "float32"  # the dtype of the tensors in the file; or "bfloat16"
    shards: int = 1
    # Replacements that turn a name in memory into the name in the file, in order; () changes nothing.
    rename: tuple[tuple[str, str], ...] = ()
    resave: bool = False  # let transformers write config.json and the tensors
    # The sizes of random weights. The mean of norm weights is `norm_center`, which is 0 if the model uses 1 +
    # w.
    norm_center: float = 0.0
    head_norm: float = 0.5  # mean of the q/k norm weights above norm_center: sharpens the attention
    query_gain: float = 1.5  # the spread of q and k lanes in models without a q/k norm
    dense: tuple[int, ...] | None = None  # the outputs of the dense layers after an embedding model's mean
    # Tensors in the file that the text model must skip: name -> shape.
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)


# --- Gemma 1 ------------------------------------------------------------------------------------------------
def gemma1(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 88,
        "max_position_embeddings": 8192,
        "model_type": "gemma",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.0.dev0",
        "use_cache": True,
        "vocab_size": 151,
    }
    return config | changes


# --- Gemma 2 ------------------------------------------------------------------------------------------------
def gemma2(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 72,
        "initializer_range": 0.02,
        "intermediate_size": 36,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "use_cache": True,
        "vocab_size": 157,
    }
    return config | changes


# --- Gemma 3 ------------------------------------------------------------------------------------------------
def gemma3(**changes: Any) -> dict[str, Any]:
    """A text-only config in the first published form: a number for the pattern, and three rope keys."""
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 52,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 3,
        "num_hidden_layers": 7,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 8,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "use_cache": True,
        "vocab_size": 139,
    }
    return config | changes


def gemma3_layer_types(layers: list[str], **changes: Any) -> dict[str, Any]:
    """The second published form (Gemma 3 270M): a list of layers, and the same rope keys."""
    config = gemma3(num_hidden_layers=len(layers), layer_types=layers, _sliding_window_pattern=6, **changes)
    del config["sliding_window_pattern"], config["cache_implementation"]
    return config | {"transformers_version": "4.55.0.dev0", "use_bidirectional_attention": False}


def gemma3_rope_parameters(layers: list[str], full: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The form of transformers 5: `rope_parameters` for each kind of layer, `dtype` instead of
    `torch_dtype`."""
    config = gemma3_layer_types(layers, **changes)
    for key in ("rope_local_base_freq", "rope_scaling", "rope_theta", "torch_dtype"):
        del config[key]
    local = {"rope_theta": 10000.0, "rope_type": "default"}
    return config | {
        "dtype": "float32",
        "rope_parameters": {GLOBAL: full, LOCAL: local},
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
    }


def gemma3_multimodal(**text: Any) -> dict[str, Any]:
    """A 4B, 12B or 27B config. Its text part is nested and has only the values that differ from the defaults.

    Unless they are given, these have their defaults: num_attention_heads 8, num_key_value_heads 4,
    rms_norm_eps 1e-6, query_pre_attn_scalar 256, max_position_embeddings 131072, both thetas, the activation,
    the pattern of 6.
    """
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 8,
        }
        | text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 6,
            "image_size": 4,
            "intermediate_size": 10,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "patch_size": 2,
            "vision_use_head": False,
        },
    }


SPARSE: dict[str, Any] = dict(
    head_dim=16, hidden_size=40, intermediate_size=44, num_hidden_layers=7, vocab_size=149
)
PUBLISHED_MULTIMODAL = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
# Positions around every second multiple of the window (64), and at both ends.
FAR_ROWS = (0, 1, 62, *(edge + near for edge in range(64, 700, 128) for near in (-1, 0, 1)), 300, 698, 699)

VARIANTS = (
    Variant("gemma1-2b", "one kv head (MQA), H*h = d", gemma1()),
    Variant(
        "gemma1-7b",
        "a kv head per head (MHA), H*h != d, head_dim 24; an rms_norm_eps that matters",
        gemma1(
            head_dim=24,
            hidden_size=48,
            num_attention_heads=3,
            num_key_value_heads=3,
            rms_norm_eps=0.02,
            vocab_size=131,
        ),
    ),
    Variant(
        "codegemma",
        "the legacy activation keys, which mean the tanh GELU",
        gemma1(
            head_dim=32,
            hidden_act="gelu",
            hidden_activation=None,
            hidden_size=40,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=133,
        ),
    ),
    Variant("gemma2-2b", "both softcaps, local/global alternating, post norms", gemma2(), query_gain=2.0),
    Variant(
        "gemma2-27b",
        "query_pre_attn_scalar = d/H, not head_dim; ends on a local layer",
        gemma2(
            head_dim=16,
            hidden_size=48,
            intermediate_size=84,
            num_attention_heads=6,
            num_hidden_layers=3,
            num_key_value_heads=3,
            query_pre_attn_scalar=8,
            vocab_size=147,
        ),
        query_gain=1.7,
    ),
    Variant(
        "vaultgemma",
        "Gemma 2 with norms only before the branches; every layer is global",
        gemma2(
            architectures=["VaultGemmaForCausalLM"],
            model_type="vaultgemma",
            hidden_size=64,
            num_hidden_layers=3,
            num_key_value_heads=4,
            layer_types=[GLOBAL] * 3,
            transformers_version="4.57.0",
            max_position_embeddings=1024,
            vocab_size=139,
        ),
        query_gain=2.0,
    ),
    Variant(
        "gemma2-resaved",
        "as transformers 5 writes it: layer_types, one flat rope_parameters",
        gemma2(hidden_size=40, num_hidden_layers=2, vocab_size=135, rope_theta=20000.0),
        resave=True,
        query_gain=2.0,
    ),
    Variant(
        "gemma3-270m",
        "q/k norms, two thetas, layer_types listed, 8 layers ending on local",
        gemma3_layer_types(
            SIX + [LOCAL] * 2,
            head_dim=16,
            hidden_size=40,
            num_attention_heads=4,
            query_pre_attn_scalar=16,
            vocab_size=163,
        ),
    ),
    Variant("gemma3-1b", "the first config form: sliding_window_pattern and rope_local_base_freq", gemma3()),
    Variant(
        "gemma3-rope-parameters",
        "the transformers 5 config form; layer_types off the pattern; linear rope; MHA; head_dim 32",
        gemma3_rope_parameters(
            [LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL],
            {"factor": 4.0, "rope_theta": 500000.0, "rope_type": "linear"},
            head_dim=32,
            hidden_size=36,
            num_attention_heads=2,
            num_key_value_heads=2,
            query_pre_attn_scalar=32,
            vocab_size=141,
        ),
    ),
    Variant(
        "gemma3-4b",
        "multimodal as published: bf16, sparse nested text_config, vision tensors to skip, linear rope x8",
        gemma3_multimodal(**SPARSE),
        stored="bfloat16",
        rename=PUBLISHED_MULTIMODAL,
        head_norm=1.8,
    ),
    Variant(
        "gemma3-4b-resaved",
        "multimodal as transformers 5 writes it, with the prefix model.language_model.",
        gemma3_multimodal(**SPARSE | {"num_hidden_layers": 3, "layer_types": [LOCAL, GLOBAL, LOCAL]}),
        resave=True,
        head_norm=1.8,
    ),
    Variant(
        "gemma3-27b",
        "multimodal in two bf16 shards; query_pre_attn_scalar = d/H, not head_dim",
        gemma3_multimodal(
            head_dim=16,
            hidden_size=56,
            intermediate_size=44,
            num_attention_heads=4,
            num_hidden_layers=8,
            num_key_value_heads=2,
            query_pre_attn_scalar=14,
            vocab_size=167,
        ),
        stored="bfloat16",
        shards=2,
        rename=PUBLISHED_MULTIMODAL,
    ),
    Variant(
        "gemma3-bf16",
        "tensors stored as bfloat16; the golden is computed in float32 from the rounded values",
        gemma3(head_dim=16, hidden_size=44, num_attention_heads=2, query_pre_attn_scalar=16, vocab_size=155),
        stored="bfloat16",
    ),
    Variant(
        "gemma3-untied",
        "a separate lm_head (fine-tunes untie it); an rms_norm_eps that matters",
        gemma3(
            tie_word_embeddings=False,
            head_dim=16,
            hidden_size=36,
            query_pre_attn_scalar=16,
            rms_norm_eps=0.02,
            vocab_size=143,
        ),
    ),
    Variant(
        "gemma3-far",
        "700 tokens and a window of 64: far positions, many blocks of context",
        gemma3(
            head_dim=16,
            hidden_size=24,
            intermediate_size=28,
            num_attention_heads=2,
            query_pre_attn_scalar=16,
            sliding_window=64,
            vocab_size=127,
        ),
        tokens=700,
        rows=FAR_ROWS,
    ),
)
