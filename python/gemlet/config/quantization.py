"""What ``quantization_config`` of a ``config.json`` says: nothing, or that the weights are quantized."""

from __future__ import annotations

from typing import Any

from gemlet.base.keys import Keys, says_nothing
from gemlet.base.text import show
from gemlet.errors import ConfigError

__all__ = ["refuse_quantized"]

# quant_method of transformers -> the name people know it by
_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM FP8",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "gemma": "Google's QAT for mobile",
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


def refuse_quantized(keys: Keys) -> None:
    """Passes over a ``quantization_config`` that asks for nothing.

    Raises:
        ConfigError: the weights are quantized; the message names the method and the way out.
    """
    for key in _KEYS:
        value = keys.raw.get(key)
        if key not in keys.raw or says_nothing(value) or _is_switched_off(value):
            if value is not None:
                keys.pass_over(key)
            continue
        raise ConfigError(f"{keys.label(key)}: the weights are quantized with {_method(value)}; {_REMEDY}")


def _is_switched_off(value: Any) -> bool:
    """Leftovers of bitsandbytes in a folder that was saved in full again."""
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
