"""Code that the kernel tests share: random numbers of several kinds, arrays that end at a guard page, and
definitions in float64.

UNIT is the rounding error of float32. The error of one operation is at most UNIT times its result, or TINY if
the result is denormal. The error of a sum of n products, in any order, with or without FMA, is at most ``(n +
1) * UNIT * sum(|x w|)`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1)."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from support.inside import testing

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

UNIT = 2.0**-24
TINY = 2.0**-149
NORMAL = 2.0**-126  # the smallest float32 and bfloat16 that is not denormal
BLOCK = 32  # the number of columns of a quantization block, which has one scale
HALF_UNIT = 2.0**-11  # the relative rounding error of float16
HALF_TINY = 2.0**-25  # the absolute rounding error of float16's denormals
# A block of activations with a smaller max|x| may become zero, because 127 / max|x| overflows float32.
FLUSHED = 127 / 3.4e38

ENTRIES: list[tuple[str, str]] = testing.kernel_entries()
MACHINE_TIERS: list[str] = _core.cpu_info()["tiers"]

# All matrix products; test_kernels.py checks that no other one exists.
MATMULS = {
    "matmul_f32_f32": "f32",
    "matmul_f32_bf16": "bf16",
    "matmul_bf16_bf16": "bf16",
    "matmul_f32_bf12": "bf12",
    "matmul_bf16_bf12": "bf12",
    "matmul_i8_q8": "q8",
    "matmul_i8_q4": "q4",
    "matmul_i8_q5": "q5",
    "matmul_i8_q4k": "q4k",
    "matmul_i8_q5k": "q5k",
    "matmul_i8_q6k": "q6k",
    "matmul_f32_w4a16": "w4a16",
    "matmul_tiles_bf16": "bf16",
    "matmul_tiles_bf12": "bf12",
    "matmul_tiles_q8": "q8",
    "matmul_tiles_q4": "q4",
    "matmul_tiles_q5": "q5",
    "matmul_tiles_q4k": "q4k",
    "matmul_tiles_q5k": "q5k",
    "matmul_tiles_q6k": "q6k",
    **{f"matmul_{form}_r{bits}": f"r{bits}" for form in ("f32", "s8", "s8_tiles") for bits in (8, 4, 2)},
}
PREPARED = ("quantize_i8", "round_bf16", "quantize_s8", "round_s8")
# These kernels round x with a fixed scale before the multiplication.
FIXED = tuple(name for name in MATMULS if name.startswith("matmul_s8"))
PEAKS = ("peak_f32", "peak_bf16", "peak_i8")
CACHES = ("f32", "bf16", "int8", "int4")
ATTENTIONS = {f"attention_{name}": name for name in CACHES}
STORES = {f"kv_store_{name}": name for name in CACHES}
ROW_OPERATIONS = (
    "rms_norm",
    "rms_norm_add",
    "add",
    "gelu_mul",
    "exact_gelu_mul",
    "sigmoid_mul",
    "softcap",
    "rope",
    "row_max",
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def kernels(*operations: str) -> pytest.MarkDecorator:
    """Parametrizes a test with these operations, on every CPU tier of this machine that has a kernel for
    them."""
    cases = [entry for entry in ENTRIES if entry[0] in operations and entry[1] in MACHINE_TIERS]
    return pytest.mark.parametrize(("operation", "tier"), cases, ids=["-".join(entry) for entry in cases])


def guarded(values: NDArray[Any]) -> Floats:
    """A float32 copy that ends right before an unreadable page. Reading past its end crashes."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(start + pages * mmap.PAGESIZE, mmap.PAGESIZE, 0):  # PROT_NONE
        raise OSError(ctypes.get_errno(), "mprotect")
    offset = pages * mmap.PAGESIZE - array.nbytes
    copy = np.frombuffer(memory, np.float32, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


KINDS = [
    "normal",
    "bits",
    "wide",
    "large",
    "denormal",
    "zero",
    "constant",
    "zero blocks",
    "outliers",
    "coarse",
]


def numbers(random: np.random.Generator, kind: str, shape: tuple[int, ...], largest: float) -> Floats:
    """Random numbers of one ``kind`` with |x| <= largest."""
    x = random.standard_normal(shape)
    if kind == "bits":  # random bits: every exponent is equally likely, also the exponent of denormals
        bits = random.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
        x = np.where(np.isfinite(bits) & (np.abs(bits) <= largest), bits, 0)
    elif kind == "wide":
        x *= 10.0 ** random.uniform(-12, np.log10(largest), shape)
    elif kind == "large":
        x *= largest / 8
    elif kind == "denormal":
        x *= 1e-40
    elif kind == "zero":
        x *= -0.0
    elif kind == "constant":
        x = np.full(shape, random.choice([-1.0, 1.0]) * random.uniform(0.1, 3))
    elif kind == "zero blocks":
        x[..., np.arange(shape[-1]) // BLOCK % 2 == 1] = 0
    elif kind == "outliers":
        x[..., :: BLOCK // 2] *= 1e4
    elif kind == "coarse":  # many numbers are halfway between two roundings
        x = np.round(x * 4) / 8
    return np.clip(x, -largest, largest).astype(np.float32)


def bf16(values: Floats) -> Floats:
    """The values rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def few_exponents(w: Floats) -> Floats:
    """Increases each magnitude so that a row has only as many exponents as bf12 has codes."""
    peak = np.abs(w).max(axis=1, keepdims=True)
    return np.where(w == 0, w, w + np.copysign(peak / np.float32(8192), w)).astype(np.float32)


def blocks_of(values: NDArray[Any]) -> NDArray[Any]:
    """[rows, cols] -> [rows, blocks, 32], padded with zeros."""
    rows, cols = values.shape
    padded = np.zeros((rows, -(-cols // BLOCK) * BLOCK), values.dtype)
    padded[:, :cols] = values
    return padded.reshape(rows, -1, BLOCK)


def int8_steps(x: Floats, format: str) -> Doubles:
    """The quantization step of each block of 32 columns when x [rows, cols] is rounded to int8.

    The step is max|x| / 127. For q4, the step is the smallest power of two, at least 2^-64, with
    max|x| < 127.5 steps.
    """
    peaks = np.abs(blocks_of(x).astype(np.float64)).max(axis=-1, keepdims=True)
    scales = peaks / 127
    if format == "q4":
        mantissas, exponents = np.frexp(peaks)
        scales = np.exp2(np.maximum(exponents - np.where(mantissas < 127.5 / 128, 7, 6), -64.0))
    return np.broadcast_to(scales, (*scales.shape[:2], BLOCK)).reshape(len(x), -1)[:, : x.shape[1]]


def int8_activations(x: Floats, format: str) -> tuple[Doubles, Doubles]:
    """The values x' to which int8 kernels round x, and how far a kernel's value may be from x'.

    If float32 cannot tell to which of two integers x / step is nearer, the distance may be one step. In a
    block that may become zero, it may be the whole value. Otherwise, the distance must be zero.
    """
    step = int8_steps(x, format)
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.where(step > 0, x / step, 0)
    # q = x / step has an error of at most 127 * 4 UNIT in float32.
    half_way = np.abs(np.abs(q - np.rint(q)) - 0.5) < 1e-4
    rounded = np.rint(q) * step
    flushed = np.where(step * 127 < FLUSHED, np.abs(rounded), 0) if format != "q4" else 0
    return rounded, half_way * step + flushed
