"""Python's tables of formats, types and limits agree with the core's."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.checkpoint.gguf_files import BLOCK_TYPES
from gemlet.checkpoint.gguf_format import TENSOR_TYPES
from gemlet.config.layers import LayerSpec
from gemlet.config.limits import LIMITS
from gemlet.loading.options import LoadOptions, command_line
from gemlet.weights.formats import KV_CACHES, PRESETS, STORED, auto_format
from support.core_models import layer_config, model_config
from support.inside import testing

INTEGERS = _core.size_limits()
NUMBERS = _core.number_limits()
# Field -> values that other fields must have if this field is above 0.
NEEDS = {
    "num_heads": {"num_kv_heads": 1},
    "num_experts": {"experts_per_token": 1, "expert_intermediate_size": 1},
    "experts_per_token": {"num_experts": 4096, "expert_intermediate_size": 1},
    "altup_streams": {"laurel_rank": 1, "per_layer_input_size": 1, "per_layer_vocab_size": 1},
    "per_layer_input_size": {"per_layer_vocab_size": 1},
}
LAYER_FIELDS = set(LayerSpec.__dataclass_fields__)


def config_with(field: str, value: Any) -> _core.ModelConfig:
    """A configuration with this value, and with the values that it needs."""
    if field == "layers":
        return model_config(layers=[layer_config()] * int(value))
    if field == "dense_sizes":
        return model_config(dense_sizes=[value], bidirectional=True)
    if field == "num_kv_heads":
        return model_config(layer_config(num_heads=1024, num_kv_heads=value))
    changes = {**(NEEDS.get(field, {}) if isinstance(value, int) and value > 0 else {}), field: value}
    if field in LAYER_FIELDS:
        return model_config(layer_config(**changes))
    return model_config(**changes)


# Formats with scales: the number of values in a block, and the bytes of a block.
OWN_SCALES = {"i8": (1, 1), "i4": (2, 1), "i2": (4, 1), "i4x32": (32, 16)}


def test_a_preset_for_every_format() -> None:
    formats = testing.weight_formats()
    assert [*PRESETS, *STORED] == formats
    assert all(preset.matrices == name for name, preset in PRESETS.items())
    assert {preset.embedding for preset in PRESETS.values()} <= set(formats)
    assert list(KV_CACHES) == testing.kv_formats()
    assert {preset.kv_cache for preset in PRESETS.values()} <= set(KV_CACHES)


def test_the_types_of_gguf_have_the_core_s_blocks() -> None:
    known = {name.lower(): (values, size) for name, values, size in TENSOR_TYPES.values()} | OWN_SCALES
    for name, (values, size, format) in _core.source_types().items():
        assert known[name] == (values, size), name
        assert format is None or format in testing.weight_formats()


def test_the_blocks_that_python_reads_are_all_that_the_core_reads() -> None:
    assert {"f32", "bf16", "f16", *map(str.lower, BLOCK_TYPES), *OWN_SCALES} == set(_core.source_types())


def test_auto_keeps_every_value_where_a_format_can() -> None:
    for name, (_, _, exact) in _core.source_types().items():
        if exact is not None:
            assert auto_format(name) == exact
        elif name != "f16":  # here the values decide
            assert auto_format(name) in ("q4", "q8")
    assert auto_format("f16") is None


def test_threads_have_the_core_s_limit() -> None:
    LoadOptions(threads=_core.MAX_THREADS)
    with pytest.raises(gemlet.InvalidRequestError, match=f"expected 1 to {_core.MAX_THREADS}"):
        LoadOptions(threads=_core.MAX_THREADS + 1)


@pytest.mark.parametrize("function", [gemlet.load, gemlet.inspect, gemlet.convert])
def test_the_arguments_of_loading_have_the_defaults_of_the_options(function: Callable[..., object]) -> None:
    arguments = inspect.signature(function).parameters
    options = {field.name: field.default for field in dataclasses.fields(LoadOptions)}
    shared = arguments.keys() & options.keys()
    assert len(shared) >= 5
    assert {name: arguments[name].default for name in shared} == {name: options[name] for name in shared}


def test_load_has_every_option_and_the_command_line_every_one_of_text() -> None:
    names = {field.name for field in dataclasses.fields(LoadOptions)} - {"own_formats"}
    assert names <= inspect.signature(gemlet.load).parameters.keys()
    assert command_line().keys() == names - {"progress"}


def test_every_limit_belongs_to_a_field() -> None:
    fields = LAYER_FIELDS | set(dir(_core.ModelConfig))
    assert INTEGERS.keys() | NUMBERS.keys() <= fields
    assert LIMITS["head_dim"] == LIMITS["global_head_dim"] == INTEGERS["head_dim"][1]
    assert all(limit in {high for _, high in INTEGERS.values()} for limit in LIMITS.values())


@pytest.mark.parametrize("field", [*INTEGERS, *NUMBERS])
def test_the_core_takes_its_limits_and_no_more(field: str) -> None:
    least, most = {**INTEGERS, **NUMBERS}[field]
    for value in (least, most):
        config_with(field, value)
    bad: list[float] = [least - 1, most + 1, -(2**63), 2**63 - 1]
    if field in NUMBERS:
        bad = [least - abs(most) / 1000, most * 1.001, math.nan, math.inf, -math.inf]
    for value in bad:
        if field == "layers" and not -1 <= value <= 2**20:
            continue  # no list is that long
        with pytest.raises(gemlet.ConfigError, match=rf"{field} is .*, expected"):
            config_with(field, value)


@pytest.mark.parametrize("field", [name for name in (*INTEGERS, *NUMBERS) if name != "layers"])
@pytest.mark.parametrize("value", [2**63, 2**64, "1", None])
def test_values_of_another_type(field: str, value: Any) -> None:
    if field in NUMBERS and isinstance(value, int):
        return
    if value is None and field == "activation_sparsity":
        return  # None is a value of this field
    expected = "a number" if field in NUMBERS else "(an integer|a list of)"
    got = rf"{field} is .*{value!r}.* of type (list|{type(value).__name__}), expected {expected}"
    with pytest.raises(gemlet.ConfigError, match=got):
        config_with(field, value)


def test_lists_of_another_type_are_named() -> None:
    for value, message in (
        ({"layers": [1]}, r"layers is \[1\] of type list, expected a list of LayerConfig"),
        ({"dense_sizes": 8}, "dense_sizes is 8 of type int, expected a list of integers of at most 64 bits"),
        (
            {"placeholder_ids": [2**31]},
            "placeholder_ids is .* expected a list of integers of at most 32 bits",
        ),
        (
            {"placeholders_read_as": 2**31},
            "placeholders_read_as is .* expected an integer of at most 32 bits",
        ),
        ({"bidirectional": "yes"}, "bidirectional is 'yes' of type str, expected True or False"),
    ):
        with pytest.raises(gemlet.ConfigError, match=message):
            _core.ModelConfig(**value)


def test_blocks_that_cannot_be_widened_are_named() -> None:
    blocks = np.zeros((2, 18), np.uint8)
    assert _core.widen(blocks, "q4_0").shape == (2, 32)
    for data, dtype, message in (
        (blocks, "q4", "dtype is 'q4', expected a type without separate scales: .*q4_0"),
        (blocks, "i4x32", "dtype is 'i4x32', expected a type without"),
        (blocks[:, :17], "q4_0", r"data is uint8 \(2, 17\), expected .* a multiple of 18 bytes"),
        (blocks[0], "q4_0", r"data is uint8 \(18,\), expected uint8 \[rows, bytes\]"),
    ):
        with pytest.raises(gemlet.InvalidRequestError, match=message):
            _core.widen(data, dtype)
