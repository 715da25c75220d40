"""Reads ``quantization_config`` of a ``config.json``: whether and how the weights are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys, says_nothing
from gemlet.base.text import show
from gemlet.errors import ConfigError

__all__ = ["COMPRESSED", "GEMMA", "quantizes_embeddings", "read_quantization", "refuse_quantized"]

GEMMA = "gemma"  # Google's QAT for mobile: 2, 4 or 8 bits with a scale for a row, and rounded activations
COMPRESSED = "compressed-tensors"  # only its forms of symmetric 4 bits with a scale for a group or a row

# quant_method of transformers -> its usual name
_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM FP8",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
_REMEDY = "load the bf16 original, with weights='q8' or 'q4' to make it small, or a GGUF file of the model"
# Switches of bitsandbytes: without them its other keys change nothing.
_SWITCHES = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
_KEYS = ("quantization_config", "quantization")  # mlx-lm writes both, with the same content
_BITS = (2, 4, 8)
# The settings of compressed-tensors that gemlet reads, and keys whose value changes nothing here.
_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True}
_GROUPING = ("strategy", "group_size", "actorder")
_COMPRESSED_FORMS = (
    "gemlet reads symmetric 4 bits, with a scale for a row or for a group of a multiple of 32 columns in "
    f"their order. Otherwise {_REMEDY}"
)
_NOTES = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype", "dynamic", "block_structure")
_WHOLE = {"format": "pack-quantized", "quantization_status": "compressed"}
_WHOLE_NOTES = ("quant_method", "config_groups", "ignore", "version", "global_compression_ratio")


def read_quantization(keys: Keys) -> str | None:
    """Reads the form in which the weights are quantized: :data:`GEMMA`, :data:`COMPRESSED`, or None if they
    are not quantized. A ``quantization_config`` that asks for nothing is ignored.

    The bits of a matrix come from its tensor; the reference refuses a file in which the two differ. So only
    the form of name patterns is checked, because matching a file's regular expressions may take any time.

    Raises:
        ConfigError: the weights are quantized in another way; the message names the method and the way out.
    """
    found = None
    for key in _KEYS:
        value = keys.raw.get(key)
        if key not in keys.raw or says_nothing(value) or _is_switched_off(value):
            if value is not None:
                keys.pass_over(key)
            continue
        method = value.get("quant_method") if isinstance(value, dict) else None
        if isinstance(value, dict) and method == GEMMA:
            _check_gemma(keys, key, value)
        elif isinstance(value, dict) and method == COMPRESSED:
            _check_compressed(keys, key, value)
        else:
            raise ConfigError(
                f"{keys.label(key)}: the weights are quantized with {_method(value)}; {_REMEDY}"
            )
        found = method
    return found


def quantizes_embeddings(keys: Keys) -> bool:
    """Whether a :data:`GEMMA` configuration says that the embeddings are quantized, too."""
    found = (keys.raw.get(key) for key in _KEYS)
    return any(isinstance(value, dict) and bool(value.get("quantize_embeddings")) for value in found)


def _check_gemma(keys: Keys, key: str, value: Mapping[str, Any]) -> None:
    def check(name: str, fits: bool, expected: str) -> None:
        if name in value and not fits:
            raise ConfigError(f"{keys.label(key)}.{name} is {show(value[name])}; expected {expected}")

    bits = value.get("num_bits")
    check("num_bits", type(bits) is int and bits in _BITS, "2, 4 or 8")
    embeddings = value.get("quantize_embeddings")
    check("quantize_embeddings", embeddings is None or type(embeddings) is bool, "true or false")
    skipped = value.get("modules_to_not_convert")
    names = isinstance(skipped, list) and all(isinstance(name, str) for name in skipped)
    check("modules_to_not_convert", skipped is None or names, "a list of names, or null")
    modules = value.get("module_quant_configs")
    fits = modules is None or (
        isinstance(modules, dict)
        and all(
            isinstance(one, dict)
            and set(one) <= {"num_bits"}
            and all(type(n) is int and n in _BITS for n in one.values())
            for one in modules.values()
        )
    )
    check("module_quant_configs", fits, '{pattern: {"num_bits": 2, 4 or 8}}, or null')
    known = (
        "quant_method",
        "num_bits",
        "quantize_embeddings",
        "module_quant_configs",
        "modules_to_not_convert",
    )
    _refuse_others(keys, key, value, known)


def _check_compressed(keys: Keys, key: str, value: Mapping[str, Any]) -> None:
    def expect(where: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for name, wanted in expected.items():
            got = given.get(name)
            if type(got) is not type(wanted) or got != wanted:
                raise ConfigError(
                    f"{keys.label(key)}{where}.{name} is {show(got)}; expected {show(wanted)}: of "
                    f"compressed-tensors, {_COMPRESSED_FORMS}"
                )

    expect("", value, _WHOLE)
    groups = value.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"{keys.label(key)}.config_groups is {show(groups)}; expected an object of groups")
    for name, group in groups.items():
        where = f".config_groups.{show(name)}"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(group, dict) or not isinstance(weights, dict):
            raise ConfigError(f"{keys.label(key)}{where} is {show(group)}; expected an object with weights")
        expect(f"{where}.weights", weights, _WEIGHTS)
        _check_grouping(f"{keys.label(key)}{where}.weights", weights)
        _refuse_others(keys, f"{key}{where}.weights", weights, (*_WEIGHTS, *_GROUPING, *_NOTES))
        format = group.get("format")
        if format is not None:
            expect(where, group, {"format": "pack-quantized"})
        _refuse_others(keys, f"{key}{where}", group, ("targets", "weights", "format"))
    _refuse_others(keys, key, value, (*_WHOLE, *_WHOLE_NOTES))


def _check_grouping(label: str, weights: Mapping[str, Any]) -> None:
    strategy, size, order = (weights.get(name) for name in _GROUPING)
    wrong = None
    if strategy not in ("group", "channel"):
        wrong = f"strategy is {show(strategy)}; expected 'group' or 'channel'"
    elif strategy == "channel" and size not in (None, -1):
        wrong = f"group_size is {show(size)}; expected null for one scale in a row"
    elif strategy == "group" and (type(size) is not int or size <= 0 or size % 32):
        wrong = f"group_size is {show(size)}; expected a multiple of 32"
    elif order is not None and order is not False and order not in ("weight", "static"):
        # With 'group', neighbouring columns have different scales.
        wrong = f"actorder is {show(order)}; expected 'weight' or null"
    if wrong is not None:
        raise ConfigError(f"{label}.{wrong}: of compressed-tensors, {_COMPRESSED_FORMS}")


def _refuse_others(keys: Keys, key: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name, setting in value.items():
        if name not in known and not says_nothing(setting):
            raise ConfigError(
                f"{keys.label(key)}: unknown key {show(name)} (value {show(setting)}); expected only keys "
                "gemlet knows, because any other may change what the model computes"
            )


def _is_switched_off(value: Any) -> bool:
    """Whether these are leftovers of bitsandbytes in a folder that was saved again without quantization."""
    if not isinstance(value, dict) or value.get("quant_method") not in (None, "", "bitsandbytes"):
        return False
    given = [value[switch] for switch in _SWITCHES if switch in value]
    return bool(given) and not any(given)


def _method(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a method gemlet does not know ({show(value)})"
    method = value.get("quant_method")
    if isinstance(method, str) and method:
        return _METHODS.get(method, show(method))
    if any(value.get(switch) for switch in _SWITCHES):
        return "bitsandbytes"
    if "bits" in value and "group_size" in value:
        return "MLX or GPTQ"  # both write these two keys; only MLX leaves out the method
    return f"a method gemlet does not know ({show(value)})"


def refuse_quantized(keys: Keys) -> None:
    """Refuses quantized weights of a drafter, which :func:`read_quantization` would read."""
    if (method := read_quantization(keys)) is not None:
        raise ConfigError(f"{keys.where}: the weights are quantized with {method}; a drafter has floats")
