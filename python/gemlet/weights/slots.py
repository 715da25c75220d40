"""Which tensor of a Hugging Face checkpoint is which weight of the core, and the check that all are there.

A slot is the core's name of a weight ("layers.3.q_proj"); csrc/MODEL.md lists them. The matrices of routed
experts are two slots per layer here, stacked as the file has them: :func:`core_slots` takes them apart. One
trap is in the names: ``post_attention_layernorm`` is the norm *before* the MLP in Gemma 1, and the norm on
the attention's *output* in all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gemlet._json import show
from gemlet._layers import LayerSpec
from gemlet.config import TextConfig
from gemlet.errors import TensorError

__all__ = [
    "PER_LAYER_TABLE",
    "STREAMS",
    "core_slots",
    "dense_tensor",
    "expected_slots",
    "map_tensors",
    "match_tensors",
    "takes_format",
    "tensor_name",
    "unused_tensors",
]

# The table of every layer's own token embeddings: the one slot that is not copied into memory.
PER_LAYER_TABLE = "embed_tokens_per_layer"

# slot of a layer -> its name in the checkpoint, inside "layers.N."; ".weight" follows unless it ends in a dot
_COMMON = {
    "pre_attention_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_PER_LAYER_INPUT = {
    "per_layer_input_gate": "per_layer_input_gate",
    "per_layer_projection": "per_layer_projection",
    "post_per_layer_input_norm": "post_per_layer_input_norm",
}
_ALTUP = {
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_prediction_coefs": "altup.prediction_coefs",
    "altup_correction_coefs": "altup.correction_coefs",
    "altup_correct_scale": "altup.correct_output_scale.",
    "laurel_left": "laurel.linear_left",
    "laurel_right": "laurel.linear_right",
    "post_laurel_norm": "laurel.post_laurel_norm",
}
_EXPERTS = {
    "router_proj": "router.proj",
    "router_scale": "router.scale.",
    "router_per_expert_scale": "router.per_expert_scale.",
    "experts_gate_up": "experts.gate_up_proj.",
    "experts_down": "experts.down_proj.",
    "pre_moe_norm": "pre_feedforward_layernorm_2",
    "post_dense_norm": "post_feedforward_layernorm_1",
    "post_moe_norm": "post_feedforward_layernorm_2",
}
_GEMMA3 = _COMMON | _SANDWICH | _HEAD_NORMS
LAYER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gemma": _COMMON | {"pre_mlp_norm": "post_attention_layernorm"},
    "gemma2": _COMMON | _SANDWICH,
    "vaultgemma": _COMMON | {"pre_mlp_norm": "pre_feedforward_layernorm"},
    "gemma3": _GEMMA3,
    "gemma3n": _GEMMA3 | _PER_LAYER_INPUT | _ALTUP,
    "gemma4": _GEMMA3 | _PER_LAYER_INPUT | _EXPERTS | {"layer_scalar": "layer_scalar."},
}
# Stacked slot -> the core's slot of one expert, inside "layers.N.experts.E."; gate and up, where a GGUF file
# has them apart, fill the same one in this order.
_STACKED = {
    "experts_gate_up": "gate_up",
    "experts_gate": "gate_up",
    "experts_up": "gate_up",
    "experts_down": "down",
}
# Stacked in GGUF: one matrix for each further residual stream of Gemma 3n.
STREAMS = ("altup_projections", "altup_unembed_projections")
# Routers stay in f32 in every model.
_ROUTERS = ("router_proj", "altup_router")

# (prefix of the text model, prefix of lm_head), tried in this order.
PREFIXES = (
    ("model.", ""),
    ("language_model.model.", "language_model."),  # Gemma 3 with images, as published
    ("model.language_model.", ""),  # Gemma 3n and 4 as published, Gemma 3 saved by transformers 4.52 or later
    ("", ""),  # the bare trunk
)
# Parts of a multimodal model that text does not need.
_TOWERS_3N = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")
TOWERS: Mapping[str, tuple[str, ...]] = {
    "gemma": (),
    "gemma2": (),
    "vaultgemma": (),
    "gemma3": (
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
    "gemma3n": _TOWERS_3N,
    "gemma4": (*_TOWERS_3N, "model.vision_embedder."),
}


def expected_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the model that ``config`` describes.

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
        slots[PER_LAYER_TABLE] = (config.per_layer_vocab_size, every)
        slots |= {"per_layer_model_projection": (every, hidden), "per_layer_projection_norm": (size,)}
    for stream in range(config.altup_streams - 1):
        slots[f"altup_projections.{stream}"] = (hidden, hidden)
        slots[f"altup_unembed_projections.{stream}"] = (hidden, hidden)
    inputs = hidden
    for i, size in enumerate(config.dense_sizes):
        slots[f"dense.{i}"] = (size, inputs)
        inputs = size
    for i, layer in enumerate(config.layers):
        slots |= {f"layers.{i}.{slot}": shape for slot, shape in _layer_slots(layer, config).items()}
    return slots


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
    """The core's slots that a tensor of this ``shape`` fills, each with its place if the tensor is a stack.

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


