"""Ready-made embeddings in a prompt, as images and sound give them, compared with the NumPy reference."""

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
from support.core_models import HIDDEN, int32, random_core
from support.feeding import difference
from support.inside import context_of, core_of, taps_of, testing
from support.passes import advance

pytestmark = pytest.mark.tier

FAMILIES = ["gemma3-4b", "gemma3n-e2b", "gemma3n-sliced", "gemma4-e2b", "gemma4-31b", "gemma4-26b-a4b"]
opened = cache(lambda name: Model.open(HERE / name))
Floats = NDArray[np.float32]


def soft(name: str, rows: int, seed: int = 1) -> Floats:
    """Rows of about the size of scaled embeddings, but with other values."""
    config = opened(name).config
    scale = config.embedding_scale * np.abs(opened(name).weights["embed_tokens"]).mean()
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, config.hidden_size)) * scale).astype(np.float32)


def prompt(name: str, tokens: int, seed: int = 2) -> NDArray[np.int32]:
    vocab = opened(name).config.vocab_size
    return np.random.default_rng(seed).integers(0, vocab, tokens).astype(np.int32)


def expected_taps(name: str, ids: NDArray[np.int32], **options: Any) -> dict[str, Any]:
    taps: dict[str, Any] = {}
    forward(opened(name), ids, taps=taps, **options)
    return taps


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_agrees_with_the_reference(name: str) -> None:
    ids, soft_rows = prompt(name, 30), [(0, soft(name, 1)), (3, soft(name, 9, 3)), (29, soft(name, 1, 4))]
    expected = expected_taps(name, ids, soft_rows=soft_rows)
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=2) as model:
        got = taps_of(model, ids, soft_rows=soft_rows)
    np.testing.assert_array_equal(got["embed"][3:12], soft_rows[1][1])  # the rows are not scaled
    for tap, value in expected.items():
        assert difference(got[tap], value) < TOLERANCE, tap
    without = expected_taps(name, ids)["logits"]
    assert difference(without, expected["logits"]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["gemma3n-e2b", "gemma4-e2b"])
def test_the_id_of_a_soft_row_says_which_per_layer_row_it_takes(name: str) -> None:
    """An id beyond the rows of the per-layer table takes row 0, as the placeholders of Gemma 3n do."""
    model = opened(name)
    rows = len(model.weights["embed_tokens_per_layer"])
    ids = prompt(name, 12)
    soft_rows = [(4, soft(name, 3))]
    logits = {}
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=1) as loaded:
        for first in (0, 1, model.config.vocab_size - 1):
            ids[4:7] = first
            expected = expected_taps(name, ids, soft_rows=soft_rows)
            got = taps_of(loaded, ids, soft_rows=soft_rows)
            for tap in ("per_layer_inputs", "logits"):
                assert difference(got[tap], expected[tap]) < TOLERANCE, (first, tap)
            logits[first] = got["logits"]
    assert difference(logits[1], logits[0]) > 100 * TOLERANCE
    if rows < model.config.vocab_size:
        np.testing.assert_array_equal(logits[model.config.vocab_size - 1], logits[0])


@pytest.mark.parametrize("name", ["gemma3n-e2b", "gemma4-e2b"])
def test_soft_rows_may_cross_the_border_of_a_chunk(name: str) -> None:
    """The second chunk begins in the middle of the soft rows."""
    ids, soft_rows = prompt(name, 560), [(500, soft(name, 40)), (550, soft(name, 5, 3))]
    expected = forward(opened(name), ids, soft_rows=soft_rows)
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=2) as model:
        sequence = context_of(model)
        sequence.extend(ids, logits="all", soft_rows=soft_rows)
        assert sequence.token_ids == ids.tolist()
        assert difference(sequence.logits(), expected) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_soft_rows_may_follow_a_cached_prompt_and_precede_decoding(name: str) -> None:
    ids, rows, seen = prompt(name, 40), soft(name, 6), Cache()
    steps: list[tuple[int, int, list[tuple[int, Floats]]]] = [
        (0, 17, []),
        (17, 37, [(2, rows)]),
        (37, 38, []),
        (38, 39, [(0, rows[:1])]),
    ]
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=1) as model:
        sequence = context_of(model)
        for begin, end, soft_rows in steps:
            expected = forward(opened(name), ids[begin:end], seen, soft_rows=soft_rows)
            sequence.extend(ids[begin:end], logits="last", soft_rows=soft_rows)
            assert difference(sequence.logits(), expected[-1:]) < TOLERANCE


@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_a_row_of_the_table_as_a_soft_row_gives_the_same_bits(weights: str) -> None:
    name = "gemma4-e2b"
    ids = prompt(name, 20)
    with gemlet.load(HERE / name, weights=weights, threads=1) as model:
        taps = taps_of(model, ids)
        rows = np.ascontiguousarray(taps["embed"][5:11])
        again = taps_of(model, ids, soft_rows=[(5, rows)])
    np.testing.assert_array_equal(again["logits"], taps["logits"])


