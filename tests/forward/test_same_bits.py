"""The logits of a token are the same bits however its text was divided into pieces, and whatever other texts
run."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.inside import testing

IDS = np.random.default_rng(8).integers(0, 96, 1400).astype(np.int32)

pytestmark = pytest.mark.tier


def core_of(weights: str, kv_cache: str) -> _core.Model:
    layers = (
        layer_config(sliding_window=300),
        layer_config(sliding_window=0, num_heads=4, num_kv_heads=1, attention_softcap=30.0),
        layer_config(sliding_window=64),
    )
    return random_core(
        model_config(*layers, max_context=1500), weights=weights, kv_cache=kv_cache, exact_batches=True
    )


def last_logits(core: _core.Model, pieces: list[int]) -> NDArray[np.float32]:
    sequence = _core.TokenSequence(core)
    for piece in pieces:
        at = sequence.length
        sequence.extend(IDS[at : at + piece], logits="last")
    return sequence.logits()[-1]


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("weights", ["f32", "bf16", "q8", "q4"])
def test_the_pieces_of_a_text_change_no_bit(weights: str, kv_cache: str) -> None:
    """600 tokens are three pieces of attention. A call with at most 8 tokens is split over its keys."""
    core = core_of(weights, kv_cache)
    random = np.random.default_rng(3)
    total = 600
    whole = last_logits(core, [total])
    cases = [[total - 1, 1], [total - 8] + [1] * 8, [300, 3, total - 303]]
    for _ in range(2):
        cuts = np.sort(random.choice(np.arange(1, total), 8, replace=False))
        cases.append(np.diff([0, *cuts.tolist(), total]).tolist())
    for pieces in cases:
        np.testing.assert_array_equal(last_logits(core, pieces), whole, err_msg=str(pieces))


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
def test_other_texts_in_a_pass_change_no_bit(kv_cache: str) -> None:
    core = core_of("q4", kv_cache)
    texts = [IDS[i : i + length].tolist() for i, length in enumerate((400, 1, 30, 7, 60, 2))]
    together = testing.batch_logits(core, texts, [None] * len(texts))
    for text, logits in zip(texts, together, strict=True):
        np.testing.assert_array_equal(logits, testing.batch_logits(core, [text], [None])[0])
