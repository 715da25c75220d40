"""Reads the tensors of a model in blocks of rows, for the core to pack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gemlet.base.arrays import NDArray, np
from gemlet.base.text import show
from gemlet.checkpoint.scaled_tensors import read_rounding
from gemlet.errors import ModelFileError, TensorError
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.slots import PER_LAYER_TABLE, core_slots

__all__ = ["Block", "blocks", "naming", "rounding_blocks", "stored_bytes", "table_blocks"]

_BLOCK_BYTES = 32 << 20  # bytes of a block; after each block, Ctrl-C is handled and progress is reported
_CHANGED_BYTES = 4 << 20  # for blocks that NumPy copies, because the memory plan has no room for large copies


class Block(NamedTuple):
    """Rows of a weight.

    Attributes:
        part: the name of the weight in the core.
        tensor: the tensor from which the rows come.
        rows: the arguments for the core: an array and its type, or the place of the rows in the file.
        first_row: the index of the first row in the weight.
        nbytes: the size of the rows in the file, for progress.
        balanced: whether the columns are already multiplied by the vector that balances channels.
    """

    part: str
    tensor: str
    rows: Any
    first_row: int
    nbytes: int
    balanced: bool = False


def stored_bytes(files: ModelFiles, *, table: bool = False) -> int:
    """The bytes that packing reads, which are the bytes of all tensors. The table of per-layer embeddings
    counts only with ``table``."""
    tensors = files.checkpoint.tensors
    names = (name for name, slot in files.slots.items() if table or slot != PER_LAYER_TABLE)
    return sum(tensors[name].nbytes for name in names)


def blocks(files: ModelFiles) -> Iterator[Block]:
    """All weights except the per-layer table, in the order of ``files.slots``, block by block."""
    checkpoint = files.checkpoint
    # part -> its tensors. The rows of an expert's matrix may come from two tensors, gate and up.
    places: dict[str, list[tuple[str, int | None]]] = {}
    for name, slot in files.slots.items():
        if slot != PER_LAYER_TABLE:
            for part, entry in core_slots(slot, checkpoint.tensors[name].shape):
                places.setdefault(part, []).append((name, entry))
    for part, tensors in places.items():
        first_row = 0
        for name, entry in tensors:
            if part == "embed_tokens" and files.token_order is not None:
                yield from _ordered(files, name, files.token_order)
            elif files.is_changed(name):
                info = checkpoint.tensors[name]
                row_bytes = info.nbytes // (info.shape[0] if info.shape else 1)
                for array, dtype in files.read_rows(name, min(_BLOCK_BYTES, _CHANGED_BYTES), entry=entry):
                    count = array.shape[0] if array.ndim else 1
                    yield Block(part, name, (array, dtype), first_row, count * row_bytes)
                    first_row += count
            else:
                for rows, count, nbytes in checkpoint.file_rows(name, _BLOCK_BYTES, entry=entry):
                    yield Block(part, name, (rows,), first_row, nbytes)
                    first_row += count
                checkpoint.files.check_unchanged(checkpoint.tensors[name].file, show(name))


def rounding_blocks(files: ModelFiles) -> Iterator[Block]:
    """The two scales of each matrix whose inputs and outputs are rounded."""
    tensors = {slot: name for name, slot in files.slots.items()}
    for slot, rounding in files.roundings.items():
        yield Block(
            f"{slot}_rounding", tensors[slot], (read_rounding(files.checkpoint, rounding), "f32"), 0, 0
        )


def _ordered(files: ModelFiles, name: str, order: NDArray[np.int32]) -> Iterator[Block]:
    """The rows of a draft model's head, sorted by centroids."""

    read = list(files.read_rows(name, _BLOCK_BYTES))
    whole, dtype = np.concatenate([rows for rows, _ in read]), read[0][1]
    count = max(1, _CHANGED_BYTES // whole[0].nbytes // 16) * 16
    for first in range(0, len(whole), count):
        rows = whole[order[first : first + count]]
        yield Block("embed_tokens", name, (rows, dtype), first, rows.nbytes)


def table_blocks(files: ModelFiles, name: str, *, exact: bool = False) -> Iterator[NDArray[Any]]:
    """Yields the rows of the per-layer table, which is the tensor ``name``, in blocks and in their stored
    type. If an adapter is merged into the rows, they are rounded to the stored type again, or with ``exact``
    kept in float32."""
    if name in files.checkpoint.scales:
        return files.checkpoint.stored_rows(name, _BLOCK_BYTES)
    if name in files.merged:
        return _merged_table(files, name, "f32" if exact else files.checkpoint.dtype(name))
    return (array for array, _ in files.read_rows(name, _BLOCK_BYTES))


def _merged_table(files: ModelFiles, name: str, dtype: str) -> Iterator[NDArray[Any]]:
    for array, _ in files.read_rows(name, _CHANGED_BYTES):
        rows: NDArray[Any] = array
        if dtype == "f16":
            with np.errstate(over="ignore"):
                rows = array.astype(np.float16)
        elif dtype == "bf16":
            bits = array.view(np.uint32)
            rows = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        largest = rows >> 7 & 0xFF == 0xFF if dtype == "bf16" else ~np.isfinite(rows)
        with naming(files, name):
            if largest.any():
                raise TensorError(
                    f"a value becomes NaN, infinite or too large for {dtype} when the adapter is merged; "
                    "check the adapter, or load it beside the model with load_adapter()"
                )
        yield rows


@contextmanager
def naming(files: ModelFiles, tensor: str) -> Iterator[None]:
    """Adds the names of the file and the tensor to errors of the core, which name only the weight."""
    try:
        yield
    except (TensorError, ModelFileError) as problem:
        path = files.checkpoint.path(files.checkpoint.tensors[tensor].file)
        raise type(problem)(f"{path}: tensor {tensor!r}: {problem}") from None
