"""Draft tokens do not change replies or cache blocks, and the engine drafts little where it does not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from support.core_models import layer_config, model_config, random_core, sampler
from support.engine_reader import Reader
from support.inside import testing
from support.processes import in_fork

Ids = NDArray[np.int32]

RANDOM = np.random.default_rng(6)
IDS = RANDOM.integers(0, 96, 2000).astype(np.int32)
# Prompts that repeat themselves, and one that does not.
PROMPTS = [
    np.concatenate([IDS[i : i + n], IDS[i : i + n // 2]]) for i, n in enumerate((200, 10, 64, 65, 300, 7))
]
PROMPTS.append(IDS[500:630])


def small_core(**changes: Any) -> _core.Model:
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=700), **changes)


def texts_of(
    core: _core.Model, drafts: str, settings: dict[str, Any], **options: Any
) -> tuple[list[tuple[list[int], str | None]], dict[str, Any]]:
    """Decodes each prompt twice. Returns the continuations and the engine's counts. All blocks are freed."""
    engine = _core.Engine(core, drafts=drafts, **options)
    reader = Reader(engine)
    texts = []
    for _ in range(2):
        asked = [
            reader.submit(ids, sampler=sampler(seed=i, **settings), max_tokens=90, most_unread=100)
            for i, ids in enumerate(PROMPTS)
        ]
        texts += reader.read(*asked)
    stats = dict(engine.stats())
    assert core.memory()["kv_cache_used"] == stats["prefix_cache_bytes"]
    engine.close()
    assert core.memory()["kv_cache_used"] == 0
    return texts, stats


@pytest.mark.tier
@pytest.mark.parametrize(
    ("model", "settings", "options"),
    [
        ({}, {"temperature": 0.0}, {}),
        ({}, {}, {"prefix_cache_bytes": 1 << 24}),
        ({"weights": "q4", "kv_cache": "int8"}, {"temperature": 0.7}, {"most_running": 3}),
        ({}, {"repetition_penalty": 1.3, "temperature": 0.3}, {"kv_bytes": 0, "prefix_cache_bytes": 1 << 18}),
    ],
    ids=["greedy", "drawn", "int8", "preempted"],
)
def test_the_texts_are_the_same(
    model: dict[str, Any], settings: dict[str, Any], options: dict[str, Any]
) -> None:
    """Requests run with and without drafts, at the same time, from the prefix cache and after memory ran
    out."""
    core = small_core(**model)
    expected, plain = texts_of(core, "never", settings, **options)
    assert plain["drafted_tokens"] == 0
    assert (plain["preemptions"] > 0) == ("kv_bytes" in options)
    for drafts in ("always", "paying"):
        found, stats = texts_of(core, drafts, settings, **options)
        tiles = "amx" in core.tier  # there, prompts in one pass are rounded differently
        if not tiles:
            assert found == expected
        if drafts == "always":
            assert 0 < stats["accepted_tokens"] < stats["drafted_tokens"]
            assert stats["generated_tokens"] == sum(len(ids) for ids, _ in found)


def loop(core: _core.Model, **options: Any) -> tuple[Reader, list[int], Ids]:
    """A reader whose engine always drafts, and a prompt whose greedy continuation becomes a loop."""
    prompt = PROMPTS[0]
    plain = Reader(_core.Engine(core, drafts="never"))
    expected, _ = plain.read(plain.submit(prompt, sampler=sampler(temperature=0.0), max_tokens=300))[0]
    return Reader(_core.Engine(core, drafts="always", **options)), expected, prompt


def test_a_text_ends_in_the_middle_of_a_draft() -> None:
    """The text ends at an end token, at max_tokens, or when the context is full."""
    core = small_core()
    reader, expected, prompt = loop(core)
    greedy = {"sampler": sampler(temperature=0.0), "most_unread": 1000}
    for count in (1, 2, 97, 98, 99, 200):
        assert reader.read(reader.submit(prompt, max_tokens=count, **greedy)) == [
            (expected[:count], "length")
        ]
    for end in set(expected):
        text = expected[: expected.index(end)]
        assert reader.read(reader.submit(prompt, max_tokens=300, end_ids=[end], **greedy)) == [(text, "stop")]
    long = np.concatenate([prompt, np.array(expected[:300], np.int32)])
    ids, reason = reader.read(reader.submit(long, max_tokens=1000, **greedy))[0]
    assert (len(long) + len(ids), reason) == (701, "context")
    stats = reader.engine.stats()
    assert stats["accepted_tokens"] > 100
    assert stats["steps"] < stats["generated_tokens"]


def test_a_reader_never_has_more_than_it_wants() -> None:
    reader, expected, prompt = loop(small_core())
    request = reader.submit(prompt, sampler=sampler(temperature=0.0), max_tokens=200, most_unread=5)
    found: list[int] = []
    reason = None
    while reason is None:
        seen = reader.news.value
        ids, reason, _ = request.take()
        assert len(ids) <= 5
        found += ids
        if reason is None:
            reader.engine.wait(reader.news, seen, 1.0)
    assert found == expected[:200]
    assert reader.engine.stats()["accepted_tokens"] > 0


