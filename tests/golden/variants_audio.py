"""The tiny checkpoints with encoders for sound, as data: config.json in the form of published checkpoints,
and the sounds of each prompt, by their number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .variants import GLOBAL, LOCAL
from .variants_gemma3n import gemma3n_text
from .variants_gemma4 import gemma4_text


@dataclass(frozen=True)
class AudioVariant:
    """One folder of tests/golden/audio."""

    name: str
    why: str
    config: dict[str, Any]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def has_encoder(self) -> bool:
        return self.config["model_type"] != "gemma4_unified"


_GEMMA4 = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": {
        "attention_context_left": 5,
        "attention_chunk_size": 4,
        "conv_kernel_size": 5,
        "hidden_size": 24,
        "model_type": "gemma4_audio",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "output_proj_dims": 20,
        "subsampling_conv_channels": [128, 2],
        "use_clipped_linears": True,
    },
    "audio_token_id": 144,
    "boa_token_id": 143,
    "boi_token_id": 142,
    "dtype": "bfloat16",
    "eoa_token_index": 145,
    "eoi_token_id": 141,
    "eos_token_id": [1, 106],
    "image_token_id": 146,
    "initializer_range": 0.02,
    "model_type": "gemma4",
    "text_config": gemma4_text(
        [LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
        hidden_size=36,
        hidden_size_per_layer_input=6,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        vocab_size=148,
        vocab_size_per_layer_input=148,
    ),
    "tie_word_embeddings": True,
    "video_token_id": 147,
    "vision_config": None,
}
_GEMMA3N = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "audio_config": {
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 2,
        "hidden_size": 24,
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
        "hidden_size": 6,
        "model_type": "gemma3n_vision",
        "vocab_offset": 140,
        "vocab_size": 8,
    },
    "vision_soft_tokens_per_image": 256,
}

_UNIFIED = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "audio_config": {"audio_embed_dim": 80, "model_type": "gemma4_unified_audio"},
    "audio_token_id": 134,
    "boa_token_id": 133,
    "boi_token_id": 132,
    "dtype": "bfloat16",
    "eoa_token_index": 135,
    "eoi_token_id": 131,
    "eos_token_id": [1, 106],
    "image_token_id": 136,
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
    "video_token_id": 137,
    "vision_config": None,
}

AUDIO_VARIANTS = (
    AudioVariant(
        "gemma4",
        "clamped matrices, per-layer inputs, shared keys and values; sounds of different lengths in a prompt",
        _GEMMA4,
        ((9000,), (15521, 3210), (161,)),
    ),
    AudioVariant(
        "gemma3n",
        "a last token that sees padding, one that does not, places that are filled up, ids of other tables",
        _GEMMA3N,
        ((9000,), (15521,), (3210, 3210), (640,)),
    ),
    AudioVariant(
        "gemma4-unified",
        "no encoder: samples as they are",
        _UNIFIED,
        ((1000,), (81, 640), (1,)),
    ),
)
