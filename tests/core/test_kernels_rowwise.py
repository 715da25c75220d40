"""The row operations of every tier, compared with float64, at every length that a vector leaves over.

The bounds are in units of float32's rounding error (kernel_cases.UNIT). csrc/kernels/simd/vector.h
promises that e^x has a relative error of at most EXP and tanh an absolute error of at most TANH. The rest
is rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from support.inside import testing
from support.kernel_cases import KINDS, ROW_OPERATIONS, TINY, UNIT, Doubles, Floats, guarded, kernels, numbers

EXP = 2e-7 + 2 * UNIT
TANH = 2e-7 + 2 * UNIT
DIMS = [*range(1, 68), 127, 128, 129, 255, 256, 640, 1152, 2048, 2561, 6912]

Expected = tuple[Doubles, Doubles]  # value, bound


def run(tier: str, operation: str, x: Floats, other: Floats, third: Floats, scalar: float) -> Floats:
    out = testing.kernel_rowwise(
        tier=tier,
        operation=operation,
        x=guarded(x),
        other=guarded(other),
        third=guarded(third),
        scalar=scalar,
    )
    assert out.shape == x.shape
    return out


def rms_norm(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    wide = x.astype(np.float64)
    y = wide / np.sqrt(np.mean(wide**2) + scalar) * other
    return y, (len(x) / 2 + 8) * UNIT * np.abs(y) + (2 + np.abs(other)) * TINY


def rms_norm_add(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    branch, bound = rms_norm(third, other, x, scalar)
    return x + branch, bound + UNIT * np.abs(x + branch)


def add(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    y = (x + other).astype(np.float64)  # one float32 operation, which is correctly rounded
    return y, np.zeros_like(y)


def gelu_mul(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    g, up = x.astype(np.float64), other.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
    return g / 2 * (1 + np.tanh(u)) * up, (TANH + EXP + 8 * UNIT) * np.abs(g * up) + 2 * TINY


def exact_gelu_mul(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    tails = np.array([math.erfc(-g / math.sqrt(2)) for g in x.astype(np.float64).tolist()])
    product = x.astype(np.float64) * other
    return product / 2 * tails, (1e-7 + EXP + 8 * UNIT) * np.abs(product) + 2 * TINY


def sigmoid_mul(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    with np.errstate(over="ignore"):
        y = other / (1 + np.exp(-x.astype(np.float64)))
    return y, (EXP + 4 * UNIT) * np.abs(y) + 1e-37 * np.abs(other) + 2 * TINY


def softcap(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    y = scalar * np.tanh(x.astype(np.float64) / scalar)
    return y, scalar * TANH + 4 * UNIT * np.abs(y)


def rope(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    (a, b), c, s = x.astype(np.float64).reshape(2, -1), other.astype(np.float64), third.astype(np.float64)
    size = np.concatenate([np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s)])
    return np.concatenate([a * c - b * s, b * c + a * s]) * scalar, 4 * UNIT * size * scalar + 4 * TINY


def row_max(x: Floats, other: Floats, third: Floats, scalar: float) -> Expected:
    return np.full(len(x), x.max(), np.float64), np.zeros(len(x))


DEFINITIONS: dict[str, Callable[[Floats, Floats, Floats, float], Expected]] = {
    "rms_norm": rms_norm,
    "rms_norm_add": rms_norm_add,
    "add": add,
    "gelu_mul": gelu_mul,
    "exact_gelu_mul": exact_gelu_mul,
    "sigmoid_mul": sigmoid_mul,
    "softcap": softcap,
    "rope": rope,
    "row_max": row_max,
}


def operands(operation: str, dim: int, kind: str, seed: int) -> tuple[Floats, Floats, Floats, float]:
    """The operands x, other, third and scalar of an operation."""
    random = np.random.default_rng(seed)
    largest = {"rms_norm": 1e16, "rms_norm_add": 1e16, "gelu_mul": 1e10, "exact_gelu_mul": 1e10, "rope": 1e20}
    x = numbers(random, kind, (dim,), largest.get(operation, 1e30))
    other = numbers(random, "normal", (dim,), 1e30)
    third = numbers(random, kind, (dim,), largest.get(operation, 1e30))
    scalar = {"rms_norm": 1e-6, "rms_norm_add": 1e-5, "softcap": 30.0, "rope": 0.0625}.get(operation, 0.0)
    if operation == "rope":
        x = np.concatenate([x, third])
        angle = random.uniform(-9, 9, dim)
        other, third = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return x, other, third, scalar


def check(operation: str, tier: str, x: Floats, other: Floats, third: Floats, scalar: float) -> None:
    y, bound = DEFINITIONS[operation](x, other, third, scalar)
    got = run(tier, operation, x, other, third, scalar)
    error = np.abs(got - y)
    assert (error <= bound).all(), (
        f"dim {len(x)}: {got[error > bound][:4]} for {y[error > bound][:4]}, "
        f"{np.max(error / np.maximum(bound, TINY)):.3g} times the bound"
    )
    scalar_tier = run("scalar", operation, x, other, third, scalar).astype(np.float64)
    assert (np.abs(got - scalar_tier) <= 2 * bound).all()


@kernels(*ROW_OPERATIONS)
def test_row_operations_at_every_length(operation: str, tier: str) -> None:
    for dim in DIMS:
        check(operation, tier, *operands(operation, dim, "normal", dim))


@kernels(*ROW_OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_row_operations_on_every_kind_of_numbers(operation: str, tier: str, kind: str) -> None:
    for seed, dim in enumerate((1, 7, 16, 33, 64, 250, 1152)):
        check(operation, tier, *operands(operation, dim, kind, seed))


@kernels("gelu_mul", "exact_gelu_mul", "sigmoid_mul", "softcap")
def test_functions_on_a_fine_grid(operation: str, tier: str) -> None:
    """Every part of the curve, with both ends."""
    grid = np.concatenate([np.linspace(-110, 85, 4001), [0.0, -0.0, 1e-40, -1e-40]]).astype(np.float32)
    ones = np.ones_like(grid)
    check(operation, tier, grid, ones, ones, {"softcap": 50.0}.get(operation, 0.0))
    check(operation, tier, grid / 16, ones, ones, {"softcap": 0.5}.get(operation, 2.0))


@kernels("rms_norm", "rms_norm_add", "add", "gelu_mul", "exact_gelu_mul", "sigmoid_mul", "softcap", "rope")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_reach_the_result(operation: str, tier: str, value: float) -> None:
    """An overflow must reach the logits, where it becomes an error. It must not become an ordinary number."""
    for dim, at in ((1, 0), (16, 3), (40, 39)):
        x, other, third, scalar = operands(operation, dim, "normal", 1)
        (third if operation == "rms_norm_add" else x)[at] = value
        out = run(tier, operation, x, other, third, scalar)
        with np.errstate(all="ignore"):
            y, _ = DEFINITIONS[operation](x, other, third, scalar)
        if np.isfinite(y[at]):  # tanh(inf) = 1
            assert out[at] == y[at]
        else:
            assert not np.isfinite(out[at])
