"""Computes the memory that a model will take before it is loaded, and checks it against ``max_memory``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gemlet.base.records import record, replace
from gemlet.base.sizes import parse_memory, resident_bytes, size_text
from gemlet.config.audio_config import audio_bytes
from gemlet.config.text_config import TextConfig
from gemlet.config.vision_config import KEPT_BYTES
from gemlet.errors import MemoryLimitError
from gemlet.loading.builder import make_builder
from gemlet.loading.drafter import Drafter
from gemlet.loading.options import LoadOptions
from gemlet.weights.formats import PRESETS

__all__ = ["MemoryPlan", "check_memory", "plan_memory", "room_for"]


@record(frozen=True)
class MemoryPlan:
    """The memory that a model takes, in bytes, by use.

    Attributes:
        weights: the weights without the embedding.
        embedding: the embedding; if it stays on disk, only the part that is in memory.
        kv_cache: the keys and values of one text as long as the context. They include freed blocks whose
            memory is not free yet, because other blocks share it.
        prefix_cache: the keys and values of texts that have ended, if ``prefix_cache_size`` limits them.
            Otherwise this is 0, and they take a part of the memory that the plan leaves.
        activations: the buffers for a full chunk of a prompt, with the logits.
        process: the memory of this process when the plan was made: Python, NumPy, the tokenizer. It is 0 for
            a GPU, because all other bytes are in the GPU's memory.
        on_disk: the bytes that stay in the file while the model runs. The total does not include them.
        drafter: the memory of the draft model, including its keys and values.

    >>> from gemlet.config import shape_config
    >>> plan = plan_memory(shape_config("gemma3-1b"), LoadOptions(weights="q4", max_context=4096))
    >>> plan.weights // 10**6, plan.embedding // 10**6, plan.kv_cache // 10**6
    (393, 320, 41)
    """

    weights: int
    embedding: int
    kv_cache: int
    prefix_cache: int
    activations: int
    process: int
    on_disk: int
    drafter: int = 0

    @property
    def total(self) -> int:
        kept = self.kv_cache + self.prefix_cache
        return self.weights + self.embedding + kept + self.activations + self.drafter + self.process

    def __str__(self) -> str:
        parts = [
            f"weights {size_text(self.weights)}",
            f"embedding {size_text(self.embedding)}",
            f"KV cache {size_text(self.kv_cache)}",
            *([f"prefix cache {size_text(self.prefix_cache)}"] if self.prefix_cache else []),
            f"activations {size_text(self.activations)}",
            *([f"drafter {size_text(self.drafter)}"] if self.drafter else []),
            *([f"process {size_text(self.process)}"] if self.process else []),
        ]
        return f"{size_text(self.total)} = " + " + ".join(parts)


def plan_memory(
    config: TextConfig,
    options: LoadOptions,
    *,
    table_type: str = "bf16",
    process: int | None = None,
    drafter: Drafter | None = None,
) -> MemoryPlan:
    """The memory that the model ``config`` takes with these ``options``. Their ``weights`` must not be
    "auto".

    ``table_type`` is the stored type of the table of per-layer embeddings, such as "q5_k". ``process`` is the
    number of bytes that the process takes without a model; None for the bytes that this process takes now.
    Raises :class:`InvalidRequestError` for an unknown ``table_type``.
    """
    builder = make_builder(config, options, plan_only=True)
    plan = builder.plan(table_type=table_type, threads=options.threads or 0)
    kept = 0 if config.bidirectional else options.kept_texts or 0
    if config.vision is not None:
        tower = config.vision.activation_bytes(config.hidden_size, options.formats.matrices)
        plan["activations"] += tower + KEPT_BYTES
    if config.audio is not None:
        plan["activations"] += audio_bytes(config.audio, config.hidden_size, options.formats.matrices)
    own = resident_bytes() if process is None else process
    if options.device != "cpu":
        own = 0
    beside = 0 if drafter is None else drafter.bytes(options.max_context)
    return MemoryPlan(process=own, prefix_cache=kept, drafter=beside, **plan)


def room_for(options: LoadOptions) -> tuple[int, str] | None:
    """The bytes that a model may take, and the name of that limit: ``max_memory``, or the free memory of a
    GPU if that is less. None if there is no limit."""
    from gemlet import _core

    asked = None if options.max_memory is None else (parse_memory(options.max_memory), "max_memory")
    if options.device == "cpu":
        return asked
    free = (_core.free_memory(options.device), "the free memory of the GPU")
    return free if asked is None else min(asked, free)


def check_memory(
    limit: int,
    config: TextConfig,
    options: LoadOptions,
    *,
    name: str = "max_memory",
    process: int | None = None,
    drafter: Drafter | None = None,
) -> int:
    """Returns the bytes of ``limit`` that the model leaves free. If the model does not fit, raises
    :class:`MemoryLimitError` with the plan and with the options that would fit. ``options`` have a
    ``max_context``; ``process`` is as in :func:`plan_memory`."""

    def plan_of(**changes: Any) -> MemoryPlan:
        return plan_memory(config, replace(options, **changes), process=process, drafter=drafter)

    plan = plan_of()
    if plan.total <= limit:
        return limit - plan.total
    longest = options.max_context or config.max_position_embeddings
    remedies = []
    if context := _largest_context(plan_of, longest, limit):
        remedies.append(f"max_context={context}")
    sizes = list(PRESETS)
    smaller = sizes[sizes.index(options.weights) + 1 :] if options.weights in sizes else []
    for choice in [options.weights, *smaller] if options.own_formats and smaller else smaller:
        if plan_of(weights=choice, embedding=None, own_formats={}).total <= limit:
            remedies.append(f'weights="{choice}"')
            if choice != "bf12":  # bf12 may refuse a matrix
                break
    smallest = partial(plan_of, weights="q4", embedding="q4", own_formats={})
    if options.weights == "q4" and options.embedding is None and smallest().total <= limit:
        remedies.append('embedding="q4"')
    if plan.prefix_cache and plan.total - plan.prefix_cache <= limit:
        remedies.append("a smaller prefix_cache_size")
    if plan.drafter and plan.total - plan.drafter <= limit:
        remedies.append("no drafter")
    if not options.embedding_on_disk and plan_of(embedding_on_disk=True).total <= limit:
        remedies.append("embedding_on_disk=True")
    if not remedies and (context := _largest_context(smallest, longest, limit)):  # no single change is enough
        remedies.append(f'weights="q4", embedding="q4", max_context={context}')
    remedy = f"; it would fit with {' or '.join(remedies)}" if remedies else "; use a smaller model"
    raise MemoryLimitError(
        f"{name} is {size_text(limit)}, but the model needs {plan} (weights={options.weights!r}, "
        f"max_context={longest}){remedy}"
    )


def _largest_context(plan_of: Callable[..., MemoryPlan], most: int, limit: int) -> int:
    """The largest ``max_context`` up to ``most`` with which a plan's total is within ``limit``; 0 if fewer
    than 256 tokens fit."""
    low, high = 0, most + 1
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan_of(max_context=middle).total <= limit else (low, middle)
    return low // 64 * 64 if low >= 256 else 0
