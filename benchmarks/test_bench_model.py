"""Measures prefill and decode of the demo model and of random weights at real shapes.

    pytest benchmarks --benchmark-enable                        # all; the 1B shape needs about 1.5 GB
    pytest benchmarks --benchmark-enable -k "demo or 270m"      # the small ones
    pytest benchmarks --benchmark-enable --benchmark-save=NAME --benchmark-save-data    # for compare.py

A round is 512 tokens of prefill or 32 of decode. ``extra_info`` has tokens per second, bytes per token and
the share of the memory bandwidth, which is measured in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

PREFILL = 512
DECODE = 32
MODELS = [
    ("demo", "bf16"),
    ("gemma3-270m", "bf16"),
    ("gemma3-270m", "q8"),
    ("gemma3-270m", "q4"),
    ("gemma3-1b", "q8"),
    ("gemma3-1b", "q4"),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda pair: "-".join(pair))
def model(request: pytest.FixtureRequest) -> Iterator[gemlet.Model]:
    name, weights = request.param
    options = LoadOptions(weights=weights)
    with gemlet.load(weights=weights) if name == "demo" else random_model(name, options) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def bandwidth(model: gemlet.Model) -> float:
    return _core.measure_read_bandwidth(threads=model.threads) * 1e9


def describe(
    benchmark: Any, model: gemlet.Model, tokens: int, bytes_per_token: float, bandwidth: float
) -> None:
    benchmark.extra_info.update(
        weights=model.weights, threads=model.threads, tier=model.tier, bytes_per_token=bytes_per_token
    )
    if benchmark.enabled:
        speed = tokens / benchmark.stats.stats.median
        benchmark.extra_info.update(
            tokens_per_second=speed, bandwidth=bandwidth, bandwidth_share=speed * bytes_per_token / bandwidth
        )


def random_ids(model: gemlet.Model, count: int) -> Any:
    return np.random.default_rng(0).integers(0, model.vocab_size, size=count, dtype=np.int32)


def test_prefill(benchmark: Any, model: gemlet.Model, bandwidth: float) -> None:
    ids = random_ids(model, PREFILL)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (_core.TokenSequence(model._resident.core), ids), {}

    benchmark.group = f"prefill {PREFILL}"
    benchmark.pedantic(_core.TokenSequence.extend, setup=setup, rounds=5, warmup_rounds=1)
    describe(benchmark, model, PREFILL, model._resident.core.bytes_per_token() / PREFILL, bandwidth)


def test_decode(benchmark: Any, model: gemlet.Model, bandwidth: float) -> None:
    ids = random_ids(model, DECODE + 1)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        sequence = _core.TokenSequence(model._resident.core)
        sequence.extend(ids[:1])
        return (sequence,), {}

    def decode(sequence: _core.TokenSequence) -> None:
        for position in range(1, len(ids)):
            sequence.extend(ids[position : position + 1])

    benchmark.group = f"decode {DECODE}"
    benchmark.pedantic(decode, setup=setup, rounds=5, warmup_rounds=1)
    describe(
        benchmark, model, DECODE, float(model._resident.core.bytes_per_token(depth=DECODE // 2)), bandwidth
    )
