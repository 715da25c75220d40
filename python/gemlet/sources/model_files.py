"""The opened files of a model, before any weight is read: :class:`ModelFiles`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from types import TracebackType
from typing import Any

from gemlet.adapters.adapter import AdapterFiles
from gemlet.base.arrays import NDArray, np
from gemlet.base.records import field, record, replace
from gemlet.chat.base import ChatFormat
from gemlet.checkpoint.scaled_tensors import Rounding
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.errors import InvalidRequestError
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.tokenizer.vocabulary import Vocabulary
from gemlet.weights.cuts import Cut, cut_slots
from gemlet.weights.formats import auto_format
from gemlet.weights.packed_file import PackedCheckpoint
from gemlet.weights.slots import core_slots, takes_format

__all__ = ["ModelFiles"]

_CACHED_BYTES = 64 << 20  # the assumed size of a processor's cache


def _of_both(one: str, other: str) -> str:
    """The format of a matrix that is made from two tensors, if the tensors alone would get these formats."""
    if one == other:
        return one
    return "bf16" if {one, other} == {"bf12", "bf16"} else "q8"


@record(frozen=True)
class ModelFiles:
    """The opened files of a model. It is a context manager; ``close()`` closes the files.

    Attributes:
        name: the path or name of the model, for messages.
        config: the configuration of the model.
        end_ids: the ids of the tokens that end the generation.
        sampling: the sampling values that the files recommend, by their names in GenerationConfig.
        tokenizer: made from ``vocabulary``; None if the files have no tokenizer.
        chat_format: how a conversation becomes a prompt; None if the model has no chat format.
        checkpoint: the tensors. Their names, shapes and types are checked; their values are not read.
        slots: tensor -> the core's name of the weight.
        cuts: tensor -> how to make the weight, for tensors that are not used as they are stored.
        adapter: an adapter to merge into the weights, or None.
        merged: tensor -> the slot whose change by ``adapter`` is added to the tensor before it is cut.
        config_files: the paths of the files that a packed folder copies, besides weights and vocabulary.
        config_texts: name -> content of further files that a packed folder gets.
        prompts: the prompts of an embedding model, which are put before each text; None for other models.
        not_followed: options in the files that gemlet does not follow, by key.
        roundings: slot of a matrix -> the tensors with the scales that round its inputs and outputs.
        token_order: for a draft model with centroids, the token id of each row of its head, int32
            ``[vocab_size]``.
        passed_over: keys and tensors of the files that have no effect and that most models do not have.
        known_formats: tensor -> the format that ``weights="auto"`` gives it, for tensors that were examined.
        unread: True if no values may be read to find a format. Then the largest possible format is used.
    """

    name: str
    config: TextConfig
    end_ids: frozenset[int]
    sampling: dict[str, Any]
    tokenizer: Tokenizer | None
    chat_format: ChatFormat | None
    checkpoint: TensorFiles = field(repr=False)
    slots: dict[str, str] = field(repr=False)
    cuts: Mapping[str, Cut] = field(default_factory=dict, repr=False)
    vocabulary: Vocabulary | None = field(repr=False, default=None)
    config_files: tuple[str, ...] = field(repr=False, default=())
    config_texts: Mapping[str, str] = field(repr=False, default_factory=dict)
    known_formats: dict[str, str] = field(repr=False, default_factory=dict)
    unread: bool = False
    adapter: AdapterFiles | None = field(default=None, repr=False)
    merged: Mapping[str, str] = field(default_factory=dict, repr=False)
    prompts: Prompts | None = field(default=None, repr=False)
    not_followed: Mapping[str, Any] = field(default_factory=dict)
    roundings: Mapping[str, Rounding] = field(default_factory=dict, repr=False)
    passed_over: tuple[str, ...] = ()
    token_order: NDArray[np.int32] | None = field(default=None, repr=False)

    def cut(self, matformer: object) -> ModelFiles:
        """The smaller model that ``matformer`` cuts out of this model (:mod:`gemlet.config.matformer`)."""
        if self.packed is not None:
            raise InvalidRequestError(
                f"matformer: {self.name} is packed and cannot be cut; load the original with matformer="
            )
        config, kept = cut_slots(self.config, matformer)
        slots = {tensor: kept[slot][0] for tensor, slot in self.slots.items() if slot in kept}
        cuts = {tensor: kept[self.slots[tensor]][1] for tensor in slots}
        own = {tensor: cut for tensor, cut in self.cuts.items() if tensor in slots}
        parts = {tensor: cut for tensor, cut in cuts.items() if cut is not None} | own
        return replace(self, config=config, slots=slots, cuts=parts)

    def with_towers(self, *, vision: bool, audio: bool) -> ModelFiles:
        """The model without the towers for which ``vision`` or ``audio`` is False."""
        left_out = tuple(f"{name}." for name, kept in (("vision", vision), ("audio", audio)) if not kept)
        if not left_out:
            return self
        slots = {tensor: slot for tensor, slot in self.slots.items() if not slot.startswith(left_out)}
        cuts = {tensor: cut for tensor, cut in self.cuts.items() if tensor in slots}
        config = without_towers(self.config, vision=vision, audio=audio)
        return replace(self, config=config, slots=slots, cuts=cuts)

    def read_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """Like :meth:`TensorFiles.read_rows`, but yields the rows of the weight: the adapter is merged into
        the tensor's values, and then the tensor is cut."""
        cut = self.cuts.get(name)
        info = self.checkpoint.tensors[name]
        if cut is not None and cut.rows:
            block_bytes = min(block_bytes, cut.end_row * (info.nbytes // info.shape[0]))

        def read() -> Iterator[tuple[NDArray[Any], str]]:
            return self.checkpoint.read_rows(name, block_bytes, entry=entry)

        if self.adapter is not None and name in self.merged:
            rows = self.adapter.change_rows(self.merged[name], read, entry)
        else:
            rows = read()
        return rows if cut is None else cut.apply(rows, info.shape)

    def is_changed(self, name: str) -> bool:
        """Whether :meth:`read_rows` yields other rows than the file has."""
        return name in self.cuts or name in self.merged or self.checkpoint.is_wide(name)

    @property
    def packed(self) -> PackedCheckpoint | None:
        """The checkpoint, if its weights are packed."""
        return self.checkpoint if isinstance(self.checkpoint, PackedCheckpoint) else None

    def stored_formats(self) -> dict[str, str]:
        """The format of each of the core's matrices with ``weights="auto"``.

        It is the smallest format that holds all stored values exactly. bf12 is used only in large models
        (:meth:`_takes_bf12`). No format holds the GGUF block types that have minima, or more than one scale
        for 32 values. Tensors of these types get the smallest format whose rounding error is small compared
        with the error that the type already has: q4 for types of two and three bits, and q8 for types of more
        bits.
        """
        formats: dict[str, str] = {}
        for name, slot in self._matrices():
            kept = self.auto_format(name)
            for part, _ in core_slots(slot, self.checkpoint.tensors[name].shape):
                # An expert's gate and up projection are one matrix, but may be two tensors.
                formats[part] = _of_both(formats.get(part, kept), kept)
        return formats

    def stored_weights(self) -> str:
        """One name for all of :meth:`stored_formats`: the format of most values. The embedding table and the
        output matrix do not count."""
        if self.packed is not None:
            return self.packed.weights
        values: dict[str, int] = {}
        for name, slot in self._matrices():
            if slot not in ("embed_tokens", "lm_head"):
                kept = self.auto_format(name)
                values[kept] = values.get(kept, 0) + prod(self.checkpoint.tensors[name].shape)
        return max(values, key=values.__getitem__)

    def formats_by_type(self) -> dict[str, str]:
        """Stored type of matrices -> their format in memory with ``weights="auto"``."""
        found = {self.checkpoint.dtype(name): self.auto_format(name) for name, _ in self._matrices()}
        either = {"f16": "bf16 or f32"} | ({"bf16": "bf12 or bf16"} if self._takes_bf12 else {})
        return found | {dtype: text for dtype, text in either.items() if self.unread and dtype in found}

    def valued_matrices(self) -> list[str]:
        """The tensors whose format depends on their values."""
        types = ("f16", "bf16") if self._takes_bf12 else ("f16",)
        return [name for name, _ in self._matrices() if self.checkpoint.dtype(name) in types]

    @cached_property
    def _takes_bf12(self) -> bool:
        """Whether the bf16 matrices together are larger than a processor's cache. If they fit into the cache,
        decoding does not wait for memory, and bf12 would only cost time."""
        tensors = self.checkpoint.tensors
        kept = [name for name, _ in self._matrices() if self.checkpoint.dtype(name) == "bf16"]
        return sum(tensors[name].nbytes for name in kept) > _CACHED_BYTES

    def _matrices(self) -> Iterator[tuple[str, str]]:
        """Tensor and slot of each matrix whose format can be chosen."""
        for name, slot in self.slots.items():
            if takes_format(slot, self.checkpoint.tensors[name].shape):
                yield name, slot

    def auto_format(self, name: str) -> str:
        """The format that ``weights="auto"`` gives a matrix. It may read the matrix to find out."""
        if name not in self.known_formats:
            kept = auto_format(self.checkpoint.dtype(name))
            if kept is None:
                kept = "bf16" if not self.unread and self.checkpoint.fits_bf16(name) else "f32"
            elif kept == "bf16" and self._takes_bf12 and not self.unread and self._is_as_stored(name):
                kept = "bf12" if self.checkpoint.fits_bf12(name) else "bf16"
            elif kept == "w4a16" and not self.checkpoint.has_half_scales(name, read=not self.unread):
                kept = "f32"
            self.known_formats[name] = kept
        return self.known_formats[name]

    def _is_as_stored(self, name: str) -> bool:
        """Whether the matrix in memory has the rows of the file, in the same order."""
        ordered = self.token_order is not None and self.slots[name] == "embed_tokens"
        return not self.is_changed(name) and not ordered

    def close(self) -> None:
        """Closes the files."""
        self.checkpoint.close()
        if self.adapter is not None:
            self.adapter.close()

    def __enter__(self) -> ModelFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
