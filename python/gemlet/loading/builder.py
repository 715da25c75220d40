"""The core's builder of a model: made, filled with weights, and finished as a model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemlet.base.progress import Progress, reporting
from gemlet.chat.base import ChatFormat
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError
from gemlet.generation.options import GenerationConfig
from gemlet.model.model import Model
from gemlet.packing.blocks import stored_bytes
from gemlet.packing.cache import packed_copy
from gemlet.packing.fill import fill, set_table
from gemlet.sources.model_files import ModelFiles
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.weights.formats import PRESETS, Formats

if TYPE_CHECKING:
    from gemlet import _core


def choose_formats(
    files: ModelFiles, weights: str, embedding: str | None
) -> tuple[str, str | None, dict[str, str]]:
    """The two arguments for ``files``, and the formats of the matrices that have one of their own: "auto" is
    resolved, and what is packed is taken as it is."""
    packed = files.packed
    if packed is None:
        if weights != "auto":
            return weights, embedding, {}
        weights = files.stored_weights()
        preset = PRESETS[weights]
        own = files.stored_formats()
        tables = {slot: own.pop(slot) for slot in ("embed_tokens", "lm_head") if slot in own}
        own = {slot: name for slot, name in own.items() if name != preset.matrices}
        if embedding is None:
            own |= {slot: name for slot, name in tables.items() if name != preset.embedding}
        return weights, embedding, own
    for name, wanted, has in (
        ("weights", weights, packed.weights),
        ("embedding", embedding, packed.embedding),
    ):
        if wanted not in (None, "auto", has):
            raise InvalidRequestError(
                f"{name} is {wanted!r}, but {files.name} is packed as {has!r}; load the original, or "
                "convert it again"
            )
    return packed.weights, packed.embedding, packed.formats()


def make_builder(
    config: TextConfig,
    *,
    weights: str,
    formats: Formats,
    threads: int,
    decode_threads: int = 0,
    max_context: int | None = None,
    allocate: bool = True,
    embedding_on_disk: bool = False,
    own_formats: Mapping[str, str] | None = None,
) -> _core.ModelBuilder:
    """The core's builder; ``allocate`` False: its weights come from a file, or go to one. ``own_formats`` are
    those of matrices that have another than ``formats`` says."""
    from gemlet import _core

    return _core.ModelBuilder(
        config=config.to_core(weights=weights, max_context=max_context),
        weights=formats.matrices,
        embedding=formats.embedding,
        kv_cache=formats.kv_cache,
        threads=threads,
        decode_threads=decode_threads,
        allocate=allocate,
        embedding_on_disk=embedding_on_disk,
        formats=dict(own_formats or {}),
    )


def filled_builder(
    files: ModelFiles,
    *,
    cache: bool,
    progress: Progress,
    weights: str,
    formats: Formats,
    own_formats: Mapping[str, str],
    threads: int,
    decode_threads: int,
    max_context: int,
    embedding_on_disk: bool,
) -> _core.ModelBuilder:
    def builder(allocate: bool) -> _core.ModelBuilder:
        return make_builder(
            files.config,
            weights=weights,
            formats=formats,
            threads=threads,
            decode_threads=decode_threads,
            max_context=max_context,
            allocate=allocate,
            embedding_on_disk=embedding_on_disk,
            own_formats=own_formats,
        )

    packed = files.packed
    if packed is None and cache:
        packed = packed_copy(files, builder(False), weights=weights, progress=progress)
    if packed is not None:
        with packed:
            mapped = builder(False)
            packed.use(mapped)
            set_table(mapped, files)
            return mapped
    if embedding_on_disk:
        raise not_packed(files)
    made = builder(True)
    with reporting(progress, "loading", stored_bytes(files)) as advance:
        fill(made, files, advance)
    return made


def not_packed(files: ModelFiles) -> InvalidRequestError:
    return InvalidRequestError(
        f"embedding_on_disk: {files.name} is not packed, and no cache has its packed form; make a packed "
        "folder of it with `gemlet convert`, or load it with cache=True"
    )


def finish_model(
    builder: _core.ModelBuilder,
    config: TextConfig,
    *,
    tokenizer: Tokenizer | None,
    chat_format: ChatFormat | None,
    end_ids: frozenset[int],
    sampling: dict[str, Any],
    source: str,
    started: float,
    spare_memory: int | None = None,
    prompts: Prompts | None = None,
) -> Model:
    if tokenizer is not None and tokenizer.end_of_turn_id is not None:
        end_ids |= {tokenizer.end_of_turn_id}
    return Model(
        core=builder.finish(),
        config=config,
        tokenizer=tokenizer,
        chat_format=chat_format,
        end_ids=end_ids,
        generation_config=GenerationConfig(**sampling),
        source=source,
        load_seconds=time.perf_counter() - started,
        spare_memory=spare_memory,
        prompts=prompts,
    )


def settle(files: ModelFiles) -> None:
    """Waits for what reads ``files`` in a thread, so that a plan counts its memory: the tokenizer."""
    if files.tokenizer is not None:
        files.tokenizer.encode("x")