def test_the_prefix_cache_keeps_what_was_chosen() -> None:
    """A request continues from cache blocks that contained rejected draft tokens."""
    core = small_core()
    engine = _core.Engine(core, drafts="always", prefix_cache_bytes=1 << 24)
    reader, plain = Reader(engine), Reader(_core.Engine(core, drafts="never"))
    ids = np.tile(IDS[:30], 4)  # pairs of tokens that occurred before, so there is always a draft
    for seed in range(6):
        request = reader.submit(ids, sampler=sampler(seed=seed), max_tokens=60, most_unread=100)
        text = reader.read(request)[0]
        assert text == plain.read(plain.submit(ids, sampler=sampler(seed=seed), max_tokens=60))[0]
        assert seed == 0 or request.cached_tokens > len(ids) - 64
        ids = np.concatenate([ids, np.array(text[0], np.int32)])
    stats = engine.stats()
    assert stats["drafted_tokens"] > stats["accepted_tokens"] + 100


def test_times_count_steps_and_tokens() -> None:
    reader, _, prompt = loop(small_core())
    request = reader.submit(prompt, sampler=sampler(temperature=0.0), max_tokens=200, most_unread=1000)
    reader.read(request)
    _, _, writing, steps, tokens = request.times
    assert tokens == 199
    assert 0 < steps < 150
    assert 0 < writing <= reader.engine.stats()["step_seconds"] * 2


def test_a_forked_child_drafts_too() -> None:
    reader, expected, prompt = loop(small_core())
    request = reader.submit(prompt, sampler=sampler(temperature=0.0), max_tokens=300, most_unread=20)
    begun = reader.first(request, 20)
    in_fork(lambda: begun + reader.read(request)[0][0] == expected)
    assert begun + reader.read(request)[0][0] == expected


def test_the_draft_continues_the_longest_match() -> None:
    """The tokens after the longest match with the end; if two are equally long, after the last one."""
    ids = [1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3]
    assert testing.guess(ids, [len(ids)], 4) == [[4, 5, 9, 2]]
    assert testing.guess([6, 1, 2, 8, 1, 2, 7, 1, 2], [9], 3) == [[7, 1, 2]]
    assert testing.guess([1, 2, 3, 4], [4], 3) == [[]]
    assert testing.guess([5, 1, 2, 1, 2], [5], 5) == [[1, 2, 1, 2, 1]]  # the draft uses its own tokens
    assert testing.guess([7, 7, 7], [3], 3) == [[7, 7, 7]]
    assert testing.guess([], [0], 3) == [[]]
    long = np.tile(RANDOM.integers(0, 10**6, 3000), 3).tolist()
    lengths = list(range(3002, 9000, 97))
    assert testing.guess(long, lengths, 2) == [(long + long)[n : n + 2] for n in lengths]


def steps_of(*times: float) -> Callable[[int], float]:
    return lambda rows: float(np.interp(rows, np.linspace(1, 15, len(times)), times))


MEMORY_BOUND = steps_of(14.7, 18.0, 24.0, 30.0, 34.6)  # times of a 1B model in q4 on two cores
COMPUTE_BOUND = steps_of(10.0, 150.0)
TEXTS = {
    "random": RANDOM.integers(0, 10**5, 800),
    "few tokens": RANDOM.integers(0, 8, 800),
    "repeats": np.tile(RANDOM.integers(0, 10**5, 60), 14)[:800],
    # Each time, the known text ends after three tokens.
    "traps": np.ravel(
        [
            [*(50 * [10**5] + np.arange(50))[i : i + 3], 2 * 10**5 + n]
            for n, i in enumerate(RANDOM.integers(0, 47, 200))
        ]
    ),
    "first good, then bad": np.concatenate(
        [np.tile(RANDOM.integers(0, 10**5, 20), 20), np.ravel([[1, 2, i] for i in range(1000, 1133)])]
    ),
}


@pytest.mark.parametrize("times", [MEMORY_BOUND, COMPUTE_BOUND], ids=["memory", "arithmetic"])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("count", [100, 500])
def test_drafts_do_not_cost_more_than_they_gain(name: str, times: Callable[[int], float], count: int) -> None:
    ids = TEXTS[name][: 200 + count]
    (seconds,), _, _ = testing.write_with_drafts([ids.tolist()], [200], times)
    gain = (len(ids) - 200) * times(1) / seconds
    assert gain >= 0.97
    if name == "repeats" and times is MEMORY_BOUND:
        assert gain > (4 if count == 500 else 3)


@pytest.mark.parametrize("others", [1, 3, 7])
def test_drafts_for_a_request_do_not_delay_the_others(others: int) -> None:
    texts = [TEXTS["repeats"][:500], *(RANDOM.integers(0, 10**5, 500) for _ in range(others))]
    ends, _, _ = testing.write_with_drafts(
        [ids.tolist() for ids in texts], [200] * (1 + others), MEMORY_BOUND
    )
    alone = 300 * MEMORY_BOUND(1 + others)
    assert all(alone / end >= 0.97 for end in ends)
    assert alone / ends[0] > 1.05


def test_texts_that_all_repeat_themselves_gain_alike() -> None:
    texts = [np.tile(RANDOM.integers(0, 10**5, 40), 20)[:700].tolist() for _ in range(4)]
    ends, _, _ = testing.write_with_drafts(texts, [200] * 4, MEMORY_BOUND)
    gains = [500 * MEMORY_BOUND(4) / end for end in ends]
    assert min(gains) > 1.5
    assert max(gains) < 1.2 * min(gains)
