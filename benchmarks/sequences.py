"""Measures decoding of several sequences in one forward pass, with random weights at a real shape.

    python benchmarks/sequences.py gemma3-1b q4                        # 1, 4, 8 and 16 sequences
    python benchmarks/sequences.py gemma3-1b q4 --depth 512 --turns 20

The numbers of sequences alternate, so that changes of the machine's speed affect all in the same way. A step
gives every sequence one token. The bytes are the sizes of all matrices, keys and values that the kernels read
in a step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import gemlet
from gemlet import _core
from gemlet._core import testing
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

COUNTS = (1, 4, 8, 16)


def contexts_of(core: _core.Model, count: int, depth: int) -> list[testing.Context]:
    contexts = [testing.Context(core) for _ in range(count)]
    for context in contexts:
        for done in range(0, depth, 512):
            ids = np.full(min(512, depth - done), 5, np.int32)
            testing.forward([testing.Step(context, ids, logits="none")])
    return contexts


def measure(model: gemlet.Model, depth: int, turns: int) -> dict[int, tuple[list[float], int]]:
    """For each number of sequences: the seconds of its steps, and the bytes that one step reads."""
    core = model._resident.core
    contexts = {count: contexts_of(core, count, depth) for count in COUNTS}
    found: dict[int, tuple[list[float], int]] = {}
    for turn in range(turns + 1):
        for count in COUNTS:
            steps = [testing.Step(context, [7 + turn]) for context in contexts[count]]
            before = testing.bytes_read(core)
            started = time.perf_counter()
            testing.forward(steps)
            seconds = time.perf_counter() - started
            if turn > 0:  # the first one allocates
                found.setdefault(count, ([], testing.bytes_read(core) - before))[0].append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape")
    parser.add_argument("weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--turns", type=int, default=20)
    given = parser.parse_args()
    options = LoadOptions(
        weights=given.weights, threads=given.threads, max_context=given.depth + given.turns + 1
    )
    with random_model(given.shape, options) as model:
        print(
            f"{given.shape} {model.weights}, tier {model.tier}, {model.threads} threads, depth {given.depth}"
        )
        before = _core.measure_read_bandwidth(threads=model.threads)
        found = measure(model, given.depth, given.turns)
        print(f"bandwidth {before:.1f}, {_core.measure_read_bandwidth(threads=model.threads):.1f} GB/s")
        print("| sequences | ms a step: best, median | tokens/s: best, median | MB a step | MB a token |")
        print("|--:|--:|--:|--:|--:|")
        for count, (seconds, read) in found.items():
            best, median = min(seconds), statistics.median(seconds)
            times = f"{best * 1e3:.1f}, {median * 1e3:.1f} | {count / best:.1f}, {count / median:.1f}"
            print(f"| {count} | {times} | {read / 1e6:.0f} | {read / 1e6 / count:.0f} |")


if __name__ == "__main__":
    main()
