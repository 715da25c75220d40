"""Rounds a model's matrices with statistics of their inputs on a text (:mod:`gemlet.packing.feedback`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gemlet.base.arrays import NDArray, np
from gemlet.checkpoint.tensor_files import numbers
from gemlet.packing.blocks import Block, blocks
from gemlet.packing.feedback import FORMATS, feedback_of, round_with_feedback
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.formats import KEEPS
from gemlet.weights.slots import BALANCES

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["Grams", "add_inputs", "calibrated_blocks", "input_of"]

# Name of a matrix's inputs X -> the Gram matrix X^T X. The name is the slot of the matrix; k_proj and v_proj
# have the inputs of q_proj, and up_proj has those of gate_proj.
Grams = Mapping[str, "NDArray[np.float32]"]

_SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
_MOST_BYTES = 1 << 62  # so large a block size reads a matrix as a whole


def input_of(slot: str) -> str:
    """The name of a matrix's inputs in Grams.

    >>> input_of("layers.3.up_proj")
    'layers.3.gate_proj'
    """
    layer, _, part = slot.rpartition(".")
    return f"{layer}.{_SHARED.get(part, part)}"


def add_inputs(grams: dict[str, NDArray[np.float32]], core: _core.Model, ids: list[int]) -> None:
    """Runs the text ``ids`` through the model, and adds the Gram matrices of all inputs to ``grams``."""
    for name, inputs in core.projection_inputs(ids).items():
        product = inputs.T @ inputs
        if name in grams:
            grams[name] += product
        else:
            grams[name] = product


def calibrated_blocks(
    files: ModelFiles, builder: _core.ModelBuilder, grams: Grams, balances: list[Block]
) -> Iterator[Block]:
    """Like :func:`gemlet.packing.blocks.blocks`, but yields a matrix in rounded form if ``grams`` has its
    inputs and its format cannot hold it exactly. ``balances`` are the vectors of
    :func:`gemlet.packing.balance.balance_blocks`."""
    formats = {slot: name for slot, (name, _) in builder.packed_sizes().items()}
    scales = {block.part: block.rows[0] for block in balances}
    feedbacks: dict[str, Any] = {}
    layer = ""
    for block in blocks(files):
        if not _is_rounded(files, block.part, formats[block.part], grams):
            yield block
        elif block.first_row == 0:
            if block.part.rpartition(".")[0] != layer:
                layer = block.part.rpartition(".")[0]
                feedbacks.clear()  # to save memory, only the feedbacks of one layer are kept
            yield _rounded(files, block, formats[block.part], grams, scales, feedbacks)


def _is_rounded(files: ModelFiles, part: str, format: str, grams: Grams) -> bool:
    from gemlet import _core

    if format not in FORMATS or input_of(part) not in grams or len(grams[input_of(part)]) % 32:
        return False
    (name,) = (name for name, slot in files.slots.items() if slot == part)
    exact = _core.source_types()[files.checkpoint.dtype(name)][2]
    return files.is_changed(name) or exact not in KEEPS[format]


def _rounded(
    files: ModelFiles,
    block: Block,
    format: str,
    grams: Grams,
    scales: Mapping[str, NDArray[np.float32]],
    feedbacks: dict[str, Any],
) -> Block:
    name = input_of(block.part)
    scale = _scale_of(block.part, scales)
    if name not in feedbacks:
        gram = grams[name]
        if scale is not None:
            gram = gram / scale / scale[:, None]
        feedbacks[name] = feedback_of(gram), gram
    feedback, gram = feedbacks[name]
    w = _floats(files, block.tensor)
    if scale is not None:
        w = w * scale
    rounded = round_with_feedback(w, feedback, gram, format)
    nbytes = files.checkpoint.tensors[block.tensor].nbytes
    return Block(block.part, block.tensor, (rounded.blocks, rounded.dtype), 0, nbytes, balanced=True)


def _scale_of(part: str, scales: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    layer, _, matrix = part.rpartition(".")
    for balance, (_, matrices) in BALANCES.items():
        if matrix in matrices and f"{layer}.{balance}" in scales:
            return scales[f"{layer}.{balance}"]
    return None


def _floats(files: ModelFiles, name: str) -> NDArray[np.float32]:

    from gemlet import _core

    parts = []
    for array, dtype in files.read_rows(name, _MOST_BYTES):
        parts.append(_core.widen(array, dtype) if array.dtype == np.uint8 else numbers(array, dtype))
    return np.concatenate(parts)
