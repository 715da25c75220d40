"""The weight formats: the values that each of them stores, and how far they may be from the matrix.

w is the matrix, v the values that the format stores.

- f32: v = w.
- bf16: v = w rounded to nearest, ties to even.
- q8: in each block of 32, v = q * s with q in -127..127 and s = max|w| / 127 as float16. |w - v| <= s / 2. If
  float16 rounded s down, the bound is the distance between the largest value and 127 s. This is at most 127
  times the rounding of s: less than s / 16, or up to 127 * 2^-25 if s is denormal.
- q4: v = q * s with q in -8..7 and s in float16, as in GGUF's Q4_0. Any s is allowed. The bound comes from
  the s that Q4_0 chooses, (value of largest magnitude) / -8: the squared error of a block is never larger.
- q5: the same with -16..15 and Q5_0.
- q4k, q5k, q6k: about a step of the block's own range, and what 256 columns with one float16 add."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemlet
from support.inside import testing
from support.kernel_cases import (
    BLOCK,
    HALF_TINY,
    HALF_UNIT,
    KINDS,
    Doubles,
    Floats,
    bf16,
    blocks_of,
    few_exponents,
    guarded,
    numbers,
)

FORMATS = ["f32", "bf16", "bf12", "q8", "q6k", "q5k", "q5", "q4k", "q4", "w4a16"]
# The largest magnitude that a format holds: the largest float16 times the largest |q|.
LARGEST = {
    "f32": 3.4e38,
    "bf16": 3.38e38,
    "bf12": 3.38e38,
    "q8": 65504 * 127.0,
    "q4": 65504 * 7.0,
    "q5": 65504 * 15.0,
}

shapes = st.tuples(st.integers(1, 35), st.integers(1, 140))
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=150, deadline=None, derandomize=True)


def roundtrip(format: str, w: Floats) -> Floats:
    out = testing.kernel_roundtrip(format=format, w=guarded(w))
    assert out.dtype == np.float32
    assert out.shape == w.shape
    return out


@quick
@given(shapes, kinds, seeds)
def test_f32_keeps_every_bit(shape: tuple[int, int], kind: str, seed: int) -> None:
    w = numbers(np.random.default_rng(seed), kind, shape, LARGEST["f32"])
    np.testing.assert_array_equal(roundtrip("f32", w).view(np.uint32), w.view(np.uint32))


@quick
@given(shapes, kinds, seeds)
def test_bf16_rounds_to_nearest_even(shape: tuple[int, int], kind: str, seed: int) -> None:
    w = numbers(np.random.default_rng(seed), kind, shape, LARGEST["bf16"])
    np.testing.assert_array_equal(roundtrip("bf16", w).view(np.uint32), bf16(w).view(np.uint32))


def test_bf16_ties_and_denormals() -> None:
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x00008000, 0x00018000, 0x00000001, 0x80008001]
    rounded = [0x3F800000, 0x3F820000, 0x3F810000, 0x3F800000, 0x00000000, 0x00020000, 0x00000000, 0x80010000]
    got = roundtrip("bf16", np.array([bits], np.uint32).view(np.float32))
    assert got.view(np.uint32).tolist() == [rounded]


@quick
@given(shapes, kinds, seeds, st.integers(0, 15))
def test_bf12_has_every_bit_of_bf16(shape: tuple[int, int], kind: str, seed: int, others: int) -> None:
    """For every kind of number. Most weights have one of a few exponents; in each panel a few weights have
    any other exponent."""
    random = np.random.default_rng(seed)
    w = few_exponents(numbers(random, kind, shape, LARGEST["bf12"] / 2))
    w.flat[random.integers(0, 16 * shape[1], others) % w.size] = numbers(random, "bits", (others,), 1e38)
    np.testing.assert_array_equal(roundtrip("bf12", w).view(np.uint32), bf16(w).view(np.uint32))


@pytest.mark.parametrize("cols", [8, 77, 1152, 6912])
def test_a_panel_of_bf12_has_room_for_a_limited_number_of_exceptions(cols: int) -> None:
    room = (4 + -(-cols // 8) + 63) // 64 * 16 - 1
    assert room >= 16 * cols // 512
    random = np.random.default_rng(cols)
    w = few_exponents(random.standard_normal((32, cols)).astype(np.float32))
    places = random.permutation(16 * cols)[: room + 1]
    w[16:].reshape(-1)[places[:room]] *= np.float32(1e-20)
    np.testing.assert_array_equal(roundtrip("bf12", w), bf16(w))
    w[16:].reshape(-1)[places[room]] *= np.float32(1e-20)
    with pytest.raises(gemlet.TensorError, match="exponents"):
        roundtrip("bf12", w)


def test_bf12_keeps_zeros_denormals_and_the_largest_numbers() -> None:
    """There are more such numbers than a panel can have exceptions. If large and small weights are mixed,
    only the largest are exceptions."""
    w = np.zeros((3, 400), np.float32)
    w[0, ::3] = 2.0**-130
    w[0, ::5] = -0.0
    w[1] = -3.3895e38
    w[2, :200] = 1.5
    np.testing.assert_array_equal(roundtrip("bf12", w).view(np.uint32), bf16(w).view(np.uint32))


@quick
@given(shapes, kinds, seeds)
def test_q8_is_within_half_a_step(shape: tuple[int, int], kind: str, seed: int) -> None:
    w = numbers(np.random.default_rng(seed), kind, shape, LARGEST["q8"])
    v = roundtrip("q8", w)
    old, new = blocks_of(w).astype(np.float64), blocks_of(v).astype(np.float64)
    exact = np.abs(old).max(axis=-1, keepdims=True) / 127
    scale = exact.astype(np.float32).astype(np.float16).astype(np.float64)
    rounding = np.maximum(exact * HALF_UNIT, HALF_TINY)
    assert (np.abs(scale - exact) <= rounding * (1 + 1e-6)).all()
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.where(scale > 0, new / scale, 0)
    np.testing.assert_array_equal(q, np.rint(q))
    assert np.abs(q).max() <= 127
    assert (new[np.broadcast_to(scale, new.shape) == 0] == 0).all()
    bound = np.maximum(
        scale / 2 * (1 + 1e-4), 127 * rounding
    )  # x / s is computed in float32, so it may be off by 127 * 2^-23
    assert (np.abs(old - new) <= bound).all(), np.max(np.abs(old - new) / np.maximum(bound, 1e-300))


def block_scales(v: Doubles, low: int) -> Doubles | None:
    """A float16 scale per row of v [n, 32] that makes its values integers in low..-low - 1; None if there is
    none."""
    scales = np.zeros(len(v))
    for i, block in enumerate(v):
        peak = block[np.abs(block).argmax()]
        for q in (low, *(sign * q for q in range(-low - 1, 0, -1) for sign in (-1, 1))) if peak else ():
            scale = float(np.float16(peak / q))
            steps = block / scale if scale else np.full(BLOCK, np.nan)
            if (steps == np.rint(steps)).all() and steps.min() >= low and steps.max() < -low:
                scales[i] = scale
                break
        else:
            if peak:
                return None
    return scales


def q_0(w: Doubles, low: int) -> Doubles:
    """GGUF's Q4_0 or Q5_0 of w [n, 32]: scale = (value of largest magnitude) / low, kept in float16."""
    peak = np.take_along_axis(w, np.abs(w).argmax(axis=-1)[:, None], axis=-1)
    exact = peak / low
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.clip(np.where(exact != 0, np.floor(w / exact - low + 0.5), -low), 0, -2 * low - 1) + low
    return q * exact.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize(("format", "low"), [("q4", -8), ("q5", -16)])
