"""Thousands of random requests: each gets the same tokens as if it ran alone, and every block is freed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import GemletError
from support.core_models import layer_config, model_config, random_core, sampler
from support.inside import testing
from support.processes import in_fork

VOCAB = 96
BEGINNINGS = [np.random.default_rng(i).integers(0, VOCAB, 40 + 70 * i).astype(np.int32) for i in range(4)]


Adapters = list[_core.Adapter | None]


def small_core(**changes: Any) -> _core.Model:
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=500), threads=1, exact_batches=True, **changes)


@dataclass
class Wish:
    """The options of a request, and what happens to it."""

    ids: Any
    seed: int
    max_tokens: int
    end_ids: list[int]
    patience: int  # the request is cancelled after so many tokens
    timeout: float | None
    priority: int
    adapter: int  # index into adapters_of(); 0: none
    masked: bool  # whether allowed() gives the masks of the request

    @classmethod
    def random(cls, random: np.random.Generator) -> Wish:
        beginning = BEGINNINGS[random.integers(len(BEGINNINGS))][: int(random.integers(1, 250))]
        rest = random.integers(0, VOCAB, int(random.integers(1, 60))).astype(np.int32)
        return cls(
            ids=np.concatenate([beginning, rest]),
            seed=int(random.integers(50)),
            max_tokens=int(random.integers(1, 30)),
            end_ids=[int(random.integers(VOCAB))] if random.random() < 0.3 else [],
            patience=int(random.integers(10)) if random.random() < 0.2 else 10**6,
            timeout=float(random.random() * 0.02) if random.random() < 0.1 else None,
            priority=int(random.integers(3)),
            adapter=int(random.integers(3)) if random.random() < 0.3 else 0,
            masked=random.random() < 0.3,
        )

    def submit(self, engine: _core.Engine, news: _core.News, adapters: Adapters) -> Asked:
        request = engine.submit(
            self.ids,
            sampler=sampler(seed=self.seed),
            news=news,
            max_tokens=self.max_tokens,
            end_ids=self.end_ids,
            priority=self.priority,
            timeout=self.timeout,
            most_unread=1 + self.seed % 8,
            adapter=adapters[self.adapter],
            masked=self.masked,
        )
        asked = Asked(self, request)
        asked.next_mask()
        return asked


@dataclass
class Asked:
    """A request and its result so far."""

    wish: Wish
    request: _core.Request
    text: list[int] = field(default_factory=list)

    def take(self) -> str | None:
        """Takes the new tokens. Returns why the request has ended, or "failed" for an error of the engine."""
        try:
            ids, reason, _ = self.request.take()
        except GemletError:
            return "failed"
        self.text += ids
        if ids and reason is None:
            self.next_mask()
        return reason

    def next_mask(self) -> None:
        """The mask, as a grammar would give it."""
        if self.wish.masked:
            self.request.set_mask(len(self.text), bits_of(allowed(self.text)))


def allowed(text: list[int]) -> list[int]:
    """The ids that the mask of a request allows next."""
    last = text[-1] if text else 0
    return [(last + step) % VOCAB for step in (7, 30, 31, 32, 64)]


def bits_of(ids: list[int]) -> NDArray[np.uint32]:
    mask = np.zeros((VOCAB + 31) // 32, np.uint32)
    for token_id in ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask


def adapters_of(core: _core.Model) -> Adapters:
    """No adapter, and two adapters that change every continuation."""
    found: Adapters = [None]
    for seed in (1, 2):
        random, builder = np.random.default_rng(seed), _core.AdapterBuilder(core)
        a, b = (random.standard_normal(shape).astype(np.float32) / 8 for shape in ((4, 64), (96, 4)))
        builder.add("layers.0.gate_proj", a=a, a_dtype="f32", b=b, b_dtype="f32", scale=1.0)
        found.append(builder.finish())
    return found


def read(engine: _core.Engine, wish: Wish, adapters: Adapters) -> tuple[list[int], str]:
    """All tokens of the request, and why it ended."""
    news = _core.News()
    asked = wish.submit(engine, news, adapters)
    while True:
        seen = news.value
        reason = asked.take()
        if reason is not None:
            return asked.text, reason
        if len(asked.text) >= wish.patience:
            asked.request.cancel()
        engine.wait(news, seen, 1.0)


def alone(core: _core.Model, wish: Wish, adapters: Adapters) -> tuple[list[int], str]:
    sequence, choose = _core.TokenSequence(core, adapters[wish.adapter]), sampler(seed=wish.seed)
    sequence.extend(wish.ids)
    text: list[int] = []
    while True:
        if wish.masked:
            logits = sequence.logits()[-1]
            row = np.full_like(logits, -np.inf)
            row[allowed(text)] = logits[allowed(text)]
            token = choose.sample(row, [*wish.ids.tolist(), *text])
        else:
            token = sequence.sample(choose)
        if token in wish.end_ids:
            return text, "stop"
        text.append(token)
        if len(text) == wish.max_tokens:
            return text, "length"
        sequence.extend(text[-1:])


def check(core: _core.Model, wish: Wish, found: tuple[list[int], str], adapters: Adapters) -> None:
    text, reason = found
    expected, why = alone(core, wish, adapters)
    if reason in ("stop", "length"):
        assert (text, reason) == (expected, why)
    else:
        assert text == expected[: len(text)]


def run(requests: int, threads: int, *, refuses: bool) -> None:
    core = small_core(kv_cache="f32")
    adapters = adapters_of(core)
    # The memory is enough for a few requests only, so that requests are preempted and computed again.
    engine = _core.Engine(core, most_running=6, kv_bytes=1 << 20, prefix_cache_bytes=1 << 19)
    found: list[tuple[Wish, tuple[list[int], str]]] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            for _ in range(requests // threads):
                wish = Wish.random(random)
                found.append((wish, read(engine, wish, adapters)))
        except BaseException as error:
            errors.append(error)

    def refuse() -> None:
        """An allocator that alternately has memory and has none."""
        random = np.random.default_rng(99)
        while not stop.is_set():
            testing.limit_kv_cache(core, int(random.integers(1 << 16, 1 << 20)))
            time.sleep(0.002)

    readers = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
    refusing = threading.Thread(target=refuse)
    for thread in readers:
        thread.start()
    if refuses:
        refusing.start()
    for thread in readers:
        thread.join()
    stop.set()
    if refuses:
        refusing.join()
    assert not errors
    stats = engine.stats()
    assert stats["running"] == stats["waiting"] == 0
    assert core.memory()["kv_cache"] == 0
    assert core.memory()["kv_cache_used"] == stats["prefix_cache_bytes"]
    engine.close()
    assert core.memory()["kv_cache_used"] == 0
    testing.limit_kv_cache(core, 1 << 30)
    reasons = {reason for _, (_, reason) in found}
    assert {"stop", "length", "cancelled"} <= reasons
    assert refuses or "failed" not in reasons
    for wish, result in found[:: max(1, len(found) // 2000)]:
        check(core, wish, result, adapters)


@pytest.mark.tier
@pytest.mark.parametrize("refuses", [False, True])
def test_random_requests(refuses: bool) -> None:
    run(200, 4, refuses=refuses)


@pytest.mark.tier
@pytest.mark.slow
@pytest.mark.parametrize("refuses", [False, True])
def test_ten_thousand_random_requests(refuses: bool) -> None:
    run(10_000, 8, refuses=refuses)


class Machine(RuleBasedStateMachine):
    """Submits, reads, cancels, forks and closes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.core = small_core()
        # The same weights with separate memory, so that the engine's requests do not compete with these for
        # memory.
        self.reference = small_core()
        self.reference_adapters = adapters_of(self.reference)
        self.engine = _core.Engine(self.core, most_running=3, kv_bytes=1 << 19, prefix_cache_bytes=1 << 18)
        self.news = _core.News()
        self.adapters = adapters_of(self.core)
        self.live: list[Asked] = []
        self.is_closed = False

    @precondition(lambda self: not self.is_closed)
    @rule(number=st.integers(0, 10**6))
    def submit(self, number: int) -> None:
        self.submit_one(number)

    def submit_one(self, number: int) -> None:
        wish = Wish.random(np.random.default_rng(number))
        self.live.append(wish.submit(self.engine, self.news, self.adapters))

    @precondition(lambda self: self.is_closed)
    @rule()
    def submit_to_a_closed_engine(self) -> None:
        with pytest.raises(GemletError):
            Wish.random(np.random.default_rng(1)).submit(self.engine, self.news, self.adapters)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), to_the_end=st.booleans())
    def read(self, data: st.DataObject, to_the_end: bool) -> None:
        place = data.draw(st.integers(0, len(self.live) - 1))
        if self.advance(self.live[place], 10**6 if to_the_end else 3):
            del self.live[place]

    def advance(self, asked: Asked, looks: int) -> bool:
        """Takes tokens of a request this many times. Returns whether the request has ended."""
        for _ in range(looks):
            seen = self.news.value
            reason = asked.take()
            if reason is not None:
                check(self.reference, asked.wish, (asked.text, reason), self.reference_adapters)
                return True
            self.engine.wait(self.news, seen, 0.5)
        return False

    @rule()
    def fork(self) -> None:
        """The forked process goes on with all requests, and so does this process."""

        def go_on() -> bool:
            if not self.is_closed:
                self.submit_one(5)
            while self.live:
                assert self.advance(self.live.pop(), 10**6)
            return self.engine.stats()["running"] == 0

        in_fork(go_on)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.live[data.draw(st.integers(0, len(self.live) - 1))].request.cancel()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        del self.live[data.draw(st.integers(0, len(self.live) - 1))]

    @rule()
    def close(self) -> None:
        self.engine.close()
        self.is_closed = True

    @invariant()
    def counts(self) -> None:
        stats = self.engine.stats()
        assert 0 <= stats["running"] <= 3
        if self.is_closed:
            assert self.core.memory()["kv_cache_used"] == 0

    def teardown(self) -> None:
        self.engine.close()
        assert self.core.memory()["kv_cache_used"] == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