def test_each_sequence_of_a_pass_has_its_own_soft_rows() -> None:
    name = "gemma3n-e2b"
    prompts = [prompt(name, 3 + i, i).tolist() for i in range(4)]
    rows = [[], [(0, soft(name, 2))], [(1, soft(name, 1, 5)), (4, soft(name, 1, 6))], []]
    with gemlet.load(HERE / name, weights="f32", kv_cache="f32", threads=1) as model:
        core = core_of(model)
        together = advance(
            *(
                testing.Step(testing.Context(core), ids, logits="all", soft_rows=soft_rows)
                for ids, soft_rows in zip(prompts, rows, strict=True)
            )
        )
    for ids, soft_rows, logits in zip(prompts, rows, together, strict=True):
        expected = forward(opened(name), np.array(ids), soft_rows=soft_rows)
        assert difference(logits, expected) < TOLERANCE


# --- Refused ------------------------------------------------------------------------------------------------
def rows_of(count: int, value: float = 0.5) -> Floats:
    return np.full((count, HIDDEN), value, np.float32)


FIRST = "expected 1 or more among the tokens"


@pytest.mark.parametrize(
    ("soft_rows", "message"),
    [
        ([(-1, rows_of(1))], f"1 soft rows begin at token -1, {FIRST} 0 to 9"),
        ([(10, rows_of(1))], f"1 soft rows begin at token 10, {FIRST} 0 to 9"),
        ([(9, rows_of(2))], f"2 soft rows begin at token 9, {FIRST} 0 to 9"),
        ([(0, rows_of(11))], f"11 soft rows begin at token 0, {FIRST} 0 to 9"),
        ([(2**63 - 1, rows_of(2))], f"2 soft rows begin at token {2**63 - 1}, {FIRST} 0 to 9"),
        ([(-(2**63), rows_of(2))], f"2 soft rows begin at token -{2**63}, {FIRST} 0 to 9"),
        ([(3, rows_of(0))], f"0 soft rows begin at token 3, {FIRST} 0 to 9"),
        ([(3, rows_of(2)), (4, rows_of(1))], f"1 soft rows begin at token 4, {FIRST} 5 to 9"),
        ([(5, rows_of(1)), (3, rows_of(1))], f"1 soft rows begin at token 3, {FIRST} 6 to 9"),
        ([(0, rows_of(2, np.nan))], "the soft row of token 0 has nan at 0, expected finite numbers"),
        ([(3, np.concatenate([rows_of(1), rows_of(1, np.inf)]))], "the soft row of token 4 has inf at 0"),
        ([(0, np.zeros((2, 64)))], r"a C-contiguous float32 array \[rows, 64\], got float64 \(2, 64\)"),
        ([(0, rows_of(2).astype(">f4"))], "must be a C-contiguous float32 array"),
        ([(0, rows_of(2)[:, :63])], r"got float32 \(2, 63\)"),
        ([(0, rows_of(2)[0])], r"got float32 \(64,\)"),
        ([(0, np.zeros((HIDDEN, HIDDEN), np.float32).T)], "must be a C-contiguous float32 array"),
    ],
)
def test_wrong_soft_rows_are_refused_before_anything_changes(
    soft_rows: list[tuple[int, Any]], message: str
) -> None:
    core = random_core()
    sequence, context = _core.TokenSequence(core), testing.Context(core)
    sequence.extend(int32(1, 2, 3))
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        sequence.extend(int32(*range(10)), soft_rows=soft_rows)
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        testing.forward([testing.Step(context, list(range(10)), soft_rows=soft_rows)])
    assert sequence.token_ids == [1, 2, 3]
    assert context.length == 0


def test_a_wrong_row_far_into_a_long_prompt_is_found_before_its_first_chunk() -> None:
    core = random_core(max_context=2000)
    sequence = _core.TokenSequence(core)
    rows = rows_of(500)
    rows[-1, -1] = np.nan
    with pytest.raises(gemlet.InvalidRequestError, match="the soft row of token 1499 has nan at 63"):
        sequence.extend(np.ones(1500, np.int32), soft_rows=[(1000, rows)])
    assert sequence.length == 0


def test_the_id_of_a_soft_row_must_be_in_the_vocabulary() -> None:
    sequence = _core.TokenSequence(random_core())
    with pytest.raises(gemlet.InvalidRequestError, match="token id 96 at position 1 is out of range"):
        sequence.extend(int32(1, 96), soft_rows=[(1, rows_of(1))])


def test_prompts_without_soft_rows_keep_their_bits_beside_others() -> None:
    core = random_core(weights="q4")
    alone = advance(testing.Step(testing.Context(core), [5, 6, 7]))[0]
    together = advance(
        testing.Step(testing.Context(core), [1, 2], soft_rows=[(0, rows_of(2, 3e30))]),
        testing.Step(testing.Context(core), [5, 6, 7]),
    )
    np.testing.assert_array_equal(together[1], alone)
