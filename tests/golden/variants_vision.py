"""The tiny checkpoints with towers for images, as data: config.json in the form of published checkpoints, and
the prompts whose results golden.safetensors has. Most sizes are not multiples of 16 or 32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .variants import GLOBAL, LOCAL
from .variants_gemma4 import gemma4_text
from .variants_vision_gemma3n import OTHER_STAGES, STAGES, Stages, gemma3n, preprocessor


@dataclass(frozen=True)
class VisionPrompt:
    """Images by (height, width), and how they are prepared. `frames` are the frames of a video, all of one
    size. `sounds` follow the images, by their number of samples."""

    images: tuple[tuple[int, int], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    frames: tuple[int, int, int] | None = None
    sounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisionVariant:
    """One folder of tests/golden/vision. `layout` is the spelling of names; `stages` are the blocks of Gemma
    3n's tower."""

    name: str
    why: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    prompts: tuple[VisionPrompt, ...]
    layout: str = "published"
    stages: Stages = ()

    def never(self) -> list[int]:
        """The placeholders, which text does not have."""
        if self.stages:  # all ids of tables other than the text's
            return list(range(self.config["vision_config"]["vocab_offset"], 160))
        names = ("image_token_index", "image_token_id", "video_token_id", "audio_token_id")
        return [self.config[name] for name in names if name in self.config]


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

_GEMMA4_IDS = {
    "boi_token_id": 136,
    "eoi_token_id": 137,
    "image_token_id": 138,
    "video_token_id": 139,
    "audio_token_id": 140,
    "boa_token_id": 141,
    "eoa_token_index": 142,
    "eos_token_id": [1, 106],
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
_GEMMA4_VISION = {
    "head_dim": 12,
    "hidden_size": 28,
    "intermediate_size": 36,
    "model_type": "gemma4_vision",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "patch_size": 4,
    "pooling_kernel_size": 3,
    "position_embedding_size": 220,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
_GEMMA4_SMALL = _GEMMA4_IDS | {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": None,
    "model_type": "gemma4",
    "text_config": gemma4_text(
        [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
        hidden_size=36,
        hidden_size_per_layer_input=6,
        intermediate_size=20,
        num_key_value_heads=1,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
    ),
    "vision_config": _GEMMA4_VISION | {"use_clipped_linears": True},
}
_GEMMA4_LARGE = _GEMMA4_IDS | {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": None,
    "model_type": "gemma4",
    "text_config": gemma4_text(
        [LOCAL] * 5 + [GLOBAL],
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
    ),
    "vision_config": _GEMMA4_VISION | {"standardize": True},
}
_UNIFIED_TEXT = {
    key: value
    for key, value in gemma4_text(
        [LOCAL] * 5 + [GLOBAL],
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
        model_type="gemma4_unified_text",
    ).items()
    if key not in ("enable_moe_block", "moe_intermediate_size", "num_experts", "top_k_experts")
    and key not in ("hidden_size_per_layer_input", "vocab_size_per_layer_input")
}
_GEMMA4_UNIFIED = _GEMMA4_IDS | {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "audio_config": None,
    "model_type": "gemma4_unified",
    "text_config": _UNIFIED_TEXT,
    "vision_config": {
        "mm_embed_dim": 28,
        "mm_posemb_size": 73,
        "model_patch_size": 12,
        "model_type": "gemma4_unified_vision",
        "num_soft_tokens": 70,
        "output_proj_dims": 28,
        "patch_size": 4,
        "pooling_kernel_size": 3,
    },
}
_GEMMA4_PREPROCESSOR = {
    "image_processor": {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "Gemma4ImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": 70,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    },
    "processor_class": "Gemma4Processor",
}
_GEMMA4_PROMPTS = (
    VisionPrompt(((50, 67),)),
    VisionPrompt(((9, 200), (131, 40))),
    VisionPrompt(((64, 64),), {"max_soft_tokens": 140}),
    VisionPrompt(frames=(3, 40, 30)),
)

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
    VisionVariant(
        "gemma4-small",
        "clipped linears; per-layer inputs and a causal text model, as in E2B and E4B",
        _GEMMA4_SMALL,
        _GEMMA4_PREPROCESSOR,
        _GEMMA4_PROMPTS,
    ),
    VisionVariant(
        "gemma4-large",
        "standardized features; blocks in the sliding layers, as in 26B and 31B",
        _GEMMA4_LARGE,
        _GEMMA4_PREPROCESSOR,
        _GEMMA4_PROMPTS,
    ),
    VisionVariant(
        "gemma4-unified",
        "no tower, as in 12B",
        _GEMMA4_UNIFIED,
        _GEMMA4_PREPROCESSOR,
        _GEMMA4_PROMPTS,
    ),
    VisionVariant(
        "gemma3n",
        "MobileNet-v5, with images and sounds in a prompt",
        gemma3n(9),
        preprocessor(96, 96, 9),
        (
            VisionPrompt(((75, 100),)),
            VisionPrompt(((200, 91), (9, 7))),
            VisionPrompt(((96, 96),), sounds=(9000,)),
            VisionPrompt(frames=(3, 40, 30)),
        ),
        stages=STAGES,
    ),
    VisionVariant(
        "gemma3n-odd",
        "other blocks, and sides that are not multiples of the strides and of the tokens in a row",
        gemma3n(9),
        preprocessor(106, 75, 9),
        (VisionPrompt(((50, 120),)),),
        stages=OTHER_STAGES,
    ),
]
