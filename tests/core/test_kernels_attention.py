"""Attention and its cache, in every tier, compared with float64.

The bound on the error: a score is a float32 sum of head_dim products, and softcap * tanh is within TANH *
softcap. An error d in a score s changes its weight e^s by the factor e^d. The weighted sum of the values and
the sum of the weights are float32 sums over the tokens.

An int8 cache holds each token's key and value as multiples of max|x| / 127. An int4 cache holds them as the
nearest of 16 LEVELS times the root mean square of x. For the products, queries and weights are rounded to
multiples of (their largest) / STEPS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.inside import testing
from support.kernel_cases import (
    ATTENTIONS,
    KINDS,
    STORES,
    TINY,
    UNIT,
    Doubles,
    Floats,
    bf16,
    guarded,
    kernels,
    numbers,
)

STEPS = 127 * 254
LEVELS = np.array([-63, -47, -37, -29, -21, -15, -9, -3, 3, 9, 15, 21, 29, 37, 47, 63]) / 23.05
# Tiers whose attention_bf16 rounds queries and weights to bf16.
BF16_DOTS = ("avx512bf16", "amx", "amx_emulated")
ZERO_PEAK = 1.001e-33  # a row of an int8 or int4 cache may become zeros if its max|x| is smaller
EXP = 2e-7 + 2 * UNIT
TANH = 2e-7 + 2 * UNIT
HEAD_DIMS = [2, 4, 6, 14, 16, 18, 30, 32, 34, 64, 66, 80, 96, 128, 256, 512]


def attention(
    tier: str,
    kv: str,
    q: Floats,
    positions: list[int],
    keys: Floats,
    values: Floats,
    window: int = 0,
    softcap: float = 0.0,
    ahead: int = 0,
) -> Floats:
    out = testing.kernel_attention(
        tier=tier,
        kv=kv,
        q=guarded(q),
        positions=positions,
        keys=guarded(keys),
        values=guarded(values),
        window=window,
        ahead=ahead,
        softcap=softcap,
    )
    assert out.shape == q.shape
    return out


def int8(x: Floats) -> tuple[Doubles, Doubles]:
    """The values that an int8 cache stores for x, and where they may differ (see
    kernel_cases.int8_activations)."""
    wide = x.astype(np.float64)
    peak = np.abs(wide).max(axis=1, keepdims=True)
    step = np.maximum(peak, TINY) / 127
    q = wide / step
    half_way = np.abs(np.abs(q - np.rint(q)) - 0.5) < 1e-4
    doubt = (half_way + 4 * UNIT * np.abs(q)) * step + np.where(peak < ZERO_PEAK, np.abs(wide), 0)
    return np.rint(q) * step, doubt


def int4(x: Floats) -> tuple[Doubles, Doubles]:
    """The same for an int4 cache."""
    wide = x.astype(np.float64)
    mean = np.maximum(np.sqrt((wide**2).mean(axis=1, keepdims=True)), TINY)
    borders = (LEVELS[1:] + LEVELS[:-1]) / 2
    rounding = (2 * x.shape[1] + 16) * UNIT
    at_border = (np.abs((wide / mean)[..., None] - borders) < 4 * rounding).any(axis=-1)
    doubt = (at_border * np.diff(LEVELS).max() + LEVELS[-1] * rounding) * mean
    stored = LEVELS[np.searchsorted(borders, wide / mean)] * mean
    zeros = np.abs(wide).max(axis=1, keepdims=True) < ZERO_PEAK
    return stored, doubt + np.where(zeros, np.abs(stored), 0)


def expected(
    tier: str,
    kv: str,
    q: Floats,
    positions: list[int],
    keys: Floats,
    values: Floats,
    window: int,
    softcap: float,
    ahead: int = 0,
) -> tuple[Doubles, Doubles]:
    """The result in float64, and the bound on the error (see the top of this file)."""
    rounds = kv == "bf16" and tier in BF16_DOTS
    if kv == "bf16":
        keys, values = bf16(keys), bf16(values)
    wide, k, v = (array.astype(np.float64) for array in (q, keys, values))
    k_doubt, v_doubt, v_step = np.zeros(k.shape), np.zeros(v.shape), np.zeros((len(v), 1))
    if kv in ("int8", "int4"):
        v_step = np.abs(v).max(axis=1, keepdims=True) / (127 if kv == "int8" else 23.05)  # at least its scale
        stored = int8 if kv == "int8" else int4
        (k, k_doubt), (v, v_doubt) = stored(keys), stored(values)
    dim, tokens = q.shape[1], np.arange(len(k))
    scores = wide @ k.T
    doubt = (dim + 1) * (UNIT * (np.abs(wide) @ np.abs(k.T)) + TINY) + np.abs(wide) @ k_doubt.T
    if kv in ("int8", "int4"):
        q_doubt = np.abs(wide).max(axis=1, keepdims=True) / STEPS * 0.51 + ZERO_PEAK
        doubt += q_doubt * (np.abs(k) + k_doubt).sum(axis=1)
    if rounds:  # denormal numbers may count as zero
        doubt += dim * 1.2e-38 * (1 + np.abs(wide).max() + np.abs(k).max())
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
        doubt = np.minimum(doubt, 2 * softcap) + softcap * TANH + 2 * UNIT * np.abs(scores)
    at = np.array(positions)[:, None]
    visible = (tokens <= at + ahead) & ((tokens > at - window) if window else True)
    out, bound = np.zeros(q.shape), np.zeros(q.shape)
    for row, seen in enumerate(visible):
        if not seen.any():
            continue
        s = scores[row, seen] - scores[row, seen].max()
        p = np.exp(s) / np.exp(s).sum()
        # Subtracting the largest score rounds. Rescaling for a larger score, once per block of 64, rounds
        # too.
        factor = np.expm1(min(700.0, 2 * (doubt[row, seen].max() + UNIT * np.abs(s).max()) + 2 * EXP))
        rounding = (2 * seen.sum() + 2 * (len(k) // 64 + 1) + 8) * UNIT
        size = p @ np.abs(v[seen])
        out[row] = p @ v[seen]
        if kv in ("int8", "int4"):
            step = (p[:, None] * v_step[seen]).max() * (1 + factor) / STEPS * 0.51 + ZERO_PEAK
            bound[row] = (1 + factor) * (p @ v_doubt[seen]) + 127 * step * seen.sum()
        if rounds:
            bound[row] = 2.0**-8 * (1 + factor) * (p @ np.abs(v[seen]))
            bound[row] += 1.3e-38 * seen.sum() * (1 + np.abs(v[seen]).max())
        bound[row] += (2 * factor + rounding) * size + 2 * len(k) * TINY + 1.3e-38 * np.abs(v[seen]).max()
    return out, bound


def check(
    tier: str,
    kv: str,
    q: Floats,
    positions: list[int],
    keys: Floats,
    values: Floats,
    window: int = 0,
    softcap: float = 0.0,
    ahead: int = 0,
) -> None:
    if kv == "bf16" and tier in BF16_DOTS:
        q = bf16(q)
    arguments = (q, positions, keys, values, window, softcap, ahead)
    y, bound = expected(tier, kv, *arguments)
    got = attention(tier, kv, *arguments)
    error = np.abs(got - y)
    assert (error <= bound).all(), f"{np.max(error / np.maximum(bound, TINY)):.3g} times the bound"


def case(
    seed: int, rows: int, dim: int, tokens: int, spread: float = 2.0
) -> tuple[Floats, list[int], Floats, Floats]:
    """Queries, positions, keys and values. The standard deviation of the scores is `spread`."""
    random = np.random.default_rng(seed)
    q = numbers(random, "normal", (rows, dim), 1e3) * np.float32(spread / np.sqrt(dim))
    keys, values = (numbers(random, "normal", (tokens, dim), 1e3) for _ in range(2))
    return q, random.integers(0, tokens, rows).tolist(), keys, values


@kernels(*ATTENTIONS, *STORES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_attention_at_every_head_dim(operation: str, tier: str, dim: int) -> None:
    kv = {**ATTENTIONS, **STORES}[operation]
    for rows, tokens in ((1, 1), (1, 130), (3, 64), (8, 65), (16, 63)):
        check(tier, kv, *case(dim, rows, dim, tokens))


@kernels(*ATTENTIONS)
def test_attention_at_every_number_of_tokens(operation: str, tier: str) -> None:
    """Whole blocks of 64 and whole panels of 16, and parts of both."""
    for tokens in (*range(1, 131, 3), 191, 192, 193, 255, 256, 257, 300):
        q, _, keys, values = case(tokens, 1 + tokens % 5, 16, tokens)
        check(tier, ATTENTIONS[operation], q, [tokens - 1] * len(q), keys, values)
        check(tier, ATTENTIONS[operation], q, [tokens // 2] * len(q), keys, values)


@kernels(*ATTENTIONS)
def test_rows_do_not_depend_on_each_other(operation: str, tier: str) -> None:
    """In a call of any number of rows, each row has the same bits as in a call with only this row."""
    kv = ATTENTIONS[operation]
    q, positions, keys, values = case(3, 16, 48, 200)
    alone = [
        attention(tier, kv, q[r : r + 1], positions[r : r + 1], keys, values, 70, 5.0) for r in range(16)
    ]
    for rows in range(1, 17):
        together = attention(tier, kv, q[:rows], positions[:rows], keys, values, 70, 5.0)
        np.testing.assert_array_equal(together, np.concatenate(alone[:rows]))


@kernels(*ATTENTIONS)
def test_attention_of_many_rows(operation: str, tier: str) -> None:
    """A group of 16 rows, then a second group of any size."""
    kv = ATTENTIONS[operation]
    for dim in (32, 70):
        q, positions, keys, values = case(10, 32, dim, 150)
        whole = attention(tier, kv, q, positions, keys, values, 90)
        for rows in (17, 18, 31):
            check(tier, kv, q[:rows], positions[:rows], keys, values, 90)
            part = attention(tier, kv, q[:rows], positions[:rows], keys, values, 90)
            np.testing.assert_array_equal(part, whole[:rows])


@kernels("attention_bf16")
def test_queries_are_rounded_to_nearest(operation: str, tier: str) -> None:
    if tier in BF16_DOTS:
        q, positions, keys, values = case(8, 16, 80, 200)
        rounded = attention(tier, "bf16", bf16(q), positions, keys, values)
        np.testing.assert_array_equal(attention(tier, "bf16", q, positions, keys, values), rounded)


@kernels(*ATTENTIONS)
@pytest.mark.parametrize("window", [0, 1, 2, 5, 15, 16, 17, 63, 64, 65, 128, 300, 10_000])
def test_attention_within_a_window(operation: str, tier: str, window: int) -> None:
    """The positions are at the ends of blocks and of the window. Several heads of a group share a
    position."""
    q, _, keys, values = case(window, 16, 32, 200)
    for first in (0, 1, 62, 63, 64, 65, 126, 127, 128, 192, 196):
        positions = [first + r // 4 for r in range(16)]
        check(tier, ATTENTIONS[operation], q, positions, keys, values, window)


@kernels(*ATTENTIONS)
@pytest.mark.parametrize("ahead", [1, 15, 64, 10_000])
def test_attention_that_looks_ahead(operation: str, tier: str, ahead: int) -> None:
    """A query sees as many tokens ahead as back, or all until the end. A token further ahead has no
    influence, even if not finite."""
    kv = ATTENTIONS[operation]
    q, _, keys, values = case(ahead, 16, 32, 200)
    for first in (0, 1, 62, 63, 64, 127, 196):
        positions = [first + r // 4 for r in range(16)]
        check(tier, kv, q, positions, keys, values, ahead + 1, ahead=ahead)
        check(tier, kv, q, positions, keys, values, ahead=ahead)
        before = attention(tier, kv, q, positions, keys, values, ahead=ahead)
        hidden = keys.copy(), values.copy()
        for array in hidden:
            array[first + 4 + ahead :] = np.nan
        np.testing.assert_array_equal(attention(tier, kv, q, positions, *hidden, ahead=ahead), before)


@kernels(*ATTENTIONS)
def test_hidden_tokens_have_no_influence(operation: str, tier: str) -> None:
    kv = ATTENTIONS[operation]
    q, _, keys, values = case(9, 4, 32, 200)
    positions = [100, 101, 130, 131]
    before = attention(tier, kv, q, positions, keys, values, window=40)
    for hidden in (slice(0, 61), slice(132, 200)):
        keys[hidden] = 1e3
        values[hidden] = -1e6
    np.testing.assert_array_equal(attention(tier, kv, q, positions, keys, values, window=40), before)
    # Numbers that are not finite have no influence either: 0 * inf would be NaN.
    for value in (np.nan, np.inf):
        for hidden in (slice(0, 61), slice(132, 200)):
            keys[hidden] = values[hidden] = value
        np.testing.assert_array_equal(attention(tier, kv, q, positions, keys, values, window=40), before)
    # The rows of one call see different tokens. Only the rows that see the bad token show it.
    keys[:], values[:] = 1, 1
    values[110, 3] = keys[110, 3] = np.nan
    together = attention(tier, kv, q, [109, 110, 149, 150], keys, values, window=40)
    assert np.isfinite(together).all(axis=1).tolist() == [True, False, False, True]
    # A row that sees no token gives zeros.
    assert not attention(tier, kv, q, [-1, -1, 300, 150], keys, values, window=40)[:3].any()


@kernels(*ATTENTIONS)
@pytest.mark.parametrize("softcap", [0.1, 1.0, 30.0, 50.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 40.0, 1000.0])
def test_attention_with_softcap(operation: str, tier: str, softcap: float, spread: float) -> None:
    check(tier, ATTENTIONS[operation], *case(4, 6, 64, 150, spread), 100, softcap)


@kernels(*ATTENTIONS)
@pytest.mark.parametrize("spread", [1e-6, 10.0, 100.0, 1e4])
def test_attention_with_flat_and_with_peaked_weights(operation: str, tier: str, spread: float) -> None:
    check(tier, ATTENTIONS[operation], *case(5, 6, 64, 300, spread))


@kernels(*ATTENTIONS)
def test_the_largest_score_may_come_anywhere(operation: str, tier: str) -> None:
    """The scores rise or fall, so the running maximum changes with every block or never."""
    values = numbers(np.random.default_rng(6), "normal", (300, 16), 1e3)
    q = np.ones((1, 16), np.float32)
    for slope in (-1.0, -0.01, 0.01, 1.0):
        keys = np.repeat((slope * np.arange(300, dtype=np.float32))[:, None] / 16, 16, axis=1)
        check(tier, ATTENTIONS[operation], q, [299], keys, values)


@kernels(*ATTENTIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", ["query", "key", "value"])
def test_values_that_are_not_finite_reach_the_result(
    operation: str, tier: str, operand: str, value: float
) -> None:
    """An overflow must reach the logits, where it becomes an error. It must not become a weight of zero."""
    q, _, keys, values = case(7, 3, 32, 100)
    keys[2, 5] = np.sign(q[2, 5])  # so that an infinite key has the score inf and not -inf
    {"query": q, "key": keys, "value": values}[operand][2, 5] *= value
    out = attention(tier, ATTENTIONS[operation], q, [0, 99, 40], keys, values)
    if operand == "value":
        assert not np.isfinite(out[1:, 5]).any()
    else:
        assert not np.isfinite(out[2]).any()
        assert np.isfinite(out[0]).all()


@kernels(*ATTENTIONS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 16),
    dim=st.integers(1, 70).map(lambda half: 2 * half),
    tokens=st.integers(1, 300),
    window=st.integers(0, 320),
    softcap=st.sampled_from([0.0, 0.5, 30.0]),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
)
def test_attention_with_random_arguments(
    operation: str,
    tier: str,
    seed: int,
    rows: int,
    dim: int,
    tokens: int,
    window: int,
    softcap: float,
    kinds: tuple[str, str],
) -> None:
    q, positions, _, _ = case(seed, rows, dim, tokens)
    random = np.random.default_rng(seed)
    keys = numbers(random, kinds[0], (tokens, dim), 10.0)
    values = numbers(random, kinds[1], (tokens, dim), 1e30)
    check(tier, ATTENTIONS[operation], q, positions, keys, values, window, softcap)
