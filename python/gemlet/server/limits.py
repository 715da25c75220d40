"""Limits: sliding windows of requests and tokens for each key, and how many requests may run at a time."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from gemlet.base.records import field, record
from gemlet.server.call import Call
from gemlet.server.problems import NO_RETRY, Problem, key_revoked

if TYPE_CHECKING:
    from gemlet.server.keys import Key, KeyStore

__all__ = ["Limiter", "Window"]

_HOUR = 3600.0  # seconds
_LONGEST_WAIT = 120.0  # seconds; official clients that would sleep longer are told not to try again
_PARTS = 60  # parts of a window; a count leaves the window at most one part too late


class Window:
    """A sliding window: counts what happened in the last ``seconds``, of which ``limit`` is allowed.

    >>> window = Window(limit=2, seconds=60)
    >>> window.add(1, now=0.0), window.add(1, now=30.0), window.wait(now=31.0) > 29
    (None, None, True)
    >>> window.used(now=62.0), window.wait(now=62.0)
    (1, 0.0)
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._parts: deque[list[float]] = deque()  # [beginning, count]
        self._used = 0

    def add(self, count: int, now: float) -> None:
        part = self.seconds / _PARTS
        begin = now // part * part
        if not self._parts or self._parts[-1][0] < begin:
            self._parts.append([begin, 0])
        self._parts[-1][1] += count
        self._used += count

    def used(self, now: float) -> int:
        part = self.seconds / _PARTS
        while self._parts and self._parts[0][0] + part + self.seconds <= now:
            self._used -= int(self._parts.popleft()[1])
        return self._used

    def wait(self, now: float, running: int = 0) -> float:
        """Seconds until there is room; 0 if there is room now. ``running`` counts as used, but is not yet
        added."""
        used = self.used(now) + running
        if used < self.limit:
            return 0.0
        part = self.seconds / _PARTS
        for begin, count in self._parts:
            used -= int(count)
            if used < self.limit:
                return max(0.1, begin + part + self.seconds - now)
        return self.seconds


@record
class _State:
    """The use of one key."""

    requests: list[Window]
    tokens: list[Window]
    running: list[Call] = field(default_factory=list)


class Limiter:
    """Admits requests, and counts what they used.

    Args:
        most: the most requests, of all keys together, that are read or answered at a time.
        store: has the keys and their usage; None if the server has no keys.
    """

    def __init__(self, most: int, store: KeyStore | None = None) -> None:
        self.most = most
        self.running = 0
        self.store = store
        self._states: dict[str, tuple[Key, _State]] = {}

    def check(self, call: Call) -> None:
        """Raises :class:`Problem` if there is no place for the request now. It is called before the body is
        read. Reading may take long, and takes no place."""
        if self.running >= self.most:
            raise Problem(
                503,
                "the server is busy; try again",
                kind="overloaded_error",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        if call.key is not None:
            self._check(call, call.key)

    def enter(self, call: Call) -> None:
        """Gives a request its place, which it has until the call settles. Raises :class:`Problem` if there is
        no place."""
        self.check(call)
        if call.key is not None:
            now = time.monotonic()
            state = self._state(call.key, now)
            for window in state.requests:
                window.add(1, now)
            call.headers |= _headers(state, now, _in_flight(state))
            state.running.append(call)
        self.running += 1
        call.at_end.append(self._leave)

    def end_revoked(self) -> None:
        """Ends the requests of keys that were revoked. (:class:`Batches` ends the requests of batches.)"""
        for identifier, (_, state) in self._states.items():
            if self.store is None or not state.running or self.store.in_use(identifier) is not None:
                continue
            for call in state.running:
                if call.priority >= 0:
                    call.end(key_revoked())

    def _check(self, call: Call, key: Key) -> None:
        state, now = self._state(key, time.monotonic()), time.monotonic()
        in_flight = _in_flight(state)
        call.headers |= _headers(state, now, in_flight)
        limit = key.limits.concurrent
        if limit is not None and call.priority < 0:
            limit = max(1, limit - 1)  # a batch leaves one place for requests for which somebody waits
        if limit is not None and len(state.running) >= limit:
            raise _too_many("concurrent requests", limit, 1)
        for windows, running, what in ((state.requests, 0, "requests"), (state.tokens, in_flight, "tokens")):
            for window in windows:
                wait = window.wait(now, running)
                if wait > 0:
                    raise _too_many(f"{what} in {_span(window.seconds)}", window.limit, wait)

    def _leave(self, call: Call) -> None:
        self.running -= 1
        key = call.key
        if key is None:
            return
        tokens = call.prompt_tokens + call.completion_tokens
        state = self._state(key, time.monotonic())
        state.running.remove(call)
        for window in state.tokens:
            window.add(tokens, time.monotonic())
        if self.store is not None:
            self.store.add_usage(key.id, call.model, call.prompt_tokens, call.completion_tokens)

    def _state(self, key: Key, now: float) -> _State:
        """The state of a key. If its limits were changed meanwhile, the state is made again from the usage in
        the file."""
        found = self._states.get(key.id)
        if found is not None and found[0].limits == key.limits:
            return found[1]
        limits = key.limits
        state = _State(
            [
                Window(limit, seconds)
                for limit, seconds in ((limits.requests_per_minute, 60.0), (limits.requests_per_hour, 3600.0))
                if limit is not None
            ],
            [
                Window(limit, seconds)
                for limit, seconds in ((limits.tokens_per_minute, 60.0), (limits.tokens_per_day, 86400.0))
                if limit is not None
            ],
            [] if found is None else found[1].running,
        )
        for age, requests, tokens in [] if self.store is None else self.store.recent(key.id):
            for window, count in [(w, requests) for w in state.requests] + [
                (w, tokens) for w in state.tokens
            ]:
                # Usage is stored by hour, so nothing is known about windows of a minute.
                if age < window.seconds and window.seconds >= _HOUR:
                    window.add(count, now - age)
        self._states[key.id] = key, state
        return state


def _in_flight(state: _State) -> int:
    """The tokens of running requests, which are not yet in a window."""
    return sum(call.prompt_tokens + call.completion_tokens for call in state.running)


def _span(seconds: float) -> str:
    return {60.0: "a minute", 3600.0: "an hour", 86400.0: "a day"}[seconds]


def _too_many(what: str, limit: int, wait: float) -> Problem:
    seconds = max(1, math.ceil(wait))
    return Problem(
        429,
        f"this key may have {limit} {what}; try again in {seconds} s",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds), **(NO_RETRY if wait > _LONGEST_WAIT else {})},
    )


def _headers(state: _State, now: float, in_flight: int) -> dict[str, str]:
    """OpenAI's headers for the window with the least left."""
    headers: dict[str, str] = {}
    for name, windows, running in (("requests", state.requests, 0), ("tokens", state.tokens, in_flight)):
        if windows:
            left, window = min(((w.limit - w.used(now) - running, w) for w in windows), key=lambda x: x[0])
            headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, left))
            headers[f"x-ratelimit-reset-{name}"] = f"{window.wait(now, running):.1f}s"
    return headers
