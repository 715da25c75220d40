"""Reads the ``config.json`` of every Gemma into a :class:`~gemlet.config.TextConfig`.

What each family's keys mean is data (``families.py``); this module reads and checks the keys about the whole
model, ``layers.py`` those about its layers, and ``rope.py`` those about RoPE.

A ``config.json`` is hostile until checked: every number has a type and a range, chosen so that no product
of sizes leaves 64 bits, and a key that is neither used nor known to be harmless is an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gemlet.base.files import own_path
from gemlet.base.front_door import public
from gemlet.base.keys import Keys
from gemlet.base.names import not_known
from gemlet.base.records import replace
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.config.audio_config import read_audio, read_tables
from gemlet.config.families import (
    ASSISTANT,
    ASSISTANT_IGNORED,
    ASSISTANTS,
    FAMILIES,
    MULTIMODAL,
    NEUTRAL,
    RELATIVES,
    Family,
)
from gemlet.config.layers import embeds, read_gguf_layers, read_layers, read_size
from gemlet.config.limits import LIMITS, NUMBERS
from gemlet.config.placeholders import with_placeholders
from gemlet.config.quantization import (
    GEMMA,
    quantizes_embeddings,
    read_quantization,
    refuse_quantized,
)
from gemlet.config.shapes import SHAPES, TOWER_SHAPES
from gemlet.config.text_config import TextConfig
from gemlet.config.vision_config import read_vision
from gemlet.errors import ConfigError, InvalidRequestError, ModelFileError

__all__ = ["parse_config", "read_config", "shape_config"]


@public
def read_config(folder: str | os.PathLike[str]) -> TextConfig:
    """Reads ``folder/config.json``.

    Raises:
        ModelFileError: the file is missing or cannot be read.
        ConfigError: it describes something gemlet does not run; the message names the key.

    >>> import os, gemlet
    >>> read_config(os.path.join(os.path.dirname(gemlet.__file__), "demo")).model_type
    'gemma3_text'
    """
    path = os.path.join(own_path(os.fspath(folder)), "config.json")
    if not os.path.lexists(path):
        raise ModelFileError(f"{path}: missing; expected a Hugging Face model folder with a config.json")
    return parse_config(read_json_object(path, error=ConfigError), where=path)


@public
def shape_config(name: str, *, towers: bool = False) -> TextConfig:
    """The configuration of a published size, by its name in ``SHAPES``. It needs no file. With ``towers``, it
    includes the towers for images and sound.

    Raises:
        InvalidRequestError: there is no such name; the message lists them.

    >>> shape_config("gemma4-e2b").num_layers
    35
    """
    if name not in SHAPES:
        raise InvalidRequestError(f"unknown shape {show(name)}{not_known(name, SHAPES)}")
    raw = SHAPES[name]
    if towers and name in TOWER_SHAPES:
        raw = {**TOWER_SHAPES[name], "text_config": raw}
    return parse_config(raw, where=f"shape {name}")


@public
def parse_config(raw: Mapping[str, Any], *, where: str) -> TextConfig:
    """The text model a parsed ``config.json`` describes; ``where`` names the file in errors.

    For a model from GGUF, the text part has an object "gguf" with the ``intermediate_size`` and, in Gemma 3n,
    the ``activation_sparsity`` (:class:`LayerSpec`) of each layer. Its norm weights already include the 1.

    Raises:
        ConfigError: a key is missing, unknown or out of range, or asks for something that no Gemma does;
            names it.

    >>> try:
    ...     parse_config({**SHAPES["gemma3-1b"], "num_experts": 4}, where="config.json")
    ... except ConfigError as error:
    ...     print("unknown key 'num_experts'" in str(error))
    True
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: is {show(raw)}; expected an object")
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in MULTIMODAL:
        return _parse_multimodal(raw, where, model_type)
    if isinstance(model_type, str) and model_type in ASSISTANTS:
        return _parse_assistant(raw, where, model_type)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        kind = next((kind for kind in RELATIVES if str(model_type).startswith(kind)), None)
        if kind is not None:
            raise ConfigError(
                f"{where}: model_type is {show(model_type)}: {RELATIVES[kind]}, which gemlet does not run; "
                "run it with transformers"
            )
        known = ", ".join(repr(name) for name in (*FAMILIES, *MULTIMODAL, *ASSISTANTS))
        got = "is missing" if model_type is None else f"is {show(model_type)}"
        raise ConfigError(f"{where}: unknown architecture: model_type {got}; expected one of {known}")
    family = FAMILIES[model_type]
    text = {key: value for key, value in raw.items() if key != "gguf"}
    keys = Keys(text, where, "", family.defaults)
    config = _with_quantization(_parse_text(keys, family, model_type), keys)
    if "gguf" not in raw:
        return config
    config = _with_gguf(config, family, raw, where)
    sees = not config.bidirectional or config.projects_itself
    return with_placeholders(config, Keys({}, where, "")) if sees else config


