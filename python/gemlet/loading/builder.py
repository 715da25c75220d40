"""Makes the core's model builder, fills it with weights, and finishes it as a model."""

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
    """Makes the core's builder. If ``allocate`` is False, the builder gets no memory for weights, because
    they are mapped from a file or written to a file. With ``plan_only``, it starts no threads. For a draft
    model, ``beside`` is its target model, whose threads it uses."""
    from gemlet import _core

    if config.vision is not None:
        config.vision.activation_bytes(config.hidden_size, "f32")  # raises for an impossible tower
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
    """Makes a builder with all weights of ``files``. Packed weights are mapped; others are packed into
    memory."""
    if PER_LAYER_TABLE in files.merged.values():
        raise UnsupportedError(
            "merge_adapter: the adapter changes the table of per-layer embeddings, which stays in the file "
            f"of {files.name}; write a merged model with gemlet.convert(..., merge_adapter=) or gemlet "
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
    """A hash (32 bytes) of everything on which the keys and values of a text depend, except for the tokens
    and an adapter."""
    from gemlet import _core

    builder = make_builder(files.config, options, allocate=False, plan_only=True)
    exact = "exact" if options.exact_batches else ""
    kernels = _core.cpu_info()["tier"] + exact, options.device, options.formats.kv_cache
    return model_digest(files, builder, weights=options.weights, kernels=kernels)


def not_packed(files: ModelFiles) -> InvalidRequestError:
    return InvalidRequestError(
        f"embedding_on_disk: {files.name} is not packed, and the cache has no packed copy; make a packed "
        "folder with `gemlet convert`, or load the model with cache=True"
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
    """Makes the model from a builder that has all weights. ``started`` is the time (``time.perf_counter()``)
    when loading began. ``drafter`` builds the draft model for the core's model that it gets."""
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
