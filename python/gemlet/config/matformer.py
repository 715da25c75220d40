"""MatFormer: a smaller Gemma 3n, cut out of a larger one while it is loaded or converted.

The models are nested (Devvrit et al. 2023, "MatFormer: Nested Transformer for Elastic Inference",
arXiv:2310.07707): an MLP of the smaller one is the first lanes of the larger one's, and every layer may have
a width of its own. Layers may be left out too, with their columns of the table of per-layer embeddings and
their rows of its projection. Everything else is the same, so a cut only skips parts of the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.records import replace
from gemlet.base.text import show
from gemlet.config.layers import default_sparsity
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError

__all__ = ["check_matformer", "cut_config", "cut_keys", "parse_matformer"]

# Name -> (layers and width of the model it is cut from, its own width, layers left out).
NAMED: Mapping[str, tuple[int, int, int, tuple[int, ...]]] = {"E2B": (35, 16384, 8192, (20, 21, 22, 23, 24))}
_EXPECTED = (
    "expected 'E2B', a width for all layers, a list of widths, or "
    "{'intermediate_size': width or list of widths, 'skip_layers': list of layers}"
)


def check_matformer(matformer: object) -> None:
    """Raises :class:`InvalidRequestError` for a size that no model can be cut to. None means no cut."""
    if isinstance(matformer, str) and matformer not in NAMED:
        raise InvalidRequestError(f"matformer is {show(matformer)}; {_EXPECTED}")
    if matformer is None or isinstance(matformer, str):
        return
    given = _mapping(matformer)
    for name, value in given.items():
        _integers(name, value)


def cut_config(config: TextConfig, matformer: object) -> tuple[TextConfig, tuple[int, ...]]:
    """The configuration of the smaller model, and which layers of the larger one it has.

    Raises :class:`UnsupportedError` for a family that is not a MatFormer, :class:`InvalidRequestError` for
    what cannot be cut out of this model.

    >>> from gemlet.config import shape_config
    >>> small, layers = cut_config(shape_config("gemma3n-e4b"), "E2B")
    >>> small.layers == shape_config("gemma3n-e2b").layers, layers[19:21]
    (True, (19, 25))
    """
    if config.family != "gemma3n":
        raise UnsupportedError(f"matformer: a {config.family} model is not a MatFormer; only Gemma 3n is")
    widths, skipped = _read(config, matformer)
    kept = tuple(i for i in range(config.num_layers) if i not in skipped)
    place = {layer: i for i, layer in enumerate(kept)}
    widths = widths * len(kept) if len(widths) == 1 else widths
    if len(widths) != len(kept):
        raise InvalidRequestError(
            f"matformer: {len(widths)} widths for the {len(kept)} layers that are kept; expected one for each"
        )
    layers = []
    for i, width in zip(kept, widths, strict=True):
        layer = config.layers[i]
        if not 1 <= width <= layer.intermediate_size:
            raise InvalidRequestError(
                f"matformer: width {width} for layer {i}; expected 1 to its own, {layer.intermediate_size}"
            )
        if layer.kv_source in skipped:
            raise InvalidRequestError(
                f"matformer: skip_layers has layer {layer.kv_source}, whose keys and values layer {i} reads; "
                "keep it, or skip both"
            )
        source = layer.kv_source if layer.kv_source < 0 else place[layer.kv_source]
        layers.append(replace(layer, intermediate_size=width, kv_source=source))
    return replace(config, layers=tuple(layers)), kept


def cut_keys(raw: Mapping[str, Any], config: TextConfig, matformer: object) -> dict[str, Any]:
    """``config.json`` of the smaller model: ``raw`` is that of the larger one, whose configuration is
    ``config``."""
    small, kept = cut_config(config, matformer)
    text = raw.get("text_config", raw)
    widths = [layer.intermediate_size for layer in small.layers]
    shares = text.get("activation_sparsity_pattern") or default_sparsity(config.num_layers)
    keys: dict[str, Any] = {
        "num_hidden_layers": len(kept),
        "layer_types": [
            "sliding_attention" if layer.sliding_window else "full_attention" for layer in small.layers
        ],
        "num_kv_shared_layers": sum(layer.kv_source >= 0 for layer in small.layers),
        "activation_sparsity_pattern": [shares[i] for i in kept],
    }
    if "gguf" in raw:
        cutoffs = [layer.activation_sparsity for layer in small.layers]
        keys["gguf"] = raw["gguf"] | {"intermediate_size": widths, "activation_sparsity": cutoffs}
    else:
        keys["intermediate_size"] = widths
    return {**raw, "text_config": {**text, **keys}} if "text_config" in raw else {**raw, **keys}


def _read(config: TextConfig, matformer: object) -> tuple[list[int], set[int]]:
    """Widths (one for all, or one per kept layer) and the layers to skip."""
    if isinstance(matformer, str):
        check_matformer(matformer)
        count, full, width, left_out = NAMED[matformer]
        if [layer.intermediate_size for layer in config.layers] != [full] * count:
            raise InvalidRequestError(
                f"matformer is {matformer!r}, which is cut from {count} layers of width {full} (E4B); this "
                f"model has {config.num_layers} layers, the first {config.layers[0].intermediate_size} wide"
            )
        return [width], set(left_out)
    given = _mapping(matformer)
    skipped = _integers("skip_layers", given.get("skip_layers", ()))
    for layer in skipped:
        if not 0 <= layer < config.num_layers:
            raise InvalidRequestError(
                f"matformer: skip_layers has layer {layer}; expected 0 to {config.num_layers - 1}"
            )
    if len(set(skipped)) == config.num_layers:
        raise InvalidRequestError("matformer: skip_layers leaves no layer; expected at least one to be kept")
    own = [layer.intermediate_size for i, layer in enumerate(config.layers) if i not in skipped]
    return _integers("intermediate_size", given.get("intermediate_size", own)), set(skipped)


def _mapping(matformer: object) -> Mapping[Any, Any]:
    """A ``matformer`` that is not a name, as a mapping."""
    given: Mapping[Any, Any] = (
        matformer if isinstance(matformer, Mapping) else {"intermediate_size": matformer}
    )
    if not given or given.keys() - {"intermediate_size", "skip_layers"}:
        raise InvalidRequestError(f"matformer is {show(matformer)}; {_EXPECTED}")
    return given


def parse_matformer(text: str) -> object:
    """``matformer`` as a command line has it: a name, widths separated by commas, or a JSON object.

    Raises :class:`InvalidRequestError` for anything else.

    >>> parse_matformer("E2B"), parse_matformer("8192"), parse_matformer('{"skip_layers": [20, 21]}')
    ('E2B', 8192, {'skip_layers': [20, 21]})
    """
    if text in NAMED:
        return text
    try:
        value = json.loads(text if text.startswith("{") else f"[{text}]")
    except (ValueError, RecursionError):
        raise InvalidRequestError(f"matformer is {show(text)}; {_EXPECTED}") from None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _integers(name: str, value: object) -> list[int]:
    values: list[Any] = list(value) if isinstance(value, Sequence) else [value]
    if any(type(item) is not int for item in values):
        raise InvalidRequestError(f"matformer: {name} is {show(value)}; expected integers")
    return values
