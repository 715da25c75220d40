"""Makes models with real shapes and random weights, for benchmarks: :func:`random_model`."""

from __future__ import annotations

import time

from gemlet.base.progress import reporting
from gemlet.base.records import replace
from gemlet.config.hf_config import shape_config
from gemlet.errors import InvalidRequestError
from gemlet.loading.builder import finish_model, make_builder
from gemlet.loading.memory_plan import check_memory, room_for
from gemlet.loading.options import LoadOptions
from gemlet.model.model import Model
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["random_model"]


def random_model(
    name: str,
    options: LoadOptions | None = None,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    towers: bool = False,
) -> Model:
    """Makes a model with random weights and the shape of the published model ``name``, such as "gemma3-1b".

    ``weights="auto"`` means "bf16". The model has no tokenizer, except if ``tokenizer`` is given. With
    ``towers``, it also has the towers of the published model. Raises :class:`InvalidRequestError` for an
    unknown name (the names are the keys of ``gemlet.config.SHAPES``) and for options that need a file, and
    :class:`MemoryLimitError` if the model does not fit into memory.

    >>> with random_model("gemma3-270m", LoadOptions(weights="q4", threads=1)) as model:
    ...     model.config.num_layers
    18
    """
    started = time.perf_counter()
    options = options or LoadOptions()
    for option in ("matformer", "cache", "embedding_on_disk", "drafter"):
        if getattr(options, option):
            raise InvalidRequestError(
                f"{option} needs a model in files, but random weights are not in a file"
            )
    config = shape_config(name, towers=towers)
    options = options.with_context(config.max_position_embeddings)
    if options.weights == "auto":
        options = replace(options, weights="bf16")
    spare = None
    if (room := room_for(options)) is not None:
        spare = check_memory(room[0], config, options, name=room[1])
    builder = make_builder(config, options)
    total = sum(nbytes for _, nbytes in builder.packed_sizes().values())
    with reporting(options.progress, "random weights", total) as advance:
        builder.add_random(seed=seed, done=advance)
    return finish_model(
        builder,
        config,
        end_ids=frozenset(config.eos_token_ids),
        source=name,
        tokenizer=tokenizer,
        started=started,
        spare_memory=spare,
        prefix_cache=options.prefix_cache_options(),
    )
