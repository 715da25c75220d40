"""The slots of the weights of Gemma 3n's vision tower, and their names in checkpoints.

``config.json`` does not list the blocks of the tower. :func:`with_found_blocks` derives them from the
tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gemlet.base.patterns import late_pattern
from gemlet.base.records import replace
from gemlet.config.mobilenet import MobileNetBlock, MobileNetConfig

__all__ = [
    "mmproj_names",
    "mmproj_slot_shapes",
    "mobilenet_name",
    "mobilenet_slots",
    "slot_shapes",
    "with_found_blocks",
]

_TOWER = "vision_tower.timm_model."
_NAMES = {
    "vision.stem": "conv_stem.conv.weight",
    "vision.stem_bias": "conv_stem.conv.bias",
    "vision.stem_norm": "conv_stem.bn.weight",
    "vision.fusion.expansion": "msfa.ffn.pw_exp.conv.weight",
    "vision.fusion.expansion_norm": "msfa.ffn.pw_exp.bn.weight",
    "vision.fusion.projection": "msfa.ffn.pw_proj.conv.weight",
    "vision.fusion.projection_norm": "msfa.ffn.pw_proj.bn.weight",
    "vision.fusion.norm": "msfa.norm.weight",
}
_EMBEDDER = {
    "vision.soft_norm": "embed_vision.soft_embedding_norm.weight",
    "vision.projection": "embed_vision.embedding_projection.weight",
    "vision.hard_embedding": "embed_vision.embedding.weight",
    "vision.hard_norm": "embed_vision.hard_embedding_norm.weight",
}
# The last part of a slot in a block -> its name in the block of a checkpoint.
_EDGE = {
    "expansion": "conv_exp.weight",
    "expansion_norm": "bn1.weight",
    "projection": "conv_pwl.weight",
    "projection_norm": "bn2.weight",
}
_OTHERS = {
    "start": "dw_start.conv.weight",
    "start_norm": "dw_start.bn.weight",
    "expansion": "pw_exp.conv.weight",
    "expansion_norm": "pw_exp.bn.weight",
    "middle": "dw_mid.conv.weight",
    "middle_norm": "dw_mid.bn.weight",
    "projection": "pw_proj.conv.weight",
    "projection_norm": "pw_proj.bn.weight",
    "norm": "norm.weight",
    "query": "attn.query.proj.weight",
    "key": "attn.key.proj.weight",
    "key_down": "attn.key.down_conv.weight",
    "key_norm": "attn.key.norm.weight",
    "value": "attn.value.proj.weight",
    "value_down": "attn.value.down_conv.weight",
    "value_norm": "attn.value.norm.weight",
    "output": "attn.output.proj.weight",
    "scale": "layer_scale.gamma",
}
_PARTS = {name: part for part, name in (*_EDGE.items(), *_OTHERS.items())}
_BLOCK = late_pattern(r"vision\.blocks\.([0-9]{1,3})\.([0-9]{1,4})\.([a-z_]+)")

Shape = tuple[int, ...]


def mobilenet_slots(config: MobileNetConfig, text_hidden: int) -> dict[str, Shape]:
    """slot -> shape, for the weights of the tower and of its projection into the text model."""
    hidden, inner = config.hidden_size, config.fused_inner
    slots: dict[str, Shape] = {
        "vision.stem": (config.stem_channels, 3, 3, 3),
        "vision.stem_bias": (config.stem_channels,),
        "vision.stem_norm": (config.stem_channels,),
    }
    for i, stage in enumerate(config.stages):
        for j, block in enumerate(stage):
            own = _attention_slots(block) if block.kind == "attention" else _block_slots(block)
            slots |= {f"vision.blocks.{i}.{j}.{part}": shape for part, shape in own.items()}
    joined = config.stages[-2][-1].out_channels + config.stages[-1][-1].out_channels
    return slots | {
        "vision.fusion.expansion": (inner, joined, 1, 1),
        "vision.fusion.expansion_norm": (inner,),
        "vision.fusion.projection": (hidden, inner, 1, 1),
        "vision.fusion.projection_norm": (hidden,),
        "vision.fusion.norm": (hidden,),
        "vision.soft_norm": (hidden,),
        "vision.projection": (text_hidden, hidden),
    }


def _block_slots(block: MobileNetBlock) -> dict[str, Shape]:
    channels, out, inner = block.in_channels, block.out_channels, block.inner
    kernel = block.start_kernel if block.kind == "edge" else 1
    slots: dict[str, Shape] = {
        "expansion": (inner, channels, kernel, kernel),
        "expansion_norm": (inner,),
        "projection": (out, inner, 1, 1),
        "projection_norm": (out,),
    }
    if block.kind == "edge":
        return slots
    for part, size, side in (("start", channels, block.start_kernel), ("middle", inner, block.middle_kernel)):
        if side:
            slots |= {part: (size, 1, side, side), f"{part}_norm": (size,)}
    return slots | {"scale": (out,)}


def _attention_slots(block: MobileNetBlock) -> dict[str, Shape]:
    channels, side = block.in_channels, block.middle_kernel
    queries = block.num_heads * block.head_dim
    slots: dict[str, Shape] = {
        "norm": (channels,),
        "query": (queries, channels, 1, 1),
        "output": (block.out_channels, queries, 1, 1),
        "scale": (block.out_channels,),
    }
    for part in ("key", "value"):
        slots[part] = (block.head_dim, channels, 1, 1)
        if side:
            slots |= {f"{part}_down": (channels, 1, side, side), f"{part}_norm": (channels,)}
    return slots


def mobilenet_name(slot: str, slots: Collection[str]) -> str:
    """The plain name of the tensor that belongs to a slot. ``slots`` are all slots of the tower.

    >>> mobilenet_name("vision.blocks.1.0.projection", {"vision.blocks.1.0.scale"})
    'vision_tower.timm_model.blocks.1.0.pw_proj.conv.weight'
    >>> mobilenet_name("vision.blocks.0.2.projection", {})
    'vision_tower.timm_model.blocks.0.2.conv_pwl.weight'
    """
    if slot in _EMBEDDER:
        return _EMBEDDER[slot]
    if slot in _NAMES:
        return _TOWER + _NAMES[slot]
    block, _, part = slot.rpartition(".")
    names = _OTHERS if f"{block}.scale" in slots else _EDGE
    return f"{_TOWER}{block.removeprefix('vision.')}.{names[part]}"


def slot_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """slot -> shape, for tensors with plain names.

    >>> slot_shapes({"vision_tower.timm_model.blocks.0.1.bn2.weight": (8,), "embed_audio.x": (1,)})
    {'vision.blocks.0.1.projection_norm': (8,)}
    """
    whole = {_TOWER + name: slot for slot, name in _NAMES.items()}
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if name in whole:
            found[whole[name]] = shape
            continue
        parts = name.removeprefix(_TOWER).split(".", 3)
        if name.startswith(f"{_TOWER}blocks.") and len(parts) == 4 and parts[3] in _PARTS:
            found[f"vision.{'.'.join(parts[:3])}.{_PARTS[parts[3]]}"] = shape
    return found


def mmproj_names(names: Iterable[str]) -> dict[str, str]:
    """Plain names -> names in the mmproj files of llama.cpp.

    >>> mmproj_names(["vision_tower.timm_model.blocks.0.1.bn2.weight", "embed_vision.embedding.weight"])
    {'vision_tower.timm_model.blocks.0.1.bn2.weight': 'v.blk.0.1.bn2.weight'}
    """
    inner = {name: name.removeprefix(_TOWER) for name in names if name.startswith(_TOWER)}
    return {name: f"v.{one.replace('blocks.', 'blk.', 1)}" for name, one in inner.items()}


def mmproj_slot_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """:func:`slot_shapes` for tensors in an mmproj file.

    >>> mmproj_slot_shapes({"v.blk.0.1.bn2.weight": (8,), "a.blk.0.ln1.weight": (1,)})
    {'vision.blocks.0.1.projection_norm': (8,)}
    """
    own = {name[2:]: shape for name, shape in shapes.items() if name.startswith("v.")}
    return slot_shapes({_TOWER + name.replace("blk.", "blocks.", 1): shape for name, shape in own.items()})


def with_found_blocks(config: MobileNetConfig, shapes: Mapping[str, Shape]) -> MobileNetConfig:
    """Returns ``config`` with the blocks that follow from the ``shapes`` of slots. If they describe no
    complete tower, ``config`` is returned unchanged.

    The shapes do not show the strides. The stride is 2 in the first block of a stage. In attention blocks it
    is 2 if keys and values have a convolution before them, and otherwise 1.
    """
    blocks: dict[int, dict[int, dict[str, Shape]]] = {}
    for slot, shape in shapes.items():
        if match := _BLOCK.fullmatch(slot):
            stage, index = int(match[1]), int(match[2])
            blocks.setdefault(stage, {}).setdefault(index, {})[match[3]] = shape
    try:
        stages = tuple(
            tuple(_block_of(blocks[i][j], first=j == 0) for j in range(len(blocks[i])))
            for i in range(len(blocks))
        )
        return replace(
            config,
            stages=stages if len(stages) > 1 else config.stages,
            stem_channels=shapes["vision.stem"][0],
            fused_inner=shapes["vision.fusion.expansion"][0],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return config


def _block_of(parts: Mapping[str, Shape], *, first: bool) -> MobileNetBlock:
    if "query" in parts:
        queries, channels = parts["query"][:2]
        dim = parts["key"][0]
        side = parts["key_down"][2] if "key_down" in parts else 0
        return MobileNetBlock(
            "attention",
            channels,
            parts["output"][0],
            middle_kernel=side,
            stride=2 if side else 1,
            num_heads=queries // dim,
            head_dim=dim,
        )
    inner, channels, side = parts["expansion"][:3]
    out, stride = parts["projection"][0], 2 if first else 1
    if "scale" not in parts:
        return MobileNetBlock("edge", channels, out, inner, side, stride=stride)
    start, middle = (parts[part][2] if part in parts else 0 for part in ("start", "middle"))
    return MobileNetBlock("inverted", channels, out, inner, start, middle, stride)
