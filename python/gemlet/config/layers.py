"""The layers of a model, each as a LayerSpec; ``config.json`` describes them once, by type or one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.config.families import Family
from gemlet.config.limits import LIMITS
from gemlet.config.rope import LAYER_TYPES, read_rope
from gemlet.errors import ConfigError

__all__ = ["LayerSpec", "default_sparsity", "embeds", "read_gguf_layers", "read_layers"]


_NO_LIMIT = 1 << 62


@record(frozen=True, repr=False)
class LayerSpec:
    """One transformer layer. The fields have the names of those of the core's LayerConfig.

    Attributes:
        num_heads: the number of query heads.
        num_kv_heads: the number of heads for keys and values.
        head_dim: the size of a head.
        intermediate_size: the width of the MLP.
        query_scale: the factor on the scores q.k.
        rope_theta: the base of the rotation.
        rope_scaling_factor: the divisor of the positions.
        sliding_window: the number of keys that a query sees, including its own; 0 means all. In an embedding
            model it counts the keys on one side.
        attention_softcap: the cap on the scores; 0 means none.
        qk_norm: queries and keys are normalized.
        post_norms: the outputs of the attention and of the MLP are normalized.
        v_norm: values are normalized.
        key_is_value: the values are the keys, before these are normalized and rotated.
        rope_partial_factor: the share of the pairs in a head that are rotated.
        kv_source: the earlier layer whose keys and values this one reads; -1 if it has its own.
        activation_sparsity: the threshold that values of the MLP's gate must exceed to count, in standard
            deviations above their mean; None if all values count.
        num_experts: the number of experts; 0 means none.
        experts_per_token: the number of experts that compute a token.
        expert_intermediate_size: the width of an expert's MLP.
        layer_scalar: the layer's output is multiplied by a weight.
        bidirectional_spans: the tokens of an image see each other in both directions.
        rope_frequencies: the angle per position of each pair in a head, for the RoPE types that are not given
            by the three numbers above; otherwise empty.

    >>> from gemlet.config import shape_config
    >>> last = shape_config("gemma4-e2b").layers[-1]
    >>> last.head_dim, last.sliding_window, last.kv_source
    (512, 0, 14)
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    query_scale: float
    rope_theta: float
    rope_scaling_factor: float
    sliding_window: int
    attention_softcap: float
    qk_norm: bool
    post_norms: bool
    v_norm: bool = False
    key_is_value: bool = False
    rope_partial_factor: float = 1.0
    kv_source: int = -1
    activation_sparsity: float | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    layer_scalar: bool = False
    bidirectional_spans: bool = False
    rope_frequencies: tuple[float, ...] = ()

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in LayerSpec.__annotations__}
        own = [
            f"{name}={value!r}" for name, value in values.items() if value != getattr(LayerSpec, name, ...)
        ]
        return f"LayerSpec({', '.join(own)})"


def read_size(keys: Keys, key: str, low: int = 1) -> int:
    return keys.integer(key, LIMITS[key], low)


