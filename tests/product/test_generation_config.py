"""Tests of GenerationConfig, of prompts of token ids, and of stop strings."""

from __future__ import annotations

import dataclasses
import math
from array import array
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemlet import GenerationConfig
from gemlet.errors import InvalidRequestError
from gemlet.generation.stopping import StopScanner
from gemlet.generation.token_ids import token_id_array

# --- GenerationConfig


def test_the_defaults_are_the_recommended_values_for_gemma() -> None:
    config = GenerationConfig()
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 64, 0.95)
    assert (config.min_p, config.repetition_penalty, config.max_tokens) == (0.0, 1.0, 256)
    assert config.seed is None
    assert config.stop == ()
    assert config.do_sample
    assert not config.ignore_eos


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", v) for v in (0, -1, 2**31, 1.5, True, "5", math.nan, 10**5000)),
        *(("temperature", v) for v in (-0.1, math.nan, math.inf, -math.inf, 100.1, True, "1", 10**400)),
        *(("top_k", v) for v in (-2, 2**31, 1.5, False, "5")),
        *(("top_p", v) for v in (-0.5, 1.0001, math.nan, math.inf, True, [0.5])),
        *(("min_p", v) for v in (-0.001, 1.001, math.nan, math.inf, False, 1j)),
        *(("repetition_penalty", v) for v in (0.0, -1.0, math.nan, math.inf, 1000.0, True)),
        *(("typical_p", v) for v in (0.0, -0.5, 1.1, math.nan, True)),
        *(("frequency_penalty", v) for v in (-2.1, 2.1, math.nan, "1")),
        *(("presence_penalty", v) for v in (-2.1, math.inf, None.__class__)),
        *(("no_repeat_ngram_size", v) for v in (-1, 2.5, True)),
        *(("dry_multiplier", v) for v in (-0.1, 101.0, math.nan)),
        *(("dry_base", v) for v in (0.9, 101.0)),
        *(("dry_allowed_length", v) for v in (0, 1.5)),
        *(("dry_sequence_breakers", v) for v in ("", [1], ["a"] * 17, "a" * 41, "\ud800", {"a": 1})),
        *(("min_tokens", v) for v in (-1, 1.5, True)),
        *(
            ("logit_bias", v)
            for v in (5, [5], {"a": 1}, {-1: 1}, {1: "a"}, {1: 101.0}, {1: math.nan}, {1.5: 1})
        ),
        *(("logit_bias", v) for v in ({True: 1}, {i: 0 for i in range(1025)}, [(1, 2, 3)], "5")),
        *(("stop_token_ids", v) for v in (-1, [-1], ["1"], [True], "1", [1] * 1025, {1})),
        *(("seed", v) for v in (-2, 2**64, 1.0, True, "7", math.nan)),
        *(("stop", v) for v in ("", [""], ["a", ""], [1], 5, b"x", {"a": 1}, ["a"] * 17, "a" * 257)),
        *(("ignore_eos", v) for v in (0, 1, "yes")),
        *(("do_sample", v) for v in (0, 1, "no")),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 10**20 else "huge",
)
def test_invalid_values_name_the_argument(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name}: got .*, expected .*") as caught:
        GenerationConfig(**{name: value})
    assert len(str(caught.value)) < 400
    with pytest.raises(InvalidRequestError, match=name):
        GenerationConfig().replace(**{name: value})


def test_numbers_of_other_libraries_become_plain_numbers() -> None:
    config = GenerationConfig(
        max_tokens=np.int64(5),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        do_sample=np.bool_(False),  # type: ignore[arg-type]
    )
    assert [type(value) for value in (config.max_tokens, config.temperature, config.top_p)] == [
        int,
        float,
        float,
    ]
    assert config.seed == 2**64 - 1
    assert config.do_sample is False


def test_stop_strings_become_a_tuple() -> None:
    assert GenerationConfig(stop="END").stop == ("END",)
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationConfig(stop=("a",)).stop == ("a",)


def test_biases_become_pairs() -> None:
    config = GenerationConfig(logit_bias={"7": 1, 5: -2.5})  # type: ignore[dict-item]
    assert config.logit_bias == ((5, -2.5), (7, 1.0))
    assert config.replace(temperature=0).logit_bias == config.logit_bias
    assert hash(config) == hash(GenerationConfig(logit_bias={5: -2.5, 7: 1}))
    with pytest.raises(InvalidRequestError, match="logit_bias: the token id 5 appears twice"):
        GenerationConfig(logit_bias={"5": 1, 5: 1})  # type: ignore[dict-item]


