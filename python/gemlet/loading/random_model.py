"""Models of real shapes with random weights, for benchmarks: :func:`random_model`."""

from __future__ import annotations

import time

from gemlet.base.sizes import parse_memory
from gemlet.config.hf_config import shape_config
from gemlet.loading.arguments import check_max_context, check_threads
from gemlet.loading.builder import finish_model, make_builder
from gemlet.loading.memory_plan import check_memory
from gemlet.model.model import Model
from gemlet.weights.formats import check_weights, formats_of

__all__ = ["random_model"]


def random_model(
    name: str,
    *,
    weights: str = "auto",
    threads: int | None = None,
    decode_threads: int | None = None,
    max_context: int | None = None,
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_memory: int | str | None = None,
    seed: int = 0,
) -> Model:
    """A model of a published shape ("gemma3-1b") with random weights, built in memory: for benchmarks.

    ``weights`` "auto" is "bf16"; the other arguments are those of :func:`gemlet.load`. It has no tokenizer.
    Raises :class:`InvalidRequestError` for an unknown name (the names are the keys of
    ``gemlet.config.SHAPES``) and :class:`MemoryLimitError` where it would not fit.

    >>> with random_model("gemma3-270m", weights="q4", threads=1) as model:
    ...     model.config.num_layers
    18
    """
    started = time.perf_counter()
    check_weights(weights)
    threads = check_threads(threads)
    decode_threads = threads if decode_threads is None else check_threads(decode_threads, "decode_threads")
    config = shape_config(name)
    max_context = check_max_context(max_context, config)
    weights = "bf16" if weights == "auto" else weights
    formats = formats_of(weights, embedding, kv_cache)
    spare = None
    if max_memory is not None:
        spare = check_memory(
            parse_memory(max_memory),
            config,
            weights=weights,
            embedding=embedding,
            kv_cache=kv_cache,
            max_context=max_context,
            threads=threads,
        )
    builder = make_builder(
        config,
        weights=weights,
        formats=formats,
        threads=threads,
        decode_threads=decode_threads,
        max_context=max_context,
    )
    builder.add_random(seed=seed)
    end_ids = frozenset(config.eos_token_ids)
    return finish_model(
        builder,
        config,
        tokenizer=None,
        chat_format=None,
        end_ids=end_ids,
        sampling={},
        source=name,
        started=started,
        spare_memory=spare,
    )
