"""A model as its files describe it, before any weight is read: :func:`open_source`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemlet._json import show
from gemlet.errors import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemlet._vocabulary import Vocabulary
    from gemlet.adapter import AdapterFiles
    from gemlet.chat import ChatFormat
    from gemlet.checkpoint import TensorFiles
    from gemlet.config import TextConfig
    from gemlet.embedding import Prompts
    from gemlet.matformer import Cut
    from gemlet.packed import PackedCheckpoint
    from gemlet.tokenizer import Tokenizer

__all__ = ["ModelSource", "open_source"]

# Type of a tensor -> the core's format for it, q8 for all others; "f16" depends on the values.
_KEPT_AS = {"f32": "f32", "bf16": "bf16", "f16": "f16", "q4_0": "q4", "q2_k": "q4", "q3_k": "q4"}
# What a folder says of its model besides the weights, the vocabulary and the chat template.
_DESCRIPTION_FILES = ("config.json", "generation_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True)
class ModelSource:
    """What the files of a model say. A context manager; ``close()`` closes the files.

    Attributes:
        name: where it came from, for people to read.
        config: the architecture.
        end_ids: the tokens that end a text.
        sampling: the sampling values it recommends, by their names in GenerationConfig.
        tokenizer: None where there is none; ``vocabulary`` is what it was made of.
        chat_format: how a conversation becomes a prompt; None where there is none.
        checkpoint: its tensors, every one checked for being there, its shape and its type, and none read.
        slots: tensor -> the core's name of the weight.
        cuts: tensor -> what is kept of it, where that is not all.
        merged: tensor -> the weight of ``adapter`` that is added to it, before it is cut.
        files, texts: the files that say all of this, but for the weights and the vocabulary, in a folder of
            its own: paths to copy, and name and content of others.
        prompts: what comes before a text; None for a model that makes no embeddings.
        kept: tensor -> the format that ``weights="auto"`` keeps it in, as far as that is known.
        float16_as: that format for all of float16, of which no value is then read; None: as its values need.
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
    files: tuple[str, ...] = field(repr=False, default=())
    texts: Mapping[str, str] = field(repr=False, default_factory=dict)
    kept: dict[str, str] = field(repr=False, default_factory=dict)
    float16_as: str | None = None
    adapter: AdapterFiles | None = field(default=None, repr=False)
    merged: Mapping[str, str] = field(default_factory=dict, repr=False)
    prompts: Prompts | None = field(default=None, repr=False)

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

    def stored_formats(self) -> dict[str, str]:
        """What ``weights="auto"`` means: the format of each of the core's matrices.

        It is the smallest one that has all values as they are stored. Where none has (blocks of GGUF with
        minima, or with more than one scale for 32 values), it is the smallest whose rounding is small beside
        the error that the blocks have already: q4 for two and three bits, q8 for more.
        """
        from gemlet.tensors import core_slots

        formats: dict[str, str] = {}
        for name, slot in self._matrices():
            kept = self.kept_format(name)
            for part, _ in core_slots(slot, self.checkpoint.tensors[name].shape):
                # An expert's gate and up projection are one matrix, and may be two tensors.
                formats[part] = kept if formats.get(part, kept) == kept else "q8"
        return formats

    def stored_weights(self) -> str:
        """The name for it: the format of most values, the embedding table and the output matrix aside."""
        if self.packed is not None:
            return self.packed.weights
        values: dict[str, int] = {}
        for name, slot in self._matrices():
            if slot not in ("embed_tokens", "lm_head"):
                kept = self.kept_format(name)
                values[kept] = values.get(kept, 0) + prod(self.checkpoint.tensors[name].shape)
        return max(values, key=values.__getitem__)

    def kept_as(self) -> dict[str, str]:
        """Type that matrices are stored in -> their format in memory with ``weights="auto"``."""
        found = {self.checkpoint.dtype(name): self.kept_format(name) for name, _ in self._matrices()}
        return found | ({"f16": "bf16 or f32"} if self.float16_as and "f16" in found else {})

    def float16_matrices(self) -> list[str]:
        """The tensors whose format depends on their values."""
        return [name for name, _ in self._matrices() if self.checkpoint.dtype(name) == "f16"]

    def _matrices(self) -> Iterator[tuple[str, str]]:
        """Tensor and slot of what the core packs in a format of choice."""
        from gemlet.tensors import takes_format

        for name, slot in self.slots.items():
            if takes_format(slot, self.checkpoint.tensors[name].shape):
                yield name, slot

    def kept_format(self, name: str) -> str:
        """The format that ``weights="auto"`` keeps a matrix in; may read it."""
        if name not in self.kept:
            kept = _KEPT_AS.get(self.checkpoint.dtype(name), "q8")
            if kept == "f16":
                kept = self.float16_as or ("bf16" if self.checkpoint.fits_bf16(name) else "f32")
            self.kept[name] = kept
        return self.kept[name]

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
    cache: bool = False,
    headers_only: bool = False,
) -> ModelSource:
    """Opens what :func:`gemlet.load` accepts and checks all of it but the weights' values. With ``cache`` the
    vocabulary is kept as parsed. With ``headers_only`` the weights' values of a model on the hub are not
    fetched, and nothing can be read of them.

    Raises what :func:`gemlet.load` raises for a file that is missing or wrong.

    >>> with open_source(None) as demo:
    ...     demo.config.family, demo.stored_weights()
    ('gemma3', 'bf16')
    """
    from gemlet._finding import find, find_in_folder
    from gemlet.hub import check_access, download

    check_access(revision, token)
    path = find(source)
    if path is None:
        name = os.fspath(source or "")
        if headers_only:
            from gemlet.hub_headers import outline

            with outline(name, revision=revision, token=token) as found:
                return replace(_open(find_in_folder(found), name, cache=False), name=name)
        path = find_in_folder(download(name, revision=revision, token=token))
    opened = _open(path, "demo" if source is None else path, cache=cache)
    if merge_adapter is None:
        return opened
    try:
        return _merge(opened, merge_adapter)
    except BaseException:
        opened.close()
        raise