@quick
@given(shapes, kinds, seeds)
def test_q4_stores_values_of_q4_0_and_is_at_least_as_close(
    format: str, low: int, shape: tuple[int, int], kind: str, seed: int
) -> None:
    """q5 does the same with values of Q5_0."""
    w = numbers(np.random.default_rng(seed), kind, shape, LARGEST[format])
    v = roundtrip(format, w)
    old = blocks_of(w).astype(np.float64).reshape(-1, BLOCK)
    new = blocks_of(v).astype(np.float64).reshape(-1, BLOCK)
    scales = block_scales(new, low)
    assert scales is not None
    error, allowed = ((old - new) ** 2).sum(axis=-1), ((old - q_0(old, low)) ** 2).sum(axis=-1)
    # The fitted scale is the best for its q before float16 rounds it. A value moves by at most -low
    # roundings.
    rounding = np.maximum(np.abs(old).max(axis=-1) / 4 * HALF_UNIT, HALF_TINY)
    slack = BLOCK * (-low * rounding) ** 2
    assert (error <= allowed * (1 + 1e-5) + slack).all()


@quick
@given(
    st.lists(st.integers(-8, 7), min_size=BLOCK - 1, max_size=BLOCK - 1),
    st.integers(0, BLOCK - 1),
    st.floats(2.0**-14, 8000, width=16),
    st.booleans(),
)
def test_q4_0_checkpoints_lose_nothing(q: list[int], peak_at: int, scale: float, negative: bool) -> None:
    """Quantizing to Q4_0 leaves a -8 in every block that is not zero. Such a block is kept as it is."""
    steps = np.array([*q[:peak_at], -8, *q[peak_at:]], np.float64)
    w = (steps * (-scale if negative else scale)).astype(np.float32)[None, :]
    np.testing.assert_array_equal(roundtrip("q4", w), w)


