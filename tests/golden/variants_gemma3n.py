"""The tiny Gemma 3n checkpoints of tests/golden, as data. See variants.py."""

from __future__ import annotations

from typing import Any

from .variants import GLOBAL, LOCAL, Variant


def gemma3n_text(**changes: Any) -> dict[str, Any]:
    """The text part in the published form (transformers 4.53), with two keys that have no effect."""
    config = {
        "activation_sparsity_pattern": [0.95, 0.95, 0.9, 0.0, 0.0, 0.0, 0.0],
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_lr_multiplier": 1.0,
        "altup_num_inputs": 4,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 36,
        "hidden_size_per_layer_input": 6,
        "initializer_range": 0.02,
        "intermediate_size": [76] * 7,
        "laurel_rank": 5,
        # Before the layers that share keys there are a local and a global layer, in this order.
        "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
        "max_position_embeddings": 32768,
        "model_type": "gemma3n_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 7,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 3,
        "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 8,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 148,
        "vocab_size_per_layer_input": 139,
    }
    return config | changes


def gemma3n_causal(**changes: Any) -> dict[str, Any]:
    """A text-only config: the form of Gemma3nForCausalLM on disk."""
    return gemma3n_text() | {"architectures": ["Gemma3nForCausalLM"], "eos_token_id": [1, 106]} | changes


def gemma3n_multimodal(**text: Any) -> dict[str, Any]:
    """A published config. It has only the types of the towers, which text does not need."""
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "audio_config": {"hidden_size": 6, "model_type": "gemma3n_audio", "vocab_offset": 262272},
        "audio_soft_tokens_per_image": 188,
        "audio_token_id": 262273,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "eoa_token_id": 262272,
        "eoi_token_id": 262144,
        "eos_token_id": [1, 106],
        "image_token_id": 262145,
        "initializer_range": 0.02,
        "model_type": "gemma3n",
        "text_config": gemma3n_text(**text),
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.0.dev0",
        "vision_config": {
            "architecture": "mobilenetv5_300m_enc",
            "do_pooling": False,
            "hidden_size": 6,
            "model_type": "gemma3n_vision",
            "vocab_offset": 262144,
            "vocab_size": 128,
        },
        "vision_soft_tokens_per_image": 256,
    }


# Tensors of the file that text does not need: those of the towers, with published names and small sizes, and
# unused projections of layers that share keys and values, which files may have.
UNUSED = {
    "model.language_model.layers.4.self_attn.k_proj.weight": (32, 36),
    "model.language_model.layers.4.self_attn.v_proj.weight": (32, 36),
    "model.language_model.layers.4.self_attn.k_norm.weight": (16,),
    "model.vision_tower.timm_model.conv_stem.conv.weight": (2, 3, 3, 3),
    "model.vision_tower.timm_model.blocks.0.0.bn1.weight": (2,),
    "model.audio_tower.conformer.0.ffw_layer_start.post_layer_norm.weight": (6,),
    "model.audio_tower.subsample_conv_projection.input_proj_linear.weight": (6, 4),
    "model.embed_vision.embedding.weight": (128, 6),
    "model.embed_vision.hard_embedding_norm.weight": (6,),
    "model.embed_vision.soft_embedding_norm.weight": (6,),
    "model.embed_vision.embedding_projection.weight": (36, 6),
    "model.embed_audio.embedding.weight": (128, 6),
    "model.embed_audio.hard_embedding_norm.weight": (6,),
    "model.embed_audio.soft_embedding_norm.weight": (6,),
    "model.embed_audio.embedding_projection.weight": (36, 6),
}

# Scores are q . k without a scale. Head norms of 0.6 keep the softmax of a random model from being an argmax.
WEIGHTS: dict[str, Any] = dict(norm_center=1.0, head_norm=-0.4)

GEMMA3N = (
    Variant(
        "gemma3n-e2b",
        "multimodal as published: bf16 in two shards, towers to skip; sparsity, shared keys and values",
        gemma3n_multimodal(),
        stored="bfloat16",
        shards=2,
        rename=(("model.", "model.language_model."),),
        unused=UNUSED,
        **WEIGHTS,
    ),
    Variant(
        "gemma3n-e4b",
        "text alone; one intermediate_size; an rms_norm_eps that matters; sharing layers of one kind only",
        gemma3n_causal(
            activation_sparsity_pattern=[0.95, 0.0, 0.95, 0.0, 0.0, 0.0],
            hidden_size=40,
            intermediate_size=44,
            layer_types=[LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL],
            num_hidden_layers=6,
            num_key_value_heads=1,
            num_kv_shared_layers=1,
            rms_norm_eps=0.02,
            sliding_window=6,
            vocab_size=141,
        ),
        **WEIGHTS,
    ),
    Variant(
        "gemma3n-dense",
        "no sharing, no sparsity; the pattern of 5; MHA; a softcap that bends; keys at their defaults",
        {
            key: value
            for key, value in gemma3n_causal(
                activation_sparsity_pattern=None,
                final_logit_softcapping=8.0,
                head_dim=24,
                hidden_size=33,
                hidden_size_per_layer_input=9,
                intermediate_size=39,
                laurel_rank=7,
                num_attention_heads=3,
                num_hidden_layers=6,
                num_key_value_heads=3,
                num_kv_shared_layers=0,
                vocab_size=137,
                vocab_size_per_layer_input=137,
            ).items()
            if key
            not in ("layer_types", "altup_num_inputs", "rope_local_base_freq", "rope_theta", "rms_norm_eps")
        },
        **WEIGHTS,
    ),
    Variant(
        "gemma3n-sliced",
        "a width per layer (MatFormer), as transformers 5 writes it, with rope_parameters",
        gemma3n_causal(
            activation_sparsity_pattern=[0.9, 0.0, 0.5, 0.0, 0.0],
            intermediate_size=[20, 52, 36, 28, 44],
            layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
            num_hidden_layers=5,
            num_kv_shared_layers=2,
            rope_local_base_freq=20000.0,
            rope_theta=500000.0,
            vocab_size=145,
        ),
        resave=True,
        **WEIGHTS,
    ),
)
