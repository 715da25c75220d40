"""Gemma 3n's variants with a tower for images, as data for variants_vision.py."""

from __future__ import annotations

from typing import Any

from .variants_gemma3n import gemma3n_text

WIDTH = 20  # the width of the tower's output

# The blocks of each stage, as timm writes them.
Stages = tuple[tuple[str, ...], ...]
STAGES: Stages = (
    ("er_r1_k3_s2_e4_c8", "er_r1_k3_s1_e4_c8"),
    ("uir_r1_a3_k5_s2_e6_c16", "uir_r1_a5_k0_s1_e4_c16", "uir_r1_a3_k0_s1_e4_c16"),
    (
        "uir_r1_a5_k5_s2_e6_c24",
        "uir_r1_a0_k0_s1_e1_c24",
        "mqa_r1_k3_h3_v2_s1_d10_c24",
        "uir_r1_a0_k0_s1_e2_c24",
    ),
    ("uir_r1_a5_k5_s2_e6_c40", "mqa_r1_k3_h2_s1_d14_c40", "uir_r1_a0_k0_s1_e2_c40"),
)
# Kernels, expansions and orders that no published tower has.
OTHER_STAGES: Stages = (
    ("er_r1_k5_s2_e2_c16",),
    ("uir_r1_a0_k3_s2_e3_c16", "mqa_r1_k3_h1_v2_s1_d6_c16", "uir_r1_a0_k0_s1_e1_c16"),
    ("uir_r1_a3_k0_s2_e2_c32",),
    ("uir_r1_a0_k5_s2_e2_c24", "mqa_r1_k3_h5_v2_s1_d4_c24", "uir_r1_a5_k3_s1_e2_c24"),
)


def gemma3n(tokens: int, **changes: Any) -> dict[str, Any]:
    """config.json, with an encoder for sound in addition to the tower."""
    config: dict[str, Any] = {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "audio_config": {
            "conf_attention_chunk_size": 4,
            "conf_attention_context_left": 5,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "hidden_size": 12,
            "model_type": "gemma3n_audio",
            "sscp_conv_channel_size": [6, 2],
            "vocab_offset": 148,
            "vocab_size": 12,
        },
        "audio_soft_tokens_per_image": 8,
        "audio_token_id": 149,
        "boa_token_id": 131,
        "boi_token_id": 130,
        "eoa_token_id": 148,
        "eoi_token_id": 140,
        "eos_token_id": [1, 106],
        "image_token_id": 141,
        "initializer_range": 0.02,
        "model_type": "gemma3n",
        "text_config": gemma3n_text(vocab_size=160),
        "torch_dtype": "bfloat16",
        "vision_config": {
            "architecture": "mobilenetv5_300m_enc",
            "do_pooling": False,
            "hidden_size": WIDTH,
            "model_args": None,
            "model_type": "gemma3n_vision",
            "vocab_offset": 140,
            "vocab_size": 8,
        },
        "vision_soft_tokens_per_image": tokens,
    }
    return config | changes


def preprocessor(height: int, width: int, tokens: int) -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "do_convert_rgb": None,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Gemma3nProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": height, "width": width},
    }
