"""The slots of the core's weights, and their shapes.

A slot is the core's name of a weight ("layers.3.q_proj"); csrc/MODEL.md lists them. Here, the matrices of
routed experts are two slots per layer, stacked as in the file. :func:`core_slots` gives the slot of each
expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gemlet.config.layers import LayerSpec
from gemlet.config.text_config import TextConfig
from gemlet.weights.formats import ROUNDED
from gemlet.weights.tower_slots import in_tower, kind_of, tower_slots

__all__ = [
    "BALANCES",
    "PER_LAYER_TABLE",
    "STREAMS",
    "TABLE_SCALES",
    "TOKEN_ORDER",
    "all_slots",
    "balance_slots",
    "core_slots",
    "expected_slots",
    "is_balance",
    "is_rounding",
    "rounded_slots",
    "rounding_slots",
    "takes_format",
]

# The table of per-layer token embeddings. It is the only slot that is not copied into memory.
PER_LAYER_TABLE = "embed_tokens_per_layer"
# A tensor of packed files: the scales of a per-layer table that is stored as integers.
TABLE_SCALES = "embed_tokens_per_layer_scales"
# A tensor of packed files: the token id of each row of a draft model's head, as integers.
TOKEN_ORDER = "token_order"
_ROUNDING = "_rounding"

# Stacked slot -> the core's slot of one expert, after "layers.N.experts.E.". If a GGUF file has gate and up
# as two tensors, both belong to the same slot, in this order.
_STACKED = {
    "experts_gate_up": "gate_up",
    "experts_gate": "gate_up",
    "experts_up": "gate_up",
    "experts_down": "down",
}
# Names of stacked tensors in GGUF files, with one matrix for each additional residual stream of Gemma 3n.
STREAMS = ("altup_projections", "altup_unembed_projections")
# A vector of the core that balances channels -> the norm that is divided by it, and the matrices whose
# columns are multiplied by it. The vector exists if any of these matrices has few bits.
BALANCES = {
    "attention_balance": ("pre_attention_norm", ("q_proj", "k_proj", "v_proj")),
    "mlp_balance": ("pre_mlp_norm", ("gate_proj", "up_proj")),
    "moe_balance": ("pre_moe_norm", ("experts_gate_up", "experts_gate", "experts_up")),
}
# Routers stay in f32 in every model.
_ROUTERS = ("router_proj", "altup_router")


def expected_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the text model that ``config`` describes.

    >>> from gemlet.config import shape_config
    >>> expected_slots(shape_config("gemma3-1b"))["layers.0.q_proj"]
    (1024, 1152)
    """
    hidden = config.hidden_size
    slots: dict[str, tuple[int, ...]] = {"embed_tokens": (config.vocab_size, hidden), "final_norm": (hidden,)}
    if not config.tie_word_embeddings:
        slots["lm_head"] = (config.vocab_size, hidden)
    if size := config.per_layer_input_size:
        every = size * config.num_layers
        if config.per_layer_vocab_size:
            slots[PER_LAYER_TABLE] = (config.per_layer_vocab_size, every)
        slots |= {"per_layer_model_projection": (every, hidden), "per_layer_projection_norm": (size,)}
    for stream in range(config.altup_streams - 1):
        slots[f"altup_projections.{stream}"] = (hidden, hidden)
        slots[f"altup_unembed_projections.{stream}"] = (hidden, hidden)
    if target := config.target_size:
        slots |= {"pre_projection": (hidden, 2 * target), "post_projection": (target, hidden)}
    if config.centroids:
        slots["centroids"] = (config.centroids, hidden)
    inputs = hidden
    for i, size in enumerate(config.dense_sizes):
        slots[f"dense.{i}"] = (size, inputs)
        inputs = size
    for i, layer in enumerate(config.layers):
        slots |= {f"layers.{i}.{slot}": shape for slot, shape in _layer_slots(layer, config).items()}
    return slots


