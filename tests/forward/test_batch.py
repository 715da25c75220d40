"""Several sequences in one forward pass."""

from __future__ import annotations

import numpy as np
import pytest

from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.inside import testing

pytestmark = pytest.mark.tier


def bytes_of_pass(core: _core.Model, texts: list[list[int]]) -> int:
    before = testing.bytes_read(core)
    testing.batch_logits(core, texts, [None] * len(texts))
    return testing.bytes_read(core) - before


@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_sixteen_sequences_read_the_weights_and_the_head_once(weights: str) -> None:
    """The head is most of this model. A head for each sequence would read it 16 times."""
    core = random_core(model_config(layer_config(), vocab_size=20_000), weights=weights)
    one = bytes_of_pass(core, [[5]])
    weight_bytes = core.memory()["weights"] + core.memory()["embedding"]
    assert 0.9 * weight_bytes < one < 1.1 * weight_bytes
    assert bytes_of_pass(core, [[5 + i] for i in range(16)]) < 1.1 * one


def test_the_logits_of_each_sequence_are_its_own() -> None:
    core = random_core(weights="q8")
    texts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
    together = testing.batch_logits(core, texts, [None] * len(texts))
    for text, logits in zip(texts, together, strict=True):
        np.testing.assert_array_equal(logits, testing.batch_logits(core, [text], [None])[0])
