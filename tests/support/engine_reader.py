"""Submits requests to the C++ core's engine and reads the tokens that the engine generates."""

from __future__ import annotations

from typing import Any

from gemlet import _core
from support.core_models import sampler


class Reader:
    """Submits requests to an engine. All requests share one ``News`` object, which wakes the reader when any
    request has new tokens."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self.news = _core.News()

    def submit(self, ids: Any, *, seed: int = 1, max_tokens: int = 20, **options: Any) -> _core.Request:
        choose = options.pop("sampler", None) or sampler(seed=seed)
        return self.engine.submit(ids, sampler=choose, news=self.news, max_tokens=max_tokens, **options)

    def first(self, request: _core.Request, count: int) -> list[int]:
        """Reads the tokens of a request until there are at least ``count``, and returns all tokens so far."""
        found: list[int] = []
        while len(found) < count:
            seen = self.news.value
            found += request.take()[0]
            if len(found) < count:
                self.engine.wait(self.news, seen, 1.0)
        return found

    def read(self, *requests: _core.Request) -> list[tuple[list[int], str | None]]:
        """Reads all requests to their ends. Returns the tokens and the finish reason of each request."""
        texts: list[list[int]] = [[] for _ in requests]
        reasons: list[str | None] = [None] * len(requests)
        while None in reasons:
            seen = self.news.value
            for i, request in enumerate(requests):
                if reasons[i] is None:
                    ids, reasons[i], _ = request.take()
                    texts[i] += ids
            if None in reasons:
                self.engine.wait(self.news, seen, 10.0)
        return list(zip(texts, reasons, strict=True))


def alone(core: _core.Model, ids: Any, seed: int, count: int) -> list[int]:
    """The first ``count`` tokens that a ``TokenSequence`` generates after ``ids``, without an engine. The
    tests compare the tokens of the engine with these tokens."""
    sequence, choose = _core.TokenSequence(core), sampler(seed=seed)
    sequence.extend(ids)
    found = [sequence.sample(choose)]
    while len(found) < count:
        sequence.extend(found[-1:])
        found.append(sequence.sample(choose))
    return found
