"""Applies an adapter whose files were opened by :mod:`gemlet.adapters.opening`. The adapter is either kept
beside the model's weights (:meth:`AdapterFiles.build`) or merged into them
(:meth:`AdapterFiles.change_rows`).

An adapter (Hu et al. 2021, arXiv 2106.09685) changes a matrix ``W [rows, cols]`` to ``W + scale * B A``, with
``A [rank, cols]`` and ``B [rows, rank]`` of a small rank. DoRA (Liu et al. 2024, arXiv 2402.09353) then gives
every row a length that was trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemlet.adapters.initial import with_initial
from gemlet.adapters.terms import (
    COEFFICIENTS,
    ENDS,
    TABLES,
    TARGETS,
    LowRank,
    OwnRows,
    Terms,
    is_norm,
    kind_of,
)
from gemlet.base.arrays import NDArray, np
from gemlet.base.late import hashlib
from gemlet.base.records import record
from gemlet.base.sizes import size_text
from gemlet.base.text import show
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.errors import MemoryLimitError, TensorError, UnsupportedError, readable
from gemlet.weights.hf_names import tower_kinds
from gemlet.weights.slots import PER_LAYER_TABLE, STREAMS, core_slots
from gemlet.weights.tower_slots import in_tower

if TYPE_CHECKING:
    from gemlet import _core

    Blocks = Iterator[tuple[NDArray[Any], str]]

__all__ = ["Adapter", "AdapterFiles", "changes_tower"]

_BLOCK_BYTES = 32 << 20  # block size for reading a matrix that the adapter replaces as a whole
_WIDE = 1 << 17  # the most values that are converted to float64 at a time


@record(frozen=True)
class Adapter:
    """A LoRA adapter resident beside a model; made by :meth:`gemlet.Model.load_adapter`.

    Attributes:
        name: the name by which requests choose the adapter.
        source: the folder or file of the adapter.
        base_model: the model on which the adapter was trained, according to its files; "" if they do not say.
        ranks: the ranks of the adapter's matrices, lowest first.
        targets: the kinds of matrices that the adapter changes, for example
            ``("q_proj", "v_proj", "vision.fc1")``. The kinds of the towers for images and sound begin with
            "vision." and "audio.".
        passed_over: modules of the towers that the adapter's file also changes, and that gemlet does not
            change.
        memory_bytes: the memory that the adapter takes.

    >>> import gemlet
    >>> with gemlet.load("tests/golden/gemma3-270m") as model:  # in a checkout
    ...     adapter = model.load_adapter("tests/golden/adapters/gemma3-plain")
    >>> adapter.name, adapter.ranks
    ('gemma3-plain', (4,))
    """

    name: str
    source: str
    base_model: str
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    memory_bytes: int
    passed_over: tuple[str, ...] = ()


def changes_tower(adapter: Adapter, kind: str) -> bool:
    """Whether the adapter changes the tower ``kind``, "vision" or "audio".

    Raises :class:`UnsupportedError` if its file also changes a part of the tower that gemlet cannot change.
    """
    others = [module for module in adapter.passed_over if kind in tower_kinds([module])]
    if others:
        raise UnsupportedError(
            f"adapter: {show(adapter.name)} also changes {show(others[0])} of the tower for {kind}, which "
            "gemlet cannot do; merge the adapter into the model with PEFT's merge_and_unload(), or omit it"
        )
    return any(target.startswith(f"{kind}.") for target in adapter.targets)


class AdapterFiles:
    """An adapter whose files have been checked against a model. It is a context manager; ``close()`` closes
    the files.

    Attributes:
        source: the folder or file of the adapter.
        base_model: the model for which the adapter was made, according to its files; "" if they do not say.
        terms: the changes to the model's weights.
        checkpoint: the tensors of the adapter.
    """

    def __init__(self, source: str, base_model: str, checkpoint: TensorFiles, terms: Terms) -> None:
        self.source = source
        self.base_model = base_model
        self.terms = terms
        self.checkpoint = checkpoint
        self._table_gains: dict[str, NDArray[np.float32]] = {}
        self._last_stack: tuple[LowRank, NDArray[np.float32], NDArray[np.float32]] | None = None

    def build(self, model: _core.Model) -> _core.Adapter:
        """Packs the adapter for ``model``. Raises :class:`TensorError` for values that are not finite, and
        :class:`UnsupportedError` if the adapter replaces a whole matrix other than the embedding or the
        head."""

        from gemlet import _core

        for slot, own in self.terms.own_rows.items():
            if slot not in (*ENDS, PER_LAYER_TABLE) and not is_norm(slot):
                raise UnsupportedError(
                    f"{self._where(own.tensor)} replaces a whole matrix, which gemlet does not keep beside "
                    "the model; merge the adapter: gemlet.load(..., merge_adapter=), gemlet convert --adapter"
                )
        if (table := self.terms.low_rank.get(PER_LAYER_TABLE)) is not None and table.magnitude:
            raise UnsupportedError(
                f"{self._where(table.magnitude)} is DoRA on a table that stays in its file; gemlet can "
                "only merge it: gemlet.convert(..., merge_adapter=), gemlet convert --adapter"
            )
        builder = _core.AdapterBuilder(model)
        for slot, term in self.terms.low_rank.items():
            a, a_dtype = self.checkpoint.read(term.a)
            b, b_dtype = self.checkpoint.read(term.b)
            if term.experts:
                self._add_experts(builder, slot, term, (a, a_dtype), (b, b_dtype))
                continue
            if (slot in TABLES) != term.transposed:  # for tables, the core reads A by row
                a = np.ascontiguousarray(a.T)
            if term.transposed:
                b = np.ascontiguousarray(b.T)
            if term.initial:
                a, b = with_initial(
                    term.initial, builder.weight(slot), self._finite(term.a), self._finite(term.b), term.scale
                )
                a_dtype = b_dtype = "f32"
            if in_tower(slot):  # a convolution has more than two axes
                a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            magnitudes = self._finite(term.magnitude).reshape(-1).tolist() if term.magnitude else []
            bias = self._finite(term.bias).tolist() if term.bias else []
            try:
                builder.add(
                    slot,
                    a=a,
                    a_dtype=a_dtype,
                    b=b,
                    b_dtype=b_dtype,
                    scale=term.scale,
                    magnitudes=magnitudes,
                    bias=bias,
                )
            except TensorError as problem:
                raise TensorError(f"{self._where(term.a)} or its lora_B: {problem}") from None
        for slot, own in self._stored_rows().items():
            try:
                if is_norm(slot):
                    builder.add_norm(slot, (self._finite(own.tensor) + np.float32(own.offset)).tolist())
                elif slot == PER_LAYER_TABLE:
                    self._set_table(builder, own)
                else:
                    self._add_rows(builder, slot, own)
            except TensorError as problem:
                raise TensorError(f"{self._where(own.tensor)}: {problem}") from None
        if len(self._stored_rows()) < len(self.terms.own_rows):
            builder.share_rows()
        return builder.finish(self.digest())

    def digest(self) -> bytes:
        """A hash (32 bytes) of all files of the adapter and of its terms."""
        found = hashlib.blake2b(repr(self.terms).encode(), digest_size=32)
        for name in sorted({info.file for info in self.checkpoint.tensors.values()}):
            descriptor, at = self.checkpoint.files.descriptor(name), 0
            while part := os.pread(descriptor, 1 << 20, at):
                found.update(part)
                at += len(part)
        return found.digest()

    def _add_experts(
        self,
        builder: _core.AdapterBuilder,
        slot: str,
        term: LowRank,
        a: tuple[NDArray[Any], str],
        b: tuple[NDArray[Any], str],
    ) -> None:

        for part, entry in core_slots(slot, (term.experts,)):
            one_a, one_b = (np.ascontiguousarray(x) for x in _of_expert(term, a[0], b[0], entry))
            try:
                builder.add(part, a=one_a, a_dtype=a[1], b=one_b, b_dtype=b[1], scale=term.scale)
            except TensorError as problem:
                raise TensorError(f"{self._where(term.a)} or its lora_B: {problem}") from None

    def _stored_rows(self) -> dict[str, OwnRows]:
        """The adapter's own rows. Rows that the embedding table and the output head share appear once."""
        rows = dict(self.terms.own_rows)
        if rows.get("lm_head") == rows.get("embed_tokens"):
            rows.pop("lm_head", None)
        return rows

    def _add_rows(self, builder: _core.AdapterBuilder, slot: str, own: OwnRows) -> None:

        if own.ids:
            rows, dtype = self.checkpoint.read(own.tensor)
            order = np.argsort(own.ids)  # the core expects rows by ascending id
            builder.add_rows(slot, np.ascontiguousarray(rows[order]), dtype, ids=sorted(own.ids))
            return
        if self.checkpoint.is_wide(own.tensor):
            builder.add_rows(slot, *self.checkpoint.read(own.tensor))
            return
        for part, _, _ in self.checkpoint.file_rows(own.tensor, _BLOCK_BYTES):
            builder.add_rows(slot, part)
        self.checkpoint.files.check_unchanged(self.checkpoint.tensors[own.tensor].file, show(own.tensor))

    def _set_table(self, builder: _core.AdapterBuilder, own: OwnRows) -> None:
        info = self.checkpoint.tensors[own.tensor]
        if self.checkpoint.is_wide(own.tensor):
            raise TensorError(
                f"{self._where(own.tensor)} is {info.dtype}; expected F32, BF16 or F16, because the core "
                "reads this table while the model runs. Save the adapter in one of these types"
            )
        rows, cols = info.shape
        builder.set_per_layer_table(
            descriptor=self.checkpoint.files.descriptor(info.file),
            path=readable(self.checkpoint.path(info.file)),
            offset=info.begin,
            rows=rows,
            cols=cols,
            dtype=self.checkpoint.dtype(own.tensor),
            ids=own.ids,
        )
        # From now on, the core checks that the file does not change.
        self.checkpoint.files.check_unchanged(info.file, show(own.tensor))

    @property
    def max_rank(self) -> int:
        """The largest rank of the adapter's terms in the text model, at least 1. A bias adds 1 to the
        rank."""
        own = (term for slot, term in self.terms.low_rank.items() if not in_tower(slot))
        return max((term.whole_rank for term in own), default=1)

    def tower_bytes(self, model: _core.Model) -> int:
        """The bytes of memory that a tower's forward pass needs in addition if it uses the adapter."""
        from gemlet import _core

        builder = _core.AdapterBuilder(model)
        terms = self.terms.low_rank.items()
        return max((builder.tower_bytes(slot, term.whole_rank) for slot, term in terms), default=0)

    def memory_bytes(self, model: _core.Model, weights: str) -> int:
        """The bytes of memory that the result of :meth:`build` takes, for a model with the format
        ``weights``. The core packs matrices as panels of 16 rows."""
        from gemlet import _core

        size = 4 if weights == "f32" else 2
        total = 0
        builder = _core.AdapterBuilder(model)
        for slot, own in self._stored_rows().items():
            rows = self.checkpoint.tensors[own.tensor].shape[0]
            total += 4 * rows if is_norm(slot) else builder.rows_bytes(slot, rows)
        for slot, term in self.terms.low_rank.items():
            stored = [self.checkpoint.tensors[tensor].shape for tensor in (term.a, term.b)]
            shapes = [(shape[0], prod(shape[1:])) for shape in stored]
            if (slot in TABLES) != term.transposed:
                shapes[0] = shapes[0][::-1]
            if term.transposed:
                shapes[1] = shapes[1][::-1]
            (_, cols), (rows, _) = shapes
            if kind_of(slot) in COEFFICIENTS:
                total += 4 * rows * cols
                continue
            if term.experts:
                shapes = [(term.rank, cols), (rows, term.rank)]
            elif term.bias or term.initial:
                shapes = [(term.whole_rank - bool(term.bias), cols), (rows, term.whole_rank)]
            packed = sum(-(-high // 16) * 16 * (-(-wide * size // 4) * 4) for high, wide in shapes)
            total += packed * max(1, term.experts)
            total += 4 * rows if term.magnitude else 0
        return total

    def check_memory(self, room: int, model: _core.Model, weights: str, scratch: int) -> None:
        """Raises :class:`MemoryLimitError` if the adapter needs more than ``room`` bytes. ``scratch`` is the
        number of bytes that forward passes will allocate for the adapter; they count too."""
        if (needed := self.memory_bytes(model, weights) + scratch) > room:
            part = f" ({size_text(scratch)} of it in forward passes)" if scratch else ""
            raise MemoryLimitError(
                f"{self.source}: the adapter needs {size_text(needed)}{part}, but max_memory leaves "
                f"{size_text(max(0, room))}; unload another adapter, merge this one with merge_adapter=, or "
                "load the model with a smaller max_context"
            )

    def describe(self, name: str, memory_bytes: int) -> Adapter:
        """The public description of the adapter."""
        kinds = [kind_of(slot) for slot in (*self.terms.low_rank, *self.terms.own_rows)]
        known = [kind for kind in TARGETS if kind in kinds] + [kind for kind in kinds if kind not in TARGETS]
        return Adapter(
            name=name,
            source=self.source,
            base_model=self.base_model,
            ranks=tuple(sorted({term.rank for term in self.terms.low_rank.values()})),
            targets=tuple(dict.fromkeys(known)),
            memory_bytes=memory_bytes,
            passed_over=self.terms.passed_over,
        )

    def changes(self, slot: str, entry: int | None = None) -> tuple[OwnRows | None, LowRank | None]:
        """The changes of the adapter to the weight ``slot``: new rows and a low-rank term, or None for each.
        The adapter may have a separate tensor for each matrix of a stacked weight. ``entry`` then picks the
        matrix; without it, the first matrix that the adapter changes is picked."""
        if slot in STREAMS:  # stacked in GGUF
            slots = [one for one in (*self.terms.own_rows, *self.terms.low_rank) if kind_of(one) == slot]
            slot = next(iter(slots), slot) if entry is None else f"{slot}.{entry}"
        elif slot.endswith(("experts_gate", "experts_up")):  # separate tensors in GGUF
            slot = f"{slot.rpartition('.')[0]}.experts_gate_up"
        own = self.terms.own_rows.get(slot, self.terms.merged_only.get(slot))
        return own, self.terms.low_rank.get(slot)

    def change_rows(
        self, slot: str, read: Callable[[], Blocks], entry: int | None = None
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """Yields the rows of a weight with the adapter merged into them, in float32 blocks. The weight is
        ``slot``, or the matrix ``entry`` of the stack ``slot``. ``read`` yields the model's own rows in
        blocks, from the first row on. The rows are floats, because
        :func:`gemlet.sources.opening.open_model_files` refuses other types."""

        blocks = read()
        own, term = self.changes(slot, entry)
        some = self._finite(own.tensor) if own and own.ids else None
        a, b = self._factors(term) if term else (None, None)
        if term and a is not None and b is not None:
            if term.experts:
                a, b = _of_expert(term, a, b, entry)
            if slot.endswith("experts_up"):
                b = b[len(b) // 2 :]
            if term.transposed:
                a, b = a.T, b.T
            if in_tower(slot):  # a convolution has more than two axes
                a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        magnitudes = self._finite(term.magnitude).reshape(-1, 1) if term and term.magnitude else None
        gains = None
        if slot in TABLES and term and a is not None and b is not None:
            a, b = b.T, a.T
            if magnitudes is not None:
                gains = self._gains(slot, magnitudes[:, 0], np.float32(term.scale), a, b, read)
                magnitudes = None
        if term and term.initial and a is not None and b is not None:
            stored = [_float32(block, dtype).copy() for block, dtype in blocks]
            a, b = with_initial(term.initial, np.concatenate(stored), a, b, term.scale)
            blocks = ((block, "f32") for block in stored)
        first = 0
        for block, dtype in blocks:
            rows = block.shape[0]
            values: NDArray[Any] = _float32(block, dtype)
            if own and not own.ids:
                values = _float32(*self.checkpoint.read_some(own.tensor, first, rows))
                values = values + np.float32(own.offset)
            elif own and some is not None:
                values = values.copy()
                for place, token in enumerate(own.ids):
                    if first <= token < first + rows:
                        values[token - first] = some[place]
            with np.errstate(all="ignore"):  # packing refuses values that are not finite
                if term and a is not None and b is not None:
                    lengths = None if magnitudes is None else magnitudes[first : first + rows]
                    factors = np.float32(term.scale) * b[first : first + rows], a
                    values = _corrected(values.reshape(rows, -1), *factors, lengths)
                if gains is not None:
                    values = values * gains
            yield values.reshape(block.shape), "f32"
            first += rows

    def _factors(self, term: LowRank) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A and B of a term, in float32. For a stack of experts they are kept for the next call, because
        every expert needs a part of them."""
        kept, a, b = self._last_stack or (None, None, None)
        if kept != term or a is None or b is None:
            a, b = self._finite(term.a), self._finite(term.b)
            self._last_stack = (term, a, b) if term.experts else None
        return a, b

    def _gains(
        self,
        slot: str,
        magnitudes: NDArray[np.float32],
        scale: np.float32,
        a: NDArray[np.float32],
        b: NDArray[np.float32],
        read: Callable[[], Blocks],
    ) -> NDArray[np.float32]:
        """The factors by which DoRA multiplies the columns of a table. The length of a column is computed
        over all rows of the table."""

        if slot not in self._table_gains:
            squares = np.zeros(a.shape[1])
            first = 0
            with np.errstate(all="ignore"):
                for block, dtype in read():
                    values = _float32(block, dtype) + scale * b[first : first + len(block)] @ a
                    squares += np.square(values, dtype=np.float64).sum(axis=0)
                    first += len(block)
                self._table_gains[slot] = (magnitudes / np.sqrt(squares)).astype(np.float32)
        return self._table_gains[slot]

    def _finite(self, tensor: str) -> NDArray[np.float32]:

        dtype = self.checkpoint.dtype(tensor)
        if dtype not in ("f32", "bf16", "f16"):
            raise UnsupportedError(
                f"{self._where(tensor)} is quantized ({dtype}); expected floats. Load the adapter beside the "
                "model with load_adapter(), or merge an adapter in F32, BF16 or F16"
            )
        values = _float32(*self.checkpoint.read(tensor))
        if not np.isfinite(values).all():
            raise TensorError(f"{self._where(tensor)} contains NaN or infinity; the file is damaged")
        return values

    def _where(self, tensor: str) -> str:
        return f"{self.checkpoint.path(self.checkpoint.tensors[tensor].file)}: tensor {show(tensor)}"

    def close(self) -> None:
        """Closes the files."""
        self.checkpoint.close()

    def __enter__(self) -> AdapterFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _of_expert(
    term: LowRank, a: NDArray[Any], b: NDArray[Any], entry: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The parts of A and B that belong to the expert ``entry`` of a stack."""
    all_a, all_b = a.reshape(term.experts, term.rank, -1), b.reshape(len(b), term.rank, term.experts)
    return all_a[entry], all_b[:, :, entry]


def _corrected(
    values: NDArray[np.float32],
    b: NDArray[np.float32],
    a: NDArray[np.float32],
    lengths: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Returns ``values + b a``. If ``lengths`` are given, the rows of the sum are scaled to these lengths.
    Everything is computed in float64, some rows at a time, and rounded once."""

    found = np.empty_like(values)
    wide_a = a.astype(np.float64)
    step = max(1, _WIDE // values.shape[1])
    for row in range(0, len(values), step):
        part = values[row : row + step] + b[row : row + step].astype(np.float64) @ wide_a
        if lengths is not None:
            part *= lengths[row : row + step] / np.linalg.norm(part, axis=1, keepdims=True)
        found[row : row + step] = part
    return found


def _float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:

    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return (
        values.view(np.float16).astype(np.float32)
        if dtype == "f16"
        else values.astype(np.float32, copy=False)
    )
