"""quantization_config may be absent, Google's QAT for mobile, or compressed-tensors of 4 bits."""

from __future__ import annotations

from typing import Any

import pytest

import gemlet
from gemlet.config import parse_config
from gemlet.config.shapes import SHAPES

GEMMA = {"quant_method": "gemma"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
NOTES = {"observer": "minmax", "dynamic": False, "actorder": None, "block_structure": None}


def compressed(*, weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS | NOTES | (weights or {}), "input_activations": None}
    found = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    found |= {"quantization_status": "compressed", "config_groups": {"group_0": group}, "version": "0.15.0"}
    return found | changes


def parse(quantization: Any, **changes: Any) -> Any:
    raw = {**SHAPES["gemma3-1b"], "quantization_config": quantization, **changes}
    return parse_config(raw, where="config.json")


def test_each_method_is_recognized() -> None:
    assert parse(None).quantization is None
    assert parse(GEMMA).quantization == "gemma"
    assert parse(compressed()).quantization == "compressed-tensors"
    for grouping in (
        {"group_size": 128, "actorder": "weight"},
        {"strategy": "channel", "group_size": None},
        {"strategy": "channel", "group_size": -1},
        {"actorder": "static"},
    ):
        assert parse(compressed(weights=grouping)).quantization == "compressed-tensors"
    bits = {"module_quant_configs": {"down_proj": {}, "(a+)+$": {"num_bits": 2}}, "num_bits": 8}
    assert parse(GEMMA | bits | {"modules_to_not_convert": ["lm_head"]}).quantization == "gemma"
    assert (
        parse(GEMMA | {"modules_to_not_convert": None, "module_quant_configs": None}).quantization == "gemma"
    )


def test_the_factor_on_embeddings_is_exact_where_they_are_quantized() -> None:
    def scale(quantization: Any, **changes: Any) -> float:
        return parse(quantization, **changes).to_core(weights="r4").embedding_scale

    assert scale(GEMMA | {"quantize_embeddings": True}) == 1152**0.5
    assert scale(GEMMA) == 34.0
    assert scale(GEMMA, dtype="float32") == 1152**0.5
    assert scale(compressed(), dtype="float32") == 1152**0.5
    assert scale(compressed(), dtype="bfloat16") == 34.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_bits": 3}, "num_bits is 3; expected 2, 4 or 8"),
        ({"num_bits": True}, "num_bits is True"),
        ({"quantize_embeddings": 1}, "quantize_embeddings is 1; expected true or false"),
        ({"module_quant_configs": {"x": {"num_bits": "4"}}}, "module_quant_configs is"),
        ({"module_quant_configs": {"x": {"bits": 4}}}, "module_quant_configs is"),
        ({"module_quant_configs": ["x"]}, "module_quant_configs is"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'; expected a list"),
        ({"group_size": 32}, "unknown key 'group_size'"),
    ],
)
def test_wrong_configurations_of_gemma_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(gemlet.ConfigError, match=message):
        parse(GEMMA | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "int-quantized"}, "format is 'int-quantized'; expected 'pack-quantized'"),
        ({"quantization_status": "frozen"}, "quantization_status is 'frozen'"),
        ({"config_groups": {}}, "config_groups is {}"),
        ({"config_groups": {"a": 4}}, "config_groups.'a' is 4"),
        ({"weights": {"num_bits": 8}}, "num_bits is 8; expected 4"),
        ({"weights": {"num_bits": 4.0}}, "num_bits is 4.0; expected 4"),
        ({"weights": {"symmetric": False}}, "symmetric is False"),
        ({"weights": {"group_size": 48}}, "group_size is 48; expected a multiple of 32"),
        ({"weights": {"group_size": None}}, "group_size is None; expected a multiple of 32"),
        ({"weights": {"group_size": True}}, "group_size is True"),
        ({"weights": {"strategy": "channel"}}, "group_size is 32; expected null"),
        ({"weights": {"strategy": "tensor"}}, "strategy is 'tensor'; expected 'group' or 'channel'"),
        ({"weights": {"actorder": "group"}}, "actorder is 'group'; expected 'weight' or null"),
        ({"weights": {"actorder": {}}}, "actorder is {}"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "unknown key 'kv_cache_scheme'"),
    ],
)
def test_wrong_configurations_of_compressed_tensors_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(gemlet.ConfigError, match=message):
        parse(compressed(**wrong))
