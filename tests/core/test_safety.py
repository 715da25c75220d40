"""Wrong use of the core's interface: every mistake is a typed error and changes nothing.

Python checks prompts, sampling values and files before it calls the core. Other tests cover these checks.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from support.core_models import (
    CONTEXT,
    HIDDEN,
    VOCAB,
    builder_of,
    int32,
    model_config,
    random_core,
    sampler,
)
from support.processes import run_program
from support.programs import safety

pytestmark = pytest.mark.tier


@pytest.fixture(scope="module")
def core() -> Iterator[_core.Model]:
    model = random_core()
    yield model
    model.close()


@pytest.fixture
def sequence(core: _core.Model) -> Iterator[_core.TokenSequence]:
    """A sequence of three tokens. After the test, the fixture checks that it still works."""
    sequence = _core.TokenSequence(core)
    sequence.extend(int32(1, 2, 3))
    before = sequence.logits()
    yield sequence
    assert sequence.token_ids == [1, 2, 3]
    np.testing.assert_array_equal(sequence.logits(), before)
    sequence.extend(int32(4))
    fresh = _core.TokenSequence(core)
    fresh.extend(int32(1, 2, 3), logits="none")
    fresh.extend(int32(4))
    np.testing.assert_array_equal(sequence.logits(), fresh.logits())


# --- Token ids ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [-1, VOCAB, VOCAB + 1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("at", [0, 1, 60])
def test_ids_out_of_range(sequence: _core.TokenSequence, bad: int, at: int) -> None:
    ids = np.full(61, 5, np.int32)
    ids[at] = bad
    with pytest.raises(
        gemlet.InvalidRequestError, match=f"token id {bad} at position {at} is out of range.* 0 to 95"
    ):
        sequence.extend(ids)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**32 + 1], np.int64),  # would be 1 in 32 bits
        np.array([2**31], np.uint32),
        np.array([2**63], np.uint64),
        np.array([1.5]),
        np.array([np.nan]),
        np.array([1e30], np.float32),
        np.array([1 + 0j]),
        np.array(["1"]),
        np.array([None]),
        np.array([[1, 2], [3, 4]], np.int32),
        np.array(1, np.int32),
        "1",
        None,
        {1: 2},
        [2**31],
        [2**70],
        [[1], [2, 3]],
    ],
    ids=repr,
)
def test_arguments_that_are_not_a_list_of_32_bit_ids(sequence: _core.TokenSequence, ids: Any) -> None:
    """Such arguments are refused. They are not rounded, wrapped to 32 bits or flattened."""
    with pytest.raises((gemlet.InvalidRequestError, TypeError, ValueError, OverflowError)):
        sequence.extend(ids)


def test_ids_in_other_integer_types_and_layouts(core: _core.Model) -> None:
    expected = None
    for ids in (
        [7, 8, 9],
        (7, 8, 9),
        np.array([7, 8, 9], np.uint8),
        np.array([7, 8, 9], np.int64),
        np.array([7, 8, 9], ">i4"),
        np.array([7, 0, 8, 0, 9], np.int32)[::2],
        np.array([9, 8, 7], np.int32)[::-1],
    ):
        sequence = _core.TokenSequence(core)
        sequence.extend(ids)
        assert sequence.token_ids == [7, 8, 9]
        expected = sequence.logits() if expected is None else expected
        np.testing.assert_array_equal(sequence.logits(), expected)


def test_an_empty_list_of_ids_is_refused(sequence: _core.TokenSequence) -> None:
    for ids in ([], np.empty(0, np.int32)):
        with pytest.raises(gemlet.InvalidRequestError, match="no token ids"):
            sequence.extend(ids)


def test_more_ids_than_the_context_holds(sequence: _core.TokenSequence) -> None:
    for count in (CONTEXT - 2, CONTEXT, 100_000):
        with pytest.raises(
            gemlet.ContextLengthError, match=f"{count + 3} tokens do not fit the context of {CONTEXT}"
        ):
            sequence.extend(np.full(count, 5, np.int32))


def test_a_full_context_takes_no_more_ids(core: _core.Model) -> None:
    sequence = _core.TokenSequence(core)
    sequence.extend(np.full(CONTEXT, 5, np.int32), logits="all")
    assert sequence.logits().shape == (CONTEXT, VOCAB)
    with pytest.raises(gemlet.ContextLengthError):
        sequence.extend(int32(5))
    assert sequence.length == CONTEXT


@pytest.mark.parametrize("logits", ["", "All", "first"])
def test_an_unknown_choice_of_logits(sequence: _core.TokenSequence, logits: str) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="expected 'none', 'last' or 'all'"):
        sequence.extend(int32(4), logits=logits)


def test_a_closed_sequence(core: _core.Model) -> None:
    sequence = _core.TokenSequence(core)
    sequence.extend(int32(1, 2))
    sequence.close()
    sequence.close()
    sequence.cancel()
    with pytest.raises(gemlet.ModelClosedError):
        sequence.extend(int32(3))
    with pytest.raises(gemlet.InvalidRequestError):
        sequence.sample(sampler())
    assert sequence.logits().shape == (0, VOCAB)


def test_none_instead_of_an_object() -> None:
    """A null pointer must not reach the core."""
    run_program(safety.give_none_to_the_core)


# --- Sampling -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-1e-9, math.nan, math.inf)),
        ("top_k", -1),
        *(("top_p", v) for v in (0.0, -0.1, 1.0001, math.nan)),
        *(("min_p", v) for v in (-0.1, 1.0, math.nan)),
        *(("repetition_penalty", v) for v in (0.0, -1.0, math.nan, math.inf)),
        ("vocab_limit", -1),
    ],
)
def test_sampling_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=f"^{name} is "):
        sampler(**{name: value})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_cannot_be_sampled(temperature: float) -> None:
    """NaN and +inf come from an overflow. -inf only excludes a token."""
    choose = sampler(temperature=temperature)
    good = np.linspace(-3, 3, VOCAB).astype(np.float32)
    for value in (np.nan, np.inf):
        for at in (0, 50, VOCAB - 1):
            bad = good.copy()
            bad[at] = value
            with pytest.raises(gemlet.TensorError, match="overflowed"):
                choose.sample(bad, int32())
    only = np.full(VOCAB, -np.inf, np.float32)
    with pytest.raises(gemlet.InvalidRequestError, match="no logit is finite"):
        choose.sample(only, int32())
    only[42] = -3e38
    assert choose.sample(only, int32()) == 42
    with pytest.raises(gemlet.InvalidRequestError, match="no logits"):
        choose.sample(np.empty(0, np.float32), int32())


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-30, 1e-5])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    for changes in ({}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        assert sampler(temperature=temperature, **changes).sample(logits, int32()) == logits.argmax()


def test_extreme_values_choose_some_token() -> None:
    logits = np.array([3e38, -3e38, 0, 1e-40, 3e38, -1e-40], np.float32)
    for changes in (
        {"temperature": 1e308},
        {"top_k": 2**62},
        {"top_p": 5e-324},
        {"min_p": 1 - 2**-53},
        {"repetition_penalty": 1e-30, "vocab_limit": 4},
        {"vocab_limit": 2**62},
        {"seed": 2**64 - 1},
    ):
        chosen = sampler(**changes).sample(logits, int32(1, 2, -5, 2**31 - 1))
        assert 0 <= chosen < len(logits)


# --- Overflow -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["f32", "bf16", "bf12", "q8", "q4"])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize("slot", ["layers.1.post_mlp_norm", "layers.0.pre_attention_norm"])
def test_a_computation_that_overflows_is_an_error_and_not_a_token(
    weights: str, softcap: float, slot: str
) -> None:
    """The weights are finite, but their products leave float32, as in a damaged file or a diverged
    training."""
    builder = builder_of(model_config(final_softcap=softcap), weights=weights)
    builder.add(slot, np.full(HIDDEN, 3e38, np.float32), "f32")
    builder.add_random(seed=1)
    sequence = _core.TokenSequence(builder.finish())
    sequence.extend(int32(1, 2, 3))
    with pytest.raises(gemlet.TensorError, match="overflowed"):
        sequence.sample(sampler(temperature=0.0))


CLASSES = [
    kind for module in (_core, _core.testing) for kind in vars(module).values() if isinstance(kind, type)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_no_object_is_made_without_its_constructor(kind: type) -> None:
    """Such an object would have no C++ object, and every method would read invalid memory."""
    for base in kind.__mro__:
        with pytest.raises(TypeError, match="is not safe"):
            base.__new__(kind)
    with pytest.raises(TypeError, match=r"acceptable base type|must be called"):
        type("Derived", (kind,), {"__init__": lambda self: None})()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_objects_of_the_core_are_not_copied(core: _core.Model, copied: Callable[[object], object]) -> None:
    for thing in (core, core.config, _core.TokenSequence(core), sampler()):
        with pytest.raises(TypeError, match="cannot pickle"):
            copied(thing)
