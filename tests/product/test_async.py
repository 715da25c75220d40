"""Tests of agenerate, astream, achat and astream_chat: many requests in one event loop, and every way to stop
reading a stream."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

import gemlet
from gemlet.errors import InvalidRequestError, ModelClosedError
from gemlet.generation import AsyncTextStream, Chunk, Generation
from gemlet.model.requests import Requests
from support.waiting import PATIENCE

FOREVER: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load(threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "options",
    [
        {"images": [b""]},
        {"audio": [b""]},
        {"regex": "a+"},
        {"json_schema": {}},
        {"tool_choice": "required"},
        {"prompt": "a door " * 5000},
        {"prompt": [5] * 30_000},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": b""}]}]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_event_loop_runs_while_a_prompt_is_encoded(
    model: gemlet.Model, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes the encoding of the prompt wait until the event loop has run another task. The prompt is then
    replaced by a short one."""
    ticked = threading.Event()

    def waiting(real: Any) -> Any:
        def work(requests: Any, asked: object, *_: Any) -> Any:
            assert ticked.wait(PATIENCE), "the event loop waits for the encoding of a prompt"
            return real(requests, "Hello", None, {"max_tokens": 2})

        return work

    for name in ("texts", "replies"):
        monkeypatch.setattr(Requests, name, waiting(getattr(Requests, name)))
    asked = options.get("prompt", "Hello")
    more = {name: value for name, value in options.items() if name != "prompt"}

    async def main() -> None:
        for ask in (model.achat, model.agenerate):
            if ask == model.agenerate and ("tool_choice" in more or isinstance(asked[0], dict)):
                continue
            if ask == model.achat and ({"images", "audio"} & more.keys() or isinstance(asked[0], int)):
                continue
            ticked.clear()
            task = asyncio.ensure_future(ask(asked, **more))
            await asyncio.sleep(0.01)
            ticked.set()
            assert isinstance(await task, gemlet.Generation)

    asyncio.run(main())


async def until_idle(model: gemlet.Model) -> None:
    """Waits until the engine has freed the memory of all requests."""
    for _ in range(500):
        if model.stats()["running"] == model.stats()["waiting"] == model.memory()["kv_cache"] == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(model.stats())


def test_many_tasks_do_not_change_each_others_results(model: gemlet.Model) -> None:
    async def main() -> list[gemlet.Generation]:
        tasks = [model.agenerate(f"The door {i}", max_tokens=12, seed=i) for i in range(50)]
        return await asyncio.gather(*tasks)  # type: ignore[arg-type]

    for i, result in enumerate(asyncio.run(main())):
        assert result.text == model.generate(f"The door {i}", max_tokens=12, seed=i).text


def test_the_forms_of_prompts(model: gemlet.Model) -> None:
    async def main() -> None:
        both = await model.agenerate(["The door", "A star"], max_tokens=5, seed=[1, 2])
        assert isinstance(both, list)
        expected = model.generate(["The door", "A star"], max_tokens=5, seed=[1, 2])
        assert [result.text for result in both] == [result.text for result in expected]
        reply = await model.achat("Who is there?", max_tokens=5, seed=1)
        assert reply.text == model.chat("Who is there?", max_tokens=5, seed=1).text
        async with model.astream(["The door", "A star"], max_tokens=3) as stream:
            assert sorted([chunk.index async for chunk in stream]) == [0, 0, 0, 1, 1, 1]
        text = ""
        async for chunk in model.astream_chat("Who is there?", max_tokens=5, seed=1):
            text += chunk.text
        assert text == reply.text

    asyncio.run(main())


def test_other_tasks_run_during_a_generation(model: gemlet.Model) -> None:
    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await model.agenerate("The door", **FOREVER)
        counting.cancel()
        assert turns > 50

    asyncio.run(main())


def test_cancelling_a_task_ends_its_request(model: gemlet.Model) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(model.agenerate("The door", **FOREVER)) for _ in range(5)]  # type: ignore[arg-type]
        while model.stats()["running"] < 5:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError)
            for one in await asyncio.gather(*tasks, return_exceptions=True)
        )
        await until_idle(model)

    asyncio.run(main())


def test_leaving_an_async_stream_ends_its_request(model: gemlet.Model) -> None:
    async def main() -> None:
        async with model.astream("The door", **FOREVER) as stream:
            async for _ in stream:
                break
        assert (stream.result.finish_reason, stream.result.completion_tokens) == ("cancelled", 1)
        assert model.memory()["kv_cache"] == 0
        stream = model.astream("The door", **FOREVER)
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        stream = model.astream("The door", **FOREVER)
        await anext(stream)
        stream.cancel()
        last = await anext(stream)
        assert last.finish_reason == "cancelled"
        stream = model.astream("The door", **FOREVER)
        await anext(stream)
        del stream  # the stream has no reader any more
        await until_idle(model)

    asyncio.run(main())


def test_wait_for_and_timeout(model: gemlet.Model) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.agenerate("The door", **FOREVER), 0.02)  # type: ignore[arg-type]
        await until_idle(model)
        result = await model.agenerate("The door", **FOREVER, timeout=0.02)
        assert isinstance(result, gemlet.Generation)
        assert result.finish_reason == "timeout"
        assert 0 < result.completion_tokens < 900
        none = await model.agenerate("The door", **FOREVER, timeout=0)
        assert isinstance(none, gemlet.Generation)
        assert (none.finish_reason, none.text) == ("timeout", "")

    asyncio.run(main())


