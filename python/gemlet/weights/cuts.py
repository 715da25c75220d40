"""Describes how to make a weight from a tensor of a file if the weight is not the stored tensor itself. A
weight may be a part of the tensor (when a smaller Gemma 3n is cut out of a larger one), or have the values in
another order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemlet.base.arrays import NDArray, np
from gemlet.base.records import record
from gemlet.checkpoint.tensor_files import numbers
from gemlet.config.matformer import cut_config
from gemlet.config.text_config import TextConfig
from gemlet.errors import UnsupportedError
from gemlet.weights.slots import PER_LAYER_TABLE, STREAMS, all_slots

__all__ = ["Cut", "Rearranged", "Unsoftplussed", "cut_slots"]

_PROJECTION = "per_layer_model_projection"

Run = tuple[int, int]  # neighbouring rows or columns: (first, count)


@record(frozen=True)
class Cut:
    """The part of a matrix that is kept: runs of rows and runs of columns. Without runs, all are kept."""

    rows: tuple[Run, ...] = ()
    columns: tuple[Run, ...] = ()

    @property
    def end_row(self) -> int:
        """The number of rows to read from the beginning of the tensor. No later row is kept."""
        return self.rows[-1][0] + self.rows[-1][1]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the kept part, if the whole matrix has this ``shape``."""
        kept = (sum(count for _, count in runs) for runs in (self.rows, self.columns))
        return tuple(own or whole for own, whole in zip(kept, shape, strict=True))

    def apply(
        self, blocks: Iterator[tuple[NDArray[Any], str]], shape: tuple[int, ...]
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """Yields the kept part of a tensor. ``blocks`` yields the tensor's rows in blocks, with their type,
        and ``shape`` is the shape of the whole tensor. The result also comes in blocks of rows; if several
        runs of rows are kept, it comes in one block."""

        parts: list[NDArray[Any]] = []
        dtype, begin = "", 0
        for block, dtype in blocks:
            if self.columns and block.shape[1] != shape[1]:
                raise UnsupportedError("matformer: quantized weights cannot be cut; load a float checkpoint")
            end = begin + len(block)
            for first, count in self.rows or ((begin, len(block)),):
                part = block[max(first, begin) - begin : max(0, min(first + count, end) - begin)]
                if self.columns:
                    part = np.concatenate([part[:, at : at + n] for at, n in self.columns], axis=1)
                if len(self.rows) > 1:
                    parts.append(part.copy())  # the next block overwrites this one
                elif len(part):
                    yield np.ascontiguousarray(part), dtype
            begin = end
            if self.rows and begin >= self.end_row:
                break
        if parts:
            yield np.concatenate(parts), dtype


@record(frozen=True)
class Rearranged(Cut):
    """A tensor whose axes are not those of the weight. In the file, the tensor has the shape ``stored``. To
    get the weight, reshape the tensor to ``seen``, put the axes in the order ``axes``, and reshape the result
    to ``made``. Block types of GGUF become float32."""

    stored: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    made: tuple[int, ...] = ()

    @classmethod
    def transposed(cls, shape: tuple[int, ...]) -> Rearranged:
        """The transpose of a matrix that has this ``shape`` in the file."""
        return cls(stored=shape, seen=shape, axes=(1, 0), made=shape[::-1])

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.made

    def apply(
        self, blocks: Iterator[tuple[NDArray[Any], str]], shape: tuple[int, ...]
    ) -> Iterator[tuple[NDArray[Any], str]]:

        values, dtype = _whole(blocks)
        yield np.ascontiguousarray(values.reshape(self.seen).transpose(self.axes)).reshape(self.made), dtype


@record(frozen=True)
class Unsoftplussed(Cut):
    """A weight v whose tensor in the file has the values softplus(v)."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def apply(
        self, blocks: Iterator[tuple[NDArray[Any], str]], shape: tuple[int, ...]
    ) -> Iterator[tuple[NDArray[Any], str]]:

        values, dtype = _whole(blocks)
        wide = numbers(values, dtype).astype(np.float64)
        with np.errstate(all="ignore"):  # packing finds values that are not finite
            yield (wide + np.log(-np.expm1(-wide))).astype(np.float32), "f32"


def _whole(blocks: Iterator[tuple[NDArray[Any], str]]) -> tuple[NDArray[Any], str]:
    """All rows of a tensor, and their type. Block types of GGUF become float32."""
    from gemlet import _core

    parts = [(block.copy(), dtype) for block, dtype in blocks]  # the next block overwrites this one
    values, dtype = np.concatenate([np.atleast_1d(block) for block, _ in parts]), parts[0][1]
    if values.dtype != np.uint8:
        return values, dtype
    return _core.widen(values.reshape(-1, values.shape[-1]), dtype), "f32"


def cut_slots(config: TextConfig, matformer: object) -> tuple[TextConfig, dict[str, tuple[str, Cut | None]]]:
    """Cuts a smaller Gemma 3n out of a larger one; ``matformer`` is the argument of :func:`gemlet.load`.

    Returns the configuration of the smaller model, and a map: slot of the larger model -> (slot of the
    smaller model, part that is kept or None for the whole tensor). The map does not have the slots of layers
    that are left out."""
    small, kept = cut_config(config, matformer)
    size = config.per_layer_input_size
    runs = tuple((i * size, size) for i in kept)
    if len(kept) == config.num_layers:
        runs = ()
    found: dict[str, tuple[str, Cut | None]] = {slot: (slot, None) for slot in STREAMS}
    for slot in all_slots(config):
        if not slot.startswith("layers."):
            cut = {PER_LAYER_TABLE: Cut(columns=runs), _PROJECTION: Cut(rows=runs)}.get(slot)
            found[slot] = slot, cut if runs else None
            continue
        _, index, part = slot.split(".")
        if int(index) not in kept:
            continue
        place = kept.index(int(index))
        width = small.layers[place].intermediate_size
        lanes = ((0, width),) if width < config.layers[int(index)].intermediate_size else ()
        cuts = {"gate_proj": Cut(rows=lanes), "up_proj": Cut(rows=lanes), "down_proj": Cut(columns=lanes)}
        found[slot] = f"layers.{place}.{part}", cuts.get(part) if lanes else None
    return small, found