def _open(path: str, name: str, *, cache: bool) -> ModelSource:
    if os.path.isdir(path):
        return _open_folder(path, name=name, cache=cache)
    return _open_gguf(path, cache=cache)


def _merge(source: ModelSource, path: str | os.PathLike[str]) -> ModelSource:
    from gemlet.adapter import open_adapter

    if source.packed is not None:
        raise InvalidRequestError(f"merge_adapter: {source.name} is packed; give the original")
    adapter = open_adapter(path, source.config)
    merged = {tensor: slot for tensor, slot in source.slots.items() if slot in adapter.terms}
    for tensor in merged:
        dtype = source.checkpoint.dtype(tensor)
        if dtype not in ("f32", "bf16", "f16"):
            adapter.close()
            raise UnsupportedError(
                f"merge_adapter: {source.name}: tensor {show(tensor)} is quantized ({dtype}); load the "
                "adapter beside it with load_adapter(), or merge it into the checkpoint that has floats"
            )
    return replace(source, adapter=adapter, merged=merged)


def _open_folder(folder: str, *, name: str, cache: bool) -> ModelSource:
    from gemlet import config as configs
    from gemlet._stored_vocabulary import STORED_FILE
    from gemlet._tokenizer_files import TOKENIZER_FILES, read_contents, read_vocabulary
    from gemlet.chat import read_chat_template
    from gemlet.checkpoint import Checkpoint
    from gemlet.embedding import read_dense_layers, read_prompts
    from gemlet.packed import PackedCheckpoint, is_packed
    from gemlet.tensors import dense_tensor, map_tensors

    config = configs.read_config(folder)
    described: tuple[str, ...] = _DESCRIPTION_FILES
    prompts = None
    if config.bidirectional:
        config, modules = read_dense_layers(folder, config)
        prompts = read_prompts(folder)
        described += modules
    end_ids = configs.read_end_ids(folder, config)
    sampling = configs.read_sampling(folder)
    vocabulary = tokenizer = chat_format = template = None
    if any(os.path.lexists(os.path.join(folder, name)) for name in TOKENIZER_FILES):
        cache = cache and not os.path.lexists(os.path.join(folder, STORED_FILE))
        vocabulary, tokenizer = _open_tokenizer(
            lambda: read_vocabulary(folder), lambda: read_contents(folder), cache=cache
        )
        if not config.bidirectional:
            template = read_chat_template(folder)
            chat_format = _chat_format(config, tokenizer, template)
    checkpoint = Checkpoint(folder)
    try:
        if is_packed(checkpoint):
            checkpoint = PackedCheckpoint(checkpoint, config)
            slots = {name: name for name in checkpoint.tensors}
        else:
            for index in range(len(config.dense_sizes)):
                checkpoint.add_folder(os.path.dirname(dense_tensor(index)))
            shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}
            slots = map_tensors(shapes, config, where=folder)
            for tensor in slots:
                checkpoint.dtype(tensor)  # raises for a type that cannot be read
    except BaseException:
        checkpoint.close()
        raise
    paths = [os.path.join(folder, file) for file in described]
    return ModelSource(
        name=name,
        config=config,
        end_ids=end_ids,
        sampling=sampling,
        tokenizer=tokenizer,
        chat_format=chat_format,
        checkpoint=checkpoint,
        slots=slots,
        vocabulary=vocabulary,
        files=tuple(path for path in paths if os.path.isfile(path)),
        texts={} if template is None else {"chat_template.jinja": template},
        prompts=prompts,
    )


