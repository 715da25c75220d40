"""Measures the loss of quality of a weight format: its distance from f32 on a text.

    python benchmarks/quality.py                                  # the demo model on its held-out text
    python benchmarks/quality.py --model MODEL --text FILE --threads 8 --json
    python benchmarks/quality.py --parts                          # also where the distance comes from

The text is split into chunks of ``--chunk`` tokens. Each is a separate context that begins with BOS. The
columns for each format:

- KL: the Kullback-Leibler divergence sum p log(p / q) in nats, where q is the distribution of the next token
  and p the one with f32 weights; its mean over all tokens, its 99th percentile and its largest value;
- top-1: how often the likeliest token is the same as with f32;
- perplexity: exp of the mean of -log q(the token that follows);
- bytes: of the packed weights with the embedding table.

``--every 4`` judges only every fourth token, which saves time if the vocabulary is large.

With ``--parts``, the row "q4 in f32" is a model whose weights have the values of q4, computed as f32. It
shows only the effect of rounding the weights. The other causes are the int8 activations and the bf16 cache;
separate rows show the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet._core import testing
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config import read_config
from gemlet.weights.formats import PRESETS
from gemlet.weights.hf_names import map_tensors

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ROOT / "tests" / "data" / "heldout.txt"
_ROWS = 64  # rows of logits at a time, so that their float64 copies stay small with 262,144 tokens


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Formats of matrices, embedding and KV cache. ``in_f32``: rounded to them, but computed as f32."""

    matrices: str
    embedding: str
    kv_cache: str
    in_f32: bool = False


RECIPES = {
    **{name: Recipe(*formats) for name, formats in PRESETS.items()},
    "q4, embedding q4": Recipe("q4", "q4", "bf16"),
    "bf16, cache int8": Recipe("bf16", "bf16", "int8"),
    "bf16, cache int4": Recipe("bf16", "bf16", "int4"),
    "q4, cache int8": Recipe("q4", "q8", "int8"),
    "q4, cache int4": Recipe("q4", "q8", "int4"),
}
PARTS = {
    "f32, cache bf16": Recipe("f32", "f32", "bf16"),
    "f32, cache int8": Recipe("f32", "f32", "int8"),
    "f32, cache int4": Recipe("f32", "f32", "int4"),
    "q8 in f32": Recipe("q8", "q8", "f32", in_f32=True),
    "q4 in f32": Recipe("q4", "q8", "f32", in_f32=True),
    "q4, embedding q4 in f32": Recipe("q4", "q4", "f32", in_f32=True),
    "q4, embedding f32": Recipe("q4", "f32", "f32"),
    "f32, embedding q8": Recipe("f32", "q8", "f32"),
    "f32, embedding q4": Recipe("f32", "q4", "f32"),
}


@dataclasses.dataclass(frozen=True)
class Quality:
    """One row of the table. The docstring of this file explains the columns."""

    kl: float
    kl_99: float
    kl_worst: float
    top_1: float
    perplexity: float
    bytes: int
    tokens: int


def open_model(path: Path, recipe: Recipe, threads: int = 1) -> _core.Model:
    """The model at ``path`` (a folder or a GGUF file) in the formats of a recipe."""
    if recipe.in_f32:
        return open_rounded(path, recipe, threads)
    model = gemlet.load(
        path,
        weights=recipe.matrices,
        embedding=recipe.embedding,
        kv_cache=recipe.kv_cache,
        threads=threads,
    )
    return model._resident.core


def open_rounded(folder: Path, recipe: Recipe, threads: int) -> _core.Model:
    """The model in ``folder``: its matrices are rounded to the recipe's formats and computed as f32."""
    config = read_config(folder)
    builder = _core.ModelBuilder(
        config=config.to_core(weights="f32"),
        weights="f32",
        embedding="f32",
        kv_cache=recipe.kv_cache,
        threads=threads,
    )
    with Checkpoint(folder) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        for name, slot in map_tensors(shapes, config, where=str(folder)).items():
            values, dtype = checkpoint.read(name)
            if values.ndim == 2:
                format = recipe.embedding if slot in ("embed_tokens", "lm_head") else recipe.matrices
                values, dtype = testing.kernel_roundtrip(format=format, w=to_f32(values, dtype)), "f32"
            builder.add(slot, values, dtype)
    return builder.finish()