def test_ids_become_a_tuple() -> None:
    assert GenerationConfig(stop_token_ids=5).stop_token_ids == (5,)
    assert GenerationConfig(stop_token_ids=[5, 5]).stop_token_ids == (5, 5)
    assert GenerationConfig(suppress_tokens=np.array([1, 2])).suppress_tokens == (1, 2)  # type: ignore[arg-type]


def test_least_and_most_tokens() -> None:
    assert GenerationConfig(min_tokens=300).max_tokens == 300
    assert GenerationConfig(min_tokens=3).max_tokens == 256
    assert GenerationConfig(min_tokens=300).replace(min_tokens=1).max_tokens == 256
    assert GenerationConfig(min_tokens=5, max_tokens=5).min_tokens == 5
    with pytest.raises(InvalidRequestError, match="min_tokens: got 6, expected at most max_tokens, 5"):
        GenerationConfig(min_tokens=6, max_tokens=5)


def test_config_is_frozen_and_replaceable() -> None:
    config = GenerationConfig(seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]
    assert config.replace(seed=2) == GenerationConfig(seed=2)
    assert hash(config) == hash(GenerationConfig(seed=1))
    with pytest.raises(InvalidRequestError, match=r"'temprature'.*temperature"):
        config.replace(temprature=1)


def test_greedy() -> None:
    assert GenerationConfig(temperature=0).greedy
    assert GenerationConfig(do_sample=False).greedy
    assert not GenerationConfig(temperature=0.1).greedy


# --- token ids


@pytest.mark.parametrize(
    "ids", [[1, 2], (1, 2), np.array([1, 2], np.uint16), [np.int64(1), np.int32(2)], array("i", [1, 2])]
)
def test_token_ids_become_int32(ids: Any) -> None:
    found = token_id_array(ids, vocab_size=3, name="prompt")
    assert (found.typecode, found.itemsize) == ("i", 4)
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        (np.array([], np.int64), "empty"),
        ([0, 3], "token id 3 at position 1, expected integers from 0 to 2"),
        ([-1], "token id -1 at position 0"),
        ([True], "token id True at position 0"),
        ([1.0], "token id 1.0 at position 0"),
        (["a"], "token id 'a' at position 0"),
        ([2**70], "at position 0"),
        (np.array([1, 3]), "token id 3 at position 1"),
        (np.array([2**40]), "at position 0"),
        (np.array([1.0]), "float64"),
        (np.array([True]), "bool"),
        (np.array([[1]]), r"int64\[1, 1\]"),
        (np.array(1), r"int64\[\]"),
        (5, "got 5"),
        (None, "got None"),
        (b"abc", "got b'abc'"),
        ({1, 2}, "expected .*a list"),
    ],
)
def test_bad_token_ids(ids: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^prompt: .*{message}"):
        token_id_array(ids, vocab_size=3, name="prompt")


# --- stop strings


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition of stop strings: the stop string that is complete first ends the text. If two stop
    strings end at the same character, the longer one is removed."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@pytest.mark.parametrize("cut", range(9))
def test_stop_strings_before_min_tokens_are_text(cut: int) -> None:
    text = "aabaabab"
    scanner = StopScanner(["aab", "ab"])
    shown = scanner.push(text[:cut], may_stop=False)
    assert not scanner.stopped
    shown += scanner.push(text[cut:]) + scanner.flush()
    # The first stop string that ends after the cut ends the text.
    ends = next((end for end in (3, 6, 8) if end > cut), None)
    assert scanner.stopped == (ends is not None)
    assert shown == {3: "", 6: "aab", 8: "aabaab", None: text}[ends]


few_letters = st.text(alphabet="ab ", max_size=12)


@given(
    pieces=st.lists(few_letters, max_size=12),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=5), max_size=4),
)
def test_stop_scanner_matches_the_definition_at_every_split(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    scanner = StopScanner(stops)
    shown = ""
    for i, piece in enumerate(pieces):
        shown += scanner.push(piece)
        so_far = "".join(pieces[: i + 1])
        if not scanner.stopped:
            # The scanner holds back only text that may be the beginning of a stop string.
            held = max(
                (k for stop in stops for k in range(len(stop)) if so_far.endswith(stop[:k])), default=0
            )
            assert shown == so_far[: len(so_far) - held]
    shown += scanner.flush()
    assert (shown, scanner.stopped) == reference_stop(whole, stops)
