"""Hugging Face ``config.json`` of Gemma 1, 2 and 3 as a checked, frozen description of the text model.

What each family's keys mean is data (``families.py``); this module reads, checks and resolves them: the layer
pattern, one RoPE base and scale per layer, the score scale, the caps. Both spellings of RoPE are read:
``rope_theta``, ``rope_local_base_freq``, ``rope_scaling`` (transformers 4) and ``rope_parameters``
(transformers 5). Where two keys say the same thing they must agree.

A ``config.json`` is hostile until checked: every number has a type and a range, chosen so that no product of
sizes leaves 64 bits, and a key that is neither used nor known to be harmless is an error that names it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemlet._json import Keys, read_json_object, show
from gemlet.errors import ConfigError, InvalidRequestError, ModelFileError
from gemlet.families import FAMILIES, FIXED_KEYS, IGNORED_KEYS, MULTIMODAL_IGNORED_KEYS, SHAPES, Family

if TYPE_CHECKING:
    from gemlet import _core

__all__ = [
    "SHAPES",
    "LayerSpec",
    "TextConfig",
    "embedding_scale",
    "parse_config",
    "read_config",
    "read_end_ids",
    "shape_config",
]

# Integer key -> largest accepted value. The largest real Gemma stays a factor of ten or more below each.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 4096,
    "max_position_embeddings": 1 << 24,
    "sliding_window": 1 << 24,
}
_LAYER_TYPES = ("sliding_attention", "full_attention")


@dataclass(frozen=True)
class LayerSpec:
    """One transformer layer.

    ``query_scale`` multiplies the scores q.k; ``rope_scaling_factor`` divides the positions;
    ``sliding_window`` is the number of keys a query sees, itself included, 0 for all; ``attention_softcap`` 0
    means none.
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


@dataclass(frozen=True)
class TextConfig:
    """The text model a ``config.json`` describes.

    ``family`` is "gemma", "gemma2" or "gemma3"; ``model_type`` is the file's own word. ``norm_offset`` is
    added to every norm weight (Hugging Face stores ``w``, computes with ``1 + w``). ``final_softcap`` 0 means
    none.

    >>> config = shape_config("gemma3-1b")
    >>> config.num_layers, config.hidden_size, [layer.sliding_window for layer in config.layers[:6]]
    (26, 1152, [512, 512, 512, 512, 512, 0])
    """

    family: str
    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_softcap: float
    norm_offset: float
    tie_word_embeddings: bool
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    layers: tuple[LayerSpec, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def to_core(self, *, weights: str, max_context: int | None = None) -> _core.ModelConfig:
        """The core's form of this configuration for ``weights`` ("f32", "bf16", "q8" or "q4").

        ``max_context`` (tokens) defaults to what the file says.
        """
        from gemlet import _core

        layers = [
            _core.LayerConfig(
                num_heads=layer.num_heads,
                num_kv_heads=layer.num_kv_heads,
                head_dim=layer.head_dim,
                intermediate_size=layer.intermediate_size,
                query_scale=layer.query_scale,
                rope_theta=layer.rope_theta,
                rope_scaling_factor=layer.rope_scaling_factor,
                sliding_window=layer.sliding_window,
                attention_softcap=layer.attention_softcap,
                qk_norm=layer.qk_norm,
                post_norms=layer.post_norms,
            )
            for layer in self.layers
        ]
        return _core.ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_context=self.max_position_embeddings if max_context is None else max_context,
            rms_norm_eps=self.rms_norm_eps,
            embedding_scale=embedding_scale(self.hidden_size, weights),
            layers=layers,
            final_softcap=self.final_softcap,
            norm_offset=self.norm_offset,
            tied_embeddings=self.tie_word_embeddings,
        )


