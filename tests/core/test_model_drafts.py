"""A smaller draft model: texts and blocks are the same as without it, and it drafts only if that
pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import InvalidRequestError
from support.core_models import builder_of, layer_config, model_config, random_core, sampler
from support.engine_reader import Reader
from support.processes import in_fork

RANDOM = np.random.default_rng(9)
IDS = RANDOM.integers(0, 96, 2000).astype(np.int32)
PROMPTS = [IDS[i * 300 : i * 300 + n] for i, n in enumerate((150, 10, 64, 65, 280, 7))]
LAYERS = (layer_config(sliding_window=70), layer_config(sliding_window=0))


def beside(core: _core.Model, *, seed: int = 1, layers: int = 2, **changes: Any) -> _core.Model:
    """A draft model. With the seed 1 and the model's layers, its draft is the model's own text."""
    config = model_config(*LAYERS[:layers], **{"max_context": 700, **changes})
    builder = builder_of(config, weights=core.weights, kv_cache=core.kv_cache, beside=core)
    builder.add_random(seed=seed)
    return builder.finish()


def core_of(**changes: Any) -> _core.Model:
    return random_core(model_config(*LAYERS, max_context=700), **changes)


def texts_of(
    core: _core.Model, settings: dict[str, Any], **options: Any
) -> tuple[list[tuple[list[int], str | None]], dict[str, Any]]:
    """The continuations of the prompts, written twice, and the engine's counts. All blocks are freed."""
    reader = Reader(engine := _core.Engine(core, **options))
    texts = []
    for _ in range(2):
        asked = [
            reader.submit(ids, sampler=sampler(seed=i, **settings), max_tokens=90, most_unread=100)
            for i, ids in enumerate(PROMPTS)
        ]
        texts += reader.read(*asked)
    stats = dict(engine.stats())
    drafter = options.get("drafter")
    engine.close()
    assert core.memory()["kv_cache_used"] == 0
    assert drafter is None or drafter.memory()["kv_cache_used"] == 0
    return texts, stats


