"""The tiny checkpoints with towers for images, as data: config.json in the form of published checkpoints, and
the prompts whose results golden.safetensors has. Most sizes are no multiples of 16 or 32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class VisionPrompt:
    """Images by (height, width), and how they are prepared."""

    images: tuple[tuple[int, int], ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VisionVariant:
    """One folder of tests/golden/vision. `layout` is the way in which names are spelled."""

    name: str
    why: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    prompts: tuple[VisionPrompt, ...]
    layout: str = "published"


PAN_AND_SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 40,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}

_GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 141,
    "eoi_token_index": 142,
    "eos_token_id": [1, 106],
    "image_token_index": 143,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 16,
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 16,
        "hidden_size": 40,
        "intermediate_size": 44,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 7,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 16,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 8,  # shorter than a block
        "vocab_size": 149,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 36,
        "image_size": 112,
        "intermediate_size": 52,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_GEMMA3_PREPROCESSOR = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 16,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 112, "width": 112},
}

VISION_VARIANTS = [
    VisionVariant(
        "gemma3",
        "SigLIP and the projector; blocks of image tokens that are longer than the window",
        _GEMMA3,
        _GEMMA3_PREPROCESSOR,
        (
            VisionPrompt(((75, 100),)),
            VisionPrompt(((300, 91), (9, 7))),
            VisionPrompt(((70, 171),), PAN_AND_SCAN),
            VisionPrompt(((211, 90), (64, 64)), PAN_AND_SCAN),
            VisionPrompt(((112, 112),)),
        ),
    ),
    VisionVariant(
        "gemma3-resaved",
        "the names that transformers 5 writes, and those of 4.52",
        _GEMMA3,
        _GEMMA3_PREPROCESSOR,
        (VisionPrompt(((50, 60),)),),
        layout="resaved",
    ),
]
