"""Measures the time to the first token of a prompt whose beginning was computed before, in this or an earlier
process.

    python benchmarks/prefixes.py gemma3-1b q4                    # random weights at a real shape
    python benchmarks/prefixes.py --model model.gguf --tokens 4000 --new 20

"second turn" is a prompt of --tokens tokens that were computed before, followed by --new new tokens. "after a
restart" is the same prompt with a new engine, which finds the keys and values on the disk (or in the system's
page cache).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

GREEDY = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed": 1,
}


def engine_of(core: _core.Model, folder: str) -> _core.Engine:
    return _core.Engine(
        core,
        prefix_cache_bytes=1 << 30,
        prefix_cache_folder=folder,
        prefix_cache_folder_bytes=10 << 30,
        model_digest=bytes(range(32)),
    )


def first_token(engine: _core.Engine, ids: NDArray[np.int32]) -> tuple[float, int]:
    """The seconds until the first token, and how many tokens the cache had."""
    news = _core.News()
    started = time.perf_counter()
    request = engine.submit(ids, sampler=_core.Sampler(**GREEDY), news=news, max_tokens=1)
    while True:
        seen = news.value
        if request.take()[1] is not None:
            return time.perf_counter() - started, request.cached_tokens
        engine.wait(news, seen)


def measure(model: gemlet.Model, tokens: int, new: int, turns: int) -> None:
    core = model._resident.core
    ids = np.random.default_rng(0).integers(5, model.vocab_size - 5, tokens + turns * new, dtype=np.int32)
    text = ids[:tokens]

    def next_turn(turn: int) -> NDArray[np.int32]:
        return np.concatenate([text, ids[tokens + turn * new :][:new]])

    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(core, folder)
        first_token(engine, ids[-64:])  # the first pass allocates
        cold, _ = first_token(engine, text)
        found = {"second turn": [first_token(engine, next_turn(turn)) for turn in range(turns)]}
        engine.close()
        after = []
        for turn in range(turns):
            engine = engine_of(core, folder)
            after.append(first_token(engine, next_turn(turn)))
            engine.close()
        found["after a restart"] = after
    print(f"{model.source} {model.weights}: {tokens} tokens cold {cold:.2f} s")
    for name, times in found.items():
        seconds = statistics.median(one for one, _ in times)
        print(f"  {name}, {new} new tokens: {seconds * 1000:.0f} ms, {100 * seconds / cold:.1f} % of cold")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="?", default="gemma3-1b")
    parser.add_argument("weights", nargs="?", default="q4")
    parser.add_argument("--model", help="instead of random weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    context = given.tokens + given.turns * given.new + 64
    if given.model:
        model = gemlet.load(given.model, threads=given.threads, max_context=context)
    else:
        options = LoadOptions(weights=given.weights, threads=given.threads, max_context=context)
        model = random_model(given.shape, options)
    with model:
        measure(model, given.tokens, given.new, given.turns)


if __name__ == "__main__":
    main()
