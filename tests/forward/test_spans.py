"""Tokens that see each other in both directions beside causal ones, compared with the NumPy reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from golden.folders import HERE, TOLERANCE
from reference.forward import forward
from reference.model import Cache, Model
from support.core_models import builder_of, int32, layer_config, model_config, random_core
from support.feeding import difference
from support.inside import context_of, core_of, taps_of, testing
from support.passes import advance

pytestmark = pytest.mark.tier

# The window of the goldens is 8 tokens, so that some spans are longer than it.
SPANS = [[(2, 7)], [(0, 1), (5, 25)], [(1, 13), (13, 20), (24, 30)], [(0, 30)]]
# These look ahead in all layers, or in sliding ones.
LOOKING = ["gemma3-4b", "gemma3-270m", "gemma4-12b", "gemma4-31b"]
CAUSAL = ["gemma3n-e2b", "gemma4-e2b", "gemma2-2b"]
opened = cache(lambda name: Model.open(HERE / name))


def prompt(name: str, tokens: int, seed: int = 2) -> NDArray[np.int32]:
    vocab = opened(name).config.vocab_size
    return np.random.default_rng(seed).integers(0, vocab, tokens).astype(np.int32)


def load(name: str, **options: Any) -> gemlet.Model:
    return gemlet.load(HERE / name, **{"weights": "f32", "kv_cache": "f32", "threads": 2, **options})


@pytest.mark.parametrize("spans", SPANS, ids=str)
@pytest.mark.parametrize("name", LOOKING)
def test_every_tap_agrees_with_the_reference(name: str, spans: list[tuple[int, int]]) -> None:
    ids = prompt(name, 30)
    expected: dict[str, Any] = {}
    forward(opened(name), ids, taps=expected, spans=spans)
    with load(name) as model:
        got = taps_of(model, ids, spans=spans)
        causal = taps_of(model, ids)["logits"]
    for tap, value in expected.items():
        assert difference(got[tap], value) < TOLERANCE, tap
    if spans != [(0, 1), (5, 25)]:
        assert difference(causal, expected["logits"]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", CAUSAL)
def test_families_that_do_not_look_ahead_pass_spans_over(name: str) -> None:
    ids = prompt(name, 30)
    with load(name) as model:
        assert not any(layer.bidirectional_spans for layer in core_of(model).config.layers)
        expected = taps_of(model, ids)["logits"]
        np.testing.assert_array_equal(taps_of(model, ids, spans=SPANS[2])["logits"], expected)
        assert difference(expected, forward(opened(name), ids, spans=SPANS[2])) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "layers"),
    [("gemma3-4b", "all"), ("gemma3-270m", "all"), ("gemma4-31b", "sliding"), ("gemma4-12b", "sliding")],
)
def test_the_layers_that_look_ahead(name: str, layers: str) -> None:
    with load(name) as model:
        for layer in core_of(model).config.layers:
            assert layer.bidirectional_spans == (layers == "all" or layer.sliding_window > 0)


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["gemma3-4b", "gemma4-31b"])
def test_a_row_of_a_span_has_the_bits_that_more_threads_give(name: str, threads: int, kv_cache: str) -> None:
    ids = prompt(name, 150)
    with load(name, kv_cache=kv_cache) as model, load(name, threads=threads, kv_cache=kv_cache) as other:
        spans = [(3, 60), (61, 140)]
        expected = taps_of(model, ids, spans=spans)["logits"]
        np.testing.assert_array_equal(taps_of(other, ids, spans=spans)["logits"], expected)


@pytest.mark.parametrize("name", LOOKING)
def test_a_span_may_follow_a_cached_prompt_and_precede_decoding(name: str) -> None:
    ids, seen = prompt(name, 60), Cache()
    steps: list[tuple[int, int, list[tuple[int, int]]]] = [
        (0, 20, [(15, 20)]),
        (20, 45, [(0, 3), (4, 21)]),
        (45, 46, [(0, 1)]),
        (46, 47, []),
        (47, 60, [(12, 13)]),
    ]
    with load(name) as model:
        sequence = context_of(model)
        for begin, end, spans in steps:
            expected = forward(opened(name), ids[begin:end], seen, spans=spans)
            sequence.extend(ids[begin:end], logits="last", spans=spans)
            assert difference(sequence.logits(), expected[-1:]) < TOLERANCE, begin


# A chunk of 512 tokens would end inside a span, at a border of one, or inside one that begins the chunk.
BORDERS = [
    [(500, 530)],
    [(511, 513)],
    [(512, 540)],
    [(1, 513)],
    [(0, 100), (100, 520), (520, 521), (530, 550)],
]


@pytest.mark.parametrize("spans", BORDERS, ids=str)
@pytest.mark.parametrize("name", ["gemma3-4b", "gemma4-31b"])
def test_a_span_may_cross_the_border_of_a_chunk(name: str, spans: list[tuple[int, int]]) -> None:
    ids = prompt(name, 550)
    expected = forward(opened(name), ids, spans=spans)
    with load(name) as model:
        for wanted, rows in (("all", expected), ("last", expected[-1:])):
            sequence = context_of(model)
            sequence.extend(ids, logits=wanted, spans=spans)
            assert difference(sequence.logits(), rows) < TOLERANCE


def looking_core(longest_span: int = 0, **changes: Any) -> _core.Model:
    layers = [layer_config(sliding_window=window, bidirectional_spans=True) for window in (40, 0)]
    return random_core(model_config(*layers, max_context=2000, longest_span=longest_span), **changes)


def test_a_span_longer_than_a_chunk_is_one_pass() -> None:
    """Chunks of 700 tokens are the same as one pass of 700 tokens."""
    ids = np.random.default_rng(1).integers(0, 96, 1500).astype(np.int32)
    core = looking_core(longest_span=700)
    sequence = _core.TokenSequence(core)
    sequence.extend(ids, spans=[(100, 800), (800, 1500)], logits="all")
    context = testing.Context(core)
    rows = []
    for begin, end, spans in ((0, 100, []), (100, 800, [(0, 700)]), (800, 1500, [(0, 700)])):
        rows += advance(testing.Step(context, ids[begin:end], spans=spans, logits="all"))
    np.testing.assert_array_equal(sequence.logits(), np.concatenate(rows))


def test_the_plan_has_room_for_the_longest_span() -> None:
    layers = [layer_config(sliding_window=40, bidirectional_spans=True)]
    plans = [
        builder_of(model_config(*layers, max_context=4000, longest_span=span)).plan()["activations"]
        for span in (0, 512, 1024, 2048)
    ]
    assert plans[0] == plans[1]
    assert (plans[3] - plans[2]) == 2 * (plans[2] - plans[1])


@pytest.mark.parametrize("longest_span", [0, 512, 700])
def test_a_span_longer_than_planned_is_refused(longest_span: int) -> None:
    most = max(512, longest_span)
    sequence = _core.TokenSequence(looking_core(longest_span))
    ids = np.ones(1500, np.int32)
    with pytest.raises(
        gemlet.InvalidRequestError,
        match=rf"a span has {most + 1} tokens, but the model was loaded for {most} at most \(longest_span\)",
    ):
        sequence.extend(ids, spans=[(10, 11 + most)])
    assert sequence.length == 0
    sequence.extend(ids, spans=[(10, 10 + most)])
    causal = _core.TokenSequence(random_core(max_context=2000))
    causal.extend(ids, spans=[(10, 1400)])  # no layer looks ahead
    assert causal.length == 1500


FIRST = "expected 1 or more among the tokens"


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(-1, 2)], f"a span has the tokens from -1 up to 2, {FIRST} 0 to 9 that are in none yet"),
        ([(3, 3)], f"from 3 up to 3, {FIRST} 0 to 9"),
        ([(4, 3)], f"from 4 up to 3, {FIRST} 0 to 9"),
        ([(8, 11)], f"from 8 up to 11, {FIRST} 0 to 9"),
        ([(10, 11)], f"from 10 up to 11, {FIRST} 0 to 9"),
        ([(-(2**63), 2**63 - 1)], f"from -{2**63} up to {2**63 - 1}, {FIRST} 0 to 9"),
        ([(1, 2**63 - 1)], f"from 1 up to {2**63 - 1}, {FIRST} 0 to 9"),
        ([(1, 4), (3, 5)], f"from 3 up to 5, {FIRST} 4 to 9"),
        ([(5, 6), (1, 2)], f"from 1 up to 2, {FIRST} 6 to 9"),
    ],
)
@pytest.mark.parametrize("make", [looking_core, random_core])
def test_wrong_spans_are_refused_before_anything_changes(
    make: Any, spans: list[tuple[int, int]], message: str
) -> None:
    core = make()
    sequence, context = _core.TokenSequence(core), testing.Context(core)
    sequence.extend(int32(1, 2, 3))
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        sequence.extend(int32(*range(10)), spans=spans)
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        testing.forward([testing.Step(context, list(range(10)), spans=spans)])
    assert (sequence.length, context.length) == (3, 0)


def test_a_prefix_does_not_end_inside_a_span() -> None:
    """The keys of a span's tokens depend on its later tokens."""
    layer = layer_config(sliding_window=0, bidirectional_spans=True)
    sequence = _core.TokenSequence(random_core(model_config(layer, max_context=300)))
    sequence.extend(np.ones(30, np.int32))
    sequence.extend(np.ones(170, np.int32), spans=[(0, 34), (90, 110)])
    for holder in (sequence, sequence.fork(), testing.prefix(sequence, 3)):
        assert testing.prefix(holder, 1).length == 64  # the first span ends there
        with pytest.raises(gemlet.InvalidRequestError, match="inside a span, whose tokens see later ones"):
            testing.prefix(holder, 2)
    causal = _core.TokenSequence(random_core(model_config(layer_config(sliding_window=0))))
    causal.extend(np.ones(200, np.int32), spans=[(0, 150)])
    assert testing.prefix(causal, 1).length == 64


def test_sequences_of_a_pass_have_their_own_spans() -> None:
    core = looking_core(weights="q4")
    ids = np.random.default_rng(1).integers(0, 96, (4, 40)).tolist()
    spans: list[list[tuple[int, int]]] = [[], [(0, 40)], [(3, 30), (30, 31)], []]
    together = advance(
        *(
            testing.Step(testing.Context(core), text, logits="all", spans=own)
            for text, own in zip(ids, spans, strict=True)
        )
    )
    for text, own, logits in zip(ids, spans, together, strict=True):
        alone = advance(testing.Step(testing.Context(core), text, logits="all", spans=own))[0]
        np.testing.assert_array_equal(logits, alone)


def test_layers_of_an_embedding_model_need_no_spans() -> None:
    with pytest.raises(gemlet.ConfigError, match="layer 0: bidirectional_spans is true, but all tokens"):
        model_config(layer_config(bidirectional_spans=True), bidirectional=True)
    with pytest.raises(gemlet.ConfigError, match="longest_span is -1, expected 0 to 16777216"):
        model_config(longest_span=-1)