@quick
@given(
    st.lists(st.integers(-127, 127), min_size=BLOCK - 1, max_size=BLOCK - 1),
    st.floats(2.0**-14, 500, width=16),
)
def test_q8_0_checkpoints_lose_nothing(q: list[int], scale: float) -> None:
    w = (np.array([*q, 127]) * scale).astype(np.float32)[None, :]
    np.testing.assert_array_equal(roundtrip("q8", w), w)


def group_steps(w: Floats, format: str) -> Doubles:
    """A step of each weight of w: the range of its part of 32 columns (q6k: 16) in the steps of the format,
    and what rounding the scales of 256 columns to small integers adds."""
    part, steps, small = {"q6k": (16, 32, 127), "q5k": (32, 31, 255), "q4k": (32, 15, 255)}[format]
    rows, cols = w.shape
    padded = np.zeros((rows, -(-cols // 256) * 256))
    padded[:, :cols] = w
    parts = padded.reshape(rows, -1, part)
    high, low = parts.max(axis=-1), np.minimum(parts.min(axis=-1), 0)
    spread = np.maximum(high, -low) if format == "q6k" else np.maximum(high - low, np.abs(high))
    largest = spread.reshape(rows, -1, 256 // part).max(axis=-1)
    step = spread / steps + np.repeat(largest, 256 // part, axis=-1) / small
    return np.repeat(step, part, axis=-1)[:, :cols]


@pytest.mark.parametrize("format", ["q6k", "q5k", "q4k"])
@quick
@given(shapes, kinds, seeds)
def test_formats_with_groups_are_within_about_a_step(
    format: str, shape: tuple[int, int], kind: str, seed: int
) -> None:
    w = numbers(np.random.default_rng(seed), kind, shape, 1e5)
    error = np.abs(roundtrip(format, w).astype(np.float64) - w)
    assert (error <= 1.7 * group_steps(w, format) + 2.0**-24 * 256).all()


@pytest.mark.parametrize(("format", "most"), [("q6k", 0.019), ("q5k", 0.042), ("q4k", 0.085)])
def test_formats_with_groups_are_as_close_as_their_bits_allow(format: str, most: float) -> None:
    """The error of normally distributed weights, relative to them."""
    w = np.random.default_rng(3).standard_normal((64, 1024)).astype(np.float32)
    error = np.sqrt(((roundtrip(format, w) - w) ** 2).mean())
    assert most / 2 < error < most


@pytest.mark.parametrize("format", FORMATS)
def test_rows_and_blocks_do_not_depend_on_each_other(format: str) -> None:
    w = numbers(np.random.default_rng(1), "wide", (37, 129), 1e4)
    w = few_exponents(w) if format == "bf12" else w
    v = roundtrip(format, w)
    alone = [(slice(16, 17), slice(0, 129)), (slice(3, 36), slice(0, 129))]
    if not format.endswith("k"):  # these formats have one scale for 256 columns
        alone += [(slice(3, 36), slice(64, 129)), (slice(0, 37), slice(32, 64))]
    for rows, cols in alone:
        np.testing.assert_array_equal(roundtrip(format, w[rows, cols]), v[rows, cols])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (3, 31), (16, 32), (18, 69)])
def test_weights_that_are_not_finite_are_refused(format: str, value: float, at: tuple[int, int]) -> None:
    w = np.ones((19, 70), np.float32)
    w[at] = value
    with pytest.raises(gemlet.TensorError, match="not finite"):
        testing.kernel_roundtrip(format=format, w=w)
    operation = f"matmul_{'i8' if format.startswith('q') else 'f32'}_{format}"
    with pytest.raises(gemlet.TensorError, match="not finite"):
        testing.kernel_matmul(tier="scalar", operation=operation, x=np.ones((1, 70), np.float32), w=w)


@pytest.mark.parametrize(
    ("format", "fits", "too_large"),
    [
        ("bf16", 3.3895e38, 3.4e38),
        ("bf12", 3.3895e38, 3.4e38),
        ("q8", 65504 * 127.0, 65540 * 127.0),
        ("q4", 65504 * 8.0, 65540 * 8.0),
        ("q5", 65504 * 16.0, 65540 * 16.0),
        ("q6k", 65504 * 127 * 31.0, 65540 * 127 * 33.0),
        ("q5k", 65504 * 255.0, 65540 * 255 * 33.0),
        ("q4k", 65504 * 255.0, 65540 * 255 * 16.0),
    ],
)
def test_weights_beyond_a_format_are_refused(format: str, fits: float, too_large: float) -> None:
    for sign in (-1, 1):
        w = np.zeros((2, 40), np.float32)
        w[1, 39] = sign * fits
        assert roundtrip(format, w)[1, 39] == pytest.approx(sign * fits, rel=2**-8)
        w[1, 39] = sign * too_large
        with pytest.raises(gemlet.TensorError, match="too large"):
            roundtrip(format, w)
