"""The slots of the weights of audio encoders and of Gemma 3n's additional tables, and their names in
checkpoints."""

from __future__ import annotations

from gemlet.config.audio_config import ConformerConfig
from gemlet.config.text_config import TextConfig

__all__ = ["audio_name", "audio_slots", "table_slots"]

# The last part of a slot in a layer -> its name in Gemma 3n, and its name in Gemma 4.
_LAYER = {
    "attention_norm": ("attention.pre_attn_norm.weight", "norm_pre_attn.weight"),
    "q_proj": ("attention.attn.q_proj.weight", "self_attn.q_proj.linear.weight"),
    "k_proj": ("attention.attn.k_proj.weight", "self_attn.k_proj.linear.weight"),
    "v_proj": ("attention.attn.v_proj.weight", "self_attn.v_proj.linear.weight"),
    "o_proj": ("attention.post.weight", "self_attn.post.linear.weight"),
    "relative_proj": (
        "attention.attn.relative_position_embedding.pos_proj.weight",
        "self_attn.relative_k_proj.weight",
    ),
    "per_dim_scale": ("attention.attn.per_dim_scale", "self_attn.per_dim_scale"),
    "attention_post_norm": ("attention.post_norm.weight", "norm_post_attn.weight"),
    "conv_pre_norm": ("lconv1d.pre_layer_norm.weight", "lconv1d.pre_layer_norm.weight"),
    "conv_start": ("lconv1d.linear_start.weight", "lconv1d.linear_start.linear.weight"),
    "conv_depthwise": ("lconv1d.depthwise_conv1d.weight", "lconv1d.depthwise_conv1d.weight"),
    "conv_norm": ("lconv1d.conv_norm.weight", "lconv1d.conv_norm.weight"),
    "conv_end": ("lconv1d.linear_end.weight", "lconv1d.linear_end.linear.weight"),
    "norm": ("norm.weight", "norm_out.weight"),
}
_FEED_FORWARD = {
    "pre_norm": ("pre_layer_norm.weight", "pre_layer_norm.weight"),
    "up": ("ffw_layer_1.weight", "ffw_layer_1.linear.weight"),
    "down": ("ffw_layer_2.weight", "ffw_layer_2.linear.weight"),
    "post_norm": ("post_layer_norm.weight", "post_layer_norm.weight"),
}
_FEED_FORWARDS = {
    "ffw_start": ("ffw_layer_start", "feed_forward1"),
    "ffw_end": ("ffw_layer_end", "feed_forward2"),
}
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "conv_start", "conv_end")


def table_slots(name: str) -> tuple[str, str, str]:
    """The slots of Gemma 3n's table ``name``, "vision" or "audio".

    >>> table_slots("audio")
    ('audio.hard_embedding', 'audio.hard_norm', 'audio.projection')
    """
    return f"{name}.hard_embedding", f"{name}.hard_norm", f"{name}.projection"


def audio_slots(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """slot -> shape, for every weight of the audio encoder that ``config`` describes, and for the tables of
    Gemma 3n."""
    slots: dict[str, tuple[int, ...]] = {}
    for table in config.tables:
        shapes = ((table.size, table.width), (table.width,), (config.hidden_size, table.width))
        slots |= dict(zip(table_slots(table.name), shapes, strict=True))
    if config.audio is None:
        return slots
    slots["audio.projection"] = (config.hidden_size, config.audio.width)
    encoder, settings = config.audio.encoder, config.audio.settings
    if encoder is not None and settings is not None:
        slots |= _conformer_slots(encoder, settings.bins)
    return slots


def _conformer_slots(config: ConformerConfig, bins: int) -> dict[str, tuple[int, ...]]:
    hidden, first, second = config.hidden_size, config.first_channels, config.second_channels
    slots: dict[str, tuple[int, ...]] = {
        "audio.conv.0": (first, 1, 3, 3),
        "audio.conv.0_norm": (first,),
        "audio.conv.1": (second, first, 3, 3),
        "audio.conv.1_norm": (second,),
        "audio.input_proj": (hidden, -(-bins // 4) * second),
    }
    for i in range(config.num_layers):
        at = f"audio.layers.{i}"
        linears = {f"{at}.{part}": (hidden, hidden) for part in (*_LINEARS, "relative_proj")}
        linears[f"{at}.conv_start"] = (2 * hidden, hidden)
        for part in _FEED_FORWARDS:
            slots |= {f"{at}.{part}_pre_norm": (hidden,), f"{at}.{part}_post_norm": (hidden,)}
            linears |= {f"{at}.{part}_up": (4 * hidden, hidden), f"{at}.{part}_down": (hidden, 4 * hidden)}
        slots |= linears
        if config.clipped:
            slots |= {
                f"{linear}_{bound}": ()
                for linear in linears
                if not linear.endswith("relative_proj")
                for bound in _BOUNDS
            }
        for part in ("attention_norm", "attention_post_norm", "conv_pre_norm", "conv_norm", "norm"):
            slots[f"{at}.{part}"] = (hidden,)
        slots[f"{at}.per_dim_scale"] = (hidden // config.num_heads,)
        slots[f"{at}.conv_depthwise"] = (hidden, 1, config.conv_taps)
    if config.family == "gemma4":
        slots |= {
            "audio.output_proj": (config.output_size, hidden),
            "audio.output_bias": (config.output_size,),
        }
    else:
        slots["audio.soft_norm"] = (hidden,)
    return slots


def audio_name(slot: str, family: str) -> str:
    """The plain name of the tensor that belongs to a slot.

    >>> audio_name("audio.layers.3.q_proj_input_max", "gemma4")
    'audio_tower.layers.3.self_attn.q_proj.input_max'
    >>> audio_name("audio.conv.0", "gemma3n")
    'audio_tower.subsample_conv_projection.conv_0.conv.weight'
    """
    column = int(family != "gemma3n")
    tower, _, part = slot.partition(".")
    embed = {
        "hard_embedding": "embedding",
        "hard_norm": "hard_embedding_norm",
        "soft_norm": "soft_embedding_norm",
        "projection": "embedding_projection",
    }
    if part in embed:
        return f"embed_{tower}.{embed[part]}.weight"
    at = "audio_tower.subsample_conv_projection"
    if part == "input_proj":
        return f"{at}.input_proj_linear.weight"
    if part.startswith("conv."):
        index = part[len("conv.")]
        inner = "norm" if part.endswith("_norm") else "conv"
        return f"{at}.{('conv_', 'layer')[column]}{index}.{inner}.weight"
    if part.startswith("output_"):
        return f"audio_tower.output_proj.{'weight' if part == 'output_proj' else 'bias'}"
    _, number, part = part.split(".")
    at = f"audio_tower.{('conformer', 'layers')[column]}.{number}"
    bound = next((one for one in _BOUNDS if part.endswith(f"_{one}")), None)
    inner = part if bound is None else part[: -len(bound) - 1]
    if inner in _LAYER:
        name = _LAYER[inner][column]
    else:
        ffw = next(one for one in _FEED_FORWARDS if inner.startswith(one))
        name = f"{_FEED_FORWARDS[ffw][column]}.{_FEED_FORWARD[inner[len(ffw) + 1 :]][column]}"
    if bound is not None:
        name = name.removesuffix("linear.weight") + bound
    return f"{at}.{name}"