def to_f32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A stored tensor as float32. ``dtype`` is "f32", or "bf16" or "f16", whose values are uint16."""
    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return (values.view(np.float16) if dtype == "f16" else values).astype(np.float32)


def chunks_of(ids: Sequence[int], size: int, bos: int) -> list[NDArray[np.int32]]:
    """Splits ``ids`` into chunks of BOS and ``size`` - 1 tokens. Drops an incomplete chunk at the end."""
    step = size - 1
    return [
        np.array([bos, *ids[start : start + step]], np.int32) for start in range(0, len(ids) - step + 1, step)
    ]


def read_chunks(path: Path, text: Path, size: int = 512, limit: int | None = None) -> list[NDArray[np.int32]]:
    """At most ``limit`` chunks of a text file, evenly spread over it, as tokens of the model at ``path``."""
    bos, *ids = gemlet.Tokenizer.from_file(path).encode(text.read_text(encoding="utf-8"))
    chunks = chunks_of(ids, size, bos)
    if limit is None or limit >= len(chunks):
        return chunks
    return [chunks[i * len(chunks) // limit] for i in range(limit)]


def log_probabilities(
    model: _core.Model, ids: NDArray[np.int32], every: int = 1
) -> Iterator[NDArray[np.float64]]:
    """Yields log q of the next token after each of ``ids``, as [rows, vocab], some rows at a time. With
    ``every`` 4 it does so only after every fourth token."""
    sequence = _core.TokenSequence(model)
    try:
        for start in range(0, len(ids), _ROWS):
            sequence.extend(ids[start : start + _ROWS], logits="all")
            logits = sequence.logits()[::every].astype(np.float64)
            logits -= logits.max(axis=-1, keepdims=True)
            yield logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    finally:
        sequence.close()


def measure(
    reference: _core.Model,
    models: Mapping[str, _core.Model],
    chunks: Sequence[NDArray[np.int32]],
    every: int = 1,
) -> dict[str, Quality]:
    """Compares each model with ``reference`` on the same chunks. With ``every`` 4 it compares only every
    fourth token. 64 must be a multiple of ``every``. The reference itself is not run twice."""
    others = [model for model in models.values() if model is not reference]
    divergences: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    agreements: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in models}
    losses: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    for ids in chunks:
        streams = [log_probabilities(model, ids, every) for model in others]
        start = 0
        for p, *found in zip(log_probabilities(reference, ids, every), *streams, strict=True):
            # The last token of the chunk has no following token, so there may be one fewer than rows.
            following = ids[start + 1 : start + 1 + _ROWS][::every]
            start += _ROWS
            likelihood, likeliest = np.exp(p), p.argmax(axis=-1)
            remaining = iter(found)
            for name, model in models.items():
                q = p if model is reference else next(remaining)
                divergences[name].append((likelihood * (p - q)).sum(axis=-1))
                agreements[name].append(q.argmax(axis=-1) == likeliest)
                losses[name].append(-q[np.arange(len(following)), following])
    result = {}
    for name, model in models.items():
        kl = np.concatenate(divergences[name])
        memory = model.memory()
        result[name] = Quality(
            kl=float(kl.mean()),
            kl_99=float(np.quantile(kl, 0.99)),
            kl_worst=float(kl.max()),
            top_1=float(np.concatenate(agreements[name]).mean()),
            perplexity=float(np.exp(np.concatenate(losses[name]).mean())),
            bytes=memory["weights"] + memory["embedding"],
            tokens=len(kl),
        )
    return result


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR_OR_FILE",
        help="a Hugging Face folder or a GGUF file (default: the demo model)",
    )
    parser.add_argument(
        "--text", type=Path, default=HELD_OUT, metavar="FILE", help="default: the held-out text"
    )
    parser.add_argument("--chunk", type=int, default=512, metavar="TOKENS", help="default 512")
    parser.add_argument("--limit", type=int, metavar="N", help="only N chunks, spread over the text")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        choices=[1, 2, 4, 8, 16],
        metavar="N",
        help="judge every Nth token: 1 (default), 2, 4, 8 or 16",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--parts", action="store_true", help="also separate weights, activations and cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    folder = arguments.model or Path(_core.__file__).parent / "demo"
    recipes = {**RECIPES, **(PARTS if arguments.parts else {})}
    if folder.is_file():
        recipes = {name: recipe for name, recipe in recipes.items() if not recipe.in_f32}
    chunks = read_chunks(folder, arguments.text, arguments.chunk, arguments.limit)
    if not chunks:
        sys.exit(f"quality: {arguments.text}: shorter than one chunk of {arguments.chunk} tokens")
    reference = open_model(folder, RECIPES["f32"], arguments.threads)
    rows = {}
    for name, recipe in recipes.items():  # one at a time, so that only two models are in memory
        model = open_model(folder, recipe, arguments.threads)
        rows.update(measure(reference, {name: model}, chunks, arguments.every))
        model.close()
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(row) for name, row in rows.items()}, indent=2))
        return
    print(f"{folder}, {rows['f32'].tokens} tokens of chunks of {arguments.chunk}, tier {reference.tier}\n")
    print("| weights | KL to f32 | 99th percentile | worst | same top-1 | perplexity | bytes |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row.kl:.2e} | {row.kl_99:.2e} | {row.kl_worst:.3g} | {row.top_1:.2%} "
            f"| {row.perplexity:.3f} | {row.bytes:,} |"
        )


if __name__ == "__main__":
    main()
