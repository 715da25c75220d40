"""What a model takes of the memory, told before it is loaded: the plan, and the bound ``max_memory``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gemlet.base.sizes import resident_bytes, size_text
from gemlet.config.text_config import TextConfig
from gemlet.errors import MemoryLimitError
from gemlet.weights.formats import formats_of

__all__ = ["MemoryPlan", "check_memory", "plan_memory"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by use.

    ``embedding`` is, where it stays on disk, what is resident of it at a time; ``kv_cache`` that of one text
    as long as the context, dropped blocks that still share memory with others included; ``activations`` those
    of a full chunk of a prompt with its logits; ``process``
    what this process had resident when the plan was made: Python, NumPy, the tokenizer. ``on_disk`` is read
    from the file while the model runs and is no part of the total.

    >>> from gemlet.config import shape_config
    >>> plan = plan_memory(shape_config("gemma3-1b"), weights="q4", max_context=4096)
    >>> plan.weights // 10**6, plan.embedding // 10**6, plan.kv_cache // 10**6
    (393, 320, 42)
    """

    weights: int
    embedding: int
    kv_cache: int
    activations: int
    process: int
    on_disk: int

    @property
    def total(self) -> int:
        return self.weights + self.embedding + self.kv_cache + self.activations + self.process

    def __str__(self) -> str:
        parts = [
            f"weights {size_text(self.weights)}",
            f"embedding {size_text(self.embedding)}",
            f"KV cache {size_text(self.kv_cache)}",
            f"activations {size_text(self.activations)}",
            f"process {size_text(self.process)}",
        ]
        return f"{size_text(self.total)} = " + " + ".join(parts)


def plan_memory(
    config: TextConfig,
    *,
    weights: str,
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_context: int | None = None,
    embedding_on_disk: bool = False,
    own_formats: Mapping[str, str] | None = None,
    table_type: str = "bf16",
    threads: int | None = None,
) -> MemoryPlan:
    """The memory that the model ``config`` describes takes with these arguments of :func:`gemlet.load`.

    ``weights`` is one of the formats, not "auto"; ``own_formats`` those of matrices that have another one;
    ``table_type`` is what the table of per-layer embeddings is stored as ("q5_k"). ``threads`` None: as many
    as this process may use.
    Raises :class:`InvalidRequestError` for an unknown one.
    """
    from gemlet import _core

    formats = formats_of(weights, embedding, kv_cache)
    builder = _core.ModelBuilder(
        config=config.to_core(weights=weights, max_context=max_context),
        weights=formats.matrices,
        embedding=formats.embedding,
        kv_cache=formats.kv_cache,
        threads=0,
        formats=dict(own_formats or {}),
        embedding_on_disk=embedding_on_disk,
    )
    return MemoryPlan(process=resident_bytes(), **builder.plan(table_type=table_type, threads=threads or 0))


def check_memory(
    limit: int,
    config: TextConfig,
    *,
    weights: str,
    embedding: str | None,
    kv_cache: str | None = None,
    max_context: int,
    embedding_on_disk: bool = False,
    own_formats: Mapping[str, str] | None = None,
    threads: int | None = None,
    name: str = "max_memory",
) -> int:
    """The bytes that ``limit`` leaves; raises :class:`MemoryLimitError` with the plan and with what would fit
    if it leaves none."""
    plan_of = partial(
        plan_memory, config, kv_cache=kv_cache, embedding_on_disk=embedding_on_disk, threads=threads
    )
    plan = plan_of(weights=weights, embedding=embedding, max_context=max_context, own_formats=own_formats)
    if plan.total <= limit:
        return limit - plan.total
    remedies = []
    sized = partial(plan_of, weights=weights, embedding=embedding, own_formats=own_formats)
    context = _largest_context(sized, max_context, limit)
    if context:
        remedies.append(f"max_context={context}")
    sizes = ["f32", "bf16", "bf12", "q8", "q4"]
    smaller = sizes[sizes.index(weights) + 1 :]
    for choice in [weights, *smaller] if own_formats else smaller:
        if plan_of(weights=choice, max_context=max_context).total <= limit:
            remedies.append(f'weights="{choice}"')
            if choice != "bf12":  # which may not have every matrix
                break
    if weights == "q4" and embedding is None:
        smallest = plan_of(weights="q4", embedding="q4", max_context=max_context)
        if smallest.total <= limit:
            remedies.append('embedding="q4"')
    if not embedding_on_disk:
        smallest = plan_memory(
            config,
            weights=weights,
            embedding=embedding,
            kv_cache=kv_cache,
            max_context=max_context,
            embedding_on_disk=True,
            own_formats=own_formats,
            threads=threads,
        )
        if smallest.total <= limit:
            remedies.append("embedding_on_disk=True")
    if not remedies:  # no single change is enough
        smallest_of = partial(plan_of, weights="q4", embedding="q4")
        if context := _largest_context(smallest_of, max_context, limit):
            remedies.append(f'weights="q4", embedding="q4", max_context={context}')
    remedy = f"; it would fit with {' or '.join(remedies)}" if remedies else "; use a smaller model"
    raise MemoryLimitError(
        f"{name} is {size_text(limit)}, but the model needs {plan} (weights={weights!r}, "
        f"max_context={max_context}){remedy}"
    )


def _largest_context(plan_of: Callable[..., MemoryPlan], most: int, limit: int) -> int:
    """The largest ``max_context`` up to ``most`` with which a plan's total is within ``limit``; 0 where fewer
    than 256 tokens fit."""
    low, high = 0, most + 1
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan_of(max_context=middle).total <= limit else (low, middle)
    return low // 64 * 64 if low >= 256 else 0
