"""Reading how positions are rotated: the keys of ``config.json`` about RoPE, in both spellings.

Old files (transformers 4) have ``rope_theta``, ``rope_local_base_freq`` and ``rope_scaling``; new ones
(transformers 5) have ``rope_parameters``. Where two keys say the same thing they must agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gemlet.base.keys import Keys
from gemlet.base.text import show
from gemlet.config.families import Family
from gemlet.config.limits import LIMITS, NUMBERS
from gemlet.config.rope_scaling import Llama3, Yarn
from gemlet.errors import ConfigError

__all__ = ["LAYER_TYPES", "Rope", "read_rope"]

LAYER_TYPES = ("sliding_attention", "full_attention")


class Rope(NamedTuple):
    """``scaling_factor`` divides the positions; ``partial_factor`` is the share of the pairs that rotate.
    ``special`` replaces both for the RoPE types that have a table of frequencies."""

    theta: float
    scaling_factor: float = 1.0
    partial_factor: float = 1.0
    special: Llama3 | Yarn | None = None

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """The table of frequencies; empty if the other fields say everything."""
        return () if self.special is None else self.special.frequencies(self.theta, head_dim)

    @property
    def score_factor(self) -> float:
        """What the rotation multiplies the scores q.k by."""
        return 1.0 if self.special is None else self.special.attention_factor**2


def read_rope(keys: Keys, family: Family, used: Collection[str]) -> dict[str, Rope]:
    """Layer type -> its rotation, at least for the layer types that are ``used``."""
    if family.rope == "nested only":
        return _read_nested_only(keys, family, used)
    parameters = keys.mapping("rope_parameters")
    scaling = keys.mapping("rope_scaling")
    if family.rope == "flat":
        one = _both_spellings(
            keys, family, "rope_theta", parameters, "rope_parameters", scaling, family.global_theta
        )
        return dict.fromkeys(LAYER_TYPES, one)
    nested = keys.inner(parameters, "rope_parameters", dict.fromkeys(LAYER_TYPES))
    nested.refuse_unknown(frozenset(), {})
    legacy = {"sliding_attention": "rope_local_base_freq", "full_attention": "rope_theta"}
    defaults = {"sliding_attention": family.local_theta, "full_attention": family.global_theta}
    return {
        kind: _both_spellings(
            keys,
            family,
            legacy[kind],
            nested.mapping(kind),
            f"rope_parameters.{kind}",
            scaling if kind == "full_attention" else {},  # rope_scaling has never applied to sliding layers
            defaults[kind],
        )
        for kind in LAYER_TYPES
    }


_OBJECT: dict[str, Any] = {"rope_type": None, "type": None, "rope_theta": None, "factor": None}
# RoPE type -> the keys that it reads besides those of _OBJECT, and their values if they are absent or null.
_CONTEXT = "original_max_position_embeddings"
_TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {},
    "dynamic": {},
    "proportional": {},
    "llama3": {_CONTEXT: None, "low_freq_factor": None, "high_freq_factor": None},
    "yarn": {
        _CONTEXT: None,
        "attention_factor": None,
        "beta_fast": None,
        "beta_slow": None,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": None,
    },
}
_TYPES_BUT_PROPORTIONAL = tuple(name for name in _TYPES if name != "proportional")


def _both_spellings(
    keys: Keys,
    family: Family,
    legacy_theta: str,
    parameters: Mapping[str, Any],
    parameters_key: str,
    scaling: Mapping[str, Any],
    default_theta: float,
) -> Rope:
    """Reads the new-style object, the old-style keys, or both, which must agree."""
    new = keys.inner(parameters, parameters_key, _OBJECT)
    old = keys.inner(scaling, "rope_scaling", _OBJECT)
    thetas = {
        part.label(name): part.number(name, *NUMBERS["rope_theta"])
        for part, name in ((new, "rope_theta"), (old, "rope_theta"), (keys, legacy_theta))
        if part.get(name) is not None
    }
    if old.get("type") not in (None, "default") and old.get("rope_type") is None and family.rope == "nested":
        raise ConfigError(
            f"{old.label('type')} is {show(old.get('type'))} without rope_type, which transformers 4 follows "
            "and transformers 5 does not; expected rope_type. Write rope_type in its place if the positions "
            "are to be divided, and remove rope_scaling if not"
        )
    theta = next(iter(thetas.values()), default_theta)
    scaled = [part for part in (new, old) if part.raw.keys() - {"rope_theta"}]
    scalings = {part: _read_scaling(part, _TYPES_BUT_PROPORTIONAL, keys, family, theta) for part in scaled}
    factors = {part.label("factor"): rope.scaling_factor for part, rope in scalings.items()}
    for found in (thetas, factors):
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{label} = {value:g}" for label, value in found.items())
            raise ConfigError(f"{listed}: these keys contradict each other; expected one value")
    if len(set(scalings.values())) > 1:
        raise ConfigError(
            f"{new.label('')[:-1]} is {show(parameters)} and rope_scaling is {show(scaling)}: these keys "
            "contradict each other; expected one of them"
        )
    return next(iter(scalings.values()), Rope(theta))


# By family: the values if rope_parameters is absent or null.
_LOCAL: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_GLOBAL: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 1000000.0}
_PROPORTIONAL = {**_GLOBAL, "rope_type": "proportional", "partial_rotary_factor": 0.25}
_PUBLISHED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gemma4": {"sliding_attention": _LOCAL, "full_attention": _PROPORTIONAL},
    "embeddinggemma2": {"sliding_attention": _LOCAL, "full_attention": _GLOBAL},
}


def _read_nested_only(keys: Keys, family: Family, used: Collection[str]) -> dict[str, Rope]:
    """Gemma 4: an object per layer type. Missing parts are not filled in."""
    given: Mapping[str, Any] = _PUBLISHED[family.name]
    if keys.get("rope_parameters") is not None:
        given = keys.mapping("rope_parameters")
    nested = keys.inner(given, "rope_parameters", dict.fromkeys(LAYER_TYPES))
    nested.refuse_unknown(frozenset(), {})
    rope = {}
    for kind in used:
        if not nested.mapping(kind):
            raise nested.wrong(kind, "an object: this model has layers of that type")
        defaults = _OBJECT | {"partial_rotary_factor": None}
        one = nested.inner(nested.mapping(kind), kind, defaults)
        share = 1.0
        if one.get("partial_rotary_factor") is not None:
            share = one.number("partial_rotary_factor", *NUMBERS["rope_partial_factor"])
        if share != 1.0 and "proportional" not in (one.get("rope_type"), one.get("type")):
            raise one.wrong("partial_rotary_factor", "none beside a rope_type other than 'proportional'")
        theta = one.number("rope_theta", *NUMBERS["rope_theta"])
        rope[kind] = _read_scaling(one, tuple(_TYPES), keys, family, theta)._replace(partial_factor=share)
    return rope


def _read_scaling(part: Keys, supported: tuple[str, ...], keys: Keys, family: Family, theta: float) -> Rope:
    """The rotation that a RoPE object describes. ``keys`` are those of the text model."""
    names = [key for key in ("rope_type", "type") if part.get(key) is not None]
    for name in names:
        if part.get(name) not in supported:  # before its keys are reported as unknown
            listed = ", ".join(repr(choice) for choice in supported)
            why = "no other RoPE type is supported; no published Gemma has one"
            if part.get(name) == "longrope":
                why = "'longrope' turns all tokens of a text otherwise as soon as the text is long"
            raise part.wrong(name, f"one of {listed} ({why})")
    rope_type = part.get(names[0]) if names else "default"
    part = Keys(part.raw, part.where, part.prefix, {**part.defaults, **_TYPES[rope_type]}, part.passed_over)
    part.refuse_unknown(frozenset(), {})
    if len({part.get(name) for name in names}) > 1:
        raise part.wrong("type", f"the value of rope_type ({show(part.get('rope_type'))})")
    if rope_type == "llama3":
        return Rope(theta, special=_read_llama3(part, keys))
    if rope_type == "yarn":
        return Rope(theta, special=_read_yarn(part, keys, family, theta))
    factor = part.get("factor")
    if rope_type == "linear" or (rope_type == "proportional" and factor is not None):
        return Rope(theta, part.number("factor", *NUMBERS["rope_scaling_factor"]))
    if factor is not None and not names and factor != 1.0:  # somebody may have meant "linear"
        raise part.wrong("factor", "no factor without a rope_type that reads it")
    if factor is not None:
        # "dynamic" changes the frequencies of texts beyond max_position_embeddings, and no text may be longer
        part.pass_over("factor")
    return Rope(theta)


_LEAST, _MOST = 1e-3, 1e6  # of the numbers that llama3 and yarn read


def _read_context(part: Keys, keys: Keys) -> float:
    """The longest text of the pretraining."""
    longest = keys.integer("max_position_embeddings", LIMITS["max_position_embeddings"])
    if part.get(_CONTEXT) is None:
        return float(longest)
    return float(part.integer(_CONTEXT, LIMITS["max_position_embeddings"]))


def _read_llama3(part: Keys, keys: Keys) -> Llama3:
    low, high = (part.number(f"{name}_freq_factor", _LEAST, _MOST) for name in ("low", "high"))
    if high <= low:
        raise part.wrong("high_freq_factor", f"more than low_freq_factor ({low:g})")
    factor = part.number("factor", *NUMBERS["rope_scaling_factor"])
    return Llama3(factor, low, high, _read_context(part, keys))


def _read_yarn(part: Keys, keys: Keys, family: Family, theta: float) -> Yarn:
    def number(name: str, otherwise: float) -> float:
        return part.number(name, _LEAST, _MOST) if part.get(name) else otherwise  # like transformers for 0

    context = _read_context(part, keys)
    if part.get("factor") is None and "factor" in part.raw:
        factor = keys.integer("max_position_embeddings", LIMITS["max_position_embeddings"]) / context
    else:
        factor = part.number("factor", *NUMBERS["rope_scaling_factor"])
    if theta <= 1:
        raise ConfigError(
            f"{part.where}: rope_theta is {theta}; expected more than 1 beside rope_type 'yarn'"
        )

    def strength(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if part.get("attention_factor") is not None:
        attention_factor = part.number("attention_factor", 1e-2, 1e2)
    elif part.get("mscale") and part.get("mscale_all_dim"):
        attention_factor = strength(number("mscale", 1)) / strength(number("mscale_all_dim", 1))
    else:
        attention_factor = strength(1)
    whole_pairs = part.get("truncate") is None or part.flag("truncate")
    if not whole_pairs and family.rope != "flat":  # transformers does not look for the key there
        raise part.wrong(
            "truncate", "true, which is what transformers does with this model whatever the key says"
        )
    return Yarn(
        factor, number("beta_fast", 32), number("beta_slow", 1), context, attention_factor, whole_pairs
    )
