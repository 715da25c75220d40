"""Texts whose reader says which tokens may come next: such a text waits for its reader, and the others do
not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from support.core_models import VOCAB, layer_config, model_config, random_core, sampler
from support.engine_reader import Reader
from support.processes import run_program
from support.programs.masks import continue_in_a_fork

IDS = np.random.default_rng(4).integers(0, VOCAB, 3000).astype(np.int32)
WORDS = (VOCAB + 31) // 32
Rule = Callable[[list[int]], list[int]]  # the ids so far -> the ids that may follow

pytestmark = pytest.mark.tier

tiles = "amx" in _core.cpu_info()["tier"]  # tiles round activations, so each pass may round differently


def small_core() -> _core.Model:
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=700))


def mask_of(ids: list[int]) -> NDArray[np.uint32]:
    mask = np.zeros(WORDS, np.uint32)
    for token_id in ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask


def far_from_the_last(ids: list[int]) -> list[int]:
    """A few ids, which depend on the text."""
    last = ids[-1] if ids else 0
    return [(last + step) % VOCAB for step in (7, 30, 31, 32, 64)]


def write(reader: Reader, rule: Rule, *requests: _core.Request) -> list[tuple[list[int], str | None]]:
    """Reads masked requests to their ends."""
    texts: list[list[int]] = [[] for _ in requests]
    reasons: list[str | None] = [None] * len(requests)
    for request in requests:
        request.set_mask(0, mask_of(rule([])))
    while None in reasons:
        seen = reader.news.value
        for i, request in enumerate(requests):
            ids, reason, _ = request.take() if reasons[i] is None else ([], reasons[i], None)
            reasons[i] = reason
            texts[i] += ids
            if ids and reason is None:
                request.set_mask(len(texts[i]), mask_of(rule(texts[i])))
        if None in reasons:
            reader.engine.wait(reader.news, seen, 10.0)
    return list(zip(texts, reasons, strict=True))


def by_hand(core: _core.Model, prompt: NDArray[np.int32], seed: int, count: int, rule: Rule) -> list[int]:
    """The same text from logits in which all other ids are forbidden."""
    sequence, choose = _core.TokenSequence(core), sampler(seed=seed)
    sequence.extend(prompt)
    found: list[int] = []
    while len(found) < count:
        logits = np.array(sequence.logits())[-1:].reshape(-1)
        row = np.full_like(logits, -np.inf)
        allowed = rule(found)
        row[allowed] = logits[allowed]
        found.append(choose.sample(row, [*prompt.tolist(), *found]))
        sequence.extend(np.array(found[-1:], np.int32))
    return found


def test_each_token_is_drawn_from_those_that_may_come() -> None:
    core = small_core()
    reader = Reader(_core.Engine(core))
    requests = [reader.submit(IDS[i : i + 9], seed=i, max_tokens=30, masked=True) for i in range(5)]
    for i, (text, reason) in enumerate(write(reader, far_from_the_last, *requests)):
        assert reason == "length"
        assert all(token_id in far_from_the_last(text[:at]) for at, token_id in enumerate(text))
        if not tiles:
            assert text == by_hand(core, IDS[i : i + 9], i, 30, far_from_the_last)


def test_a_text_that_waits_for_its_mask_does_not_delay_others() -> None:
    reader = Reader(_core.Engine(small_core(), most_running=2))
    waiting = reader.submit(IDS[:9], max_tokens=8, masked=True)
    assert [reason for _, reason in reader.read(reader.submit(IDS[:50], max_tokens=100))] == ["length"]
    assert waiting.take()[:2] == ([], None)
    waiting.set_mask(0, None)  # all tokens may come
    while not (found := waiting.take()[0]):
        time.sleep(0.001)
    assert len(found) == 1
    steps = reader.engine.stats()["steps"]
    reader.read(reader.submit(IDS[:9], max_tokens=5))
    assert waiting.take()[:2] == ([], None)
    assert reader.engine.stats()["steps"] > steps


def test_many_texts_without_their_masks_do_not_hold_up_others() -> None:
    """The requests give up the only slot one after the other. A request gets the slot back only when its
    mask has arrived."""
    reader = Reader(_core.Engine(small_core(), most_running=1))
    waiting = [reader.submit(IDS[:9], max_tokens=2, masked=True, priority=i % 2) for i in range(4)]
    assert [reason for _, reason in reader.read(reader.submit(IDS[:50], max_tokens=20))] == ["length"]
    preemptions = reader.engine.stats()["preemptions"]
    time.sleep(0.3)
    assert reader.engine.stats()["preemptions"] == preemptions == 4
    texts = write(reader, lambda text: list(range(96)), *waiting)
    assert [(len(text), reason) for text, reason in texts] == [(2, "length")] * 4


def test_texts_that_memory_has_no_room_for_are_the_same() -> None:
    """Texts that wait for a mask are preempted, too, and computed again."""
    core = small_core()
    reader = Reader(_core.Engine(core, kv_bytes=0))
    prompts = [IDS[20 * i : 20 * i + 150] for i in range(12)]

    def submit(i: int) -> _core.Request:
        return reader.submit(prompts[i], seed=i, max_tokens=150, masked=True)

    together = write(reader, far_from_the_last, *(submit(i) for i in range(12)))
    assert reader.engine.stats()["preemptions"] > 0
    assert [reason for _, reason in together] == ["length"] * 12
    if not tiles:
        assert together == [write(reader, far_from_the_last, submit(i))[0] for i in range(12)]
    assert core.memory()["kv_cache_used"] == 0


def test_a_text_that_waits_for_a_mask_can_be_ended() -> None:
    core = small_core()
    engine = _core.Engine(core)
    reader = Reader(engine)
    cancelled, late, closed = (
        reader.submit(IDS[:50], masked=True, timeout=timeout) for timeout in (None, 0.05, None)
    )
    cancelled.cancel()
    assert reader.read(cancelled, late) == [([], "cancelled"), ([], "timeout")]
    engine.close()
    assert closed.take()[:2] == ([], "cancelled")
    assert core.memory()["kv_cache_used"] == 0


def test_end_tokens_count_as_others() -> None:
    reader = Reader(_core.Engine(small_core()))
    request = reader.submit(IDS[:9], end_ids=[5], masked=True)
    assert write(reader, lambda ids: [5] if len(ids) == 3 else [6], request) == [([6, 6, 6], "stop")]


def test_masks_that_are_refused() -> None:
    reader = Reader(_core.Engine(small_core()))
    request = reader.submit(IDS[:9], masked=True)
    mask = mask_of([3])
    wrong: list[tuple[int, Any, str]] = [
        (1, mask, "for position 1, but the text has 0"),
        (-1, mask, "position -1"),
        (0, mask[: WORDS - 1], "a bit for each of 96"),
        (0, mask.reshape(1, -1), "dimensions"),
    ]
    for position, value, message in wrong:
        with pytest.raises(gemlet.InvalidRequestError, match=message):
            request.set_mask(position, value)
    with pytest.raises(TypeError):
        request.set_mask(0, "all")  # type: ignore[arg-type]
    request.set_mask(0, np.zeros(WORDS, np.uint32))
    other = reader.submit(IDS[:50], max_tokens=10)
    with pytest.raises(gemlet.InvalidRequestError, match="no logit is finite"):
        reader.read(request)
    assert reader.read(other)[0][1] == "length"


def test_a_child_goes_on_with_the_mask_that_was_set() -> None:
    assert run_program(continue_in_a_fork)
