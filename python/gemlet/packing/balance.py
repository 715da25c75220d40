"""Computes the vectors that balance the channels of matrices with few bits. csrc/model/balance.h explains
why.

A vector depends on the mean square of each channel of the matrix's inputs. This mean square is estimated only
from the weights of norms, which are small. So no text is needed, and no large tensor is read. The residual is
a sum: every branch of a layer adds the output of its post norm, and the mean square of this output is about
the square of the norm's weight. The norm before the matrix multiplies the mean square of the residual by the
square of the norm's weight. The residual begins with the embeddings. Their mean square is assumed to be 1 in
every channel, because measuring it on the table makes no significant difference.

The vectors are ones for Gemma 1 and VaultGemma, whose layers have no post norms from which to estimate, and
for Gemma 3n, which has four residual streams. A vector is also ones if the packed format holds the file's
weights exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gemlet.base.arrays import NDArray, np
from gemlet.checkpoint.tensor_files import numbers
from gemlet.packing.blocks import Block
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.formats import KEEPS
from gemlet.weights.slots import BALANCES, core_slots, is_balance

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["balance_blocks"]

# Norm -> the matrix whose name the norm's outputs have in Grams.
_MEASURED = {"pre_attention_norm": "q_proj", "pre_mlp_norm": "gate_proj"}
_MOST = 16  # a channel is multiplied by at most this, and by at least its inverse


def balance_blocks(
    files: ModelFiles, builder: _core.ModelBuilder, grams: Mapping[str, NDArray[np.float32]] | None = None
) -> Iterator[Block]:
    """Yields the vector of each slot "..._balance" of the builder. The builder takes them before all other
    weights. If ``grams`` (:mod:`gemlet.packing.calibrated`) has the inputs of a matrix, measured mean squares
    are used instead of estimates."""

    formats = {slot: name for slot, (name, _) in builder.packed_sizes().items()}
    tensors = {slot: name for name, slot in files.slots.items()}
    importance = None
    for slot in formats:
        if not is_balance(slot):
            continue
        layer, _, part = slot.rpartition(".")
        norm, matrices = BALANCES[part]
        scale = np.ones(files.config.hidden_size, np.float32)
        if _can_balance(files, tensors, formats, layer, matrices):
            if importance is None:
                importance = _importance(files, tensors)
            measured = (grams or {}).get(f"{layer}.{_MEASURED.get(norm)}")
            scale = _scale(importance[f"{layer}.{norm}"] if measured is None else np.diag(measured))
        yield Block(slot, tensors[f"{layer}.{norm}"], (scale, "f32"), 0, 0)


def _can_balance(
    files: ModelFiles, tensors: dict[str, str], formats: dict[str, str], layer: str, matrices: tuple[str, ...]
) -> bool:
    """Whether the mean squares of the inputs of a layer's ``matrices`` can be estimated, and all these
    matrices are rounded to a format with few bits."""
    from gemlet import _core

    config = files.config
    if config.altup_streams > 1 or not all(spec.post_norms for spec in config.layers):
        return False
    exact_formats = {dtype: exact for dtype, (_, _, exact) in _core.source_types().items()}
    for matrix in matrices:
        slot = f"{layer}.{matrix}"
        if slot not in tensors:
            continue
        name = tensors[slot]
        for part, _ in core_slots(slot, files.checkpoint.tensors[name].shape):
            format = formats[part]
            exact = not files.is_changed(name) and exact_formats[files.checkpoint.dtype(name)]
            if format not in KEEPS or exact in KEEPS[format]:
                return False
    return True


def _importance(files: ModelFiles, tensors: dict[str, str]) -> dict[str, NDArray[np.float64]]:
    """Slot of a norm before matrices -> the mean square of each channel of the norm's output, up to a common
    factor."""

    def square(slot: str, offset: float = files.config.norm_offset) -> NDArray[np.float64]:
        ((values, dtype),) = files.read_rows(tensors[slot], 1 << 20)
        return (numbers(values, dtype).astype(np.float64) + offset) ** 2

    found = {}
    residual = np.ones(files.config.hidden_size)
    for i, layer in enumerate(files.config.layers):
        at = f"layers.{i}"
        found[f"{at}.pre_attention_norm"] = residual * square(f"{at}.pre_attention_norm")
        residual = residual + square(f"{at}.post_attention_norm")
        for norm in ("pre_mlp_norm", "pre_moe_norm"):
            if f"{at}.{norm}" in tensors:
                found[f"{at}.{norm}"] = residual * square(f"{at}.{norm}")
        residual = residual + square(f"{at}.post_mlp_norm")
        if f"{at}.post_per_layer_input_norm" in tensors:
            residual = residual + square(f"{at}.post_per_layer_input_norm")
        if layer.layer_scalar:
            residual = residual * square(f"{at}.layer_scalar", 0.0)
    return found


def _scale(importance: NDArray[np.float64]) -> NDArray[np.float32]:
    """The fourth root of ``importance``, divided by the geometric mean of these roots. If the result is not
    finite, the vector is ones; then packing the norm itself raises the error."""

    with np.errstate(all="ignore"):
        logs = np.log(np.maximum(importance, np.finfo(np.float64).tiny)) / 4
        scale = np.exp(logs - np.mean(logs))
    if not np.isfinite(scale).all():
        return np.ones(len(importance), np.float32)
    return np.clip(scale, 1 / _MOST, _MOST).astype(np.float32)
