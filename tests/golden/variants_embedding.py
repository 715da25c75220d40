"""The tiny embedding models of tests/golden, as data; see variants.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .variants import FAR_ROWS, LOCAL, SIX, Variant, gemma3_layer_types


def embeddinggemma(layers: list[str], **changes: Any) -> dict[str, Any]:
    config = gemma3_layer_types(layers, **changes)
    return config | {
        "architectures": ["Gemma3TextModel"],
        "eos_token_id": 1,
        "max_position_embeddings": 2048,
        "transformers_version": "4.57.0.dev0",
        "use_bidirectional_attention": True,
    }


EMBEDDING = (
    Variant(
        "embeddinggemma",
        "as published: 6 tokens to either side in local layers, two dense layers after the mean, no prefix",
        embeddinggemma([*SIX, LOCAL], sliding_window=12),
        dense=(88, 40),
    ),
    Variant(
        "embeddinggemma-far",
        "700 tokens, 32 to either side; written by transformers 5; no dense layers",
        embeddinggemma(
            SIX,
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
        resave=True,
        dense=(),
    ),
)


@dataclass(frozen=True)
class EmbeddingPrompt:
    """The input of one embedding of EmbeddingGemma 2: images by (height, width), a video by (frames, height,
    width, frames per second), and sounds by their number of samples. `text` has the numbers of text ids
    before, between and after these."""

    text: int
    images: tuple[tuple[int, int], ...] = ()
    video: tuple[int, int, int, float] | None = None
    sounds: tuple[int, ...] = ()


# Most sizes are not multiples of 16. Local layers have two heads of keys, and global ones have a larger one.
EMBEDDINGGEMMA2: dict[str, Any] = {
    "architectures": ["EmbeddingGemma2Model"],
    "audio_config": {
        "attention_chunk_size": 4,
        "attention_context_left": 5,
        "hidden_size": 24,
        "model_type": "gemma4_audio",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "output_proj_dims": 20,
        "subsampling_conv_channels": [128, 1],
        "use_clipped_linears": True,
    },
    "audio_token_id": 144,
    "boa_token_id": 143,
    "boi_token_id": 142,
    "dtype": "bfloat16",
    "eoa_token_index": 145,
    "eoi_token_id": 141,
    "image_token_id": 146,
    "initializer_range": 0.02,
    "model_type": "embedding_gemma2",
    "text_config": {
        "embedding_dim": 40,
        "global_head_dim": 24,
        "head_dim": 16,
        "hidden_size": 36,
        "hidden_size_per_layer_input": 10,
        "intermediate_size": 44,
        "max_position_embeddings": 4096,
        "model_type": "embedding_gemma2_text",
        "num_attention_heads": 4,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 5,  # local, local, global, local, and a last one that is always global
        "num_key_value_heads": 2,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "vocab_size": 148,
    },
    "transformers_version": "5.24.0",
    "video_token_id": 147,
    "vision_config": {
        "head_dim": 12,
        "hidden_size": 28,
        "intermediate_size": 36,
        "model_type": "gemma4_vision",
        "num_attention_heads": 3,
        "num_hidden_layers": 1,
        "num_key_value_heads": 3,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 220,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "use_clipped_linears": True,
    },
}
EMBEDDINGGEMMA2_PROCESSOR: dict[str, Any] = {
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
    "processor_class": "EmbeddingGemma2Processor",
}
EMBEDDINGGEMMA2_PROMPTS = (
    EmbeddingPrompt(40),
    EmbeddingPrompt(0, images=((50, 67),)),
    EmbeddingPrompt(0, sounds=(9000,)),
    EmbeddingPrompt(9, images=((9, 100), (33, 40))),
    EmbeddingPrompt(7, images=((40, 30),), sounds=(3210, 161)),
    EmbeddingPrompt(1),
    EmbeddingPrompt(3, video=(5, 40, 30, 2.0)),
)
# Videos by frames and frames per second. golden.safetensors says which frames are seen.
EMBEDDINGGEMMA2_VIDEOS = (
    (5, 2.0),
    (100, 30.0),
    (7, 0.5),
    (1, 24.0),
    (3000, 29.97),
    (900, 25.0),
    (8000, 12.5),
)
