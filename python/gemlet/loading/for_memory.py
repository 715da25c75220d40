"""Chooses formats of the weights that fit into a machine's memory: :func:`options_for_memory` and
:func:`recommend`."""

from __future__ import annotations

from collections.abc import Iterator

from gemlet.base.records import record, replace
from gemlet.base.sizes import size_text
from gemlet.config.text_config import TextConfig
from gemlet.errors import MemoryLimitError
from gemlet.loading.memory_plan import check_memory, plan_memory
from gemlet.loading.options import LoadOptions
from gemlet.weights.formats import PRESETS

__all__ = ["CONTEXT", "LOSSES", "PROCESS_BYTES", "Recommendation", "options_for_memory", "recommend"]

# (format of the matrices, format of the embedding) -> the KL divergence to f32 in nats per token, on a
# trained Gemma 3 270M, from large to small formats. Of the table in benchmarks/README.md, these are the rows
# for which no smaller format loses less.
LOSSES = {
    ("bf16", "bf16"): 1.9e-4,
    ("q8", "q8"): 2.2e-3,
    ("q6k", "q8"): 6.2e-3,
    ("q5k", "q6k"): 2.6e-2,
    ("q4k", "q6k"): 8.2e-2,
    ("q4", "q4"): 0.28,
}
# The memory of a process without a model: Python, NumPy and a tokenizer of 262,144 tokens. With Gemma 3 270M,
# 113 MB were measured, including the activations of a short text.
PROCESS_BYTES = 120_000_000
CONTEXT = 4096  # the context length for which there has to be room, if the caller gives no ``max_context``


@record(frozen=True)
class Recommendation:
    """The formats that :func:`gemlet.convert` chooses if ``for_memory`` is ``memory`` bytes.

    ``needs`` is the total of the memory plan with a text of ``max_context`` tokens. ``loss`` is the KL
    divergence of these formats to f32 in nats per token, measured on a trained Gemma 3 270M, the smallest
    Gemma. It is None if the formats are those of the file.
    """

    memory: int
    weights: str
    embedding: str
    max_context: int
    needs: int
    loss: float | None

    def __str__(self) -> str:
        text = f"weights {self.weights}, embedding {self.embedding}; needs {size_text(self.needs)}"
        text += f" with max_context={self.max_context}"
        if self.loss is None:
            return f"{text}; the formats of the file"
        return f"{text}; on Gemma 3 270M, these formats have a KL divergence of {self.loss:.2g} to f32"


def recommend(limit: int, config: TextConfig, options: LoadOptions) -> Recommendation:
    """The result of :func:`options_for_memory`, with the expected loss. ``options`` have the file's
    formats."""
    chosen = options_for_memory(limit, config, options)
    formats = chosen.formats
    own = bool(chosen.own_formats) or formats.matrices not in PRESETS
    return Recommendation(
        memory=limit,
        weights=formats.matrices,
        embedding=chosen.own_formats.get("embed_tokens", formats.embedding),
        max_context=chosen.max_context or config.max_position_embeddings,
        needs=plan_memory(config, chosen, process=PROCESS_BYTES).total,
        loss=None if own else LOSSES.get((formats.matrices, formats.embedding)),
    )


def options_for_memory(
    limit: int, config: TextConfig, options: LoadOptions, *, name: str = "for_memory"
) -> LoadOptions:
    """``options`` with the format that loses least among those with which the model runs in ``limit`` bytes.

    The formats of ``options`` are tried first; "auto" counts as bf16. The smaller formats in :data:`LOSSES`
    follow. bf12 is not among them, because it cannot hold every matrix. If ``options`` have no
    ``max_context``, there has to be room for a text of :data:`CONTEXT` tokens, or of the model's limit if
    that is less.

    Raises :class:`MemoryLimitError`, with the plan of the smallest format, if no format fits. Errors call the
    limit ``name``.

    >>> from gemlet.config import shape_config
    >>> config = shape_config("gemma3-1b")
    >>> [options_for_memory(size * 10**9, config, LoadOptions()).weights for size in (1, 2, 8)]
    ['q5k', 'q8', 'bf16']
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
    if options.weights not in names:  # the format of a quantized file, which cannot be changed
        return
    first = names.index(options.weights) + (0 if options.own_formats else 1)
    for weights, embedding in LOSSES:
        if names.index(weights) >= first or (weights, embedding) == ("q4", "q4"):
            yield replace(options, weights=weights, embedding=options.embedding or embedding, own_formats={})
