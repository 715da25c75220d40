"""The core's builder of a model: made, filled with weights, and finished as a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemlet.base.progress import reporting
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.generation.options import GenerationConfig
from gemlet.loading.options import LoadOptions
from gemlet.model.model import Model
from gemlet.model.prefix_cache import PrefixCacheOptions
from gemlet.packing.blocks import stored_bytes
from gemlet.packing.digest import model_digest
from gemlet.packing.fill import fill, set_unpacked
from gemlet.sources.model_files import ModelFiles
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.weights.slots import PER_LAYER_TABLE
from gemlet.weights.tower_slots import kind_of, tower_slots

if TYPE_CHECKING:
    from gemlet import _core


def make_builder(
    config: TextConfig,
    options: LoadOptions,
    *,
    allocate: bool = True,
    plan_only: bool = False,
    beside: _core.Model | None = None,
) -> _core.ModelBuilder:
    """The core's builder. With ``allocate`` False its weights come from a file, or go to one. With
    ``plan_only`` it starts no threads. A drafter uses the threads of the model ``beside`` it."""
    from gemlet import _core

    if config.vision is not None:
        config.vision.activation_bytes(config.hidden_size, "f32")  # raises for a tower that cannot be
    formats = options.formats
    threads = 0 if plan_only else options.threads or _core.default_threads()[0]
    return _core.ModelBuilder(
        config=config.to_core(weights=options.weights, max_context=options.max_context),
        weights=formats.matrices,
        embedding=formats.embedding,
        kv_cache=formats.kv_cache,
        threads=threads,
        decode_threads=0 if plan_only else options.decode_threads or threads,
        allocate=allocate,
        embedding_on_disk=options.embedding_on_disk,
        formats=dict(options.own_formats),
        fewer_threads=options.threads is None and options.decode_threads is None,
        device=options.device,
        exact_batches=options.exact_batches,
        rounded=set(config.rounded),
        towers={slot: (list(shape), kind_of(slot, shape)) for slot, shape in tower_slots(config).items()},
        beside=beside,
    )


def filled_builder(
    files: ModelFiles, options: LoadOptions, *, beside: _core.Model | None = None
) -> _core.ModelBuilder:
    """The builder with all weights of ``files``: mapped if they are packed, otherwise packed into memory."""
    if PER_LAYER_TABLE in files.merged.values():
        raise UnsupportedError(
            "merge_adapter: the adapter changes the table of per-layer embeddings, which stays in the file "
            f"of {files.name}; write a changed one with gemlet.convert(..., merge_adapter=) or gemlet "
            "convert --adapter, or load the adapter beside the model with load_adapter()"
        )
    table = next((name for name, slot in files.slots.items() if slot == PER_LAYER_TABLE), None)
    if table is not None and files.checkpoint.is_wide(table):
        raise UnsupportedError(
            f"{files.name}: tensor {show(table)} is F64; expected F32, BF16 or F16 for the table of per-layer"
            " embeddings, which stays in its file. Run gemlet convert on the model, and load the result"
        )
    packed = files.packed
    if packed is None and options.cache:
        from gemlet.packing.cache import packed_copy

        builder = make_builder(files.config, options, allocate=False, beside=beside)
        packed = packed_copy(files, builder, weights=options.weights, progress=options.progress)
    if packed is not None:
        with packed:
            builder = make_builder(files.config, options, allocate=False, beside=beside)
            packed.use(builder)
            set_unpacked(builder, files)
            return builder
    if options.embedding_on_disk:
        raise not_packed(files)
    builder = make_builder(files.config, options, beside=beside)
    with reporting(options.progress, "loading", stored_bytes(files)) as advance:
        fill(builder, files, advance)
    return builder


def digest_of(files: ModelFiles, options: LoadOptions) -> bytes:
    """A hash (32 bytes) of everything that keys and values depend on, apart from the tokens and an
    adapter."""
    from gemlet import _core

    builder = make_builder(files.config, options, allocate=False, plan_only=True)
    exact = "exact" if options.exact_batches else ""
    kernels = _core.cpu_info()["tier"] + exact, options.device, options.formats.kv_cache
    return model_digest(files, builder, weights=options.weights, kernels=kernels)


def not_packed(files: ModelFiles) -> InvalidRequestError:
    return InvalidRequestError(
        f"embedding_on_disk: {files.name} is not packed, and the cache does not have it packed; make a "
        "packed folder of it with `gemlet convert`, or load it with cache=True"
    )


def finish_model(
    builder: _core.ModelBuilder,
    config: TextConfig,
    *,
    end_ids: frozenset[int],
    source: str,
    started: float,
    tokenizer: Tokenizer | None = None,
    chat_format: ChatFormat | None = None,
    sampling: Mapping[str, Any] | None = None,
    prompts: Prompts | None = None,
    spare_memory: int | None = None,
    not_followed: Mapping[str, Any] | None = None,
    prefix_cache: PrefixCacheOptions | None = None,
    drafter: Callable[[_core.Model], _core.Model] | None = None,
    draft_tokens: int | None = None,
) -> Model:
    """The model from a builder that has all weights; ``started`` is when loading began. ``drafter`` builds
    one beside it."""
    if tokenizer is not None and tokenizer.end_of_turn_id is not None:
        end_ids |= {tokenizer.end_of_turn_id}
    core = builder.finish()
    return Model(
        core=core,
        config=config,
        tokenizer=tokenizer,
        chat_format=chat_format,
        end_ids=end_ids,
        generation_config=GenerationConfig(**sampling or {}),
        source=source,
        load_seconds=time.perf_counter() - started,
        spare_memory=spare_memory,
        prompts=prompts,
        not_followed=not_followed,
        prefix_cache=prefix_cache,
        drafter=None if drafter is None else drafter(core),
        draft_tokens=draft_tokens,
    )
