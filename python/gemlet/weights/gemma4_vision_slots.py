"""The slots of the weights of Gemma 4's vision tower, and their names in checkpoints."""

from __future__ import annotations

from gemlet.config.gemma4_vision import Gemma4VisionConfig, UnifiedVisionConfig

__all__ = ["gemma4_vision_name", "gemma4_vision_slots"]

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
# The last part of a slot in a layer -> its name in the layer of a checkpoint.
_NORMS = {
    "input_norm": "input_layernorm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "pre_mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_LINEARS = {
    **{part: f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{part: f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")},
}
_NAMES = {
    "vision.patch_embedding": "vision_tower.patch_embedder.input_proj.weight",
    "vision.std_bias": "vision_tower.std_bias",
    "vision.std_scale": "vision_tower.std_scale",
    "vision.projection": "embed_vision.embedding_projection.weight",
    "vision.patch_norm1": "vision_embedder.patch_ln1.weight",
    "vision.patch_norm1_bias": "vision_embedder.patch_ln1.bias",
    "vision.patch_dense": "vision_embedder.patch_dense.weight",
    "vision.patch_dense_bias": "vision_embedder.patch_dense.bias",
    "vision.patch_norm2": "vision_embedder.patch_ln2.weight",
    "vision.patch_norm2_bias": "vision_embedder.patch_ln2.bias",
    "vision.position_norm": "vision_embedder.pos_norm.weight",
    "vision.position_norm_bias": "vision_embedder.pos_norm.bias",
}
_POSITIONS = ("vision_tower.patch_embedder.position_embedding_table", "vision_embedder.pos_embedding")


def gemma4_vision_slots(
    config: Gemma4VisionConfig | UnifiedVisionConfig, text_hidden: int
) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the tower, or of the embedder that the unified model has instead."""
    hidden = config.hidden_size
    slots: dict[str, tuple[int, ...]] = {"vision.projection": (text_hidden, hidden)}
    if isinstance(config, UnifiedVisionConfig):
        pixels = 3 * config.token_side**2
        for norm, width in (("patch_norm1", pixels), ("patch_norm2", hidden), ("position_norm", hidden)):
            slots |= {f"vision.{norm}": (width,), f"vision.{norm}_bias": (width,)}
        return slots | {
            "vision.patch_dense": (hidden, pixels),
            "vision.patch_dense_bias": (hidden,),
            "vision.position_embedding": (config.positions, 2, hidden),
        }
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (config.intermediate_size, hidden),
        "up_proj": (config.intermediate_size, hidden),
        "down_proj": (hidden, config.intermediate_size),
    }
    slots["vision.patch_embedding"] = (hidden, 3 * config.patch_size**2)
    slots["vision.position_embedding"] = (2, config.positions, hidden)
    if config.standardize:
        slots |= {"vision.std_bias": (hidden,), "vision.std_scale": (hidden,)}
    for i in range(config.num_layers):
        at = f"vision.layers.{i}"
        for norm in _NORMS:
            slots[f"{at}.{norm}"] = (config.head_dim if norm in ("q_norm", "k_norm") else hidden,)
        for part, shape in shapes.items():
            slots[f"{at}.{part}"] = shape
            if config.clipped:
                slots |= {f"{at}.{part}_{bound}": () for bound in _BOUNDS}
    return slots


def gemma4_vision_name(slot: str, *, unified: bool) -> str:
    """The plain name of the tensor that belongs to a slot.

    >>> gemma4_vision_name("vision.layers.3.q_proj_input_max", unified=False)
    'vision_tower.encoder.layers.3.self_attn.q_proj.input_max'
    >>> gemma4_vision_name("vision.layers.3.q_proj", unified=False)
    'vision_tower.encoder.layers.3.self_attn.q_proj.linear.weight'
    """
    if slot == "vision.position_embedding":
        return _POSITIONS[unified]
    if slot in _NAMES:
        return _NAMES[slot]
    _, _, index, part = slot.split(".")
    at = f"vision_tower.encoder.layers.{index}"
    if part in _NORMS:
        return f"{at}.{_NORMS[part]}"
    for bound in _BOUNDS:
        if part.endswith(f"_{bound}"):
            return f"{at}.{_LINEARS[part[: -len(bound) - 1]]}.{bound}"
    return f"{at}.{_LINEARS[part]}.linear.weight"
