"""The format of the weights that fits into a machine's memory: :func:`options_for_memory`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gemlet.config.text_config import TextConfig
from gemlet.errors import MemoryLimitError
from gemlet.loading.memory_plan import check_memory
from gemlet.loading.options import LoadOptions
from gemlet.weights.formats import PRESETS

__all__ = ["CONTEXT", "PROCESS_BYTES", "options_for_memory"]

# What a process has without a model: Python, NumPy and a tokenizer of 262,144 pieces. Measured with Gemma 3
# 270M: 113 MB, with the activations of a short text.
PROCESS_BYTES = 120_000_000
CONTEXT = 4096  # tokens of the text that a model has room for, if the caller does not say how many


def options_for_memory(
    limit: int, config: TextConfig, options: LoadOptions, *, name: str = "for_memory"
) -> LoadOptions:
    """``options`` with the format that loses least of those with which the model runs in ``limit`` bytes.

    The first try is the formats of ``options``, which are those of the file, or bf16 for "auto". Smaller ones
    follow, without bf12, because not every matrix can have it. The last try also rounds the embedding to q4.
    Without ``max_context``, there is room for a text of :data:`CONTEXT` tokens, or of the model's limit.

    Raises :class:`MemoryLimitError`, with the plan of the smallest, if none fits. Errors call the limit
    ``name``.

    >>> from gemlet.config import shape_config
    >>> config = shape_config("gemma3-1b")
    >>> [options_for_memory(size * 10**9, config, LoadOptions()).weights for size in (1, 2, 8)]
    ['q4k', 'q8', 'bf16']
    """
    if options.max_context is None:
        options = replace(options, max_context=min(CONTEXT, config.max_position_embeddings))
    chosen = replace(options, weights="bf16") if options.weights == "auto" else options
    for smaller in [*_smaller(chosen), None]:
        try:
            check_memory(limit, config, chosen, name=name, process=PROCESS_BYTES)
        except MemoryLimitError:
            if smaller is None:
                raise
            chosen = smaller
        else:
            break
    return chosen


def _smaller(options: LoadOptions) -> Iterator[LoadOptions]:
    names = list(PRESETS)
    if options.weights not in names:  # a quantized file, which nothing is smaller than
        return
    begin = names.index(options.weights) + (0 if options.own_formats else 1)
    for weights in names[begin:]:
        if weights != "bf12":
            yield replace(options, weights=weights, own_formats={})
    if options.embedding is None:
        yield replace(options, weights=names[-1], embedding=names[-1], own_formats={})
