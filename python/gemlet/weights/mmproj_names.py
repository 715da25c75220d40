"""Maps the tensors of an ``mmproj`` file of llama.cpp to the weights of the towers. The tensor names are
those of llama.cpp.

Some tensors have another layout than in a Hugging Face folder. :func:`map_mmproj_tensors` returns how to undo
this:

- the patch embedding is stored as a convolution, channels first;
- the position embedding is stored as one table for each axis;
- each bound for clipping is stored as a vector of one element;
- a depthwise kernel is stored without its middle axis;
- some vectors of Gemma 3n's tower are stored with the shape [1, n, 1, 1];
- Gemma 4's query scales are stored after the softplus;
- the norm of Gemma 3's projector is stored with 1 added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gemlet.base.records import replace
from gemlet.config.families import WITH_GEMMA4_TOWERS
from gemlet.config.gemma4_vision import UnifiedVisionConfig
from gemlet.config.mobilenet import MobileNetConfig
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.config.vision_config import SiglipConfig
from gemlet.weights.audio_slots import table_slots
from gemlet.weights.cuts import Cut, Rearranged, Unsoftplussed
from gemlet.weights.hf_names import match_tensors
from gemlet.weights.mobilenet_slots import (
    mmproj_names,
    mmproj_slot_shapes,
    mobilenet_name,
    with_found_blocks,
)
from gemlet.weights.tower_slots import tower_slots

__all__ = ["MappedTowers", "map_mmproj_tensors", "mmproj_name"]

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_SIGLIP_LAYER = {
    "norm1": "ln1",
    "norm2": "ln2",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "out_proj": "attn_out",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_GEMMA4_LAYER = {
    "input_norm": "ln1",
    "post_attention_norm": "attn_post_norm",
    "pre_mlp_norm": "ln2",
    "post_mlp_norm": "ffn_post_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_out",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
# Names that the audio encoders of Gemma 3n and Gemma 4 share. llama.cpp's names of the two norms around the
# convolution are the other way round than one expects.
_AUDIO_LAYER = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_out",
    "per_dim_scale": "per_dim_scale",
    "conv_pre_norm": "conv_norm",
    "conv_start": "conv_pw1",
    "conv_depthwise": "conv_dw",
    "conv_norm": "norm_conv",
    "conv_end": "conv_pw2",
    "ffw_start_pre_norm": "ffn_norm",
    "ffw_start_up": "ffn_up",
    "ffw_start_down": "ffn_down",
    "ffw_start_post_norm": "ffn_post_norm",
    "ffw_end_pre_norm": "ffn_norm_1",
    "ffw_end_up": "ffn_up_1",
    "ffw_end_down": "ffn_down_1",
    "ffw_end_post_norm": "ffn_post_norm_1",
}
_AUDIO_LAYERS = {
    "gemma3n": _AUDIO_LAYER
    | {
        "attention_norm": "ln1",
        "attention_post_norm": "ln2",
        "relative_proj": "linear_pos",
        "norm": "layer_pre_norm",
    },
    "gemma4": _AUDIO_LAYER
    | {
        "attention_norm": "attn_pre_norm",
        "attention_post_norm": "attn_post_norm",
        "relative_proj": "attn_k_rel",
        "norm": "ln2",
    },
}
_NAMES = {
    "vision.patch_embedding": "v.patch_embd.weight",
    "vision.patch_embedding_bias": "v.patch_embd.bias",
    "vision.position_embedding": "v.position_embd.weight",
    "vision.post_norm": "v.post_ln.weight",
    "vision.post_norm_bias": "v.post_ln.bias",
    "vision.std_bias": "v.std_bias",
    "vision.std_scale": "v.std_scale",
    "vision.soft_norm": "mm.soft_emb_norm.weight",
    "vision.projection": "mm.input_projection.weight",
    "vision.hard_embedding": "mm.embedding.weight",
    "vision.hard_norm": "mm.hard_emb_norm.weight",
    "vision.patch_norm1": "v.patch_norm.1.weight",
    "vision.patch_norm1_bias": "v.patch_norm.1.bias",
    "vision.patch_dense": "v.patch_embd.weight",
    "vision.patch_dense_bias": "v.patch_embd.bias",
    "vision.patch_norm2": "v.patch_norm.2.weight",
    "vision.patch_norm2_bias": "v.patch_norm.2.bias",
    "vision.position_norm": "v.patch_norm.3.weight",
    "vision.position_norm_bias": "v.patch_norm.3.bias",
    "audio.conv.0": "a.conv1d.0.weight",
    "audio.conv.0_norm": "a.conv1d.0.norm.weight",
    "audio.conv.1": "a.conv1d.1.weight",
    "audio.conv.1_norm": "a.conv1d.1.norm.weight",
    "audio.input_proj": "a.input_projection.weight",
    "audio.output_proj": "a.pre_encode.out.weight",
    "audio.output_bias": "a.pre_encode.out.bias",
    "audio.soft_norm": "mm.a.soft_emb_norm.weight",
    "audio.projection": "mm.a.input_projection.weight",
    "audio.hard_embedding": "mm.a.embedding.weight",
    "audio.hard_norm": "mm.a.hard_emb_norm.weight",
}
# A name that only Gemma 3n has.
_GEMMA3N = {"audio.input_proj": "a.pre_encode.out.weight"}
# Early converters swapped the names of the two matrices of an MLP.
_EARLY = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}


class MappedTowers(NamedTuple):
    """The result of :func:`map_mmproj_tensors`.

    Attributes:
        slots: tensor -> slot.
        cuts: tensor -> how to make the slot's values from it, for tensors that are stored in another layout.
        config: the model's configuration, with only the towers that the file has.
        left_out: for each tower that was left out, the reason as text.
    """

    slots: dict[str, str]
    cuts: dict[str, Cut]
    config: TextConfig
    left_out: tuple[str, ...]


def mmproj_name(slot: str, family: str, *, early: bool = False) -> str:
    """The name of the tensor that belongs to ``slot``. ``early`` is for files of early converters, which
    swapped two names (``_EARLY``).

    >>> mmproj_name("vision.layers.3.fc1", "gemma3"), mmproj_name("audio.layers.0.q_proj_input_max", "gemma4")
    ('v.blk.3.ffn_up.weight', 'a.blk.0.attn_q.input_max')
    """
    if family == "gemma3n" and slot in _GEMMA3N:
        return _GEMMA3N[slot]
    if slot in _NAMES:
        return _NAMES[slot]
    tower, _, index, part = slot.split(".")
    at = f"{tower[0]}.blk.{index}"
    if tower == "audio":
        names = _AUDIO_LAYERS[family]
    else:
        names = _SIGLIP_LAYER if family == "gemma3" else _GEMMA4_LAYER
    for bound in _BOUNDS:
        if part.endswith(f"_{bound}"):
            return f"{at}.{names[part[: -len(bound) - 1]]}.{bound}"
    end = "weight"
    if part.endswith("_bias"):
        part, end = part.removesuffix("_bias"), "bias"
    name = names[part]
    return f"{at}.{_EARLY.get(name, name) if early else name}.{end}"


def map_mmproj_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: TextConfig, *, where: str, whole: bool
) -> MappedTowers:
    """Maps the tensors of a file with these ``shapes`` to the slots of the towers that ``config`` describes.

    Raises :class:`TensorError` if a tensor is missing, unexpected or has the wrong shape. ``where`` is the
    name of the file for errors. If ``whole`` is False, a tower with missing or wrong tensors is left out and
    is no error.
    """
    left_out: list[str] = []
    if isinstance(config.vision, MobileNetConfig):
        found = with_found_blocks(config.vision, mmproj_slot_shapes(shapes))
        config = replace(config, vision=found if any(name.startswith("v.") for name in shapes) else None)
    if not whole:
        kept, tables = {}, []
        for tower in ("vision", "audio"):
            names, stored, _ = _expected(config, shapes, tower)
            wrong = {slot: name for slot, name in names.items() if shapes.get(name) != stored[slot]}
            kept[tower] = not wrong
            if not wrong.keys() & table_slots(tower):
                tables.append(tower)
            if wrong:
                first = next(iter(wrong.values()))
                left_out.append(f"the tower for {tower} ({first} is missing or has another shape)")
        config = without_towers(config, vision=kept["vision"], audio=kept["audio"], tables=tables)
    slots: dict[str, str] = {}
    cuts: dict[str, Cut] = {}
    for tower in ("vision", "audio"):
        names, stored, changes = _expected(config, shapes, tower)
        begins = ("v.", "mm.") if tower == "vision" else ("a.", "mm.a.")
        own = {name: shape for name, shape in shapes.items() if name.startswith(begins)}
        own = {name: s for name, s in own.items() if tower == "audio" or not name.startswith("mm.a.")}
        # A file for Gemma 3n may have the tables for images without the tower; tensors of the tower are
        # ignored then.
        ignored = own if tower == "vision" and config.vision is None else ()
        if names:
            slots |= match_tensors(own, config, names, stored, ignored, where=where)
            cuts |= {names[slot]: cut for slot, cut in changes.items()}
    return MappedTowers(slots, cuts, config, tuple(left_out))


def _expected(
    config: TextConfig, shapes: Mapping[str, tuple[int, ...]], tower: str
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], dict[str, Cut]]:
    """For each slot of a tower: the name of its tensor, the shape in the file, and the cut that undoes the
    layout."""
    family = "gemma4" if config.family in WITH_GEMMA4_TOWERS else config.family
    slots = {slot: shape for slot, shape in tower_slots(config).items() if slot.startswith(f"{tower}.")}
    early = False
    if isinstance(config.vision, SiglipConfig) and tower == "vision":
        wide = (config.vision.intermediate_size, config.vision.hidden_size)
        early = wide[0] != wide[1] and shapes.get("v.blk.0.ffn_down.weight") == wide
    names = _mobilenet_names(config, slots)
    names |= {slot: mmproj_name(slot, family, early=early) for slot in slots if slot not in names}
    stored, changes = dict(slots), {}
    for slot, shape in slots.items():
        if slot.endswith(".per_dim_scale") and names[slot] not in shapes:
            names[slot] = names[slot].removesuffix(".weight")
        change = _change(slot, shape, config, shapes.get(names[slot], ()))
        if isinstance(change, Rearranged):
            stored[slot] = change.stored
        if change is not None:
            changes[slot] = change
    return names, stored, changes


def _mobilenet_names(config: TextConfig, slots: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    if not isinstance(config.vision, MobileNetConfig):
        return {}
    plain = {slot: mobilenet_name(slot, slots) for slot in slots if slot.startswith("vision.")}
    found = mmproj_names(plain.values())
    return {slot: found[name] for slot, name in plain.items() if name in found}


def _change(slot: str, shape: tuple[int, ...], config: TextConfig, found: tuple[int, ...]) -> Cut | None:
    part = slot.rpartition(".")[2]
    if shape == ():
        return Rearranged(stored=(1,), seen=(1,), axes=(0,), made=())
    if isinstance(config.vision, MobileNetConfig) and len(found) == 4 and found == (1, *shape, 1, 1):
        return Rearranged(stored=found, seen=found, axes=(0, 1, 2, 3), made=shape)
    if part == "per_dim_scale":
        return Unsoftplussed() if config.family in WITH_GEMMA4_TOWERS else None
    if part == "conv_depthwise":
        flat = (shape[0], shape[2])
        return Rearranged(stored=flat, seen=flat, axes=(0, 1), made=shape) if found == flat else None
    if slot == "vision.projection" and config.family == "gemma3":
        return Rearranged.transposed(shape[::-1])
    if config.family in WITH_GEMMA4_TOWERS and slot == "vision.patch_embedding":
        rows, side = shape[0], round((shape[1] // 3) ** 0.5)
        patches = (rows, 3, side, side)
        return Rearranged(stored=patches, seen=patches, axes=(0, 2, 3, 1), made=shape)
    if isinstance(config.vision, UnifiedVisionConfig):
        side = config.vision.token_side
        if slot == "vision.position_embedding":
            turned = (shape[1], shape[0], shape[2])
            return Rearranged(stored=turned, seen=turned, axes=(1, 0, 2), made=shape)
        if slot == "vision.patch_dense":
            return Rearranged(stored=shape, seen=(shape[0], 3, side, side), axes=(0, 2, 3, 1), made=shape)
        if slot in ("vision.patch_norm1", "vision.patch_norm1_bias"):
            return Rearranged(stored=shape, seen=(3, side, side), axes=(1, 2, 0), made=shape)
    return None
