"""Packs a model's tensors into memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

from gemlet.errors import readable
from gemlet.packing.balance import balance_blocks
from gemlet.packing.blocks import blocks, naming, rounding_blocks
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.slots import PER_LAYER_TABLE

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["fill", "set_unpacked"]


def fill(builder: _core.ModelBuilder, files: ModelFiles, advance: Callable[[int], None]) -> None:
    """Packs every tensor of ``files`` into the builder's memory; ``advance`` gets the bytes of each step."""
    for block in chain(balance_blocks(files, builder), rounding_blocks(files), blocks(files)):
        with naming(files, block.tensor):
            builder.add(block.part, *block.rows, first_row=block.first_row)  # type: ignore[call-overload]
        advance(block.nbytes)
    set_unpacked(builder, files)


def set_unpacked(builder: _core.ModelBuilder, files: ModelFiles) -> None:
    """Gives the builder the tensors that are not packed, if the files have them: the table of per-layer
    embeddings, which stays in its file, and the order of the tokens in a draft model's head."""
    if files.token_order is not None:
        builder.set_token_order(files.token_order.tolist())
    checkpoint = files.checkpoint
    for name, slot in files.slots.items():
        if slot == PER_LAYER_TABLE:
            info = checkpoint.tensors[name]
            rows, cols = info.shape
            if (cut := files.cuts.get(name)) is not None and cut.rows:
                rows = cut.end_row  # the rows that are kept begin with the first row
            builder.set_per_layer_table(
                descriptor=checkpoint.files.descriptor(info.file),
                path=readable(checkpoint.path(info.file)),
                offset=info.begin,
                rows=rows,
                cols=cols,
                dtype=checkpoint.dtype(name),
                kept=() if cut is None else cut.columns,
                scales=checkpoint.read_scales(name, 0, rows) if name in checkpoint.scales else None,
            )
            checkpoint.files.check_unchanged(info.file, "it")  # from now on, the core checks this