def test_a_slow_reader_does_not_delay_other_requests(model: gemlet.Model) -> None:
    async def main() -> None:
        slow = model.astream("The door", **FOREVER)
        await anext(slow)
        quick = await model.agenerate("The door", **FOREVER)
        assert isinstance(quick, gemlet.Generation)
        assert quick.completion_tokens == 900
        rest = [chunk async for chunk in slow]
        assert len(rest) == 899
        assert slow.result.token_ids == quick.token_ids

    asyncio.run(main())


def test_errors_come_before_the_first_chunk(model: gemlet.Model) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        model.astream("The door", max_tokens=0)

    async def main() -> None:
        with pytest.raises(InvalidRequestError, match="prompt"):
            await model.agenerate("")

    asyncio.run(main())


def test_closing_a_model_ends_its_streams() -> None:
    async def main() -> None:
        model = gemlet.load(threads=1)
        streams = [model.astream("The door", **FOREVER) for _ in range(3)]
        for stream in streams[:2]:
            await anext(stream)

        async def rest(stream: AsyncTextStream) -> str:
            last = None
            try:
                async for chunk in stream:
                    last = chunk.finish_reason
            except ModelClosedError:
                return "closed"
            return str(last)

        reading = asyncio.create_task(rest(streams[0]))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(model.close)
        assert await reading in ("cancelled", "closed")
        assert await rest(streams[1]) == "closed"
        assert await rest(streams[2]) == "closed"

    asyncio.run(main())


def test_streams_leave_no_descriptors(model: gemlet.Model) -> None:
    async def main() -> None:
        await model.agenerate("The door", max_tokens=2)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            await model.agenerate("The door", max_tokens=2)
            model.astream("The door")
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    asyncio.run(main())


def test_two_tasks_read_one_stream(model: gemlet.Model) -> None:
    async def main() -> None:
        stream = model.astream("The door", max_tokens=200, ignore_eos=True)

        async def read() -> int:
            return len([chunk async for chunk in stream])

        both = await asyncio.wait_for(asyncio.gather(read(), read()), 30)
        assert sum(both) == 200
        stream = model.astream("The door", **FOREVER)
        reading = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        await asyncio.wait_for(stream.aclose(), 30)
        await asyncio.wait_for(reading, 30)

    asyncio.run(main())


def test_a_forked_process_continues_a_stream(model: gemlet.Model) -> None:
    stream = model.astream("The door", max_tokens=400, ignore_eos=True)

    async def begin() -> None:
        await anext(stream)

    async def rest() -> int:
        return len([chunk async for chunk in stream])

    asyncio.run(begin())
    if (child := os.fork()) == 0:
        try:
            os._exit(0 if asyncio.run(asyncio.wait_for(rest(), 30)) == 399 else 1)
        finally:
            os._exit(2)
    assert asyncio.run(asyncio.wait_for(rest(), 30)) == 399
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_slow_readers_do_not_hold_up_others(model: gemlet.Model) -> None:
    """The slow readers have more requests than the engine can run at a time."""
    streams = [model.stream(f"The door {i}", **FOREVER) for i in range(40)]
    for stream in streams:
        next(stream)
    assert model.generate("The door", max_tokens=5, ignore_eos=True, timeout=30).completion_tokens == 5
    expected = model.generate("The door 3", **FOREVER)
    assert len(list(streams[3])) == 899
    assert streams[3].result.token_ids == expected.token_ids
    for stream in streams:
        stream.close()
    assert model.memory()["kv_cache"] == 0


def test_close_with_a_timeout_waits_for_running_requests() -> None:
    model = gemlet.load(threads=1)
    stream = model.stream("The door", max_tokens=300, ignore_eos=True)
    next(stream)
    written: list[int] = []
    reader = threading.Thread(target=lambda: written.extend(len(chunk.token_ids) for chunk in stream))
    reader.start()
    model.close(timeout=PATIENCE)
    reader.join(PATIENCE)
    assert (stream.result.finish_reason, sum(written)) == ("length", 299)
    with pytest.raises(ModelClosedError):
        model.generate("The door")
    model = gemlet.load(threads=1)
    stuck = model.stream("The door", **FOREVER)
    next(stuck)
    started = time.monotonic()
    model.close(timeout=0.2)
    assert 0.15 < time.monotonic() - started < PATIENCE
    assert stuck.result.finish_reason == "cancelled"


def test_tokens_that_are_ready_together_are_joined(model: Any) -> None:
    """The joined chunks have the same text, tokens and log probabilities as single chunks. Cancelling a
    stream loses none of them."""

    async def write(joins: bool, cancel: bool = False) -> tuple[list[Chunk], Generation]:
        chunks = []
        stream = model.astream("The door opened", max_tokens=80, seed=1, logprobs=1, ignore_eos=True)
        stream.joins_tokens = joins
        async with stream:
            async for chunk in stream:
                chunks.append(chunk)
                await asyncio.sleep(0.02 if len(chunks) == 1 else 0)
                if cancel and len(chunks) == 3:
                    stream.cancel()
        return chunks, stream.result

    alone, _ = asyncio.run(write(False))
    joined, result = asyncio.run(write(True))
    assert len(alone) == 80
    assert len(joined) < 80
    assert "".join(c.text for c in joined) == "".join(c.text for c in alone) == result.text
    assert [i for c in joined for i in c.token_ids] == [i for c in alone for i in c.token_ids]
    assert [p for c in joined for p in c.logprobs or ()] == result.logprobs
    cut, result = asyncio.run(write(True, cancel=True))
    assert "".join(c.text for c in cut) == result.text
    assert [i for c in cut for i in c.token_ids] == result.token_ids
