"""A model as its files describe it, before any weight is read: :func:`open_source`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemlet.errors import InvalidRequestError, ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemlet.adapter import AdapterFiles
    from gemlet.chat import ChatFormat
    from gemlet.checkpoint import Checkpoint
    from gemlet.config import TextConfig
    from gemlet.matformer import Cut
    from gemlet.packed import PackedCheckpoint
    from gemlet.tokenizer import Tokenizer

__all__ = ["ModelSource", "open_source"]

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
# What a folder says of its model besides the weights.
_DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    *_TOKENIZER_FILES,
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class ModelSource:
    """What the files of a model say. A context manager; ``close()`` closes the files.

    Attributes:
        name: where it came from, for people to read.
        config: the architecture.
        end_ids: the tokens that end a text.
        sampling: the sampling values it recommends, by their names in GenerationConfig.
        tokenizer: None where there is none.
        chat_format: how a conversation becomes a prompt; None where there is none.
        checkpoint: its tensors, every one checked for being there, its shape and its type, and none read.
        slots: tensor -> the core's name of the weight.
        cuts: tensor -> what is kept of it, where that is not all.
        merged: tensor -> the weight of ``adapter`` that is added to it, before it is cut.
        files: the files, besides those of the weights, that this was read from.
    """

    name: str
    config: TextConfig
    end_ids: frozenset[int]
    sampling: dict[str, Any]
    tokenizer: Tokenizer | None
    chat_format: ChatFormat | None
    checkpoint: Checkpoint = field(repr=False)
    slots: dict[str, str] = field(repr=False)
    cuts: Mapping[str, Cut] = field(default_factory=dict, repr=False)
    files: tuple[str, ...] = field(repr=False, default=())
    adapter: AdapterFiles | None = field(default=None, repr=False)
    merged: Mapping[str, str] = field(default_factory=dict, repr=False)

    def cut(self, matformer: object) -> ModelSource:
        """The smaller model that ``matformer`` cuts out of this one (:mod:`gemlet.matformer`)."""
        from gemlet.matformer import cut_slots

        if self.packed is not None:
            raise InvalidRequestError(f"matformer: {self.name} is packed; load the original")
        config, kept = cut_slots(self.config, matformer)
        slots = {tensor: kept[slot][0] for tensor, slot in self.slots.items() if slot in kept}
        cuts = {tensor: kept[self.slots[tensor]][1] for tensor in slots}
        parts = {tensor: cut for tensor, cut in cuts.items() if cut is not None}
        return replace(self, config=config, slots=slots, cuts=parts)

    def read_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """:meth:`Checkpoint.read_rows` of what is kept of tensor ``name``, with the adapter's part added."""
        cut = self.cuts.get(name)
        info = self.checkpoint.tensors[name]
        if cut is not None and cut.rows:
            block_bytes = min(block_bytes, cut.end_row * (info.nbytes // info.shape[0]))
        rows = self.checkpoint.read_rows(name, block_bytes, entry=entry)
        if self.adapter is not None and name in self.merged:
            rows = self.adapter.add_to_rows(self.merged[name], rows)
        return rows if cut is None else cut.apply(rows, info.shape[1])

    def is_changed(self, name: str) -> bool:
        """Whether :meth:`read_rows` gives anything else than the rows of the file."""
        return name in self.cuts or name in self.merged

    @property
    def packed(self) -> PackedCheckpoint | None:
        """The checkpoint, if its weights are packed."""
        from gemlet.packed import PackedCheckpoint

        return self.checkpoint if isinstance(self.checkpoint, PackedCheckpoint) else None

    def stored_weights(self) -> str:
        """What ``weights="auto"`` means: of packed weights their format, "bf16" where all matrices are stored
        so, else "f32"."""
        if self.packed is not None:
            return self.packed.weights
        tensors = self.checkpoint.tensors
        matrices = {self.checkpoint.dtype(name) for name in self.slots if len(tensors[name].shape) > 1}
        return "bf16" if matrices == {"bf16"} else "f32"

    def close(self) -> None:
        """Closes the files."""
        self.checkpoint.close()
        if self.adapter is not None:
            self.adapter.close()

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_source(
    source: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    merge_adapter: str | os.PathLike[str] | None = None,
) -> ModelSource:
    """Opens what :func:`gemlet.load` accepts and checks all of it but the weights' values.

    Raises what :func:`gemlet.load` raises for a file that is missing or wrong.

    >>> with open_source(None) as demo:
    ...     demo.config.family, demo.stored_weights()
    ('gemma3', 'bf16')
    """
    folder = _find_folder(source, revision, token)
    opened = _open_folder(folder, name="demo" if source is None else folder)
    if merge_adapter is None:
        return opened
    try:
        return _merge(opened, merge_adapter)
    except BaseException:
        opened.close()
        raise


def _merge(source: ModelSource, path: str | os.PathLike[str]) -> ModelSource:
    from gemlet.adapter import open_adapter

    if source.packed is not None:
        raise InvalidRequestError(f"merge_adapter: {source.name} is packed; give the original")
    adapter = open_adapter(path, source.config)
    merged = {tensor: slot for tensor, slot in source.slots.items() if slot in adapter.terms}
    return replace(source, adapter=adapter, merged=merged)


def _open_folder(folder: str, *, name: str) -> ModelSource:
    from gemlet import config as configs
    from gemlet.checkpoint import Checkpoint
    from gemlet.packed import PackedCheckpoint, is_packed
    from gemlet.tensors import map_tensors

    config = configs.read_config(folder)
    end_ids = configs.read_end_ids(folder, config)
    sampling = configs.read_sampling(folder)
    tokenizer = _open_tokenizer(folder)
    chat_format = None if tokenizer is None else _find_chat_format(folder, config, tokenizer)
    checkpoint = Checkpoint(folder)
    try:
        if is_packed(checkpoint):
            checkpoint.close()
            checkpoint = PackedCheckpoint(folder, config)
            slots = {name: name for name in checkpoint.tensors}
        else:
            shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}
            slots = map_tensors(shapes, config, where=folder)
            for tensor in slots:
                checkpoint.dtype(tensor)  # raises for a type that cannot be read
    except BaseException:
        checkpoint.close()
        raise
    paths = [os.path.join(folder, file) for file in _DESCRIPTION_FILES]
    return ModelSource(
        name=name,
        config=config,
        end_ids=end_ids,
        sampling=sampling,
        tokenizer=tokenizer,
        chat_format=chat_format,
        checkpoint=checkpoint,
        slots=slots,
        files=tuple(path for path in paths if os.path.isfile(path)),
    )


def _find_folder(
    source: str | os.PathLike[str] | None, revision: str | None, token: str | bool | None
) -> str:
    if source is None:
        return os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo")
    accepted = "expected a Hugging Face folder with config.json and safetensors weights"
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidRequestError(f"source is {path!r}; {accepted}, or None for the demo model")
    if os.path.isdir(path):
        return path
    if path.endswith((".safetensors", ".safetensors.index.json")) and os.path.isfile(path):
        return os.path.dirname(path) or "."  # a file of the folder stands for it: the rest lies beside it
    if path.lower().endswith(".gguf"):
        raise ModelFileError(f"{path}: GGUF models cannot be loaded yet; {accepted}")
    if os.path.lexists(path):
        raise ModelFileError(f"{path}: is not a folder; {accepted}")
    from gemlet.hub import download, is_repository

    if is_repository(path):
        return download(path, revision=revision, token=token)
    raise ModelFileError(f"{path}: no such folder; {accepted}, or the name of a model on the hub")


def _open_tokenizer(folder: str) -> Tokenizer | None:
    if not any(os.path.lexists(os.path.join(folder, name)) for name in _TOKENIZER_FILES):
        return None
    from gemlet.tokenizer import Tokenizer

    return Tokenizer.from_file(folder)


def _find_chat_format(folder: str, config: TextConfig, tokenizer: Tokenizer) -> ChatFormat | None:
    from gemlet.chat import chat_format_for, read_chat_template

    per_layer_inputs = config.per_layer_input_size > 0
    template = read_chat_template(folder)
    return chat_format_for(config.model_type, tokenizer, template=template, per_layer_inputs=per_layer_inputs)
