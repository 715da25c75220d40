"""The slots of the weights of vision and audio towers, and their names in checkpoints.

A slot is the core's name of a weight (:mod:`gemlet.weights.slots`). The slots of towers begin with "vision."
or "audio.".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from gemlet.config.families import WITH_GEMMA4_TOWERS
from gemlet.config.gemma4_vision import UnifiedVisionConfig
from gemlet.config.mobilenet import MobileNetConfig
from gemlet.config.text_config import TextConfig
from gemlet.config.vision_config import SiglipConfig
from gemlet.weights.audio_slots import audio_name, audio_slots
from gemlet.weights.gemma4_vision_slots import gemma4_vision_name, gemma4_vision_slots
from gemlet.weights.mobilenet_slots import mobilenet_name, mobilenet_slots

__all__ = [
    "Kind",
    "in_tower",
    "is_transposed",
    "kind_of",
    "plain_tower_name",
    "tower_module",
    "tower_names",
    "tower_slots",
]

Kind = Literal["matrix", "exact", "floats", "norm"]

# The core keeps these weights as float32, although they have more than one dimension. The names are the last
# parts of slots.
_FLOATS = (
    "position_embedding",
    "hard_embedding",
    # depthwise convolutions
    "conv_depthwise",
    "start",
    "middle",
    "key_down",
    "value_down",
)
# Matrices with too few columns for the quantization blocks of the other formats. They stay in float32.
_EXACT = ("audio.conv.0", "audio.conv.1", "vision.stem")

_SIGLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "out_proj": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def is_transposed(slot: str, family: str) -> bool:
    """Whether the checkpoint has the slot's tensor with rows and columns swapped.

    >>> is_transposed("vision.projection", "gemma3"), is_transposed("vision.projection", "gemma3n")
    (True, False)
    """
    return family == "gemma3" and slot == "vision.projection"


def in_tower(slot: str) -> bool:
    """Whether the slot is a weight of a tower.

    >>> in_tower("vision.layers.0.fc1"), in_tower("layers.0.up_proj")
    (True, False)
    """
    return slot.startswith(("vision.", "audio."))


def kind_of(slot: str, shape: tuple[int, ...]) -> Kind:
    """The form in which the core keeps a tower's weight.

    >>> kind_of("vision.layers.0.fc1", (8, 4)), kind_of("vision.layers.0.fc1_bias", (8,))
    ('matrix', 'floats')
    """
    if slot == "vision.soft_norm":
        return "norm"
    if slot in _EXACT:
        return "exact"
    return "matrix" if len(shape) > 1 and slot.rpartition(".")[2] not in _FLOATS else "floats"


def tower_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the towers that ``config`` describes."""
    slots: dict[str, tuple[int, ...]] = {}
    if isinstance(config.vision, SiglipConfig):
        slots |= _siglip_slots(config.vision, config.hidden_size)
    elif isinstance(config.vision, MobileNetConfig):
        slots |= mobilenet_slots(config.vision, config.hidden_size)
    elif config.vision is not None:
        slots |= gemma4_vision_slots(config.vision, config.hidden_size)
    return slots | audio_slots(config)


def _siglip_slots(config: SiglipConfig, text_hidden: int) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    slots: dict[str, tuple[int, ...]] = {
        "vision.patch_embedding": (hidden, 3, config.patch_size, config.patch_size),
        "vision.patch_embedding_bias": (hidden,),
        "vision.position_embedding": (config.grid**2, hidden),
    }
    for i in range(config.num_layers):
        at = f"vision.layers.{i}"
        slots |= {f"{at}.{norm}{end}": (hidden,) for norm in ("norm1", "norm2") for end in ("", "_bias")}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            slots |= {f"{at}.{part}": (hidden, hidden), f"{at}.{part}_bias": (hidden,)}
        slots |= {f"{at}.fc1": (inner, hidden), f"{at}.fc1_bias": (inner,)}
        slots |= {f"{at}.fc2": (hidden, inner), f"{at}.fc2_bias": (hidden,)}
    return slots | {
        "vision.post_norm": (hidden,),
        "vision.post_norm_bias": (hidden,),
        "vision.soft_norm": (hidden,),
        "vision.projection": (text_hidden, hidden),
    }


def plain_tower_name(name: str) -> str:
    """Removes "vision_model." from the name of a vision tower's tensor. Some versions of transformers write
    this part and others do not. ``name`` begins with the name of the tower.

    >>> plain_tower_name("vision_tower.vision_model.post_layernorm.weight")
    'vision_tower.post_layernorm.weight'
    """
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def tower_module(module: str, config: TextConfig) -> str:
    """Turns the name of a tower's module in transformers, which adapter files have, into the module's name in
    checkpoints, without the prefix of the model.

    >>> from gemlet.config import read_config
    >>> config = read_config("tests/golden/vision/gemma4-unified")  # in a checkout
    >>> tower_module("model.embed_vision.multimodal_embedder.embedding_projection", config)
    'embed_vision.embedding_projection'
    """
    while module.partition(".")[0] in ("model", "language_model"):
        module = module.partition(".")[2]
    module = plain_tower_name(f"{module}.").removesuffix(".")
    if not isinstance(config.vision, UnifiedVisionConfig):
        return module
    inner = module.removeprefix("embed_vision.multimodal_embedder.")
    if inner != module:
        return f"embed_vision.{inner}"
    return module.replace("embed_vision.patch_dense", "vision_embedder.patch_dense")


def tower_names(slots: Iterable[str], family: str) -> Mapping[str, str]:
    """Returns a map: slot of a tower -> name of the slot's tensor in checkpoints, without the prefix of the
    model. Slots of the text model are left out."""
    towers = [slot for slot in slots if in_tower(slot)]
    if family == "gemma3":
        return {slot: _siglip_name(slot) for slot in towers}
    unified, every = "vision.patch_dense" in towers, frozenset(towers)
    names: dict[str, str] = {}
    for slot in towers:
        if slot.startswith("audio."):
            names[slot] = audio_name(slot, family)
        elif family in WITH_GEMMA4_TOWERS:
            names[slot] = gemma4_vision_name(slot, unified=unified)
        else:
            names[slot] = mobilenet_name(slot, every)
    return names


def _siglip_name(slot: str) -> str:
    part, end = (slot[: -len("_bias")], "bias") if slot.endswith("_bias") else (slot, "weight")
    part = part.removeprefix("vision.")
    if part == "projection":
        return "multi_modal_projector.mm_input_projection_weight"
    if part == "soft_norm":
        return "multi_modal_projector.mm_soft_emb_norm.weight"
    if part in ("patch_embedding", "position_embedding"):
        return f"vision_tower.embeddings.{part}.{end}"
    if part == "post_norm":
        return f"vision_tower.post_layernorm.{end}"
    _, index, inner = part.split(".")
    return f"vision_tower.encoder.layers.{index}.{_SIGLIP_LAYER[inner]}.{end}"
