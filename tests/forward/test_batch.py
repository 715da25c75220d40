"""Several sequences in one forward pass."""

from __future__ import annotations

import numpy as np
import pytest

import gemlet
from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.inside import testing
from support.passes import advance

pytestmark = pytest.mark.tier

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]


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
    together = testing.batch_logits(core, PROMPTS, [None] * len(PROMPTS))
    for text, logits in zip(PROMPTS, together, strict=True):
        np.testing.assert_array_equal(logits, testing.batch_logits(core, [text], [None])[0])


@pytest.mark.parametrize("weights", ["f32", "bf16", "q8", "q4"])
def test_decoding_together_changes_no_bit_of_a_sequence(weights: str) -> None:
    """The caches have different lengths, some over several blocks and out of the window, and any threads
    compute.

    15 sequences: from 16 rows on, a tier with a matrix unit rounds differently.
    """
    ids = np.random.default_rng(3).integers(0, 96, (15, 120)).tolist()
    lengths = [1 + 7 * i for i in range(15)]

    def decoded(threads: int, sizes: list[int]) -> list[np.ndarray]:
        core = random_core(weights=weights, threads=threads, kv_cache="bf16")
        contexts = [testing.Context(core) for _ in lengths]
        for context, text, length in zip(contexts, ids, lengths, strict=True):
            advance(testing.Step(context, text[:length], logits="none"))
        rows = []
        for step in range(4):
            steps = [
                testing.Step(context, [text[length + step]])
                for context, text, length in zip(contexts, ids, lengths, strict=True)
            ]
            at = 0
            for size in sizes:
                rows += advance(*steps[at : at + size])
                at += size
        return rows

    expected = decoded(1, [1] * 15)
    for threads, sizes in ((1, [15]), (2, [15]), (3, [4, 11])):
        np.testing.assert_array_equal(decoded(threads, sizes), expected)


@pytest.mark.parametrize(
    "cancel_at", ["start", "embed", "layers.0.attention", "layers.1.mlp", "layers.1.output"]
)
@pytest.mark.parametrize("which", [0, 1, 3])
def test_a_cancelled_sequence_leaves_the_others_their_bits(cancel_at: str, which: int) -> None:
    core = random_core(weights="q4")
    contexts = [testing.Context(core) for _ in PROMPTS]
    expected = advance(*(testing.Step(context, ids) for context, ids in zip(contexts, PROMPTS, strict=True)))
    again = [testing.Context(core) for _ in PROMPTS]
    logits = testing.forward(
        [
            testing.Step(context, ids, cancel_at=cancel_at if i == which else "")
            for i, (context, ids) in enumerate(zip(again, PROMPTS, strict=True))
        ]
    )
    for i, rows in enumerate(logits):
        assert (rows is None) == (i == which)
        if rows is not None:
            np.testing.assert_array_equal(rows, expected[i])
    assert [context.length for context in again] == [
        0 if i == which else len(ids) for i, ids in enumerate(PROMPTS)
    ]
    # The sequence of the cancelled pass goes on as if there had been no such pass.
    assert again[which].cache_bytes == 0
    np.testing.assert_array_equal(advance(testing.Step(again[which], PROMPTS[which]))[0], expected[which])


def test_the_cache_of_a_cancelled_sequence_is_as_before() -> None:
    core = random_core(max_context=400)
    ids = np.random.default_rng(4).integers(0, 96, 300).tolist()
    contexts = [testing.Context(core) for _ in range(2)]
    advance(*(testing.Step(context, ids[:100]) for context in contexts))
    before = contexts[0].cache_bytes
    logits = testing.forward(
        [
            testing.Step(contexts[0], ids[200:], cancel_at="layers.1.attention"),
            testing.Step(contexts[1], ids[100:130]),
        ]
    )
    assert logits[0] is None
    assert logits[1] is not None
    assert (contexts[0].length, contexts[0].cache_bytes) == (100, before)
    np.testing.assert_array_equal(advance(testing.Step(contexts[0], ids[100:130]))[0], logits[1])


def test_a_pass_ends_early_when_all_sequences_are_cancelled() -> None:
    core = random_core(model_config(*[layer_config()] * 8))
    contexts = [testing.Context(core) for _ in PROMPTS]

    def bytes_read(last: str) -> int:
        before = testing.bytes_read(core)
        steps = [
            testing.Step(context, ids, cancel_at=last if i == 2 else "layers.0.mlp")
            for i, (context, ids) in enumerate(zip(contexts, PROMPTS, strict=True))
        ]
        logits = testing.forward(steps)
        assert [rows is None for rows in logits] == [True, True, last != "", True]
        return testing.bytes_read(core) - before

    assert bytes_read("layers.0.output") < 0.2 * bytes_read("")
    assert [context.length for context in contexts] == [0, 0, 2, 0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "a sequence in the batch has no new tokens"),
        ([3, 96], "token id 96 at position 1 is out of range: the vocabulary has ids 0 to 95"),
        ([-1], "token id -1 at position 0 is out of range"),
    ],
)
def test_one_wrong_sequence_stops_the_pass_before_it_begins(ids: list[int], message: str) -> None:
    core = random_core()
    contexts = [testing.Context(core) for _ in range(2)]
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        testing.forward([testing.Step(contexts[0], [5]), testing.Step(contexts[1], ids)])
    assert [(context.length, context.cache_bytes) for context in contexts] == [(0, 0), (0, 0)]


def test_one_too_long_sequence_stops_the_pass_before_it_begins() -> None:
    core = random_core(max_context=10)
    contexts = [testing.Context(core) for _ in range(2)]
    with pytest.raises(gemlet.ContextLengthError, match="11 tokens do not fit the context of 10"):
        testing.forward([testing.Step(contexts[0], [5]), testing.Step(contexts[1], [1] * 11)])
    assert [context.length for context in contexts] == [0, 0]


def test_a_sequence_is_in_a_pass_once() -> None:
    context = testing.Context(random_core())
    with pytest.raises(gemlet.InvalidRequestError, match="a sequence is in the batch twice"):
        testing.forward([testing.Step(context, [5]), testing.Step(context, [6])])
    assert context.length == 0
