"""From a source's tensors to the packed form of weights, in the memory of a model or in a file.

A packed file is a safetensors file that the core maps and uses in place. Of each weight of the core it has
one U8 tensor, named as the core names it, whose data is the panels of csrc/formats/formats.h (a vector: its
float32 values), padded to a multiple of 64 bytes and so beginning at one. The table of per-layer embeddings
stands last, as rows in the type it had (blocks of GGUF as U8). ``__metadata__`` says which version of gemlet
wrote it, in which format and layout, and format and shape of every weight.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gemlet._json import show
from gemlet.errors import ModelFileError, TensorError

if TYPE_CHECKING:
    from gemlet import _core
    from gemlet.source import ModelSource

__all__ = ["FORMAT_VERSION", "fill", "set_table", "source_bytes", "write_packed"]

FORMAT_VERSION = 1  # of the file; the core counts the versions of the layout inside the tensors
ALIGNMENT = 64
_BLOCK_BYTES = 32 << 20  # of a tensor at a time: between two of them Ctrl-C is seen and progress told
_CHANGED_BYTES = 4 << 20  # where NumPy makes copies of them, which the memory plan has no room for


class _Block(NamedTuple):
    """Rows of a weight: its name in the core, the tensor they are from, the rows (an array and its type, or
    where they are in the file: what the core takes), and their place."""

    part: str
    tensor: str
    rows: Any
    first_row: int
    nbytes: int


def source_bytes(source: ModelSource, *, table: bool = False) -> int:
    """What packing reads: the bytes of every tensor, the table of per-layer embeddings only if ``table``."""
    from gemlet.tensors import PER_LAYER_TABLE

    tensors = source.checkpoint.tensors
    names = (name for name, slot in source.slots.items() if table or slot != PER_LAYER_TABLE)
    return sum(tensors[name].nbytes for name in names)


def fill(builder: _core.ModelBuilder, source: ModelSource, advance: Callable[[int], None]) -> None:
    """Packs every tensor of ``source`` into the builder's memory; ``advance`` gets the bytes of each step."""
    for block in _blocks(source):
        with _naming(source, block.tensor):
            builder.add(block.part, *block.rows, first_row=block.first_row)  # type: ignore[call-overload]
        advance(block.nbytes)
    set_table(builder, source)


def set_table(builder: _core.ModelBuilder, source: ModelSource) -> None:
    """Gives the builder the table of per-layer embeddings, if there is one: it stays in its file."""
    from gemlet.tensors import PER_LAYER_TABLE

    checkpoint = source.checkpoint
    for name, slot in source.slots.items():
        if slot == PER_LAYER_TABLE:
            info = checkpoint.tensors[name]
            rows, cols = info.shape
            builder.set_per_layer_table(
                path=checkpoint.path(info.file),
                offset=info.begin,
                rows=rows,
                cols=cols,
                dtype=checkpoint.dtype(name),
                kept=source.cuts[name].columns if name in source.cuts else (),
            )