def all_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the model, including its towers."""
    return expected_slots(config) | tower_slots(config)


def _layer_slots(layer: LayerSpec, config: TextConfig) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = config.hidden_size, layer.head_dim
    queries, keys = layer.num_heads * head_dim, layer.num_kv_heads * head_dim
    own_keys = layer.kv_source < 0
    slots: dict[str, tuple[int, ...]] = {
        "pre_attention_norm": (hidden,),
        "q_proj": (queries, hidden),
        "o_proj": (hidden, queries),
        "pre_mlp_norm": (hidden,),
        "gate_proj": (layer.intermediate_size, hidden),
        "up_proj": (layer.intermediate_size, hidden),
        "down_proj": (hidden, layer.intermediate_size),
    }
    if own_keys:
        slots["k_proj"] = (keys, hidden)
        if not layer.key_is_value:
            slots["v_proj"] = (keys, hidden)
    if layer.qk_norm:
        slots |= {"q_norm": (head_dim,)} | ({"k_norm": (head_dim,)} if own_keys else {})
    if layer.post_norms:
        slots |= {"post_attention_norm": (hidden,), "post_mlp_norm": (hidden,)}
    if experts := layer.num_experts:
        width = layer.expert_intermediate_size
        slots |= {
            "router_proj": (experts, hidden),
            "router_scale": (hidden,),
            "router_per_expert_scale": (experts,),
            "experts_gate_up": (experts, 2 * width, hidden),
            "experts_down": (experts, hidden, width),
            **dict.fromkeys(("pre_moe_norm", "post_dense_norm", "post_moe_norm"), (hidden,)),
        }
    if size := config.per_layer_input_size:
        slots |= {
            "per_layer_input_gate": (size, hidden),
            "per_layer_projection": (hidden, size),
            "post_per_layer_input_norm": (hidden,),
        }
    if layer.layer_scalar:
        slots["layer_scalar"] = (1,)
    if (streams := config.altup_streams) > 1:
        rank = config.laurel_rank
        slots |= {
            "altup_router": (streams, hidden),
            "altup_prediction_coefs": (streams * streams, streams),
            "altup_correction_coefs": (streams, streams),
            **dict.fromkeys(("altup_router_norm", "altup_correct_scale", "post_laurel_norm"), (hidden,)),
            "laurel_left": (rank, hidden),
            "laurel_right": (hidden, rank),
        }
    return slots


def core_slots(slot: str, shape: tuple[int, ...]) -> list[tuple[str, int | None]]:
    """The core's slots for a tensor of this ``shape``. If the tensor is a stack, each slot has its index in
    the stack.

    >>> core_slots("layers.2.down_proj", (8, 16))
    [('layers.2.down_proj', None)]
    >>> core_slots("layers.2.experts_down", (2, 8, 4))
    [('layers.2.experts.0.down', 0), ('layers.2.experts.1.down', 1)]
    """
    if slot in STREAMS:
        return [(f"{slot}.{stream}", stream) for stream in range(shape[0])]
    layer, _, part = slot.rpartition(".")
    if part not in _STACKED:
        return [(slot, None)]
    return [(f"{layer}.experts.{expert}.{_STACKED[part]}", expert) for expert in range(shape[0])]


def balance_slots(config: TextConfig, formats: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for the vectors that balance channels. They follow from the ``formats`` of all matrices.

    >>> from gemlet.config import shape_config
    >>> balance_slots(shape_config("gemma3-1b"), {"layers.25.v_proj": "q4", "layers.25.up_proj": "q8"})
    {'layers.25.attention_balance': (1152,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for matrix, name in formats.items():
        if in_tower(matrix):
            continue
        layer, _, part = matrix.rpartition(".")
        layer = layer.partition(".experts.")[0]
        for balance, (norm, matrices) in BALANCES.items():
            fits = part in matrices or (part == "gate_up" and balance == "moe_balance")
            # In Gemma 3n, LAuReL adds the output of pre_attention_norm to the residual, so that output must
            # not change. Scales for rounding that come with the file also need the unchanged output.
            changes = config.altup_streams == 1 or norm != "pre_attention_norm"
            changes = changes and not any(f"{layer}.{one}" in config.rounded for one in matrices)
            if name in ROUNDED and fits and changes:
                found[f"{layer}.{balance}"] = (config.hidden_size,)
    return found


def is_balance(slot: str) -> bool:
    """Whether the slot is a vector that balances channels.

    >>> is_balance("layers.0.mlp_balance"), is_balance("layers.0.pre_mlp_norm")
    (True, False)
    """
    return slot.rpartition(".")[2] in BALANCES


def rounding_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for the two scales of each matrix whose inputs and outputs are rounded."""
    return {f"{slot}{_ROUNDING}": (2,) for slot in config.rounded}


def is_rounding(slot: str) -> bool:
    """Whether the slot is one of :func:`rounding_slots`.

    >>> is_rounding("layers.0.q_proj_rounding"), is_rounding("layers.0.q_proj")
    (True, False)
    """
    return slot.endswith(_ROUNDING)


def rounded_slots(names: Iterable[str]) -> tuple[str, ...]:
    """The slots of the matrices to which the rounding slots among ``names`` belong, sorted by name."""
    return tuple(sorted(name.removesuffix(_ROUNDING) for name in names if is_rounding(name)))


def takes_format(slot: str, shape: tuple[int, ...]) -> bool:
    """Whether the core packs this slot in the format that the caller chose. The core keeps all other slots as
    f32.

    >>> takes_format("layers.0.q_proj", (8, 16)), takes_format("layers.0.q_norm", (8,))
    (True, False)
    """
    if in_tower(slot):
        return kind_of(slot, shape) == "matrix"
    part = slot.rpartition(".")[2]
    coefficients = part in ("altup_prediction_coefs", "altup_correction_coefs")
    return len(shape) > 1 and not coefficients and part not in _ROUTERS and slot != PER_LAYER_TABLE
