"""Tests of the quality of each weight format, measured with the demo model on text that is not in its
training data.

benchmarks/quality.py does the measurement, prints the table and explains its columns. No release may exceed
the limits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from support.inside import core_of
from support.quality import quality

pytestmark = pytest.mark.tier

# The largest allowed mean KL divergence from f32 weights, in nats per token.
LIMITS = {"bf16": 1e-3, "q8": 1e-3, "q4": 3e-2}
CHUNK, CHUNKS = 512, 8


@pytest.fixture(scope="module")
def chunks() -> list[Any]:
    found: list[Any] = quality.read_chunks(
        Path(gemlet.__file__).parent / "demo", quality.HELD_OUT, CHUNK, CHUNKS
    )
    assert [len(chunk) for chunk in found] == [CHUNK] * CHUNKS
    return found


def table(measured: dict[str, Any]) -> str:
    return "".join(
        f"\n{name}: KL {row.kl:.2e}, 99th percentile {row.kl_99:.2e}, top-1 {row.top_1:.2%}, "
        f"perplexity {row.perplexity:.3f}, {row.bytes:,} bytes"
        for name, row in measured.items()
    )


@pytest.mark.slow
def test_every_format_stays_close_to_f32(
    chunks: list[Any], record_property: Callable[[str, object], None]
) -> None:
    """Measures f32 and every other format of gemlet.load in one pass over the text.

    For text that the model has generated itself, the mean loss rises by exactly the KL divergence. So the
    change of the perplexity has about the same limit. Formats with fewer bits need fewer bytes and differ
    more from f32.
    """
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(gemlet.load(weights=name, threads=1)) for name in ("f32", *LIMITS)
        }
        cores = {name: core_of(model) for name, model in models.items()}
        measured = quality.measure(cores["f32"], cores, chunks)
    for name, row in measured.items():
        record_property(f"{name}_kl", row.kl)
        record_property(f"{name}_perplexity", row.perplexity)
        assert row.tokens == CHUNK * CHUNKS
    reference = measured["f32"]
    for name, limit in LIMITS.items():
        row = measured[name]
        assert 0 < row.kl < limit, table(measured)
        assert abs(np.log(row.perplexity / reference.perplexity)) < limit, table(measured)
    for better, worse in pairwise(["f32", *LIMITS]):
        assert measured[better].kl < measured[worse].kl, table(measured)
        assert measured[better].bytes > measured[worse].bytes


@pytest.mark.parametrize("every", [1, 4])
def test_the_measure_equals_its_definition(chunks: list[Any], every: int) -> None:
    """The result equals a direct computation from logits()."""
    with gemlet.load(weights="f32", threads=1) as f32, gemlet.load(weights="q4", threads=1) as q4:
        part = chunks[0][:100]
        logits = [model.logits(part).astype(np.float64) for model in (f32, q4)]
        p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits)
        row = quality.measure(core_of(f32), {"q4": core_of(q4)}, [part], every)["q4"]
    following = part[1:][::every]
    p, q = p[::every], q[::every]
    kl = (p * np.log(p / q)).sum(axis=-1)
    assert row.kl == pytest.approx(kl.mean(), rel=1e-3)
    assert row.kl_99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert row.top_1 == np.mean(p.argmax(axis=-1) == q.argmax(axis=-1))
    likelihoods = q[np.arange(len(following)), following]
    assert row.perplexity == pytest.approx(np.exp(-np.log(likelihoods).mean()), rel=1e-5)
    assert row.kl_worst == pytest.approx(kl.max(), rel=1e-3)
    assert row.tokens == 100 // every
