"""Maps the tensors of a GGUF file to the core's weights. The tensor names are those of llama.cpp.

Matrices are stored as in Hugging Face checkpoints. The norm weights of Gemma 1 to 3 are stored with 1 added,
so nothing is added to them here. In Gemma 3n, all projections into the additional residual streams are one
stacked tensor, and all projections out of these streams another. In Gemma 4, the gate and up projections of
the experts are one tensor in some files and two in others.
"""

from __future__ import annotations

from collections.abc import Mapping

from gemlet.config.text_config import TextConfig
from gemlet.weights.hf_names import match_tensors
from gemlet.weights.slots import PER_LAYER_TABLE, expected_slots

__all__ = ["ROPE_FREQS", "TOKEN_ORDER", "gguf_name", "map_gguf_tensors"]

# Divisors for the rotary angles of Gemma 4's global layers. gemlet reads the tensor as part of the
# configuration.
ROPE_FREQS = "rope_freqs.weight"

TOKEN_ORDER = "masked_embd_ordering"  # the token id of each row of a draft model's head, as integers

# slot -> name; ".weight" is added unless the name has a dot
_MODEL = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "final_norm": "output_norm",
    PER_LAYER_TABLE: "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "altup_projections": "altup_proj",
    "altup_unembed_projections": "altup_unembd_proj",
    "dense.0": "dense_2",
    "dense.1": "dense_3",
    "pre_projection": "nextn.pre_projection",
    "post_projection": "nextn.post_projection",
    "centroids": "masked_embd_centroids",
}
# slot of a layer -> name after "blk.N."
_LAYER = {
    "pre_attention_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_norm": "post_attention_norm",
    "pre_mlp_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "post_mlp_norm": "post_ffw_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "layer_scalar": "layer_output_scale",
    "altup_router": "altup_router",
    "altup_router_norm": "altup_router_norm",
    "altup_prediction_coefs": "altup_predict_coef",
    "altup_correction_coefs": "altup_correct_coef",
    "altup_correct_scale": "altup_correct_scale",
    "laurel_left": "laurel_l",
    "laurel_right": "laurel_r",
    "post_laurel_norm": "laurel_post_norm",
    "router_proj": "ffn_gate_inp",
    "router_scale": "ffn_gate_inp.scale",
    "router_per_expert_scale": "ffn_down_exps.scale",
    "experts_gate_up": "ffn_gate_up_exps",
    "experts_gate": "ffn_gate_exps",
    "experts_up": "ffn_up_exps",
    "experts_down": "ffn_down_exps",
    "pre_moe_norm": "pre_ffw_norm_2",
    "post_dense_norm": "post_ffw_norm_1",
    "post_moe_norm": "post_ffw_norm_2",
}
# Prefixes of the tensors of towers for images and sound, which some converters write into the same file.
_TOWERS = ("v.", "a.", "mm.")


# Names outside of layers that other families have: family -> slot -> name
_OWN = {"embeddinggemma2": {"dense.0": "output"}}


def gguf_name(slot: str, family: str = "") -> str:
    """The name of the tensor that belongs to ``slot``.

    >>> gguf_name("final_norm"), gguf_name("layers.3.router_scale")
    ('output_norm.weight', 'blk.3.ffn_gate_inp.scale')
    """
    if not slot.startswith("layers."):
        return f"{_OWN.get(family, _MODEL).get(slot, _MODEL[slot])}.weight"
    _, index, part = slot.split(".")
    name = _LAYER[part]
    return f"blk.{index}.{name}" if "." in name else f"blk.{index}.{name}.weight"


def map_gguf_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: TextConfig, *, where: str
) -> dict[str, str]:
    """tensor name -> slot, for a GGUF model whose tensors have these ``shapes``.

    Tensors that text does not need are left out: towers for images and sound, and projections of layers that
    read the keys and values of another layer. Raises :class:`TensorError` if a tensor is missing, unexpected
    or has the wrong shape. ``where`` is the name of the file for errors.
    """
    slots: dict[str, tuple[int, ...]] = {}
    for slot, shape in expected_slots(config).items():
        stack, _, number = slot.rpartition(".")
        experts, width, *inner = shape if slot.endswith(".experts_gate_up") else (0, 0)
        if stack in _MODEL:
            slots[stack] = (int(number) + 1, *shape)
        elif experts and gguf_name(slot) not in shapes:
            half = (experts, width // 2, *inner)
            slots |= {f"{stack}.experts_gate": half, f"{stack}.experts_up": half}
        else:
            slots[slot] = shape
    unused = {
        gguf_name(f"layers.{i}.{slot}")
        for i, layer in enumerate(config.layers)
        if layer.kv_source >= 0
        for slot in ("k_proj", "v_proj", "k_norm")
    }
    ignored = {name for name in shapes if name in unused or name.startswith(_TOWERS)}
    if config.family == "gemma4":
        ignored |= {ROPE_FREQS, TOKEN_ORDER} if config.target_size else {ROPE_FREQS}
    names = {slot: gguf_name(slot, config.family) for slot in slots}
    return match_tensors(shapes, config, names, slots, ignored, where=where)
