"""The engine: each of many requests gets the same tokens as if it ran alone, also if others end, wait or run
out of memory."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.engine_reader import Reader, alone
from support.waiting import until

IDS = np.random.default_rng(4).integers(0, 96, 3000).astype(np.int32)

pytestmark = pytest.mark.tier


def small_core(**changes: Any) -> _core.Model:
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=700), exact_batches=True, **changes)


@pytest.mark.parametrize("weights", ["f32", "q4"])
@pytest.mark.parametrize("kv_cache", ["f32", "int8"])
def test_other_texts_do_not_change_a_text(weights: str, kv_cache: str) -> None:
    """Prompts of 1 to 600 tokens are prefilled in pieces while other requests decode."""
    core = small_core(weights=weights, kv_cache=kv_cache)
    reader = Reader(_core.Engine(core, most_running=4, prefix_cache_bytes=1 << 24))
    prompts = [IDS[i : i + length] for i, length in enumerate((600, 1, 64, 65, 300, 7, 600, 128))]
    requests = [reader.submit(ids, seed=i, max_tokens=30) for i, ids in enumerate(prompts)]
    for i, (text, reason) in enumerate(reader.read(*requests)):
        assert (text, reason) == (alone(core, prompts[i], i, 30), "length"), i


def test_blocks_come_back_and_the_cache_stays_in_its_limit() -> None:
    core = small_core()
    limit = 1 << 16
    engine = _core.Engine(core, prefix_cache_bytes=limit)
    reader = Reader(engine)
    for start in range(0, 2000, 200):
        reader.read(reader.submit(IDS[start : start + 200]))
        assert 0 < engine.stats()["prefix_cache_bytes"] <= limit
    assert core.memory()["kv_cache_used"] == engine.stats()["prefix_cache_bytes"]
    del engine, reader
    assert core.memory()["kv_cache_used"] == 0


def test_a_text_that_memory_has_no_room_for_waits_and_is_the_same() -> None:
    """The engine has memory for one whole context, and 12 requests together need more."""
    core = small_core()
    engine = _core.Engine(core, kv_bytes=0)
    reader = Reader(engine)
    prompts = [IDS[20 * i : 20 * i + 150] for i in range(12)]
    together = reader.read(*[reader.submit(ids, seed=i, max_tokens=200) for i, ids in enumerate(prompts)])
    apart = [reader.read(reader.submit(ids, seed=i, max_tokens=200))[0] for i, ids in enumerate(prompts)]
    assert [reason for _, reason in together] == ["length"] * 12
    assert together == apart
    assert core.memory()["kv_cache_used"] == 0


def test_each_end_of_a_text_has_its_reason() -> None:
    core = small_core()
    reader = Reader(_core.Engine(core))
    text = alone(core, IDS[:50], 1, 20)
    assert reader.read(reader.submit(IDS[:50], end_ids=[text[5]])) == [(text[: text.index(text[5])], "stop")]
    ids, reason = reader.read(reader.submit(IDS[:690], max_tokens=1000))[0]
    assert (len(ids), reason) == (11, "context")
    cancelled = reader.submit(IDS[:50], max_tokens=600)
    cancelled.cancel()
    assert reader.read(cancelled)[0][1] == "cancelled"
    assert reader.read(reader.submit(IDS[:50], timeout=0.0))[0] == ([], "timeout")


def test_a_slow_reader_does_not_delay_other_texts() -> None:
    """At most this many tokens wait for a reader. Decoding goes on when the reader takes them."""
    core = small_core()
    engine = _core.Engine(core)
    slow, quick = Reader(engine), Reader(engine)
    request = slow.submit(IDS[:50], max_tokens=100, most_unread=3)
    assert len(quick.read(quick.submit(IDS[:50], max_tokens=100))[0][0]) == 100
    found, reason, _ = request.take()
    assert (len(found), reason) == (3, None)
    rest, reason = slow.read(request)[0]
    assert (len(found) + len(rest), reason) == (100, "length")
    assert found + rest == alone(core, IDS[:50], 1, 100)


def test_the_higher_priority_goes_first() -> None:
    core = small_core()
    reader = Reader(_core.Engine(core, most_running=1))
    later: list[Any] = []
    while reader.engine.stats()["waiting"] < 3:  # or the first one has ended too soon
        later.clear()
        running = reader.submit(IDS[:50], max_tokens=600, most_unread=600)  # this request holds the only slot
        while not running.take()[0]:
            time.sleep(0.001)
        for priority in (0, 0, 5):
            later.append(reader.submit(IDS[:20], max_tokens=300, most_unread=1, priority=priority))
    running.cancel()
    found: list[list[int]] = [[]]
    while not any(found):
        found = [request.take()[0] for request in later]
    assert [bool(ids) for ids in found] == [False, False, True]


def test_requests_that_are_refused() -> None:
    core = small_core()
    engine = _core.Engine(core)
    reader = Reader(engine)
    with pytest.raises(gemlet.InvalidRequestError, match="at least one"):
        reader.submit([])
    with pytest.raises(gemlet.InvalidRequestError, match="token id 96 at position 1"):
        reader.submit([1, 96])
    with pytest.raises(gemlet.ContextLengthError, match="701 tokens"):
        reader.submit(IDS[:701])
    with pytest.raises(gemlet.InvalidRequestError, match="max_tokens is 0"):
        reader.submit([1], max_tokens=0)
    with pytest.raises(gemlet.InvalidRequestError, match="timeout"):
        reader.submit([1], timeout=float("nan"))
    with pytest.raises(gemlet.InvalidRequestError, match="most_running"):
        _core.Engine(core, most_running=0)
    engine.close()
    engine.close()
    with pytest.raises(gemlet.ModelClosedError):
        reader.submit([1])


def test_an_error_ends_the_requests_and_not_the_engine() -> None:
    """The model is closed while the engine works: every request raises, and so does a later one."""
    core = small_core()
    reader = Reader(_core.Engine(core))
    requests = [reader.submit(IDS[:300], max_tokens=300) for _ in range(3)]
    core.close()
    for request in requests:
        with pytest.raises(gemlet.ModelClosedError):
            reader.read(request)
    with pytest.raises(gemlet.ModelClosedError):
        reader.submit([1])


def test_a_request_ends_with_its_object() -> None:
    core = small_core()
    engine = _core.Engine(core)
    reader = Reader(engine)
    request = reader.submit(IDS[:50], max_tokens=600)
    until(lambda: engine.stats()["running"])
    del request
    until(lambda: not engine.stats()["running"])
    assert core.memory()["kv_cache_used"] == 0


def test_a_forked_child_goes_on_with_the_texts() -> None:
    """The child process computes the requests again from their tokens. The parent process goes on as well."""
    core = small_core()
    reader = Reader(_core.Engine(core))
    expected = alone(core, IDS[:200], 1, 200)
    request = reader.submit(IDS[:200], max_tokens=200, most_unread=1)
    begun: list[int] = []
    while len(begun) < 5:
        seen = reader.news.value
        begun += request.take()[0]
        reader.engine.wait(reader.news, seen, 1.0)
    child = os.fork()
    if child == 0:
        try:
            ids, reason = reader.read(request)[0]
            os._exit(0 if (begun + ids, reason) == (expected, "length") else 1)
        except BaseException:
            os._exit(2)
    ids, reason = reader.read(request)[0]
    assert (begun + ids, reason) == (expected, "length")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