def read_layers(keys: Keys, family: Family) -> tuple[LayerSpec, ...]:
    """Every layer of the text model that ``keys`` describe; :class:`ConfigError` names what is wrong."""
    types = _read_layer_types(keys, family, read_size(keys, "num_hidden_layers"))
    heads = _read_heads(keys, types)
    rope = read_rope(keys, family, set(types))
    tables = {kind: rope[kind].frequencies(heads[kind][1]) for kind in set(types)}
    softcap = 0.0
    if family.name == "gemma3":  # the reference reads the key and does not apply it
        if keys.get("attn_logit_softcapping") not in (None, 0):
            raise keys.wrong("attn_logit_softcapping", "null: Gemma 3 has no cap on its scores")
    elif "attn_logit_softcapping" in keys.defaults:
        softcap = keys.cap("attn_logit_softcapping")
    window = _read_window(keys, family) if "sliding_attention" in types else 0
    widths = _read_widths(keys, family, len(types))
    layers = [
        LayerSpec(
            num_heads=read_size(keys, "num_attention_heads"),
            num_kv_heads=heads[kind][0],
            head_dim=heads[kind][1],
            intermediate_size=width,
            query_scale=_query_scale(keys, family, heads[kind][1]) * rope[kind].score_factor,
            rope_theta=rope[kind].theta,
            rope_scaling_factor=rope[kind].scaling_factor,
            sliding_window=window if kind == "sliding_attention" else 0,
            attention_softcap=softcap,
            qk_norm=family.qk_norm,
            post_norms=family.post_norms,
            v_norm=family.v_norm,
            rope_partial_factor=rope[kind].partial_factor,
            layer_scalar=family.layer_scalar,
            bidirectional_spans=_has_spans(keys, family, kind),
            rope_frequencies=tables[kind],
        )
        for kind, width in zip(types, widths, strict=True)
    ]
    if "attention_k_eq_v" in keys.defaults and keys.flag("attention_k_eq_v"):
        layers = [replace(layer, key_is_value=not layer.sliding_window) for layer in layers]
    if "activation_sparsity_pattern" in keys.defaults:
        cutoffs = _read_sparsity(keys, len(layers))
        layers = [replace(layer, activation_sparsity=cut) for layer, cut in zip(layers, cutoffs, strict=True)]
    if "enable_moe_block" in keys.defaults and keys.flag("enable_moe_block"):
        layers = [replace(layer, **_read_experts(keys)) for layer in layers]
    if "num_kv_shared_layers" in keys.defaults:
        layers = _share_keys(keys, types, layers)
    return tuple(layers)


def _query_scale(keys: Keys, family: Family, head_dim: int) -> float:
    if family.query_scale == "one":
        return 1.0
    if family.query_scale == "head_dim":
        return float(head_dim**-0.5)
    return float(keys.number("query_pre_attn_scalar", 1e-6, 1e9) ** -0.5)


def _read_window(keys: Keys, family: Family) -> int:
    # A window longer than every context has no effect.
    window = min(keys.integer("sliding_window", _NO_LIMIT), LIMITS["sliding_window"])
    if keys.get("sliding_window_size") not in (None, window):
        raise keys.wrong("sliding_window_size", f"the value of sliding_window ({window})")
    if family.embeds:  # the key counts the tokens on either side, without the token itself
        return window + 1
    # In an embedding model of Gemma 3, the window counts both sides.
    return window // 2 + 1 if embeds(keys, family) else window


def embeds(keys: Keys, family: Family) -> bool:
    """Whether ``keys`` describe an embedding model."""
    return family.embeds or keys.get("use_bidirectional_attention") is True


def _has_spans(keys: Keys, family: Family, kind: str) -> bool:
    rule = keys.get("use_bidirectional_attention")
    if rule == "vision":
        return kind == "sliding_attention"
    return family.bidirectional_spans and not rule  # in an embedding model, all tokens see each other


def _read_layer_types(keys: Keys, family: Family, num_layers: int) -> list[str]:
    """One of ``LAYER_TYPES`` per layer: the file's list if it has one, otherwise the family's pattern."""
    if family.layer_pattern == 0:
        return ["full_attention"] * num_layers
    pattern = family.layer_pattern
    spellings = ("sliding_window_pattern", "_sliding_window_pattern")
    names = [name for name in spellings if keys.get(name) is not None]
    for name in names:
        pattern = keys.integer(name, LIMITS["num_hidden_layers"])
        if pattern != keys.get(names[0]):
            raise keys.wrong(name, f"the value of {names[0]} ({show(keys.get(names[0]))})")
    types = [LAYER_TYPES[(i + 1) % pattern == 0] for i in range(num_layers)]
    if keys.get("layer_types") is None and names == ["_sliding_window_pattern"]:
        if pattern != family.layer_pattern:  # the reference writes this key and does not read it
            raise keys.wrong(names[0], f"{family.layer_pattern}, or layer_types beside it")
    elif keys.get("layer_types") is not None:
        types = list(_read_list(keys, "layer_types", num_layers))
        for i, kind in enumerate(types):
            if kind not in LAYER_TYPES:
                raise _wrong_item(
                    keys, "layer_types", i, kind, " or ".join(repr(name) for name in LAYER_TYPES)
                )
    if family.last_layer_is_global:  # whatever the list says
        types[-1] = "full_attention"
    return types


