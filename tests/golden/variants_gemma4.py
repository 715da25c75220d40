"""The tiny Gemma 4 checkpoints of tests/golden, as data. See variants.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .variants import FAR_ROWS, GLOBAL, LOCAL, Variant

ROPE = {
    GLOBAL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    LOCAL: {"rope_theta": 10000.0, "rope_type": "default"},
}


def gemma4_text(layers: list[str], **changes: Any) -> dict[str, Any]:
    """The text part in the published form (transformers 5.5), dense unless changed."""
    config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": False,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 32,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 40,
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "intermediate_size": 44,
        "layer_types": layers,
        "max_position_embeddings": 131072,
        "model_type": "gemma4_text",
        "moe_intermediate_size": None,
        "num_attention_heads": 4,
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_hidden_layers": len(layers),
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": ROPE,
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": None,
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": 144,
        "vocab_size_per_layer_input": 144,
    }
    return config | changes


def gemma4_causal(layers: list[str], **changes: Any) -> dict[str, Any]:
    return gemma4_text(layers) | {"architectures": ["Gemma4ForCausalLM"]} | changes


def gemma4_multimodal(text: dict[str, Any], *, audio: bool = False) -> dict[str, Any]:
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": AUDIO if audio else None,
        "audio_token_id": 258881,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "dtype": "bfloat16",
        "eoa_token_index": 258883,
        "eoi_token_id": 258882,
        "eos_token_id": [1, 106],
        "image_token_id": 258880,
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "video_token_id": 258884,
        "vision_config": VISION,
        "vision_soft_tokens_per_image": 280,
    }


VISION = {
    "head_dim": 4,
    "hidden_size": 8,
    "intermediate_size": 10,
    "model_type": "gemma4_vision",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "patch_size": 2,
    "position_embedding_size": 4,
    "use_clipped_linears": True,
}
AUDIO = {
    "conv_kernel_size": 3,
    "hidden_size": 8,
    "model_type": "gemma4_audio",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "output_proj_dims": 6,
    "subsampling_conv_channels": [4, 2],
}

# Scores are q . k without a scale. Head norms of 0.6 keep the softmax of a random model from being an argmax.
WEIGHTS: dict[str, Any] = dict(norm_center=1.0, head_norm=-0.4)
# Published files have unused projections for layers that share keys and values.
UNUSED = {
    "model.language_model.layers.3.self_attn.k_proj.weight": (16, 36),
    "model.language_model.layers.3.self_attn.v_proj.weight": (16, 36),
    "model.language_model.layers.3.self_attn.k_norm.weight": (16,),
}

GEMMA4 = (
    Variant(
        "gemma4-31b",
        "multimodal as published, bf16 in two shards; k = v, fewer and wider heads in global layers",
        gemma4_multimodal(
            gemma4_text(
                [LOCAL] * 5 + [GLOBAL],
                attention_k_eq_v=True,
                num_global_key_value_heads=1,
                use_bidirectional_attention="vision",
            )
        ),
        stored="bfloat16",
        shards=2,
        **WEIGHTS,
    ),
    Variant(
        "gemma4-12b",
        "the unified class: no per-layer keys at all, its own names for the image parts; k = v, MQA",
        {
            "architectures": ["Gemma4UnifiedForConditionalGeneration"],
            "audio_config": {"audio_embed_dim": 6, "model_type": "gemma4_unified_audio"},
            "dtype": "bfloat16",
            "eos_token_id": [1, 106],
            "model_type": "gemma4_unified",
            "text_config": {
                key: value
                for key, value in gemma4_text(
                    [LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
                    attention_k_eq_v=True,
                    global_head_dim=24,
                    hidden_size=36,
                    model_type="gemma4_unified_text",
                    num_attention_heads=3,
                    num_global_key_value_heads=1,
                    num_key_value_heads=3,
                    use_bidirectional_attention="vision",
                    vocab_size=138,
                ).items()
                if "per_layer" not in key and "expert" not in key and "moe" not in key
            },
            "vision_config": {
                "mm_embed_dim": 8,
                "mm_posemb_size": 4,
                "model_type": "gemma4_unified_vision",
                "output_proj_dims": 8,
                "patch_size": 2,
                "pooling_kernel_size": 1,
            },
        },
        rename=(
            ("model.embed_vision.multimodal_embedder.", "model.embed_vision."),
            ("model.embed_vision.", "model.vision_embedder."),
        ),
        **WEIGHTS,
    ),
    Variant(
        "gemma4-e2b",
        "multimodal with both towers: per-layer inputs, sharing, double-wide MLP, one kv head, pattern of 5",
        gemma4_multimodal(
            gemma4_text(
                [LOCAL] * 2 + [GLOBAL] + [LOCAL] * 2 + [GLOBAL],
                hidden_size=36,
                hidden_size_per_layer_input=6,
                intermediate_size=20,
                num_key_value_heads=1,
                num_kv_shared_layers=3,
                use_double_wide_mlp=True,
            ),
            audio=True,
        ),
        stored="bfloat16",
        unused=UNUSED,
        **WEIGHTS,
    ),
    Variant(
        "gemma4-e4b",
        "text alone; per-layer inputs, sharing, no double width; num_global_key_value_heads to no effect",
        gemma4_causal(
            [LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL, LOCAL],  # the last one becomes global
            global_head_dim=24,
            hidden_size_per_layer_input=10,
            num_global_key_value_heads=1,
            num_kv_shared_layers=4,
            sliding_window=6,
            vocab_size=134,
            vocab_size_per_layer_input=134,
        ),
        **WEIGHTS,
    ),
    Variant(
        "gemma4-26b-a4b",
        "mixture of experts beside the dense MLP; k = v",
        gemma4_causal(
            [LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
            attention_k_eq_v=True,
            enable_moe_block=True,
            hidden_size=28,
            intermediate_size=36,
            moe_intermediate_size=12,
            num_experts=9,
            num_global_key_value_heads=1,
            top_k_experts=3,
            vocab_size=142,
        ),
        **WEIGHTS,
    ),
    Variant(
        "gemma4-resaved",
        "as transformers 5 writes it (per_layer_config); RoPE of its own; no softcap; an eps that matters",
        gemma4_causal(
            [LOCAL, GLOBAL, LOCAL, GLOBAL],
            attention_k_eq_v=True,
            final_logit_softcapping=None,
            global_head_dim=24,
            num_global_key_value_heads=2,
            num_key_value_heads=4,
            rms_norm_eps=0.02,
            rope_parameters={
                GLOBAL: {
                    "factor": 4.0,
                    "partial_rotary_factor": 0.5,
                    "rope_theta": 50000.0,
                    "rope_type": "proportional",
                },
                LOCAL: {"rope_theta": 20000.0, "rope_type": "default"},
            },
            vocab_size=136,
        ),
        resave=True,
        **WEIGHTS,
    ),
    Variant(
        "gemma4-far",
        "700 tokens and a window of 64: far positions, shared keys and values beyond the window",
        gemma4_causal(
            [LOCAL, GLOBAL, LOCAL, GLOBAL],
            global_head_dim=24,
            hidden_size=24,
            hidden_size_per_layer_input=5,
            intermediate_size=28,
            num_attention_heads=2,
            num_kv_shared_layers=2,
            sliding_window=64,
            vocab_size=127,
            vocab_size_per_layer_input=127,
        ),
        tokens=700,
        rows=FAR_ROWS,
        **WEIGHTS | {"head_norm": -0.55},  # a longer text (700 tokens) makes chaotic results more likely
    ),
)


# --- Drafters -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DrafterVariant:
    """One folder of tests/golden/drafters, whose target is another golden folder."""

    name: str
    why: str
    target: str
    config: dict[str, Any]
    tokens: int = 19  # the number of tokens of the prompt
    drafts: int = 4


def gemma4_assistant(
    target: dict[str, Any], types: list[str], hidden_size: int, **changes: Any
) -> dict[str, Any]:
    """A drafter's config.json in the form of published ones, for a target with the text_config `target`."""
    kept = (
        "vocab_size head_dim global_head_dim num_key_value_heads num_global_key_value_heads attention_k_eq_v "
        "max_position_embeddings rms_norm_eps rope_parameters sliding_window final_logit_softcapping"
    )
    text = {key: target[key] for key in kept.split() if key in target}
    text |= {
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "final_logit_softcapping": None,
        "hidden_size": hidden_size,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2 * hidden_size - 4,
        "layer_types": types,
        "model_type": "gemma4_text",
        "num_attention_heads": 4,
        "num_hidden_layers": len(types),
        "num_kv_shared_layers": len(types),
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": 0,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": target["hidden_size"],
        "dtype": "float32",
        "model_type": "gemma4_assistant",
        "text_config": text,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": False,
        **changes,
    }


def _text_of(name: str) -> dict[str, Any]:
    (found,) = (one.config for one in GEMMA4 if one.name == name)
    return dict(found["text_config"])


DRAFTERS = (
    DrafterVariant(
        "e2b",
        "the target shares keys and values; centroids",
        "gemma4-e2b",
        gemma4_assistant(
            _text_of("gemma4-e2b"),
            [LOCAL, LOCAL, LOCAL, GLOBAL],
            20,
            use_ordered_embeddings=True,
            num_centroids=18,
            centroid_intermediate_top_k=5,
        ),
    ),
    DrafterVariant(
        "e2b-plain",
        "the whole head, and a prompt shorter than the window",
        "gemma4-e2b",
        gemma4_assistant(_text_of("gemma4-e2b"), [LOCAL, GLOBAL], 24),
        tokens=5,
    ),
)
