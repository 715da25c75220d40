"""Measures the share of the memory bandwidth that each family uses, and the time that a shared KV cache
saves.

    python benchmarks/families.py            # 2 threads, random weights in q4; 6 GB of memory, two minutes

Decode: models of several shapes run alternately, and the memory bandwidth is measured before and after each.
The share is the bytes that a token reads per second, divided by the larger of the two bandwidths. Only the
first six layers of Gemma 4 26B-A4B are built.

Prefill: in Gemma 4 E2B, the last layers read the keys and values of an earlier layer, so they run only for
the last token. The script compares prefill with a model of the same shape in which every layer has its own
cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import numpy as np

from gemlet import _core
from gemlet.config import TextConfig, shape_config
from gemlet.loading.builder import make_builder
from gemlet.loading.options import LoadOptions

PROMPT = 512
DECODE = 8


def random_core(config: TextConfig, threads: int) -> _core.Model:
    options = LoadOptions(weights="q4", threads=threads, max_context=2 * PROMPT)
    builder = make_builder(config, options)
    builder.add_random(seed=0)
    return builder.finish()


def seconds_per_token(core: _core.Model, ids: np.ndarray) -> float:
    sequence = _core.TokenSequence(core)
    sequence.extend(ids[:8])
    sequence.extend(ids[8:9])
    started = time.perf_counter()
    for i in range(DECODE):
        sequence.extend(ids[9 + i : 10 + i])
    return (time.perf_counter() - started) / DECODE


def seconds_of_prefill(core: _core.Model, ids: np.ndarray) -> float:
    sequence = _core.TokenSequence(core)
    started = time.perf_counter()
    sequence.extend(ids)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    ids = np.random.default_rng(0).integers(3, 200_000, size=PROMPT, dtype=np.int32)

    experts = shape_config("gemma4-26b-a4b")
    configs = {name: shape_config(name) for name in ("gemma3-1b", "gemma4-e2b", "gemma3n-e2b")}
    configs["gemma4-26b-a4b, 6 layers"] = dataclasses.replace(experts, layers=experts.layers[:6])
    cores = {name: random_core(config, options.threads) for name, config in configs.items()}
    rates: dict[str, list[float]] = {name: [] for name in cores}
    shares: dict[str, list[float]] = {name: [] for name in cores}
    before = _core.measure_read_bandwidth(threads=options.threads)
    for _ in range(options.repeat):
        for name, core in cores.items():
            rate = core.bytes_per_token(depth=10) / seconds_per_token(core, ids) / 1e9
            after = _core.measure_read_bandwidth(threads=options.threads)
            rates[name].append(rate)
            shares[name].append(rate / max(before, after))
            before = after
    print(f"{'decode, q4':>26} {'GB/s':>6} {'of the bandwidth':>17}")
    for name in cores:
        low, *_, high = sorted(shares[name])
        print(
            f"{name:>26} {statistics.median(rates[name]):6.1f} "
            f"{statistics.median(shares[name]):17.0%}  {low:.0%} to {high:.0%}"
        )

    shared = configs["gemma4-e2b"]
    layers = tuple(dataclasses.replace(layer, kv_source=-1) for layer in shared.layers)
    pair = cores["gemma4-e2b"], random_core(dataclasses.replace(shared, layers=layers), options.threads)
    turns = [tuple(seconds_of_prefill(core, ids) for core in pair) for _ in range(options.repeat)]
    ratios = sorted(whole / part for part, whole in turns)
    part, whole = (statistics.median(column) for column in zip(*turns, strict=True))
    print(
        f"prefill {PROMPT} of gemma4-e2b: {part:.2f} s, with every layer {whole:.2f} s, "
        f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
