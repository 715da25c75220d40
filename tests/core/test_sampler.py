"""The sampler compared with its definition in NumPy: which tokens may come, and how likely each is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from support import sampling_reference as reference
from support.core_models import int32, layer_config, model_config, random_core, sampler
from support.engine_reader import Reader
from support.inside import testing

VOCAB = 1000


def made(seed: int, vocab: int = VOCAB) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(vocab) * 3).astype(np.float32)


def history(seed: int, length: int = 60) -> NDArray[np.int32]:
    """A text of few different ids, so that much of it repeats."""
    return np.random.default_rng(seed).integers(0, 4, length).astype(np.int32)


def chances(
    logits: NDArray[np.float32], ids: NDArray[np.int32], prompt_tokens: int = 20, **options: Any
) -> dict[int, float]:
    given = {name: value for name, value in options.items() if name != "breakers"}
    if "breakers" in options:
        given["dry_breakers"] = _core.SequenceBreakers([(list(options["breakers"]), [])])
    values = {"temperature": 1.0, "seed": 1, **given}
    return dict(testing.distribution(_core.Sampler(prompt_tokens=prompt_tokens, **values), logits, ids))


def expected(
    logits: NDArray[np.float32], ids: NDArray[np.int32], prompt_tokens: int = 20, **options: Any
) -> dict[int, float]:
    return dict(reference.distribution(reference.processed(logits, ids, prompt_tokens, **options), **options))


PENALTIES: list[dict[str, Any]] = [
    {},
    {"logit_bias": [(3, 5.0), (7, -100.0), (999, 100.0)]},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "logit_bias": [(1, -2.0)]},
    {"frequency_penalty": 0.2},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.1, "presence_penalty": -2.0, "repetition_penalty": 1.1},
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 0.5, "dry_base": 1.2, "dry_allowed_length": 4},
    {"dry_multiplier": 0.8, "breakers": [2]},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1, "breakers": [0, 1]},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 3},
    {"no_repeat_ngram": 100},
    {"min_tokens": 41, "end_ids": [0, 500]},
    {"min_tokens": 40, "end_ids": [0, 500]},
    {"suppressed": [0, 1, 998]},
    {
        "logit_bias": [(0, 4.0)],
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "dry_multiplier": 0.8,
        "no_repeat_ngram": 4,
        "min_tokens": 50,
        "end_ids": [9],
        "suppressed": [3, 8],
    },
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_k": 10},
    {"top_k": 64, "top_p": 0.95},
    {"top_p": 0.5},
    {"top_p": 0.999, "temperature": 2.0},
    {"min_p": 0.2},
    {"typical_p": 0.9},
    {"typical_p": 0.2},
    {"typical_p": 0.5, "temperature": 2.0, "top_k": 50, "min_p": 0.05},
    {"typical_p": 0.999, "top_p": 0.9},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_biases_and_penalties(penalties: dict[str, Any]) -> None:
    for seed in range(6):
        logits, ids = made(seed), history(seed)
        found, wanted = chances(logits, ids, **penalties), expected(logits, ids, **penalties)
        assert all(
            found.get(i, 0.0) == pytest.approx(chance, rel=1e-5, abs=1e-12) for i, chance in wanted.items()
        )


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [1, 5, 33, 1000, 20_000])
def test_filters_keep_the_same_tokens(filters: dict[str, Any], vocab: int) -> None:
    for seed in range(4 if vocab < 20_000 else 1):
        logits = made(seed, vocab)
        found, wanted = chances(logits, int32(), **filters), expected(logits, int32(), **filters)
        # Tokens below the precision of the sum are not kept: 60 temperatures below the most likely one.
        assert found.keys() <= wanted.keys()
        assert sum(wanted[i] for i in wanted.keys() - found.keys()) < 1e-12
        for i, chance in found.items():
            assert chance == pytest.approx(wanted[i], rel=1e-6)


def test_penalties_then_filters() -> None:
    for seed in range(4):
        for filters in FILTERS:
            logits, ids = made(seed), history(seed)
            options = {**PENALTIES[-1], **filters}
            found, wanted = chances(logits, ids, **options), expected(logits, ids, **options)
            assert found.keys() <= wanted.keys()
            for i, chance in found.items():
                assert chance == pytest.approx(wanted[i], rel=1e-5)


@pytest.mark.parametrize(
    ("text", "breakers", "after"),
    [
        ([1, 2, 3], [], 3),
        ([1, 2, 3], [([2], [])], 1),
        ([1, 2, 3], [([3], [])], 0),
        ([1, 2, 3, 9], [([2, 5], [3])], 1),
        ([1, 2, 4, 9], [([2, 5], [3])], 4),
        ([1, 5, 3, 3, 9], [([2, 5], [3]), ([5], [3, 3])], 1),  # the longer of two breakers that begin here
        ([3], [([2], [3])], 1),
        ([], [([2], [])], 0),
    ],
)
def test_breakers_of_several_tokens(text: list[int], breakers: Any, after: int) -> None:
    """If the whole text is repeated, the repetition counts from the last breaker on."""
    logits = np.zeros(20, np.float32)
    ids = int32(*text, 17, *text)
    choose = sampler(
        dry_multiplier=1.0,
        dry_base=2.0,
        dry_allowed_length=1,
        dry_breakers=_core.SequenceBreakers(breakers),
    )
    found = dict(testing.distribution(choose, logits, ids))
    penalty = np.log(found[19] / found[17])
    assert penalty == pytest.approx(2.0 ** (after - 1) if after else 0.0)


def test_penalties_of_a_long_repetitive_text_take_linear_time() -> None:
    """Time is linear in the text, and a penalty without bounds is still a number."""
    ids = np.zeros(131_072, np.int32)
    for options in ({"dry_multiplier": 100.0, "dry_base": 100.0}, {"no_repeat_ngram": 65_536}):
        found = chances(made(0), ids, 0, **options)
        assert 0 not in found
        assert sum(found.values()) == pytest.approx(1)


def test_an_error_says_why_no_token_is_left() -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="no_repeat_ngram and min_tokens together leave no"):
        chances(made(0, 4), history(0), suppressed=[0, 1], no_repeat_ngram=1)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 8}, {"typical_p": 0.6}, {"temperature": 0.5, "top_p": 0.8}], ids=str
)
def test_tokens_are_drawn_with_the_right_frequency(options: dict[str, Any]) -> None:
    """Chi squared of 20,000 draws, within six standard deviations."""
    logits = made(3, 40) / 6
    values = {"temperature": 1.0, "seed": 5, **options}
    choose, count = _core.Sampler(**values), 20_000
    wanted = chances(logits, int32(), **options)
    drawn = np.bincount([choose.sample(logits, int32()) for _ in range(count)], minlength=40)
    assert set(np.flatnonzero(drawn)) <= wanted.keys()
    usual = {i: chance for i, chance in wanted.items() if chance * count >= 5}
    squares = sum((drawn[i] - chance * count) ** 2 / (chance * count) for i, chance in usual.items())
    freedom = len(usual) - 1
    assert abs(squares - freedom) < 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("typical_p", v) for v in (0.0, 1.1, np.nan)),
        *(("frequency_penalty", v) for v in (np.nan, np.inf)),
        *(("presence_penalty", v) for v in (np.nan, -np.inf)),
        *(("dry_multiplier", v) for v in (-1.0, np.nan, np.inf)),
        *(("dry_base", v) for v in (0.5, np.nan)),
        ("dry_allowed_length", 0),
        ("no_repeat_ngram", -1),
        ("min_tokens", -1),
        ("prompt_tokens", -1),
    ],
)
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=f"^{name} is "):
        _core.Sampler(**{"temperature": 1.0, "seed": 1, name: value})


def test_wrong_ids() -> None:
    for options in ({"suppressed": [-1]}, {"end_ids": [-5]}, {"logit_bias": [(-1, 0.0)]}):
        with pytest.raises(gemlet.InvalidRequestError, match="id"):
            _core.Sampler(temperature=1.0, seed=1, **options)
    # Ids that the logits do not have are ignored.
    beyond = {"suppressed": [2000], "logit_bias": [(2**31 - 1, 1.0)], "min_tokens": 1, "end_ids": [5000]}
    logits = made(0)
    wild = int32(-5, 2**31 - 1, 3, -5, 2**31 - 1)
    for penalties in ({}, {"repetition_penalty": 2.0}, {"dry_multiplier": 1.0, "no_repeat_ngram": 2}):
        assert len(chances(logits, wild, 0, **beyond, **penalties)) in (VOCAB, VOCAB - 1)


@pytest.mark.tier
def test_a_text_that_begins_again_goes_on_as_before() -> None:
    """An engine without memory for all texts preempts some, and computes them again from their ids."""
    core, ids = (
        random_core(
            model_config(layer_config(sliding_window=100), layer_config(sliding_window=0), max_context=700)
        ),
        np.arange(4, dtype=np.int32).repeat(9),
    )
    engine = _core.Engine(core, kv_bytes=0)
    reader = Reader(engine)

    def begin(seed: int) -> _core.Request:
        choose = sampler(
            seed=seed,
            top_k=64,
            prompt_tokens=len(ids),
            frequency_penalty=0.5,
            repetition_penalty=1.1,
            dry_multiplier=0.8,
            no_repeat_ngram=3,
            min_tokens=400,
            end_ids=[1],
        )
        return reader.submit(ids, sampler=choose, max_tokens=400, most_unread=400)

    together = reader.read(*[begin(seed) for seed in range(8)])
    assert engine.stats()["preemptions"] > 0
    assert together == [reader.read(begin(seed))[0] for seed in range(8)]


# --- log probabilities


@pytest.mark.parametrize("vocab", [1, 31, 1000, 262_144])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_logprobs(vocab: int, scale: float) -> None:
    logits = made(vocab, vocab) * np.float32(scale)
    exact = logits.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    order = np.lexsort((np.arange(vocab), -exact))
    chosen_ids = int32(0, vocab // 2, vocab - 1)
    for chosen, (found, top) in zip(
        chosen_ids.tolist(), _core.logprobs(np.stack([logits] * 3), chosen_ids, 20), strict=True
    ):
        assert found == pytest.approx(exact[chosen], rel=1e-6, abs=2e-6)
        assert [i for i, _ in top] == order[:20].tolist()
        assert [value for _, value in top] == pytest.approx(exact[order[:20]], rel=1e-6, abs=2e-6)
    assert _core.logprobs(logits[None], [0], 0)[0][1] == []


def test_logprobs_of_what_is_no_distribution() -> None:
    logits = made(0, 50)
    for chosen in (-1, 50):
        with pytest.raises(gemlet.InvalidRequestError, match=r"token id -?\d+ has no logit, expected 0 to"):
            _core.logprobs(logits[None], [chosen], 1)
    for value in (np.nan, np.inf):
        bad = logits.copy()
        bad[49] = value
        with pytest.raises(gemlet.TensorError, match="overflowed"):
            _core.logprobs(bad[None], [1], 1)
    with pytest.raises(gemlet.InvalidRequestError, match="no logit is finite"):
        _core.logprobs(np.full((1, 50), -np.inf, np.float32), [1], 1)
    logits[3] = -np.inf
    found, top = _core.logprobs(logits[None], [3], 50)[0]
    assert found == -np.inf
    assert top[-1] == (3, -np.inf)
    for rows in (logits, logits[None, None], np.stack([logits] * 2)):
        with pytest.raises(gemlet.InvalidRequestError, match="expected a row for each of 1 ids"):
            _core.logprobs(rows, [3], 1)
