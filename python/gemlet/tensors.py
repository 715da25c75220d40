"""Which tensor of a Hugging Face checkpoint is which weight of the core, and the check that all are there.

A slot is the core's name of a weight ("layers.3.q_proj"). One trap is in the names:
``post_attention_layernorm`` is the norm *before* the MLP in Gemma 1, and the norm on the attention's *output*
in Gemma 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from gemlet._json import show
from gemlet.config import TextConfig
from gemlet.errors import TensorError

__all__ = ["expected_slots", "map_tensors", "tensor_name"]

# slot of a layer -> its name in the checkpoint, inside "layers.N.", without ".weight"
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
LAYER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gemma": _COMMON | {"pre_mlp_norm": "post_attention_layernorm"},
    "gemma2": _COMMON | _SANDWICH,
    "gemma3": _COMMON | _SANDWICH | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
}

# (prefix of the text model, prefix of lm_head), tried in this order.
PREFIXES = (
    ("model.", ""),
    ("language_model.model.", "language_model."),  # Gemma 3 with images, as published
    ("model.language_model.", ""),  # the same, saved again by transformers 4.52 or later
    ("", ""),  # the bare trunk
)
# Parts of a multimodal Gemma 3 that text does not need.
TOWERS = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


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
    for i, layer in enumerate(config.layers):
        queries, keys = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "pre_attention_norm": (hidden,),
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "pre_mlp_norm": (hidden,),
            "gate_proj": (layer.intermediate_size, hidden),
            "up_proj": (layer.intermediate_size, hidden),
            "down_proj": (hidden, layer.intermediate_size),
        }
        if layer.qk_norm:
            shapes |= {"q_norm": (layer.head_dim,), "k_norm": (layer.head_dim,)}
        if layer.post_norms:
            shapes |= {"post_attention_norm": (hidden,), "post_mlp_norm": (hidden,)}
        slots |= {f"layers.{i}.{slot}": shape for slot, shape in shapes.items()}
    return slots


def map_tensors(shapes: Mapping[str, tuple[int, ...]], config: TextConfig, *, where: str) -> dict[str, str]:
    """tensor name -> slot, for a checkpoint whose tensors have these ``shapes``.

    Tensors that text does not need (image towers, a copy of the tied output matrix) are left out. Raises
    :class:`TensorError` for a missing, unexpected or mis-shaped tensor; ``where`` names the checkpoint.
    """
    prefix, head_prefix = _find_prefix(shapes, where)
    slots = expected_slots(config)
    names = {slot: tensor_name(slot, config.family, prefix, head_prefix) for slot in slots}
    for slot, name in names.items():
        if name not in shapes:
            missing = sum(other not in shapes for other in names.values())
            more = f" ({missing} tensors are missing in all)" if missing > 1 else ""
            raise TensorError(f"{where}: tensor {name!r} is missing{more}; expected {list(slots[slot])}")
        if tuple(shapes[name]) != slots[slot]:
            raise TensorError(
                f"{where}: tensor {name!r} has shape {list(shapes[name])}; expected {list(slots[slot])}, "
                "which config.json implies"
            )
    wanted = set(names.values())
    for name in shapes:
        if name not in wanted and not _is_ignorable(name, config, head_prefix):
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
    if not slot.startswith("layers."):
        return prefix + {"embed_tokens": "embed_tokens", "final_norm": "norm"}[slot] + ".weight"
    _, index, part = slot.split(".")
    return f"{prefix}layers.{index}.{LAYER_NAMES[family][part]}.weight"


def _is_ignorable(name: str, config: TextConfig, head_prefix: str) -> bool:
    if config.tie_word_embeddings and name == f"{head_prefix}lm_head.weight":
        return True
    if name.endswith(".rotary_emb.inv_freq"):  # a constant that old exports wrote out
        return True
    return config.family == "gemma3" and name.startswith(TOWERS)
