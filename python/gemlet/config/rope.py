"""Reading how positions are rotated: the keys of ``config.json`` about RoPE, in both spellings.

Old files (transformers 4) have ``rope_theta``, ``rope_local_base_freq`` and ``rope_scaling``; new ones
(transformers 5) have ``rope_parameters``. Where two keys say the same thing they must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gemlet.base.keys import Keys
from gemlet.base.text import show
from gemlet.config.families import Family
from gemlet.config.limits import NUMBERS
from gemlet.errors import ConfigError

__all__ = ["LAYER_TYPES", "Rope", "read_rope"]

LAYER_TYPES = ("sliding_attention", "full_attention")


class Rope(NamedTuple):
    """``scaling_factor`` divides the positions; ``partial_factor`` is the share of the pairs that rotate."""

    theta: float
    scaling_factor: float = 1.0
    partial_factor: float = 1.0


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
    scaled = [part for part in (new, old) if part.raw.keys() - {"rope_theta"}]
    factors = {part.label("factor"): _read_scaling(part, ("default", "linear"))[1] for part in scaled}
    for found in (thetas, factors):
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{label} = {value:g}" for label, value in found.items())
            raise ConfigError(f"{listed}: these keys contradict each other; expected one value")
    return Rope(next(iter(thetas.values()), default_theta), next(iter(factors.values()), 1.0))


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
        rope_type, factor = _read_scaling(one, ("default", "linear", "proportional"))
        share = 1.0
        if one.get("partial_rotary_factor") is not None:
            share = one.number("partial_rotary_factor", *NUMBERS["rope_partial_factor"])
        if share != 1.0 and rope_type != "proportional":
            raise one.wrong("partial_rotary_factor", "none beside a rope_type other than 'proportional'")
        rope[kind] = Rope(one.number("rope_theta", *NUMBERS["rope_theta"]), factor, share)
    return rope


def _read_scaling(keys: Keys, supported: tuple[str, ...]) -> tuple[str, float]:
    """The type of a RoPE object and the factor that its positions are divided by."""
    names = [key for key in ("rope_type", "type") if keys.get(key) is not None]
    for name in names:
        if keys.get(name) not in supported:  # before its keys are reported as unknown
            listed = " or ".join(repr(choice) for choice in supported)
            raise keys.wrong(name, f"{listed} (no other RoPE type is supported; no published Gemma has one)")
    keys.refuse_unknown(frozenset(), {})
    if len({keys.get(name) for name in names}) > 1:
        raise keys.wrong("type", f"the value of rope_type ({show(keys.get('rope_type'))})")
    rope_type = keys.get(names[0]) if names else "default"
    factor = keys.get("factor")
    if rope_type == "linear" or (rope_type == "proportional" and factor is not None):
        return rope_type, keys.number("factor", *NUMBERS["rope_scaling_factor"])
    if factor is not None and not names and factor != 1.0:  # somebody may have meant "linear"
        raise keys.wrong("factor", "no factor without a rope_type that reads it")
    if factor is not None:
        keys.pass_over("factor")
    return rope_type, 1.0
