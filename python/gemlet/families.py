"""What the reader of ``config.json`` knows about each Gemma family: tables, no code.

A key of ``config.json`` is *used* (it has a default below, the one of the family's configuration class in
transformers 5.23.0), *fixed* (only the listed values are supported), or *ignored* (it does not change the
logits). Any other key is an error, so nothing that matters is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "FIXED_KEYS", "IGNORED_KEYS", "MULTIMODAL_IGNORED_KEYS", "SHAPES", "Family"]


@dataclass(frozen=True)
class Family:
    """One family: the defaults of its keys and what its block is made of.

    ``layer_pattern`` P: layer ``i`` is global where ``(i + 1) % P == 0``, else sliding; 0: all are global.
    ``query_scalar``: the score scale is ``query_pre_attn_scalar ** -0.5``, not ``head_dim ** -0.5``.
    ``rope_by_layer_type``: sliding and global layers have a theta each; else one serves both.
    """

    name: str
    defaults: Mapping[str, Any]
    layer_pattern: int
    query_scalar: bool
    rope_by_layer_type: bool
    local_theta: float
    global_theta: float
    qk_norm: bool
    post_norms: bool


_GEMMA1: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "rope_theta": None,
    "rope_scaling": None,
}
_GEMMA2: dict[str, Any] = _GEMMA1 | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": None,  # a second name of the same number in the first uploads of Gemma 2
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3: dict[str, Any] = _GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "sliding_window_pattern": None,
    "_sliding_window_pattern": None,
    "rope_local_base_freq": None,
}

FAMILIES: Mapping[str, Family] = {
    "gemma": Family(
        name="gemma",
        defaults=_GEMMA1,
        layer_pattern=0,
        query_scalar=False,
        rope_by_layer_type=False,
        local_theta=10000.0,
        global_theta=10000.0,
        qk_norm=False,
        post_norms=False,
    ),
    "gemma2": Family(
        name="gemma2",
        defaults=_GEMMA2,
        layer_pattern=2,
        query_scalar=True,
        rope_by_layer_type=False,
        local_theta=10000.0,
        global_theta=10000.0,
        qk_norm=False,
        post_norms=True,
    ),
    "gemma3_text": Family(
        name="gemma3",
        defaults=_GEMMA3,
        layer_pattern=6,
        query_scalar=True,
        rope_by_layer_type=True,
        local_theta=10000.0,
        global_theta=1000000.0,
        qk_norm=True,
        post_norms=True,
    ),
}

# Keys with one supported meaning: any other value is an error that names the key.
FIXED_KEYS: Mapping[str, tuple[Any, ...]] = {
    # Early Gemma 1 files say "gelu"; the models were trained with the tanh approximation all the same.
    "hidden_act": ("gelu_pytorch_tanh", "gelu", None),
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attention_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
}

_BOOKKEEPING = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "cache_implementation",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "model_name",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "problem_type",
    "pruned_heads",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
}
# Sampling defaults that old files carry here; they belong to generation_config.json and to the caller.
_SAMPLING = {
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
IGNORED_KEYS = frozenset(_BOOKKEEPING | _SAMPLING)

# The outer object of a multimodal Gemma 3, beside text_config; the image side is not read.
MULTIMODAL_IGNORED_KEYS = IGNORED_KEYS | {
    "boi_token_id",
    "boi_token_index",
    "bos_token_id",
    "eoi_token_id",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "mm_tokens_per_image",
    "pad_token_id",
    "vision_config",
}


def _gemma3(**keys: Any) -> dict[str, Any]:
    return {"model_type": "gemma3_text", "sliding_window": 1024} | keys


def _small_gemma3(**keys: Any) -> dict[str, Any]:
    """The text-only sizes: a smaller vocabulary table, context and window, and no RoPE scaling."""
    small = {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512}
    return _gemma3(num_attention_heads=4, num_key_value_heads=1, **small, **keys)


_LINEAR_8 = {"rope_type": "linear", "factor": 8.0}

# The published sizes as config.json objects, for random weights at real shapes (nothing is read from a file).
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
}
