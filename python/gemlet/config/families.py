"""Tables of what the reader of ``config.json`` knows about each Gemma family. There is no code in here.

A key of ``config.json`` is *used* (it has a default below, the one of the family's configuration class in
transformers 5.24.0), *fixed* (only the listed values are supported), or *ignored* (it does not change the
logits). Any other key is an error, so nothing that matters is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gemlet.base.records import field, record, replace

__all__ = ["FAMILIES", "MULTIMODAL", "NEUTRAL", "RELATIVES", "TANH_GELU", "WITH_GEMMA4_TOWERS", "Family"]

# Names of the activation of all published Gemma models, which transformers implements in several ways, and
# names of the formula that it approximates.
TANH_GELU = ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate")
EXACT_GELU = ("gelu", "gelu_python")

# Keys with one supported meaning: any other value is an error that names the key.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": (*TANH_GELU, *EXACT_GELU, None),
    "hidden_activation": (*TANH_GELU, *EXACT_GELU, None),
    "attention_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "pretraining_tp": (1,),
    "num_local_experts": (0,),
}

_BOOKKEEPING = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "auto_map",  # classes of the publisher's own code: gemlet runs none
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
    "ignore_index",  # a key of the loss in training
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
    "quantization",  # these two are read by quantization.py
    "quantization_config",
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
# Keys that matter only in training, and keys of other tools.
_TRAINING = {
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "keys_to_ignore_at_inference",
    "label_smoothing",
    "layerdrop",
    "loss_type",
    "output_router_logits",
    "resid_pdrop",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "transformers.js_config",
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
_IGNORED = frozenset(_BOOKKEEPING | _TRAINING | _SAMPLING)
# Numbers that say that a model lacks a feature of other families.
NEUTRAL: Mapping[str, float] = {
    "activation_sparsity_pattern": 0,
    "altup_active_idx": 0,
    "attention_chunk_size": 0,
    "attn_logit_softcapping": 0,
    "expert_intermediate_size": 0,
    "hidden_size_per_layer_input": 0,
    "laurel_rank": 0,
    "moe_intermediate_size": 0,
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "num_kv_shared_layers": 0,
    "num_shared_experts": 0,
    "partial_rotary_factor": 1,
    "top_k_experts": 0,
}


@record(frozen=True)
class Family:
    """One family: the defaults of its keys and what its block is made of.

    ``ignored`` are the keys of its configuration that change nothing; for the keys in ``fixed``, only the
    listed values are supported. ``layer_pattern`` P: layer ``i`` is global where ``(i + 1) % P == 0``, else
    sliding; 0: all are global. ``query_scale``: the score scale is ``head_dim ** -0.5``,
    ``query_pre_attn_scalar ** -0.5`` or 1. ``rope``: one theta serves all layers ("flat"), sliding and global
    layers have one each ("nested"), or that and the old spelling means nothing ("nested only").
    ``norm_offset`` is added to every norm weight. ``bidirectional_spans``: the tokens of an image see each
    other, in all layers; a Gemma 4 file says in ``use_bidirectional_attention`` if sliding layers do this.
    ``embeds``: it is an embedding model, whose tokens see ``sliding_window`` tokens to either side. A Gemma 3
    file says so in ``use_bidirectional_attention``, and its window counts both sides. ``activation`` is the
    key with the name of the activation, ``exact_gelu`` its values for the exact GELU. ``most_tokens`` is the
    longest text that the publisher allows, if the file allows more; None: as in the file.
    """

    name: str
    defaults: Mapping[str, Any]
    layer_pattern: int
    query_scale: Literal["head_dim", "query_pre_attn_scalar", "one"]
    rope: Literal["flat", "nested", "nested only"] = "flat"
    local_theta: float = 10000.0
    global_theta: float = 10000.0
    norm_offset: float = 1.0
    qk_norm: bool = False
    post_norms: bool = False
    v_norm: bool = False
    layer_scalar: bool = False
    last_layer_is_global: bool = False
    bidirectional_spans: bool = False
    embeds: bool = False
    most_tokens: int | None = None
    activation: str = "hidden_activation"
    exact_gelu: tuple[str, ...] = EXACT_GELU
    ignored: frozenset[str] = _IGNORED
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _FIXED)


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

_GEMMA3N: dict[str, Any] = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "rope_theta": None,
    "rope_local_base_freq": None,
    "rope_scaling": None,
    "sliding_window": 512,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "num_kv_shared_layers": 15,
    "activation_sparsity_pattern": None,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
    "altup_num_inputs": 4,
    "laurel_rank": 64,
}
_GEMMA4_UNIFIED: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "sliding_window": 1024,
    "layer_types": None,
    "final_logit_softcapping": None,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": False,
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "per_layer_config": None,  # the two keys above as transformers 5 writes them, which replaces them
}
_GEMMA4: dict[str, Any] = _GEMMA4_UNIFIED | {
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
_EMBEDDINGGEMMA2: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "rope_parameters": None,
    "sliding_window": 512,
    "sliding_window_pattern": None,
    "layer_types": None,
    "global_head_dim": 512,
    "num_global_key_value_heads": 1,
    "per_layer_config": None,
    "hidden_size_per_layer_input": 512,
    "embedding_dim": 768,
}
# "vision" lets the tokens of an image see each other, in sliding layers; text stays causal.
_FIXED_GEMMA4 = _FIXED | {"use_bidirectional_attention": (None, False, "vision")}

_FAMILY_GEMMA4 = Family(
    name="gemma4",
    defaults=_GEMMA4,
    layer_pattern=6,
    query_scale="one",
    rope="nested only",
    norm_offset=0.0,
    qk_norm=True,
    post_norms=True,
    v_norm=True,
    layer_scalar=True,
    last_layer_is_global=True,
    fixed=_FIXED_GEMMA4,
)
# By model_type of a text model.
FAMILIES: Mapping[str, Family] = {
    "gemma": Family(
        name="gemma",
        defaults=_GEMMA1,
        layer_pattern=0,
        query_scale="head_dim",
        # Early files say "gelu", but the models were trained with the tanh approximation. transformers 4
        # reads the other key, transformers 5 does not.
        activation="hidden_act",
        exact_gelu=EXACT_GELU[1:],
        fixed=_FIXED | {"hidden_activation": (*TANH_GELU, None)},
    ),
    "gemma2": Family(
        name="gemma2",
        defaults=_GEMMA2,
        layer_pattern=2,
        query_scale="query_pre_attn_scalar",
        post_norms=True,
    ),
    # Gemma 2 without the norms on the branches' outputs.
    "vaultgemma": Family(
        name="vaultgemma",
        defaults=_GEMMA2,
        layer_pattern=2,
        query_scale="query_pre_attn_scalar",
    ),
    "gemma3_text": Family(
        name="gemma3",
        defaults=_GEMMA3,
        layer_pattern=6,
        query_scale="query_pre_attn_scalar",
        rope="nested",
        global_theta=1000000.0,
        qk_norm=True,
        post_norms=True,
        bidirectional_spans=True,
        fixed=_FIXED | {"use_bidirectional_attention": (False, None, True)},
    ),
    "gemma3n_text": Family(
        name="gemma3n",
        defaults=_GEMMA3N,
        layer_pattern=5,
        query_scale="one",
        rope="nested",
        global_theta=1000000.0,
        norm_offset=0.0,
        qk_norm=True,
        post_norms=True,
        v_norm=True,
        # Published files have the scalar, which the reference never reads. The other two matter only in
        # training.
        ignored=_IGNORED | {"query_pre_attn_scalar", "altup_coef_clip", "altup_lr_multiplier"},
        fixed=_FIXED | {"altup_active_idx": (0,), "altup_correct_scale": (True,)},
    ),
    "gemma4_text": _FAMILY_GEMMA4,
    "gemma4_unified_text": replace(
        _FAMILY_GEMMA4,
        defaults=_GEMMA4_UNIFIED,
        # The class has neither per-layer inputs nor experts; a file may say so.
        ignored=_IGNORED
        | {"vocab_size_per_layer_input", "num_experts", "top_k_experts", "moe_intermediate_size"},
        fixed=_FIXED_GEMMA4 | {"hidden_size_per_layer_input": (0, None), "enable_moe_block": (False, None)},
    ),
    "embedding_gemma2_text": replace(
        _FAMILY_GEMMA4,
        name="embeddinggemma2",
        defaults=_EMBEDDINGGEMMA2,
        embeds=True,
        most_tokens=8192,
        fixed=_FIXED | {"use_bidirectional_attention": (True, None)},
    ),
}
# Relatives that gemlet does not run, by the beginning of model_type -> what they are.
RELATIVES: Mapping[str, str] = {
    "t5gemma": "T5Gemma has an encoder beside its decoder",
    "t5_gemma": "T5Gemma has an encoder beside its decoder",
    "paligemma": "PaliGemma reads a prompt with an image in both directions",
    "colpali": "ColPali makes vectors of the pages of documents with PaliGemma",
    "recurrent_gemma": "RecurrentGemma has recurrent layers (Griffin)",
    "diffusion_gemma": "DiffusionGemma writes by diffusion, and not token after token",
}
# The families that see and hear as Gemma 4 does.
WITH_GEMMA4_TOWERS = ("gemma4", "embeddinggemma2")

# Keys beside text_config in the outer object of a multimodal file; those of images and sound are not read.
_IMAGES = {
    "boi_token_id",
    "bos_token_id",
    "eoi_token_id",
    "image_token_id",
    "pad_token_id",
    "vision_config",
}
_SOUND = {"audio_config", "audio_token_id", "boa_token_id", "eoa_token_id", "vision_soft_tokens_per_image"}
_GEMMA3_OUTER = _IGNORED | _IMAGES
_GEMMA3_OUTER |= {"boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image"}
_GEMMA4_OUTER = _IGNORED | _IMAGES | _SOUND | {"eoa_token_index", "video_token_id"}

# A drafter of Gemma 4, which guesses for a larger model and computes no keys and values of its own.
ASSISTANTS = ("gemma4_assistant", "gemma4_unified_assistant")
ASSISTANT: dict[str, Any] = {
    "backbone_hidden_size": 1536,
    "use_ordered_embeddings": False,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
    "tie_word_embeddings": True,
    "text_config": None,
}
ASSISTANT_IGNORED = _GEMMA4_OUTER

# model_type of a multimodal file -> (that of its text_config, the outer keys that are ignored).
MULTIMODAL: Mapping[str, tuple[str, frozenset[str]]] = {
    "gemma3": ("gemma3_text", _GEMMA3_OUTER),
    "shieldgemma2": ("gemma3_text", _GEMMA3_OUTER | {"no_token_index", "yes_token_index"}),
    "gemma3n": ("gemma3n_text", _IGNORED | _IMAGES | _SOUND | {"audio_soft_tokens_per_image"}),
    "gemma4": ("gemma4_text", _GEMMA4_OUTER),
    "gemma4_unified": ("gemma4_unified_text", _GEMMA4_OUTER),
    "embedding_gemma2": ("embedding_gemma2_text", _GEMMA4_OUTER),
}
