"""Functions that forward/test_guarded_memory.py runs in separate processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gemlet
from golden.folders import ALL_NAMES, EMBEDDING_NAMES, HERE, read_golden
from support.adapters import ADAPTERS, NAMES, base_of
from support.adapters import read_golden as read_adapter
from support.core_models import model_config, random_core
from support.inside import context_of, core_adapter, core_of, taps_of, testing
from support.vision import FOLDERS, VARIANTS, golden, images_of

Results = Iterator[tuple[str, NDArray[Any]]]
FORMATS = (("f32", "f32"), ("bf12", "bf16"), ("q4", "int8"), ("q8", "int4"))


def text(folder: Path) -> Results:
    """Logits of every family, each with another weight format."""
    for name, (weights, kv_cache) in zip(ALL_NAMES, itertools.cycle(FORMATS), strict=False):
        ids = read_golden(name)["ids"]
        with gemlet.load(HERE / name, weights=weights, kv_cache=kv_cache, threads=1) as model:
            for tap, rows in taps_of(model, ids).items():
                yield f"{name} {tap}", rows
            reply = model.generate(ids.tolist(), temperature=0, max_tokens=12, ignore_eos=True)
            yield f"{name} reply", np.array(reply.token_ids)


def images(folder: Path) -> Results:
    for name in VARIANTS:
        found = golden(name)
        for weights in ("f32", "q8"):
            with gemlet.load(FOLDERS / name, weights=weights, threads=1) as model:
                yield f"{name} {weights}", model.logits(found["ids.0"], images=images_of(name, 0))


def embeddings(folder: Path) -> Results:
    for name in EMBEDDING_NAMES:
        ids = read_golden(name)["ids"].tolist()
        with gemlet.load(HERE / name, weights="q8", threads=1) as model:
            yield name, core_of(model).embed([ids, ids[:3], ids[2:9]])


def adapters(folder: Path) -> Results:
    """Logits with each adapter, alone and in one forward pass together with contexts without the adapter."""
    for name in NAMES:
        ids, _ = read_adapter(name)
        with gemlet.load(base_of(name), weights="q8", threads=1) as model:
            model.load_adapter(ADAPTERS / name)
            yield name, model.logits(ids, adapter=name)
            adapter = core_adapter(model, name)
            together = testing.batch_logits(core_of(model), [ids, ids[:5], ids[:2]], [adapter, None, adapter])
            yield f"{name} together", np.concatenate(together)


def contexts(folder: Path) -> Results:
    """Logits of contexts that share blocks of the KV cache: forks in the middle of a block, and a prefix."""
    for name in ("gemma3-1b", "gemma3n-e2b", "gemma4-e2b"):
        ids = np.resize(read_golden(name)["ids"], 130).astype(np.int32)
        with gemlet.load(HERE / name, weights="q8", max_context=256, threads=1) as model:
            context = context_of(model)
            context.extend(ids)
            prefix = testing.prefix(context, 2)
            prefix.extend([7])
            yield f"{name} prefix", prefix.logits()
            fork = context.fork()
            yield f"{name} fork", fork.logits()
            for token in (5, 9):
                fork.extend([token])
                context.extend([token + 1])
            yield f"{name} after the fork", np.concatenate([fork.logits(), context.logits()])


def files(folder: Path) -> Results:
    """Logits of packed models, with the weights in memory and on disk."""
    for name in ("gemma3-untied", "gemma4-e2b"):
        packed = folder / name
        gemlet.convert(HERE / name, packed, weights="q4")
        ids = read_golden(name)["ids"].tolist()
        for on_disk in (False, True):
            with gemlet.load(packed, embedding_on_disk=on_disk, threads=1) as model:
                yield f"{name} on disk: {on_disk}", model.logits(ids)


def many_logits(folder: Path) -> Results:
    """The logits of so many tokens that a backend with its own memory computes them in several parts."""
    core = random_core(model_config(vocab_size=200_000), weights="q8")
    yield "logits", testing.batch_logits(core, [list(range(2, 122))], [None])[0]


PARTS = {part.__name__: part for part in (text, images, embeddings, adapters, contexts, files, many_logits)}


def results(part: str, folder: Path) -> dict[str, NDArray[Any]]:
    return dict(PARTS[part](folder))


def guarded_results(part: str, folder: Path) -> dict[str, NDArray[Any]]:
    testing.guard_memory()
    return results(part, folder)


def peek(guarded: bool) -> int:
    """Reads a byte of a model's weights directly, and not through the backend."""
    if guarded:
        testing.guard_memory()
    with gemlet.load(HERE / "gemma3-1b", threads=1) as model:
        return testing.peek(core_of(model))
