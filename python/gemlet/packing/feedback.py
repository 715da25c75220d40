"""Rounds matrices to q4, q5 or q8 with statistics of their inputs on a text.

This is GPTQ (Frantar and others, 2022). Columns are rounded from the first to the last, in the order of the
file. After a column is rounded, the columns that are not rounded yet are changed to compensate for the
rounding error. How much a column can compensate depends on the correlation of the inputs, which the Gram
matrix X^T X shows. The scale of a block of 32 columns is chosen just before the block is rounded, for its
values at that time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gemlet.base.arrays import NDArray, np
from gemlet.errors import InvalidRequestError

if TYPE_CHECKING:
    Floats = NDArray[np.float32]

__all__ = ["FORMATS", "Rounded", "feedback_of", "round_with_feedback"]

_BLOCK = 32
_DAMPING = 0.02  # this share of the diagonal's mean is added to the diagonal, for rarely active channels
_LOWEST = {"q4": -8, "q5": -16, "q8": -127}  # the lowest integer of each format
FORMATS = tuple(_LOWEST)
_TYPES = {"q4": "q4_0", "q5": "q5_0", "q8": "q8_0"}


class Rounded(NamedTuple):
    """A rounded matrix.

    Attributes:
        blocks: uint8, rows of GGUF blocks.
        dtype: the GGUF type of the blocks.
        error: the mean square of the error of the outputs, divided by the mean square of the outputs.
    """

    blocks: NDArray[np.uint8]
    dtype: str
    error: float


def feedback_of(gram: Floats) -> Floats:
    """The upper triangular R with R^T R = H^-1, where H is the damped ``gram`` [columns, columns]. If column
    c has the rounding error e, -e R[c] / R[c, c] is added to the columns after c."""

    damping = _DAMPING * max(float(np.mean(np.diag(gram))), 1e-30)
    for _ in range(8):
        damped = gram.astype(np.float64)
        damped[np.diag_indices(len(gram))] += damping
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:  # because of rounding errors, the matrix is not positive definite
            damping *= 10
            continue
        inverse: Floats = np.linalg.inv(lower[::-1, ::-1]).astype(np.float32)
        return inverse
    raise InvalidRequestError(
        "calibrate: the text makes inputs of a matrix that are not finite; give another text, or leave "
        "calibrate out"
    )


def round_with_feedback(w: Floats, feedback: Floats, gram: Floats, format: str) -> Rounded:
    """Rounds ``w`` [outputs, columns] to ``format`` ("q4", "q5" or "q8"). The number of columns is a multiple
    of 32. ``feedback`` is the result of :func:`feedback_of` for ``gram``."""

    low = _LOWEST[format]
    left = np.array(w, np.float32, order="C")
    rows, columns = left.shape
    diagonal = np.diag(feedback)
    scales = np.empty((rows, columns // _BLOCK), np.float16)
    steps = np.empty((rows, columns), np.int8)
    for first in range(0, columns, _BLOCK):
        end = first + _BLOCK
        block = np.ascontiguousarray(left[:, first:end].T)  # each column is contiguous
        half = _best_scales(block, np.float32(1) / diagonal[first:end] ** 2, low).astype(np.float16)
        scales[:, first // _BLOCK] = half
        scale = half.astype(np.float32)
        with np.errstate(divide="ignore"):
            inverse = np.where(scale != 0, 1 / scale, 0).astype(np.float32)
        errors = np.empty_like(block)
        for i in range(_BLOCK):
            q = np.clip(np.rint(block[i] * inverse), low, -low - 1 if format != "q8" else 127)
            steps[:, first + i] = q
            errors[i] = (block[i] - q * scale) / diagonal[first + i]
            if i + 1 < _BLOCK:
                block[i + 1 :] -= feedback[first + i, first + i + 1 : end, None] * errors[i]
        left[:, end:] -= errors.T @ feedback[first:end, end:]
    values = steps * np.repeat(scales.astype(np.float32), _BLOCK, axis=1)
    difference = values - w
    power = float(np.einsum("ij,ij->", w @ gram, w))
    error = float(np.einsum("ij,ij->", difference @ gram, difference)) / max(power, 1e-30)
    return Rounded(_blocks(scales, steps, format), _TYPES[format], error)


def _best_scales(block: Floats, importance: Floats, low: int) -> Floats:
    """The scale of each quantization block. Each column of ``block`` [32, rows] is one quantization block of
    a row of the matrix. The scale is the best of several scales that are fitted by least squares, as in
    csrc/formats/quantize.cpp.
    """

    places = np.abs(block).argmax(axis=0)
    peak = np.take_along_axis(block, places[None], axis=0)[0]
    if low == -127:
        plain: Floats = peak / np.float32(127)
        return plain
    best, best_gain = peak / np.float32(low), np.full(len(peak), -1.0, np.float32)
    weights = importance.astype(np.float32)[:, None]
    for target in (low, low - 0.5, low - 1, low + 0.6, -low - 0.6, -low - 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.clip(np.rint(np.nan_to_num(block * (target / peak))), low, -low - 1)
        xq, qq = (weights * block * q).sum(axis=0), (weights * q * q).sum(axis=0)
        fitted = xq / np.maximum(qq, 1e-30)
        gain = xq * fitted
        better = gain > best_gain
        best, best_gain = np.where(better, fitted, best), np.where(better, gain, best_gain)
    found: Floats = best
    return found


def _blocks(scales: NDArray[np.float16], steps: NDArray[np.int8], format: str) -> NDArray[np.uint8]:
    """The scales and steps as GGUF blocks."""

    rows, count = scales.shape
    parts: list[NDArray[Any]] = [scales.view(np.uint8).reshape(rows, count, 2)]
    q = steps.reshape(rows, count, _BLOCK)
    if format == "q8":
        parts.append(q.view(np.uint8))
    else:
        stored = (q - np.int8(_LOWEST[format])).astype(np.uint8)
        if format == "q5":
            parts.append(np.packbits(stored >> 4, axis=-1, bitorder="little"))
        low = stored & 15
        parts.append(low[..., :16] | low[..., 16:] << 4)
    return np.concatenate(parts, axis=-1).reshape(rows, -1)
