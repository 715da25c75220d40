"""Writes a model's tensors as a packed file. :mod:`gemlet.weights.packed_file` describes the file."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from itertools import chain
from threading import Thread
from typing import TYPE_CHECKING, Any

from gemlet.base.exit_waits import wait_for
from gemlet.base.handlers import only_in
from gemlet.checkpoint.gguf_files import BLOCK_TYPES
from gemlet.errors import ModelFileError
from gemlet.packing.balance import balance_blocks
from gemlet.packing.blocks import blocks, naming, rounding_blocks, table_blocks
from gemlet.packing.calibrated import Grams, calibrated_blocks
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.packed_file import ALIGNMENT, FORMAT_VERSION
from gemlet.weights.slots import PER_LAYER_TABLE, TABLE_SCALES, TOKEN_ORDER, core_slots

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["write_packed"]

# The file is written in pieces of this size. File systems with large folios (ext4 since Linux 6.16, XFS) then
# keep the file in huge pages. Mapping 714 MB takes 350 page faults instead of 11,000, and unmapping is
# immediate.
_HUGE_PAGE = 2 << 20


def write_packed(
    path: str,
    files: ModelFiles,
    builder: _core.ModelBuilder,
    advance: Callable[[int], None],
    *,
    weights: str,
    table: bool = True,
    process: int,
    calibration: Grams | None = None,
) -> int:
    """Writes all weights of ``files`` into the new file ``path``, packed in the formats of ``builder`` (which
    has no memory for weights). With ``table``, the table of per-layer embeddings is also written. With
    ``calibration``, matrices are rounded with these statistics. The data are on the disk when this function
    returns.

    Returns the CRC-32 of the file.

    Raises :class:`ModelFileError` if the file cannot be written, :class:`CancelledError` in a process other
    than ``process``, and the errors of reading and packing. The file is then incomplete, and the caller
    removes it.
    """
    sizes, shapes = builder.packed_sizes(), builder.tensors()
    tensors = files.checkpoint.tensors
    balances = list(balance_blocks(files, builder, calibration))
    roundings = list(rounding_blocks(files))
    parts = [block.part for block in (*balances, *roundings)]
    parts += [
        part
        for name, slot in files.slots.items()
        if slot != PER_LAYER_TABLE
        for part, _ in core_slots(slot, tensors[name].shape)
    ]
    entries: dict[str, tuple[str, list[int], int]] = {p: ("U8", [sizes[p][1]], sizes[p][1]) for p in parts}
    table_name = next((name for name, slot in files.slots.items() if slot == PER_LAYER_TABLE), None)
    described = {p: [sizes[p][0], list(shapes[p])] for p in parts}
    if table and table_name is not None:
        info = tensors[table_name]
        shape, nbytes = info.shape, info.nbytes
        if (cut := files.cuts.get(table_name)) is not None:
            shape = cut.shape(shape)
            nbytes = nbytes // (info.shape[0] * info.shape[1]) * shape[0] * shape[1]
        entries[PER_LAYER_TABLE] = (info.dtype, list(shape), nbytes)
        integers = table_name in files.checkpoint.scales
        if info.dtype in BLOCK_TYPES or integers:  # safetensors has no such types
            entries[PER_LAYER_TABLE] = ("U8", [info.shape[0], info.nbytes // info.shape[0]], info.nbytes)
            described[PER_LAYER_TABLE] = [files.checkpoint.dtype(table_name), list(info.shape)]
        if integers:
            scales = files.checkpoint.scales[table_name].info
            entries[TABLE_SCALES] = ("F32", list(scales.shape), scales.nbytes)
        exact = table_name in files.merged and weights == "f32"
        if exact or files.checkpoint.is_wide(table_name):
            entries[PER_LAYER_TABLE] = ("F32", list(shape), 4 * shape[0] * shape[1])
    order = files.token_order
    if order is not None:
        entries[TOKEN_ORDER] = ("I32", list(order.shape), order.nbytes)
    head = _header(entries, _metadata(weights, described))
    crc, has_helper = 0, True
    pending = bytearray()  # bytes that do not fill a huge page yet
    try:
        with contextlib.ExitStack() as opened:
            with only_in(process, path):
                file = opened.enter_context(open(path, "xb", buffering=0))

            def put_whole(data: bytes | memoryview) -> None:
                nonlocal crc, has_helper
                found: list[int] = []
                helper = Thread(target=lambda before: found.append(zlib.crc32(data, before)), args=(crc,))
                with only_in(process, path):
                    if has_helper:
                        try:
                            helper.start()  # computes while the system copies the data
                        except RuntimeError:  # no thread can be started, or Python is exiting
                            has_helper = False
                    try:
                        _write(file.fileno(), data)
                    finally:
                        if has_helper:
                            wait_for(helper)
                crc = found[0] if has_helper else zlib.crc32(data, crc)

            def put(data: bytes | memoryview) -> None:
                rest = memoryview(data)
                while rest:
                    if not pending and len(rest) >= _HUGE_PAGE:
                        most = len(rest) // _HUGE_PAGE * _HUGE_PAGE
                        put_whole(rest[:most])
                    else:
                        most = _HUGE_PAGE - len(pending)
                        pending.extend(rest[:most])
                        if len(pending) == _HUGE_PAGE:
                            put_whole(bytes(pending))
                            pending.clear()
                    rest = rest[most:]

            put(head)
            rest = (
                blocks(files)
                if calibration is None
                else calibrated_blocks(files, builder, calibration, balances)
            )
            for block in chain(balances, roundings, rest):
                with naming(files, block.tensor):
                    balanced = {"balanced": True} if block.balanced else {}
                    packed = builder.pack(block.part, *block.rows, first_row=block.first_row, **balanced)  # type: ignore[call-overload]
                put(packed.data)
                advance(block.nbytes)
            if table and table_name is not None:
                row_bytes = tensors[table_name].nbytes // tensors[table_name].shape[0]
                for array in table_blocks(files, table_name, exact=exact):
                    put(array.reshape(-1).view("u1").data)
                    advance(len(array) * row_bytes)
                if table_name in files.checkpoint.scales:
                    kept = files.checkpoint.read_scales(table_name, 0, tensors[table_name].shape[0])
                    put(kept.reshape(-1).view("u1").data)
            if order is not None:
                put(order.view("u1").data)
            put_whole(bytes(pending))
            os.fsync(file.fileno())
    except OSError as problem:
        raise ModelFileError(f"{path}: cannot be written: {problem.strerror or problem}") from problem
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
    """A safetensors header with padding: the data begins at a multiple of 64 bytes of the file."""
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