def _with_gguf(config: TextConfig, family: Family, raw: Mapping[str, Any], where: str) -> TextConfig:
    """``config`` with what only GGUF says, in the object "gguf" of ``raw``."""
    if not isinstance(raw["gguf"], dict):
        raise Keys(raw, where, "").wrong("gguf", "an object")
    names = ["intermediate_size"]
    if "activation_sparsity_pattern" in family.defaults:
        names.append("activation_sparsity")
    has_dense = config.bidirectional and not config.projects_itself
    if has_dense:
        names.append("dense_sizes")
    own = Keys(raw["gguf"], where, "gguf.", dict.fromkeys(names))
    own.refuse_unknown(frozenset(), {})
    layers = read_gguf_layers(own, config.layers)
    config = replace(config, model_type=family.name, norm_offset=0.0, layers=layers)
    if not has_dense:
        return config
    sizes, limit = own.get("dense_sizes"), LIMITS["hidden_size"]
    if (
        not isinstance(sizes, list)
        or len(sizes) > 16
        or any(type(n) is not int or not 1 <= n <= limit for n in sizes)
    ):
        raise own.wrong("dense_sizes", f"up to 16 integers from 1 to {limit}")
    return replace(config, model_type="gemma-embedding", dense_sizes=tuple(sizes))


def _parse_multimodal(raw: Mapping[str, Any], where: str, model_type: str) -> TextConfig:
    """Reads a model with images or sound. Its text part is ``text_config``, which lacks keys equal to the
    defaults."""
    text_type, ignored = MULTIMODAL[model_type]
    family = FAMILIES[text_type]
    repeated = [key for key in raw if key in family.defaults and key not in ignored]
    read = ["text_config", "eos_token_id", "tie_word_embeddings", *repeated]
    outer = Keys(raw, where, "", dict.fromkeys(read))
    outer.refuse_unknown(ignored, family.fixed, NEUTRAL)
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise outer.wrong("text_config", f"an object with the keys of a {text_type} configuration")
    if text.get("model_type") not in (None, text_type):
        raise Keys(text, where, "text_config.").wrong("model_type", repr(text_type))
    merged = {key: value for key, value in text.items() if key != "gguf"}
    # For these two keys the outer object counts. The tensors decide anyway whether the head is tied.
    if raw.get("tie_word_embeddings") is not None:
        merged["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if raw.get("eos_token_id") is not None:
        merged["eos_token_id"] = raw["eos_token_id"]
    inner = Keys(merged, where, "text_config.", family.defaults, outer.passed_over)
    for key in repeated:
        if key in ("eos_token_id", "tie_word_embeddings"):
            continue
        if raw[key] is not None and raw[key] != inner.get(key):
            raise outer.wrong(key, f"the value of text_config.{key} ({show(inner.get(key))})")
        outer.pass_over(key)
    for keys in (outer, inner):
        if embeds(keys, family) and not family.embeds:
            raise keys.wrong("use_bidirectional_attention", "false, as in every model with images or sound")
    config = _parse_text(inner, family, model_type)
    if family.name == "gemma3" and config.final_softcap and "gguf" not in text:
        raise inner.wrong(
            "final_logit_softcapping", "null: transformers has no cap on the logits of this class"
        )
    if "gguf" in text:  # images and sound come from another file
        config = _with_gguf(config, family, text, where)
    config = with_placeholders(config, outer)
    if (quantized := _with_quantization(config, outer)).quantization is None:
        quantized = _with_quantization(config, inner)
    config = quantized
    if model_type == "shieldgemma2":
        verdicts = Keys(raw, where, "", {"yes_token_index": 10784, "no_token_index": 3771})
        yes, no = (verdicts.integer(key, config.vocab_size - 1, 0) for key in verdicts.defaults)
        config = replace(config, verdict_ids=(yes, no))
    return replace(
        config,
        vision=read_vision(outer, config.family),
        audio=read_audio(outer, config.family),
        tables=read_tables(outer, config.family),
    )


def _with_quantization(config: TextConfig, keys: Keys) -> TextConfig:
    method = read_quantization(keys)
    exact = (method == GEMMA and quantizes_embeddings(keys)) or (method is not None and _is_float32(keys))
    return replace(
        config, quantization=method, exact_embedding_scale=exact, passed_over=tuple(keys.passed_over)
    )


def _is_float32(keys: Keys) -> bool:
    return "float32" in (keys.raw.get("dtype"), keys.raw.get("torch_dtype"))


def _parse_assistant(raw: Mapping[str, Any], where: str, model_type: str) -> TextConfig:
    """A drafter: layers of Gemma 4 that read the keys and values of a target model. The target is known only
    when the drafter is loaded (:mod:`gemlet.loading.drafter`)."""
    family = FAMILIES["gemma4_text"]
    outer = Keys(raw, where, "", ASSISTANT)
    refuse_quantized(outer)
    outer.refuse_unknown(ASSISTANT_IGNORED, {})
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise outer.wrong("text_config", "an object with the keys of a gemma4_text configuration")
    given = Keys(text, where, "text_config.", family.defaults)
    count = read_size(given, "num_hidden_layers")
    for key, values in (
        ("num_kv_shared_layers", (count, 0, None)),  # the reference makes `count` of it
        ("hidden_size_per_layer_input", (0, None)),
        ("enable_moe_block", (False, None)),
        ("use_double_wide_mlp", (False, None)),
    ):
        if text.get(key) not in values:
            raise given.wrong(key, f"{show(values[0])}: a drafter has nothing else")
    if not outer.flag("tie_word_embeddings"):
        raise outer.wrong("tie_word_embeddings", "true: the embedding of a drafter is its output matrix")
    own = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "tie_word_embeddings": True}
    inner = Keys({**text, **own}, where, "text_config.", family.defaults, outer.passed_over)
    refuse_quantized(inner)
    config = _parse_text(inner, family, model_type)
    centroids = chosen = 0
    if outer.flag("use_ordered_embeddings"):
        centroids = outer.integer("num_centroids", LIMITS["hidden_size"])
        chosen = outer.integer("centroid_intermediate_top_k", centroids)
        if config.vocab_size % centroids:
            raise outer.wrong("num_centroids", f"a divisor of text_config.vocab_size ({config.vocab_size})")
    layers = tuple(replace(layer, kv_source=0, key_is_value=False) for layer in config.layers)
    return replace(
        config,
        layers=layers,
        target_size=outer.integer("backbone_hidden_size", LIMITS["hidden_size"]),
        centroids=centroids,
        centroids_per_token=chosen,
    )