def _open_gguf(path: str, *, cache: bool) -> ModelSource:
    from gemlet._tokenizer_files import vocabulary_of_gguf
    from gemlet.config import parse_config
    from gemlet.embedding import Prompts
    from gemlet.gguf_checkpoint import GGUFCheckpoint
    from gemlet.gguf_config import read_gguf_keys, read_gguf_sampling
    from gemlet.gguf_tensors import ROPE_FREQS, map_gguf_tensors

    checkpoint = GGUFCheckpoint(path)
    try:
        gguf = checkpoint.gguf
        shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}
        keys = read_gguf_keys(gguf, shapes, checkpoint.read_vector(ROPE_FREQS))
        config = parse_config(keys, where=f"{gguf.path} (metadata)")
        slots = map_gguf_tensors(shapes, config, where=gguf.path)
        for tensor in slots:
            checkpoint.dtype(tensor)
        vocabulary = tokenizer = chat_format = template = None
        if "tokenizer.ggml.model" in gguf.metadata:
            vocabulary, tokenizer = _open_tokenizer(
                lambda: vocabulary_of_gguf(gguf), lambda: {gguf.path: checkpoint.head()}, cache=cache
            )
            if not config.bidirectional:
                template = gguf.get("tokenizer.chat_template", str, None)
                chat_format = _chat_format(config, tokenizer, template)
        sampling = read_gguf_sampling(gguf)
    except BaseException:
        checkpoint.close()
        raise
    end_ids = _gguf_end_ids(config, tokenizer)
    texts = {
        "config.json": json.dumps(keys, indent=2),
        "generation_config.json": json.dumps({"eos_token_id": sorted(end_ids), **sampling}, indent=2),
    }
    if template is not None:
        texts["chat_template.jinja"] = template
    return ModelSource(
        name=gguf.path,
        config=config,
        end_ids=end_ids,
        sampling=sampling,
        tokenizer=tokenizer,
        chat_format=chat_format,
        checkpoint=checkpoint,
        slots=slots,
        vocabulary=vocabulary,
        texts=texts,
        prompts=Prompts() if config.bidirectional else None,
    )


# Ends of a text that a model's generation_config.json has and GGUF's keys leave out.
_ENDS = {"gemma4": ("<eos>", "<|tool_response>")}


def _gguf_end_ids(config: TextConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    ids = set(config.eos_token_ids)
    if tokenizer is not None:
        found = {tokenizer.token_id(name) for name in _ENDS.get(config.family, ("<eos>",))}
        ids |= {token_id for token_id in found if token_id is not None and token_id < config.vocab_size}
    return frozenset(ids)


def _open_tokenizer(
    read: Callable[[], Vocabulary], contents: Callable[[], Mapping[str, bytes]], *, cache: bool
) -> tuple[Vocabulary, Tokenizer]:
    """What ``read`` makes of the files with these ``contents``, the vocabulary's first."""
    from gemlet import _core
    from gemlet.cache import keep_vocabulary, kept_vocabulary, vocabulary_key
    from gemlet.tokenizer import Tokenizer

    files = contents() if cache else {}
    key = vocabulary_key(files)
    found = kept_vocabulary(key, next(iter(files))) if files else None
    vocabulary = read() if found is None else found
    tokenizer = Tokenizer(vocabulary)
    if found is None:
        _core.return_free_memory()  # reading a vocabulary takes twice what it leaves
    # What replaced the files meanwhile has another key.
    if files and found is None and vocabulary_key(contents()) == key:
        keep_vocabulary(key, vocabulary)
    return vocabulary, tokenizer


def _chat_format(config: TextConfig, tokenizer: Tokenizer, template: str | None) -> ChatFormat | None:
    from gemlet.chat import chat_format_for

    per_layer_inputs = config.per_layer_input_size > 0
    return chat_format_for(config.model_type, tokenizer, template=template, per_layer_inputs=per_layer_inputs)