@pytest.mark.tier
@pytest.mark.parametrize(
    ("model", "settings", "options"),
    [
        ({}, {"temperature": 0.0}, {}),
        ({}, {}, {"prefix_cache_bytes": 1 << 24, "drafter_cache_bytes": 1 << 24}),
        ({"weights": "q4", "kv_cache": "int4"}, {"temperature": 0.7}, {"most_running": 3}),
        ({}, {"repetition_penalty": 1.3, "temperature": 0.3}, {"kv_bytes": 0, "drafter_kv_bytes": 0}),
    ],
    ids=["greedy", "drawn", "int4", "no memory"],
)
def test_the_texts_are_the_same(
    model: dict[str, Any], settings: dict[str, Any], options: dict[str, Any]
) -> None:
    core = core_of(**model)
    own = {name: value for name, value in options.items() if not name.startswith("drafter")}
    expected, _ = texts_of(core, settings, drafts="never", **own)
    for drafter in (beside(core), beside(core, seed=2, layers=1)):
        for drafts in ("always", "paying"):
            found, stats = texts_of(core, settings, drafts=drafts, drafter=drafter, **options)
            if "amx" not in core.tier:  # there, prompts that are read together with others round differently
                assert found == expected
            assert stats["accepted_tokens"] <= stats["drafted_tokens"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_drafter_with_the_same_weights_is_always_right(temperature: float) -> None:
    """This is also true at a temperature above 0, because drafts use the next random numbers."""
    core = core_of()
    reader = Reader(_core.Engine(core, drafts="always", drafter=beside(core), draft_tokens=4))
    request = reader.submit(
        PROMPTS[0], sampler=sampler(temperature=temperature, seed=5), max_tokens=200, most_unread=1000
    )
    reader.read(request)
    stats = reader.engine.stats()
    assert stats["accepted_tokens"] == stats["drafted_tokens"] >= 155
    assert request.guesses == (stats["drafted_tokens"], stats["accepted_tokens"])
    assert stats["steps"] < 50


def test_the_drafter_continues_an_earlier_text_from_its_cache() -> None:
    """The draft model has a prefix cache too, without the rejected draft tokens."""
    core = core_of()
    drafter = beside(core, seed=2)
    options = {"prefix_cache_bytes": 1 << 24, "drafter_cache_bytes": 1 << 24}
    reader = Reader(_core.Engine(core, drafts="always", drafter=drafter, **options))
    plain = Reader(_core.Engine(core, drafts="never"))
    ids = PROMPTS[0]
    for seed in range(4):
        text = reader.read(reader.submit(ids, seed=seed, max_tokens=60, most_unread=100))[0]
        assert text == plain.read(plain.submit(ids, seed=seed, max_tokens=60))[0]
        assert drafter.memory()["kv_cache_used"] > 0
        ids = np.concatenate([ids, np.array(text[0], np.int32)])
    reader.engine.close()
    assert drafter.memory()["kv_cache_used"] == 0


def test_a_masked_text_is_drafted_too() -> None:
    """Only ids below 40 may come. Guessed tokens are chosen mask by mask, without further passes."""
    core = core_of()
    mask = np.zeros(3, np.uint32)
    mask[0], mask[1] = 0xFFFFFFFF, 0xFF

    def text_of(**options: Any) -> tuple[list[int], int]:
        engine = _core.Engine(core, **options)
        news = _core.News()
        request = engine.submit(
            PROMPTS[1], sampler=sampler(), news=news, max_tokens=80, most_unread=100, masked=True
        )
        request.set_mask(0, mask)
        text: list[int] = []
        while True:
            seen = news.value
            ids, reason, _ = request.take()
            text += ids
            if reason is not None:
                assert reason == "length"
                break
            if ids:
                request.set_mask(len(text), mask)
            engine.wait(news, seen, 1.0)
        stats = engine.stats()
        assert stats["accepted_tokens"] == request.guesses[1]
        engine.close()
        return text, stats["steps"]

    expected, steps = text_of(drafts="never")
    assert max(expected) < 40
    found, fewer = text_of(drafts="always", drafter=beside(core), draft_tokens=3)
    assert found == expected
    assert fewer < steps


def few_ids(text: list[int]) -> NDArray[np.uint32]:
    """The mask after ``text``. Each token decides which tokens may follow it."""
    last = text[-1] if text else 0
    mask = np.zeros(3, np.uint32)
    for step in (7, 30, 31, 32, 64):
        token_id = (last + step) % 96
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask


def write_masked(core: _core.Model, *, ahead: bool, **options: Any) -> tuple[list[list[int]], list[int]]:
    """Two masked texts and a free one, and the accepted draft tokens of each. With ``ahead``, the masks after
    draft tokens are set before the model has checked these tokens."""
    reader = Reader(engine := _core.Engine(core, **options))
    requests = [
        reader.submit(PROMPTS[i], seed=i, max_tokens=60, most_unread=100, masked=i < 2) for i in range(3)
    ]
    texts: list[list[int]] = [[], [], []]
    open_ones = {0, 1, 2}
    for request in requests[:2]:
        request.set_mask(0, few_ids([]))
    while open_ones:
        seen = reader.news.value
        for i in sorted(open_ones):
            request, text = requests[i], texts[i]
            ids, reason, _ = request.take()
            text += ids
            if reason is not None:
                assert reason == "length"
                open_ones.remove(i)
            elif i < 2:
                request.set_mask(len(text), few_ids(text))
                position, guessed = request.guessed
                for count in range(1, len(guessed) + 1) if ahead and position == len(text) else ():
                    behind = guessed[:count]
                    request.set_mask(position + count, few_ids([*text, *behind]), behind)
        if open_ones:
            engine.wait(reader.news, seen, 1.0)
    right = [request.guesses[1] for request in requests]
    engine.close()
    return texts, right


@pytest.mark.parametrize("ahead", [True, False])
def test_masked_texts_are_drafted_beside_others(ahead: bool) -> None:
    core = core_of()
    expected, _ = write_masked(core, ahead=False, drafts="never")
    for drafts in ("always", "paying"):
        found, right = write_masked(core, ahead=ahead, drafts=drafts, drafter=beside(core), draft_tokens=3)
        assert found == expected
        assert drafts == "paying" or min(right) > 0


def test_masks_after_other_tokens_than_the_chosen_ones_change_nothing() -> None:
    core = core_of()
    reader = Reader(_core.Engine(core, drafts="never"))
    request = reader.submit(PROMPTS[0], max_tokens=4, masked=True)
    request.set_mask(0, few_ids([]))
    first = reader.first(request, 1)
    assert request.guessed == (1, [])
    only = np.array([0, 0, 1 << 31], np.uint32)
    request.set_mask(0, only)  # too late
    request.set_mask(1, only, [first[0] ^ 1])
    request.set_mask(2, only, [first[0], 5])  # this text had no draft
    for position, behind in ((3, [1]), (0, [1]), (2, [])):
        with pytest.raises(InvalidRequestError, match="the mask is for position"):
            request.set_mask(position, only, behind)
    text = list(first)
    for _ in range(3):
        request.set_mask(len(text), few_ids(text), text[-1:])
        text += reader.first(request, 1)
        last = text[-2]
        assert (text[-1] - last) % 96 in (7, 30, 31, 32, 64)


def test_a_text_is_cancelled_while_its_draft_waits_for_masks() -> None:
    core = core_of()
    drafter = beside(core)
    engine = _core.Engine(core, drafts="always", drafter=drafter, prefix_cache_bytes=1 << 24)
    reader = Reader(engine)
    request = reader.submit(PROMPTS[2], max_tokens=50, most_unread=100, masked=True)
    for position in range(3):
        request.set_mask(position, None)
        while not request.take()[0]:
            engine.wait(reader.news, reader.news.value, 0.01)
    request.cancel()
    assert reader.read(request)[0][1] == "cancelled"
    plain = Reader(_core.Engine(core, drafts="never"))
    ids = {"sampler": sampler(temperature=0.0), "max_tokens": 40, "most_unread": 100}
    assert reader.read(reader.submit(PROMPTS[2], **ids)) == plain.read(plain.submit(PROMPTS[2], **ids))


def test_a_forked_child_uses_the_drafter() -> None:
    core = core_of()
    greedy = {"sampler": sampler(temperature=0.0), "max_tokens": 200}
    plain = Reader(_core.Engine(core, drafts="never"))
    expected = plain.read(plain.submit(PROMPTS[0], **greedy, most_unread=1000))[0][0]
    reader = Reader(_core.Engine(core, drafts="always", drafter=beside(core), draft_tokens=3))
    request = reader.submit(PROMPTS[0], **greedy, most_unread=20)
    begun = reader.first(request, 20)
    in_fork(lambda: begun + reader.read(request)[0][0] == expected)
    assert begun + reader.read(request)[0][0] == expected


@pytest.mark.parametrize("vocab", [90, 128])
def test_a_vocabulary_of_another_length(vocab: int) -> None:
    """The draft model drafts no text with ids that it lacks, and proposes no ids that the model
    lacks."""
    core = core_of()
    drafter = beside(core, vocab_size=vocab)
    greedy = {"sampler": sampler(temperature=0.0), "max_tokens": 40, "most_unread": 100}
    plain = Reader(_core.Engine(core, drafts="never"))
    reader = Reader(_core.Engine(core, drafts="always", drafter=drafter))
    for ids in PROMPTS:
        assert reader.read(reader.submit(ids, **greedy)) == plain.read(plain.submit(ids, **greedy))
    assert reader.engine.stats()["drafted_tokens"] > 0


def test_the_share_of_accepted_tokens_in_a_simulation_is_as_asked() -> None:
    core = core_of()
    greedy = {"sampler": sampler(temperature=0.0), "max_tokens": 500, "most_unread": 1000}
    plain = Reader(_core.Engine(core, drafts="never"))
    text = plain.read(plain.submit(PROMPTS[1], **greedy))[0][0]
    whole = [*PROMPTS[1].tolist(), *text]
    engine = _core.Engine(
        core, drafts="always", drafter=beside(core, seed=2), draft_tokens=1, rehearsed=(whole, 0.7)
    )
    reader = Reader(engine)
    assert reader.read(reader.submit(PROMPTS[1], **greedy))[0][0] == text
    stats = engine.stats()
    assert 0.6 < stats["accepted_tokens"] / stats["drafted_tokens"] < 0.8


def test_a_drafter_of_another_backend_is_refused() -> None:
    core = core_of()
    with pytest.raises(InvalidRequestError, match="not built for this model"):
        _core.Engine(core, drafter=core_of())
