"""The accepted ranges of the numbers in a configuration. The core defines them for its own fields."""

from __future__ import annotations

from gemlet import _core

__all__ = ["LIMITS", "NUMBERS"]

# Integer key of config.json -> the field of the core that takes its value.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "num_global_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "global_head_dim": "head_dim",
    "max_position_embeddings": "max_context",
    "sliding_window": "sliding_window",
    "num_experts": "num_experts",
    "moe_intermediate_size": "expert_intermediate_size",
    "hidden_size_per_layer_input": "per_layer_input_size",
    "vocab_size_per_layer_input": "per_layer_vocab_size",
    "laurel_rank": "laurel_rank",
    "altup_num_inputs": "altup_streams",
}
# Integer key -> largest accepted value.
LIMITS = {key: _core.size_limits()[field][1] for key, field in _FIELDS.items()}
# Field of the core that is a real number -> (least, largest) accepted value.
NUMBERS = _core.number_limits()