def takes_format(slot: str, shape: tuple[int, ...]) -> bool:
    """Whether the core packs this slot's matrices in a format of choice; the others it keeps as f32.

    >>> takes_format("layers.0.q_proj", (8, 16)), takes_format("layers.0.q_norm", (8,))
    (True, False)
    """
    part = slot.rpartition(".")[2]
    coefficients = part in ("altup_prediction_coefs", "altup_correction_coefs")
    return len(shape) > 1 and not coefficients and part not in _ROUTERS and slot != PER_LAYER_TABLE


def map_tensors(shapes: Mapping[str, tuple[int, ...]], config: TextConfig, *, where: str) -> dict[str, str]:
    """tensor name -> slot, for a checkpoint whose tensors have these ``shapes``.

    Tensors that text does not need are left out: towers for images and sound, a copy of the tied output
    matrix, projections of layers that read another one's keys and values. Raises :class:`TensorError` for a
    missing, unexpected or mis-shaped tensor; ``where`` names the checkpoint.
    """
    prefix, head_prefix = _find_prefix(shapes, where)
    slots = expected_slots(config)
    names = {slot: tensor_name(slot, config.family, prefix, head_prefix) for slot in slots}
    unused = unused_tensors(config, prefix, head_prefix)
    ignored = {name for name in shapes if name in unused or _is_ignorable(name, config)}
    return match_tensors(shapes, config, names, slots, ignored, where=where)


def match_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    config: TextConfig,
    names: Mapping[str, str],
    slots: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
    *,
    where: str,
) -> dict[str, str]:
    """tensor name -> slot, where the tensor ``names[slot]`` has to have the shape ``slots[slot]``.

    Raises :class:`TensorError` for a tensor that is missing, mis-shaped, or neither named nor ``ignored``.
    """
    for slot, name in names.items():
        if name not in shapes:
            missing = sum(other not in shapes for other in names.values())
            more = f" ({missing} tensors are missing in all)" if missing > 1 else ""
            raise TensorError(f"{where}: tensor {name!r} is missing{more}; expected {list(slots[slot])}")
        if tuple(shapes[name]) != slots[slot]:
            raise TensorError(
                f"{where}: tensor {name!r} has shape {list(shapes[name])}; expected {list(slots[slot])}, "
                "which the configuration implies"
            )
    known = {*names.values(), *ignored}
    for name in shapes:
        if name not in known:
            raise TensorError(
                f"{where}: unexpected tensor {show(name)} of shape {list(shapes[name])}; "
                f"a {config.family} model of {config.num_layers} layers has no such weight"
            )
    return {name: slot for slot, name in names.items()}


def _find_prefix(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, str]:
    for prefix, head_prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in shapes:
            return prefix, head_prefix
    tried = ", ".join(repr(f"{prefix}embed_tokens.weight") for prefix, _ in PREFIXES)
    raise TensorError(f"{where}: the embedding table is missing; expected one of {tried}")


def tensor_name(slot: str, family: str, prefix: str, head_prefix: str) -> str:
    """The tensor that fills ``slot``, where the text model's names begin with ``prefix``."""
    if slot == "lm_head":
        return f"{head_prefix}lm_head.weight"
    if slot.startswith("dense."):
        return dense_tensor(int(slot.removeprefix("dense.")))
    if not slot.startswith("layers."):
        return f"{prefix}{'norm' if slot == 'final_norm' else slot}.weight"
    _, index, part = slot.split(".")
    name = LAYER_NAMES[family][part]
    return f"{prefix}layers.{index}.{name[:-1] if name.endswith('.') else f'{name}.weight'}"


def dense_tensor(index: int) -> str:
    """The file and the tensor of an embedding model's dense layer, in the folder sentence-transformers makes.

    >>> dense_tensor(0)
    '2_Dense/linear.weight'
    """
    return f"{index + 2}_Dense/linear.weight"


def unused_tensors(config: TextConfig, prefix: str, head_prefix: str) -> set[str]:
    """Copies and leftovers that published files hold and no computation reads."""
    unused = {f"{head_prefix}lm_head.weight"} if config.tie_word_embeddings else set()
    for i, layer in enumerate(config.layers):
        if layer.kv_source >= 0:
            for slot in ("k_proj", "v_proj", "k_norm"):
                unused.add(tensor_name(f"layers.{i}.{slot}", config.family, prefix, head_prefix))
    return unused


def _is_ignorable(name: str, config: TextConfig) -> bool:
    if name.endswith(".rotary_emb.inv_freq"):  # a constant that old exports wrote out
        return True
    return name.startswith(TOWERS[config.family])
