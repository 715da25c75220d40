"""Tests of ``Rest``: after a stream has sent something, it pauses, so that more tokens go into its next
chunk."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

pytestmark = pytest.mark.extra("serve")


def rests(monkeypatch: pytest.MonkeyPatch, count: int, most: float) -> list[float]:
    """The seconds that each of ``count`` streams pauses if all pauses begin together."""
    from gemlet.server.answers import Rest

    rest, slept, go = Rest(step=0.006, most=0.1), [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await go.wait()

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(rest(most)) for _ in range(count)]
        while len(slept) < count:
            await real(0)
        go.set()
        await asyncio.gather(*tasks)
        assert rest.resting == 0

    real: Any = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(all_of_them())
    return slept


def test_pauses_are_longer_if_more_streams_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rests(monkeypatch, 4, math.inf) == pytest.approx([0.006, 0.012, 0.018, 0.024])


def test_no_stream_pauses_longer_than_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(rests(monkeypatch, 1000, math.inf)) == 0.1


def test_no_pause_is_longer_than_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rests(monkeypatch, 3, 0.001) == [0.001] * 3


def test_a_cancelled_stream_ends_its_pause() -> None:
    from gemlet.server.answers import Rest

    async def cancelled() -> int:
        rest = Rest(step=60, most=60)
        task = asyncio.create_task(rest(60))
        await asyncio.sleep(0)
        assert rest.resting == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return rest.resting

    assert asyncio.run(cancelled()) == 0