def _parse_text(keys: Keys, family: Family, model_type: str) -> TextConfig:
    keys.refuse_unknown(family.ignored, family.fixed, NEUTRAL)
    vocab_size = read_size(keys, "vocab_size")
    bidirectional = embeds(keys, family)
    context = read_size(keys, "max_position_embeddings")
    config = TextConfig(
        family=family.name,
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=read_size(keys, "hidden_size"),
        max_position_embeddings=min(context, family.most_tokens or context),
        rms_norm_eps=keys.number("rms_norm_eps", *NUMBERS["rms_norm_eps"]),
        exact_gelu=keys.get(family.activation) in family.exact_gelu,
        final_softcap=_read_final_softcap(keys),
        norm_offset=family.norm_offset,
        # An embedding model needs no output matrix; null means the same as a missing key.
        tie_word_embeddings=bidirectional
        or keys.raw.get("tie_word_embeddings") is None
        or keys.flag("tie_word_embeddings"),
        pad_token_id=keys.token_id("pad_token_id", vocab_size),
        bos_token_id=next(iter(keys.token_ids("bos_token_id", vocab_size)), None),
        eos_token_ids=keys.token_ids("eos_token_id", vocab_size),
        layers=read_layers(keys, family),
        bidirectional=bidirectional,
        passed_over=tuple(keys.passed_over),
    )
    if "altup_num_inputs" in family.defaults:
        config = replace(
            config,
            altup_streams=read_size(keys, "altup_num_inputs", low=2),
            laurel_rank=read_size(keys, "laurel_rank"),
        )
    if "hidden_size_per_layer_input" in family.defaults:
        # A layer of Gemma 3n needs them, and so does one of EmbeddingGemma 2, which has no table of them.
        needed, has_table = config.altup_streams > 1 or family.embeds, not family.embeds
        size = read_size(keys, "hidden_size_per_layer_input", low=int(needed))
        rows = read_size(keys, "vocab_size_per_layer_input") if size and has_table else 0
        config = replace(config, per_layer_input_size=size, per_layer_vocab_size=rows)
    if "embedding_dim" in family.defaults:
        size = keys.integer("embedding_dim", LIMITS["hidden_size"])
        config = replace(config, dense_sizes=(size,), projects_itself=True)
    return config


def _read_final_softcap(keys: Keys) -> float:
    softcap = keys.cap("final_logit_softcapping")
    if not softcap and keys.defaults.get("altup_num_inputs"):  # the reference has no Gemma 3n without one
        raise keys.wrong("final_logit_softcapping", "a number: every Gemma 3n has a cap on its logits")
    return softcap