def write_packed(
    path: str,
    source: ModelSource,
    builder: _core.ModelBuilder,
    advance: Callable[[int], None],
    *,
    weights: str,
    table: bool = True,
) -> int:
    """Writes the new file ``path``: every tensor of ``source`` packed as ``builder`` (made without memory of
    its own) has it, and the table of per-layer embeddings if ``table``. It is on the disk when this returns.
    Returns the CRC-32 of the file.

    Raises :class:`ModelFileError` when it cannot be written, and what reading and packing raise; the file is
    then incomplete and the caller's to remove.
    """
    from gemlet.gguf_checkpoint import BLOCK_TYPES
    from gemlet.tensors import PER_LAYER_TABLE, core_slots

    sizes, shapes = builder.packed_sizes(), builder.tensors()
    tensors = source.checkpoint.tensors
    parts = [
        part
        for name, slot in source.slots.items()
        if slot != PER_LAYER_TABLE
        for part, _ in core_slots(slot, tensors[name].shape)
    ]
    entries: dict[str, tuple[str, list[int], int]] = {p: ("U8", [sizes[p][1]], sizes[p][1]) for p in parts}
    table_name = next((name for name, slot in source.slots.items() if slot == PER_LAYER_TABLE), None)
    described = {p: [sizes[p][0], list(shapes[p])] for p in parts}
    if table and table_name is not None:
        info = tensors[table_name]
        shape, nbytes = info.shape, info.nbytes
        if (cut := source.cuts.get(table_name)) is not None:
            shape = cut.shape(shape)
            nbytes = nbytes // info.shape[1] * shape[1]
        entries[PER_LAYER_TABLE] = (info.dtype, list(shape), nbytes)
        if info.dtype in BLOCK_TYPES:  # which safetensors does not have
            entries[PER_LAYER_TABLE] = ("U8", [info.shape[0], info.nbytes // info.shape[0]], info.nbytes)
            described[PER_LAYER_TABLE] = [source.checkpoint.dtype(table_name), list(info.shape)]
    head = _header(entries, _metadata(weights, described))
    crc = 0
    try:
        with ThreadPoolExecutor(1) as helper, open(path, "xb", buffering=0) as file:

            def put(data: bytes | memoryview) -> None:
                nonlocal crc
                later = helper.submit(zlib.crc32, data, crc)  # while the system copies the data
                _write(file.fileno(), data)
                crc = later.result()

            put(head)
            for block in _blocks(source):
                with _naming(source, block.tensor):
                    packed = builder.pack(block.part, *block.rows, first_row=block.first_row)  # type: ignore[call-overload]
                put(packed.data)
                advance(block.nbytes)
            if table and table_name is not None:
                row_bytes = tensors[table_name].nbytes // tensors[table_name].shape[0]
                for array, _ in source.read_rows(table_name, _BLOCK_BYTES):
                    put(array.reshape(-1).view("u1").data)
                    advance(len(array) * row_bytes)
            os.fsync(file.fileno())
    except OSError as problem:
        raise ModelFileError(f"{path}: cannot be written: {problem.strerror}") from problem
    return crc


def _metadata(weights: str, described: dict[str, list[Any]]) -> dict[str, str]:
    from gemlet import _core

    return {
        "gemlet_version": _core.__version__,
        "gemlet_format": str(FORMAT_VERSION),
        "gemlet_layout": str(_core.LAYOUT_VERSION),
        "gemlet_weights": weights,
        "gemlet_tensors": json.dumps(described, separators=(",", ":")),
    }


def _header(entries: dict[str, tuple[str, list[int], int]], metadata: dict[str, str]) -> bytes:
    """A safetensors header, padded so that the data begins at a multiple of 64 bytes of the file."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, nbytes) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _blocks(source: ModelSource) -> Iterator[_Block]:
    """All weights in the order of ``source.slots``, block by block; not the per-layer table."""
    from gemlet.tensors import PER_LAYER_TABLE, core_slots

    checkpoint = source.checkpoint
    # The tensors of each part: an expert's gate and up projection, stored apart, are the rows of one matrix.
    places: dict[str, list[tuple[str, int | None]]] = {}
    for name, slot in source.slots.items():
        if slot != PER_LAYER_TABLE:
            for part, entry in core_slots(slot, checkpoint.tensors[name].shape):
                places.setdefault(part, []).append((name, entry))
    for part, tensors in places.items():
        first_row = 0
        for name, entry in tensors:
            if source.is_changed(name):
                row_bytes = checkpoint.tensors[name].nbytes // checkpoint.tensors[name].shape[0]
                for array, dtype in source.read_rows(name, min(_BLOCK_BYTES, _CHANGED_BYTES), entry=entry):
                    yield _Block(part, name, (array, dtype), first_row, len(array) * row_bytes)
                    first_row += array.shape[0]
            else:
                for rows, count, nbytes in checkpoint.file_rows(name, _BLOCK_BYTES, entry=entry):
                    yield _Block(part, name, (rows,), first_row, nbytes)
                    first_row += count
                checkpoint.check_unchanged(checkpoint.tensors[name].file, show(name))


@contextmanager
def _naming(source: ModelSource, tensor: str) -> Iterator[None]:
    """The core's errors name the weight only: this adds the file and the tensor."""
    try:
        yield
    except (TensorError, ModelFileError) as problem:
        path = source.checkpoint.path(source.checkpoint.tensors[tensor].file)
        raise type(problem)(f"{path}: tensor {tensor!r}: {problem}") from None