def _read_list(keys: Keys, key: str, num_layers: int) -> list[Any]:
    values = keys.get(key)
    if not isinstance(values, list) or len(values) != num_layers:
        raise keys.wrong(key, f"a list of {num_layers} entries, one per layer (num_hidden_layers)")
    return values


def _wrong_item(keys: Keys, key: str, index: int, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{keys.label(key)}[{index}] is {show(value)}; expected {expected}")


def _read_widths(keys: Keys, family: Family, num_layers: int) -> list[int]:
    """The widths of the MLPs: one for all, or in Gemma 3n, whose small models are cut from larger ones, one
    for each layer."""
    if family.name != "gemma3n" or not isinstance(keys.get("intermediate_size"), list):
        return [read_size(keys, "intermediate_size")] * num_layers
    return _read_each_width(keys, num_layers)


def _read_each_width(keys: Keys, num_layers: int) -> list[int]:
    widths = _read_list(keys, "intermediate_size", num_layers)
    limit = LIMITS["intermediate_size"]
    for i, width in enumerate(widths):
        if type(width) is not int or not 1 <= width <= limit:
            raise _wrong_item(keys, "intermediate_size", i, width, f"an integer from 1 to {limit}")
    return widths


def read_gguf_layers(keys: Keys, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """``layers`` with the widths and cutoffs that ``keys``, an object "gguf", gives for each of them."""
    widths = _read_each_width(keys, len(layers))
    cutoffs = [layer.activation_sparsity for layer in layers]
    if keys.get("activation_sparsity") is not None:
        cutoffs = _read_list(keys, "activation_sparsity", len(layers))
        for i, cutoff in enumerate(cutoffs):
            if cutoff is not None and (type(cutoff) is not float or not -10 <= cutoff <= 10):
                raise _wrong_item(keys, "activation_sparsity", i, cutoff, "a number from -10 to 10, or null")
    return tuple(
        replace(layer, intermediate_size=width, activation_sparsity=cutoff)
        for layer, width, cutoff in zip(layers, widths, cutoffs, strict=True)
    )


def _read_heads(keys: Keys, types: list[str]) -> dict[str, tuple[int, int]]:
    """Layer type -> (number of kv heads, head dim)."""
    own = _heads(keys, "num_key_value_heads", "head_dim")
    if "global_head_dim" not in keys.defaults:
        return dict.fromkeys(LAYER_TYPES, own)
    if "per_layer_config" in keys.raw:  # it overrides the keys of global layers
        return _read_overrides(keys, types, own)
    # In Gemma 4 their number of kv heads matters only with k = v.
    counted = "attention_k_eq_v" not in keys.defaults or (
        keys.flag("attention_k_eq_v") and keys.get("num_global_key_value_heads") is not None
    )
    heads = "num_global_key_value_heads" if counted else "num_key_value_heads"
    return {"sliding_attention": own, "full_attention": _heads(keys, heads, "global_head_dim")}


def _heads(keys: Keys, num_kv_heads: str, head_dim: str, outer: Keys | None = None) -> tuple[int, int]:
    num_heads = read_size(keys if outer is None else outer, "num_attention_heads")
    count, dim = read_size(keys, num_kv_heads), read_size(keys, head_dim)
    if num_heads % count:
        raise keys.wrong(num_kv_heads, f"a divisor of num_attention_heads ({num_heads})")
    if dim % 2:
        raise keys.wrong(head_dim, "an even number (RoPE rotates pairs)")
    return count, dim


def _read_overrides(keys: Keys, types: list[str], own: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """``per_layer_config``: layer number, with or without leading zeros -> keys with other values there."""
    if not isinstance(keys.get("per_layer_config"), dict):
        raise keys.wrong("per_layer_config", "an object with layer numbers as keys")
    given = keys.mapping("per_layer_config")
    numbers = keys.inner(given, "per_layer_config")
    layers = [own] * len(types)
    seen: set[int] = set()
    for name in given:
        index = int(name) if name.isascii() and name.isdigit() and len(name) <= 4 else -1
        if not 0 <= index < len(types) or index in seen:
            raise ConfigError(
                f"{keys.label('per_layer_config')} has the key {show(name)}; expected numbers of layers, "
                f"0 to {len(types) - 1}, each once"
            )
        seen.add(index)
        defaults: Mapping[str, Any] = {"num_key_value_heads": own[0], "head_dim": own[1]}
        one = numbers.inner(numbers.mapping(name), name, defaults)
        one.refuse_unknown(frozenset(), {})
        layers[index] = _heads(one, "num_key_value_heads", "head_dim", outer=keys)
    heads: dict[str, tuple[int, int]] = {}
    for i, (kind, found) in enumerate(zip(types, layers, strict=True)):
        if heads.setdefault(kind, found) != found:
            raise ConfigError(
                f"{keys.label('per_layer_config')} makes layer {i} differ from the other {kind} layers; "
                "expected the same head_dim and num_key_value_heads in all layers of a type"
            )
    return heads


def default_sparsity(num_layers: int) -> list[float]:
    """``activation_sparsity_pattern`` of a Gemma 3n that has none."""
    sparse = 10 if num_layers > 10 else 0
    return [0.95] * sparse + [0.0] * (num_layers - sparse)


def _read_sparsity(keys: Keys, num_layers: int) -> list[float | None]:
    """The share of its gate's values that a layer drops, as standard deviations from the mean of a normal
    distribution."""
    from statistics import NormalDist  # costs more to import than all of gemlet

    shares: list[Any] = default_sparsity(num_layers)
    if keys.get("activation_sparsity_pattern") is not None:
        shares = _read_list(keys, "activation_sparsity_pattern", num_layers)
    for i, share in enumerate(shares):
        if type(share) not in (int, float) or not (share == 0 or 1e-6 <= share <= 1 - 1e-6):
            raise _wrong_item(keys, "activation_sparsity_pattern", i, share, "0, or a share between 0 and 1")
    return [NormalDist().inv_cdf(share) if share else None for share in shares]


def _read_experts(keys: Keys) -> dict[str, Any]:
    count = read_size(keys, "num_experts")
    return {
        "num_experts": count,
        "experts_per_token": keys.integer("top_k_experts", count),
        "expert_intermediate_size": read_size(keys, "moe_intermediate_size"),
    }


def _share_keys(keys: Keys, types: list[str], layers: list[LayerSpec]) -> list[LayerSpec]:
    """The last layers read the keys and values of the last layer of their type that has its own."""
    first = len(layers) - keys.integer("num_kv_shared_layers", len(layers) - 1, low=0)
    source = {kind: i for i, kind in enumerate(types[:first])}
    double_wide = "use_double_wide_mlp" in keys.defaults and keys.flag("use_double_wide_mlp")
    for i in range(first, len(layers)):
        if types[i] not in source:
            raise keys.wrong(
                "num_kv_shared_layers",
                f"fewer: layer {i} is a {types[i]} layer, and none of them would have keys of its own",
            )
        layers[i] = replace(
            layers[i],
            kv_source=source[types[i]],
            key_is_value=False,  # it has neither
            intermediate_size=layers[i].intermediate_size * (2 if double_wide else 1),
        )
    return layers