def embedding_scale(hidden_size: int, weights: str) -> float:
    """The factor on embedding rows: sqrt(hidden_size), rounded to bfloat16 unless ``weights`` is "f32".

    The reference keeps the factor in the type of the weights, and every released Gemma is bfloat16; quantized
    weights stand for those, so they take the rounded factor too.

    >>> embedding_scale(640, "bf16"), embedding_scale(1152, "q4")
    (25.25, 34.0)
    """
    import struct

    exact = math.sqrt(hidden_size)
    if weights == "f32":
        return exact
    (bits,) = struct.unpack("<I", struct.pack("<f", exact))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # round to nearest, ties to even
    (rounded,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(rounded)


def read_config(folder: str | os.PathLike[str]) -> TextConfig:
    """Reads ``folder/config.json``.

    Raises :class:`ModelFileError` when the file is missing or cannot be read, :class:`ConfigError` naming the
    key when it describes something gemlet does not run.
    """
    path = os.path.join(os.fspath(folder), "config.json")
    if not os.path.lexists(path):
        raise ModelFileError(f"{path}: missing; expected a Hugging Face model folder with a config.json")
    return parse_config(read_json_object(path, error=ConfigError), where=path)


def read_end_ids(folder: str | os.PathLike[str], config: TextConfig) -> frozenset[int]:
    """The ids that end a text: ``eos_token_id`` of the config and of ``generation_config.json``, if present.

    The second file is where published chat models name their end of turn.
    """
    path = os.path.join(os.fspath(folder), "generation_config.json")
    if not os.path.lexists(path):
        return frozenset(config.eos_token_ids)
    raw = read_json_object(path, error=ConfigError)
    more = Keys(raw, path, "").token_ids("eos_token_id", config.vocab_size)
    return frozenset((*config.eos_token_ids, *more))


def shape_config(name: str) -> TextConfig:
    """The configuration of a published size, by its name in ``SHAPES`` ("gemma3-1b"), without a file."""
    if name not in SHAPES:
        raise InvalidRequestError(f"unknown shape {show(name)}; expected one of {', '.join(SHAPES)}")
    return parse_config(SHAPES[name], where=f"shape {name}")


def parse_config(raw: Mapping[str, Any], *, where: str) -> TextConfig:
    """The text model a parsed ``config.json`` describes; ``where`` names the file in errors."""
    model_type = raw.get("model_type")
    if model_type == "gemma3":
        return _parse_multimodal(raw, where)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(repr(name) for name in (*FAMILIES, "gemma3"))
        got = "is missing" if model_type is None else f"is {show(model_type)}"
        raise ConfigError(f"{where}: unknown architecture: model_type {got}; expected one of {known}")
    return _parse_text(Keys(raw, where, "", FAMILIES[model_type].defaults), FAMILIES[model_type], model_type)


def _parse_multimodal(raw: Mapping[str, Any], where: str) -> TextConfig:
    """Gemma 3 with images: the text part is ``text_config``, which leaves out keys equal to the defaults."""
    outer = Keys(raw, where, "", {"text_config": None, "eos_token_id": None, "tie_word_embeddings": None})
    outer.refuse_unknown(MULTIMODAL_IGNORED_KEYS, FIXED_KEYS)
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise outer.wrong("text_config", "an object with the keys of a gemma3_text configuration")
    family = FAMILIES["gemma3_text"]
    if text.get("model_type", "gemma3_text") != "gemma3_text":
        raise Keys(text, where, "text_config.").wrong("model_type", "'gemma3_text'")
    merged = dict(text)
    # The outer object's word counts for these two; the inner one repeats it or leaves it out.
    if raw.get("tie_word_embeddings") is not None:
        if text.get("tie_word_embeddings") not in (None, raw["tie_word_embeddings"]):
            raise outer.wrong("tie_word_embeddings", "the same value as text_config.tie_word_embeddings")
        merged["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if raw.get("eos_token_id") is not None:
        merged["eos_token_id"] = raw["eos_token_id"]
    return _parse_text(Keys(merged, where, "text_config.", family.defaults), family, "gemma3")


def _parse_text(keys: Keys, family: Family, model_type: str) -> TextConfig:
    keys.refuse_unknown(IGNORED_KEYS, FIXED_KEYS)
    num_layers = _size(keys, "num_hidden_layers")
    num_heads = _size(keys, "num_attention_heads")
    num_kv_heads = _size(keys, "num_key_value_heads")
    if num_heads % num_kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    head_dim = _size(keys, "head_dim")
    if head_dim % 2:
        raise keys.wrong("head_dim", "an even number (RoPE rotates pairs)")
    scalar = keys.number("query_pre_attn_scalar", 1e-6, 1e9) if family.query_scalar else float(head_dim)
    softcap = keys.cap("attn_logit_softcapping")
    rope = _read_rope(keys, family)
    layer_types = _read_layer_types(keys, family, num_layers)
    window = _read_window(keys) if "sliding_attention" in layer_types else 0
    intermediate_size = _size(keys, "intermediate_size")
    kinds = {
        kind: LayerSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            query_scale=scalar**-0.5,
            rope_theta=rope[kind][0],
            rope_scaling_factor=rope[kind][1],
            sliding_window=window if kind == "sliding_attention" else 0,
            attention_softcap=softcap,
            qk_norm=family.qk_norm,
            post_norms=family.post_norms,
        )
        for kind in _LAYER_TYPES
    }
    vocab_size = _size(keys, "vocab_size")
    return TextConfig(
        family=family.name,
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=_size(keys, "hidden_size"),
        max_position_embeddings=_size(keys, "max_position_embeddings"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-12, 1.0),
        final_softcap=keys.cap("final_logit_softcapping"),
        norm_offset=1.0,
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        pad_token_id=keys.token_id("pad_token_id", vocab_size),
        bos_token_id=keys.token_id("bos_token_id", vocab_size),
        eos_token_ids=keys.token_ids("eos_token_id", vocab_size),
        layers=tuple(kinds[kind] for kind in layer_types),
    )


def _size(keys: Keys, key: str) -> int:
    return keys.integer(key, _LIMITS[key])


def _read_window(keys: Keys) -> int:
    window = _size(keys, "sliding_window")
    if keys.get("sliding_window_size") not in (None, window):
        raise keys.wrong("sliding_window_size", f"the value of sliding_window ({window})")
    return window


def _read_layer_types(keys: Keys, family: Family, num_layers: int) -> tuple[str, ...]:
    """One of ``_LAYER_TYPES`` per layer: the file's own list where it has one, else the family's pattern."""
    if family.layer_pattern == 0:
        return ("full_attention",) * num_layers
    pattern = family.layer_pattern
    spellings = ("sliding_window_pattern", "_sliding_window_pattern")
    names = [name for name in spellings if keys.get(name) is not None]
    for name in names:
        pattern = keys.integer(name, _LIMITS["num_hidden_layers"])
        if pattern != keys.get(names[0]):
            raise keys.wrong(name, f"the value of {names[0]} ({show(keys.get(names[0]))})")
    types = keys.get("layer_types")
    if types is None:
        return tuple(_LAYER_TYPES[(i + 1) % pattern == 0] for i in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise keys.wrong("layer_types", f"a list of {num_layers} entries, one per layer (num_hidden_layers)")
    for i, kind in enumerate(types):
        if kind not in _LAYER_TYPES:
            expected = " or ".join(repr(name) for name in _LAYER_TYPES)
            raise ConfigError(f"{keys.label('layer_types')}[{i}] is {show(kind)}; expected {expected}")
    return tuple(types)


def _read_rope(keys: Keys, family: Family) -> dict[str, tuple[float, float]]:
    """layer type -> (theta, factor that positions are divided by)."""
    parameters = keys.mapping("rope_parameters")
    scaling = keys.mapping("rope_scaling")
    if not family.rope_by_layer_type:
        one = _rope_kind(keys, "rope_theta", parameters, "rope_parameters", scaling, family.global_theta)
        return dict.fromkeys(_LAYER_TYPES, one)
    nested = Keys(parameters, keys.where, f"{keys.prefix}rope_parameters.", dict.fromkeys(_LAYER_TYPES))
    nested.refuse_unknown(frozenset(), {})
    legacy = {"sliding_attention": "rope_local_base_freq", "full_attention": "rope_theta"}
    defaults = {"sliding_attention": family.local_theta, "full_attention": family.global_theta}
    return {
        kind: _rope_kind(
            keys,
            legacy[kind],
            nested.mapping(kind),
            f"rope_parameters.{kind}",
            scaling if kind == "full_attention" else {},  # rope_scaling has never applied to sliding layers
            defaults[kind],
        )
        for kind in _LAYER_TYPES
    }


def _rope_kind(
    keys: Keys,
    legacy_theta: str,
    parameters: Mapping[str, Any],
    parameters_key: str,
    scaling: Mapping[str, Any],
    default_theta: float,
) -> tuple[float, float]:
    """(theta, factor) from the new-style object, the old-style keys, or both where they agree."""
    new = Keys(parameters, keys.where, f"{keys.prefix}{parameters_key}.", _ROPE_DEFAULTS)
    old = Keys(scaling, keys.where, f"{keys.prefix}rope_scaling.", _ROPE_DEFAULTS)
    thetas = {
        part.label(name): part.number(name, 1.0, 1e12)
        for part, name in ((new, "rope_theta"), (old, "rope_theta"), (keys, legacy_theta))
        if part.get(name) is not None
    }
    scaled = [part for part in (new, old) if part.raw.keys() - {"rope_theta"}]
    factors = {part.label("factor"): _rope_factor(part) for part in scaled}
    for found in (thetas, factors):
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{label} = {value:g}" for label, value in found.items())
            raise ConfigError(f"{listed}: these keys contradict each other; expected one value")
    return next(iter(thetas.values()), default_theta), next(iter(factors.values()), 1.0)


_ROPE_DEFAULTS: Mapping[str, Any] = {"rope_type": None, "type": None, "rope_theta": None, "factor": None}


def _rope_factor(keys: Keys) -> float:
    """The factor of a RoPE object: its type must be "default" (1.0) or "linear"."""
    keys.refuse_unknown(frozenset(), {})
    names = [key for key in ("rope_type", "type") if keys.get(key) is not None]
    for name in names:
        if keys.get(name) not in ("default", "linear"):
            raise keys.wrong(name, "'default' or 'linear'")
    if len({keys.get(name) for name in names}) > 1:
        raise keys.wrong("type", f"the value of rope_type ({show(keys.get('rope_type'))})")
    if names and keys.get(names[0]) == "linear":
        return keys.number("factor", 1e-3, 1e6)
    if keys.get("factor") not in (None, 1.0):
        raise keys.wrong("factor", "no factor beside the rope type 'default'")
    return 1.0
