"""What a model takes of the memory, told before it is loaded: the plan, and the bound ``max_memory``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gemlet.errors import InvalidRequestError, MemoryLimitError

if TYPE_CHECKING:
    from gemlet.config import TextConfig

__all__ = ["MemoryPlan", "check_memory", "parse_memory", "plan_memory", "resident_bytes", "size_text"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_LARGEST = 1 << 62


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
    from gemlet.load import formats_of

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


def parse_memory(value: int | str) -> int:
    """Bytes of a ``max_memory`` argument: a number of bytes, or text such as "2GB", "1.5 GiB", "800MB".

    >>> parse_memory("2GB"), parse_memory("1.5GiB"), parse_memory(4096)
    (2000000000, 1610612736, 4096)
    """
    if type(value) is int and 0 < value < _LARGEST:
        return value
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    size = round(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if not 0 < size < _LARGEST:
        raise InvalidRequestError(f'max_memory is {value!r}; expected bytes, or text like "2GB" or "800MiB"')
    return size


def resident_bytes() -> int:
    """Memory this process has resident now, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def size_text(size: int) -> str:
    """Bytes for people: three digits and a decimal unit.

    >>> size_text(392_940_544), size_text(4_697_620_480), size_text(12_000)
    ('393 MB', '4.70 GB', '12 kB')
    """
    if size >= 10**9:
        return f"{size / 10**9:.2f} GB"
    return f"{size / 10**6:.0f} MB" if size >= 10**6 else f"{size / 10**3:.0f} kB"
