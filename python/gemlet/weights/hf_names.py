"""Which tensor of a Hugging Face checkpoint fills which slot, and the check that all of them are there.

One trap is in the names: ``post_attention_layernorm`` is the norm *before* the MLP in Gemma 1, and the norm
on the attention's *output* in all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gemlet.base.text import show
from gemlet.config.text_config import TextConfig
from gemlet.errors import TensorError
from gemlet.weights.slots import expected_slots

__all__ = ["dense_tensor", "map_tensors", "match_tensors", "tensor_name", "unused_tensors"]

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
