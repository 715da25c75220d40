"""Every kernel of every tier of this machine is compared with a float64 definition.

The core lists its kernels (``kernel_entries``). ``test_every_kernel_is_tested`` fails if no test here covers
one of them. A page that cannot be read follows each input.

How far a product y = sum(x w) may be from its float64 value. v are the values that the format stores for w.

- f32 activations: x and v are used as they are. The bound is that of a float32 sum.
- bf16 activations: x is first rounded to bf16, so |x - x'| <= 2^-9 |x|. In y' = sum(x' v) the products are
  exact, and the bound is that of a float32 sum. But the instructions treat denormal numbers as zero: x', v,
  each product and each sum may lose up to NORMAL. The distance from y is at most 2^-9 sum(|x v|) larger.
- bf16 activations in tiles: the same, with v rounded to bf16 for formats in blocks.
- int8 activations: x is first rounded in blocks of 32 with the step s of kernel_cases.int8_steps, so |x - x'|
  <= s / 2. In y' = sum(x' v) the integer sum of each block is exact. Scaling the blocks and adding them is a
  float32 sum. If x / s is half-way between two integers, within float32's rounding, x' may be either of them.
  The distance from y is at most sum(s |v|) / 2 larger."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemlet
from gemlet import _core
from support.inside import testing
from support.kernel_cases import (
    ATTENTIONS,
    BLOCK,
    ENTRIES,
    FIXED,
    FLUSHED,
    KINDS,
    MACHINE_TIERS,
    MATMULS,
    NORMAL,
    PEAKS,
    PREPARED,
    ROW_OPERATIONS,
    STORES,
    TINY,
    UNIT,
    Doubles,
    Floats,
    bf16,
    blocks_of,
    few_exponents,
    guarded,
    int8_activations,
    int8_steps,
    kernels,
    numbers,
)

INT8_FORMATS = ["q8", "q4", "q5"]  # formats with one scale for 32 columns
GROUPED = {"q4k": 4, "q5k": 5, "q6k": 6}  # the bits of formats that have a scale and small scales
MINIMA = ("q4k", "q5k")
ROW_SCALED = {"r8": 8, "r4": 4, "r2": 2}  # the bits of formats with one scale for a row
STEP = 2.0**-4  # the fixed scale of x
# (largest |x|, largest |w|): products and their sums stay within float32.
WIDE = (1e17, 1e17)
RANGES = {"f32": WIDE, "bf16": WIDE, "bf12": WIDE, "q8": (1e28, 8e6)} | dict.fromkeys(
    ("q4", "q5", *GROUPED), (1e28, 4e5)
)
RANGES["w4a16"] = (1e28, 4e5)
RANGES |= dict.fromkeys(ROW_SCALED, (1e17, 1e17))


def test_every_kernel_is_tested() -> None:
    tested = {*MATMULS, *PREPARED, *ATTENTIONS, *STORES, *ROW_OPERATIONS, *PEAKS}
    assert {operation for operation, _ in ENTRIES} == tested
    assert len(set(ENTRIES)) == len(ENTRIES)
    # Every operation has a definition, the scalar kernel, and cpu_info says which tier's kernel is used.
    assert {operation for operation, tier in ENTRIES if tier == "scalar"} == tested
    assert set(_core.cpu_info()["kernels"]) == tested


def matmul(tier: str, operation: str, x: Floats, w: Floats) -> Floats:
    scale = STEP if operation in FIXED else 0
    y = testing.kernel_matmul(tier=tier, operation=operation, x=guarded(x), w=guarded(w), scale=scale)
    assert y.shape == (len(x), len(w))
    assert y.dtype == np.float32
    return y


def expected(operation: str, x: Floats, w: Floats) -> tuple[Doubles, Doubles]:
    """The result of a kernel, computed in float64, and the bound on the error of float32 (see the top of this
    file)."""
    v = testing.kernel_roundtrip(format=MATMULS[operation], w=w).astype(np.float64)
    cols = x.shape[1]
    if operation in FIXED:
        steps = np.clip(np.rint(x.astype(np.float64) / STEP), -128, 127) * STEP
        magnitude = np.abs(steps) @ np.abs(v).T
        return steps @ v.T, (cols + 4) * (UNIT * magnitude + 128 * 128 * TINY)
    in_tiles = operation.startswith("matmul_tiles")
    if in_tiles:
        v = bf16(v.astype(np.float32)).astype(np.float64)
    if not operation.startswith("matmul_i8"):
        rounded = in_tiles or operation in ("matmul_bf16_bf16", "matmul_bf16_bf12")
        exact = (bf16(x) if rounded else x).astype(np.float64)
        magnitude = np.abs(exact) @ np.abs(v).T
        bound = (cols + 1) * (UNIT * magnitude + TINY)
        if MATMULS[operation] in ROW_SCALED:  # x times an integer is added, and the sum is scaled
            bound = 3 * bound + 128 * cols * TINY
        if rounded:
            normal = (
                np.where(np.abs(exact) < NORMAL, 0, np.abs(exact))
                @ np.where(np.abs(v) < NORMAL, 0, np.abs(v)).T
            )
            bound += magnitude - normal + 2 * cols * NORMAL
        return exact @ v.T, bound
    steps, unsure = int8_activations(x, MATMULS[operation])
    terms = v
    if MATMULS[operation] in MINIMA:
        # q and the minimum are multiplied separately. Each is at most twice the largest weight of the block
        # here.
        largest = np.abs(blocks_of(v)).max(axis=-1, keepdims=True)
        terms = np.broadcast_to(4 * largest, blocks_of(v).shape).reshape(len(v), -1)[:, :cols]
    blocks = -(-cols // BLOCK)
    # Four roundings: 1 / 127 in float32, the step of x, its product with the scale, and that with the sum.
    bound = (blocks + 4) * UNIT * (np.abs(steps) @ np.abs(terms.T)) + unsure @ np.abs(v.T)
    # A denormal step of x is off by up to TINY. This counts 127 times, and 127 * 127 times in a product of
    # steps.
    tiny = TINY * (127 * np.abs(terms).sum(axis=1) + 127 * 127 * cols)
    return steps @ v.T, bound + tiny


def check_matmul(tier: str, operation: str, x: Floats, w: Floats) -> None:
    """Against the definition. Two tiers within its bound are within twice the bound of each other."""
    y, bound = expected(operation, x, w)
    got = matmul(tier, operation, x, w)
    assert np.isfinite(got).all()
    assert (np.abs(got - y) <= bound).all(), f"{np.max(np.abs(got - y) / bound):.3g} times the bound"


def case(
    operation: str, seed: int, rows: int, outputs: int, cols: int, kinds: tuple[str, str]
) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    largest_x, largest_w = RANGES[MATMULS[operation]]
    x = numbers(random, kinds[0], (rows, cols), largest_x)
    w = numbers(random, kinds[1], (outputs, cols), largest_w)
    return x, few_exponents(w) if MATMULS[operation] == "bf12" else w


PLAIN = ("normal", "normal")


@kernels(*MATMULS)
def test_matmul_at_every_number_of_columns(operation: str, tier: str) -> None:
    for cols in (*range(1, 67), *range(67, 131, 3), 159, 160, 161, 255, 256, 257, 640):
        rows, outputs = 1 + cols * 7 % 11, 1 + cols * 5 % 37
        x, w = case(operation, cols, rows, outputs, cols, PLAIN)
        check_matmul(tier, operation, x, w)


@kernels(*MATMULS)
def test_matmul_at_every_number_of_rows(operation: str, tier: str) -> None:
    """The numbers of rows cross all tiles. A row has the same bits in a large call and in a call with only
    this row."""
    x, w = case(operation, 1, 40, 33, 96, PLAIN)
    alone = np.concatenate([matmul(tier, operation, x[r : r + 1], w) for r in range(40)])
    for rows in range(1, 41):
        np.testing.assert_array_equal(matmul(tier, operation, x[:rows], w), alone[:rows])
        np.testing.assert_array_equal(matmul(tier, operation, x[40 - rows :], w), alone[40 - rows :])
    check_matmul(tier, operation, x, w)


@kernels(*MATMULS)
def test_matmul_at_every_number_of_outputs(operation: str, tier: str) -> None:
    """The numbers of outputs cross all panels. An output does not depend on the others."""
    x, w = case(operation, 2, 5, 50, 70, PLAIN)
    whole = matmul(tier, operation, x, w)
    for outputs in range(1, 51):
        np.testing.assert_array_equal(matmul(tier, operation, x, w[:outputs]), whole[:, :outputs])
        np.testing.assert_array_equal(matmul(tier, operation, x, w[50 - outputs :]), whole[:, 50 - outputs :])


@kernels(*MATMULS)
@pytest.mark.parametrize(
    ("rows", "outputs", "cols"), [(1, 257, 2048), (9, 47, 1152), (33, 17, 6912), (1, 1, 32)]
)
def test_matmul_at_real_widths(operation: str, tier: str, rows: int, outputs: int, cols: int) -> None:
    x, w = case(operation, 3, rows, outputs, cols, ("outliers", "normal"))
    check_matmul(tier, operation, x, w)


@kernels(*(name for name in MATMULS if name.startswith("matmul_tiles")))
@pytest.mark.parametrize(("rows", "outputs", "cols"), [(400, 33, 1100), (64, 17, 6912)])
def test_matmul_in_tiles_is_split_into_pieces(
    operation: str, tier: str, rows: int, outputs: int, cols: int
) -> None:
    """x is larger than the part kept in L2, and it has more columns than are expanded at once."""
    check_matmul(tier, operation, *case(operation, 4, rows, outputs, cols, PLAIN))


@kernels(*MATMULS)
def test_matmul_of_every_kind_of_numbers(operation: str, tier: str) -> None:
    for i, x_kind in enumerate(KINDS):
        for j, w_kind in enumerate(KINDS):
            x, w = case(operation, 10 * i + j, 1 + i, 20, 64 + 16 * j, (x_kind, w_kind))
            check_matmul(tier, operation, x, w)


@kernels(*MATMULS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 200)),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
)
def test_matmul_of_anything(
    operation: str, tier: str, seed: int, shape: tuple[int, int, int], kinds: tuple[str, str]
) -> None:
    x, w = case(operation, seed, *shape, kinds)
    check_matmul(tier, operation, x, w)


@kernels("matmul_i8_q8", "matmul_i8_q4", "matmul_i8_q5")
def test_int8_dot_products_do_not_saturate(operation: str, tier: str) -> None:
    """With the largest integers of either sign, the sum of two byte products does not fit into 16 bits."""
    x = np.full((9, 320), 127, np.float32)
    x[1::2] *= -1
    x[4, ::2] *= -1
    largest = {"q8": (127, -127), "q4": (7, -8), "q5": (15, -16)}[MATMULS[operation]]
    w = np.full((34, 320), largest[0], np.float32)
    w[::3] = largest[1]
    w[:, 0::32] = largest[1]  # this value sets the scale of q4 and q5
    np.testing.assert_array_equal(
        matmul(tier, operation, x, w), x.astype(np.float64) @ w.astype(np.float64).T
    )


@kernels("matmul_i8_q4k", "matmul_i8_q5k", "matmul_i8_q6k")
def test_products_of_groups_do_not_saturate(operation: str, tier: str) -> None:
    """The same for groups with a scale in 8 bits, which cannot represent 1 exactly."""
    x = np.full((9, 512), 127, np.float32)
    x[1::2] *= -1
    x[4, ::2] *= -1
    largest = {"q4k": (15, 0), "q5k": (31, 0), "q6k": (31, -32)}[MATMULS[operation]]
    w = np.full((34, 512), largest[0], np.float32)
    w[:, ::16] = largest[1]  # sets the scale
    v = testing.kernel_roundtrip(format=MATMULS[operation], w=w).astype(np.float64)
    np.testing.assert_allclose(v, w, atol=0.3)
    sums = 127 * np.abs(v).sum(axis=1).max()
    np.testing.assert_allclose(matmul(tier, operation, x, w), x @ v.T, rtol=0, atol=1e-5 * sums)


@kernels(*FIXED)
def test_products_with_fixed_scales_do_not_saturate(operation: str, tier: str) -> None:
    """Both sides have values of -128 and 127. The integer sums are exact."""
    x = np.full((20, 320), 1e3, np.float32)
    x[1::2] *= -1
    x[4, ::2] *= -1
    w = np.full((34, 320), 1.0, np.float32)
    w[::3] = -1.0
    w[:, ::32] = -1.0  # sets the scale of r4 and r2
    v = testing.kernel_roundtrip(format=MATMULS[operation], w=w).astype(np.float64)
    expected = np.clip(x / STEP, -128, 127) * STEP @ v.T
    np.testing.assert_allclose(matmul(tier, operation, x, w), expected, rtol=3 * UNIT, atol=0)


@kernels("quantize_i8")
@pytest.mark.parametrize("format", INT8_FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_int8_activations_are_within_half_a_step(operation: str, tier: str, format: str, kind: str) -> None:
    """The product with a diagonal matrix, which the format holds exactly, shows the activations."""
    diagonal = {"q8": 127.0, "q4": -8.0, "q5": -16.0}[format]
    for cols in (1, 31, 32, 33, 64, 100):
        x = numbers(np.random.default_rng(cols), kind, (5, cols), 1e28)
        seen = (
            matmul(tier, f"matmul_i8_{format}", x, diagonal * np.eye(cols, dtype=np.float32)).astype(
                np.float64
            )
            / diagonal
        )
        # x / s is off by up to 127 * 4 UNIT steps when it is rounded to an integer; the product is off by 2
        # UNIT.
        steps = int8_steps(x, format)
        bound = steps * (0.5 + 127 * 6 * UNIT) + np.where(steps * 127 < FLUSHED, np.abs(x), 127 * TINY)
        assert (np.abs(seen - x) <= bound).all()


@kernels("round_bf16")
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_activations_are_rounded_to_nearest_even(operation: str, tier: str, kind: str) -> None:
    """The product with the identity shows the activations. Denormal ones may be zero."""
    for cols in (1, 2, 15, 16, 17, 31, 32, 33, 100):
        x = numbers(np.random.default_rng(cols), kind, (5, cols), 1e38)
        seen = matmul(tier, "matmul_bf16_bf16", x, np.eye(cols, dtype=np.float32))
        rounded = bf16(x)
        np.testing.assert_array_equal(np.where(np.abs(rounded) < NORMAL, rounded, seen), rounded)
        assert (np.abs(seen) <= np.abs(rounded)).all()


@kernels(*MATMULS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_show(operation: str, tier: str, value: float) -> None:
    """An overflow must reach the logits, where it becomes an error. It must not become a likely token."""
    if operation in FIXED and np.isinf(value):
        return  # a fixed scale clips it, as it does other large numbers
    for cols, at in ((32, 0), (70, 69), (256, 100)):
        x, w = case(operation, 5, 3, 20, cols, PLAIN)
        x[1, at] = value
        y = matmul(tier, operation, x, w)
        assert not np.isfinite(y[1]).any()
        assert np.isfinite(y[[0, 2]]).all()


@kernels("matmul_f32_bf12", "matmul_bf16_bf12", "matmul_tiles_bf12")
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 40])
def test_bf12_gives_the_bits_of_bf16(operation: str, tier: str, rows: int) -> None:
    for outputs, cols in ((1, 1), (16, 8), (18, 87), (33, 264), (16, 1152)):
        x, w = case(operation, cols, rows, outputs, cols, PLAIN)
        w.flat[:: w.size // 5 + 1] *= 1e-7  # exceptions
        wanted = matmul(tier, operation.replace("bf12", "bf16"), x, w)
        for expand in (False, True):
            seen = testing.kernel_matmul(
                tier=tier, operation=operation, x=guarded(x), w=guarded(w), expand=expand
            )
            np.testing.assert_array_equal(seen, wanted)


@kernels("matmul_f32_w4a16")
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_w4a16_gives_the_bits_of_f32(operation: str, tier: str, rows: int) -> None:
    for outputs, cols in ((1, 1), (18, 87), (33, 264), (16, 1152)):
        x, w = case(operation, cols, rows, outputs, cols, PLAIN)
        values = testing.kernel_roundtrip(format="w4a16", w=w)
        wanted = matmul(tier, "matmul_f32_f32", x, values)
        np.testing.assert_array_equal(matmul(tier, operation, x, w), wanted)


def test_bf16_products_use_the_rounded_weights() -> None:
    """``expected`` uses kernel_roundtrip. This test computes the rounded weights without it."""
    x, w = case("matmul_bf16_bf16", 6, 3, 18, 77, PLAIN)
    v = bf16(w).astype(np.float64)
    for tier in MACHINE_TIERS:
        y = matmul(tier, "matmul_f32_bf16", x, w)
        np.testing.assert_allclose(y, x.astype(np.float64) @ v.T, rtol=0, atol=1e-4)
        y = matmul(tier, "matmul_bf16_bf16", x, w)
        np.testing.assert_allclose(y, bf16(x).astype(np.float64) @ v.T, rtol=0, atol=1e-4)


def test_a_tier_that_the_machine_lacks_is_refused() -> None:
    one = np.ones((1, 32), np.float32)
    for tier in ("", "sse9", "AVX2"):
        with pytest.raises(gemlet.UnsupportedError, match=f"'{tier}'"):
            testing.kernel_matmul(tier=tier, operation="matmul_f32_f32", x=one, w=one)


def test_an_operation_that_is_not_a_matmul_is_refused() -> None:
    one = np.ones((1, 32), np.float32)
    with pytest.raises(gemlet.InvalidRequestError, match="'rope'"):
        testing.kernel_matmul(tier="scalar", operation="rope", x=one, w=one)


@kernels(*PEAKS)
def test_a_measured_peak_is_possible(operation: str, tier: str) -> None:
    """If the compiler removed the loop, the peak would be far above what any core reaches."""
    kind = operation.removeprefix("peak_")
    # At most two 512-bit instructions per cycle at 6 GHz. AMX makes 1024 products per cycle.
    most = 6144 if tier == "amx" and kind == "bf16" else {"f32": 192, "bf16": 384, "i8": 768}[kind]
    assert 0.01 < testing.measure_peak(kind=kind, threads=1, tier=tier) < most


@kernels(*MATMULS)
def test_a_kernel_runs_alone_for_benchmarks(operation: str, tier: str) -> None:
    run = testing.MatmulRun(tier=tier, operation=operation, rows=17, outputs=50, cols=70)
    run.run()
    assert run.multiply_adds == 17 * 50 * 70
    format = MATMULS[operation]
    if format in ROW_SCALED:
        assert run.weight_bytes == 64 * 128 * ROW_SCALED[format] / 8 + 4 * 64
        return
    # And 64 rows: whole panels, whole blocks.
    columns = 128 if format in (*INT8_FORMATS, *GROUPED, "w4a16") else 70
    if MATMULS[operation] == "bf12":  # 8 columns together; in each panel exponents and exceptions
        assert run.weight_bytes == 64 * 72 * 1.5 + 4 * (64 + 64)
        return
    bits = {"f32": 32, "bf16": 16, "q8": 8.5, "q4": 4.5, "w4a16": 4.5, "q5": 5.5}
    bits |= {name: count + 0.5 for name, count in GROUPED.items()}
    groups = 4 * 64 if format in GROUPED else 0  # a line for each panel
    assert run.weight_bytes == 64 * columns * bits[format] / 8 + groups


def test_a_benchmark_of_impossible_sizes_is_refused() -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="'fp8', expected f32, bf16 or i8"):
        testing.measure_peak(kind="fp8", threads=1)
    with pytest.raises(gemlet.InvalidRequestError, match="threads is 0"):
        testing.measure_peak(kind="f32", threads=0)
    with pytest.raises(gemlet.UnsupportedError, match="'sse9'"):
        testing.measure_peak(kind="f32", threads=1, tier="sse9")
    with pytest.raises(gemlet.InvalidRequestError, match="must be positive"):
        testing.MatmulRun(tier="scalar", operation="matmul_i8_q4", rows=0, outputs=1, cols=1)
