"""The function behind ``gemlet batch``: :func:`run_batch` reads requests from a file in OpenAI's batch format
and writes the answers to another file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gemlet.base.progress import Progress, reporting
from gemlet.base.records import record, replace
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.server.app import make_app
from gemlet.server.batch_lines import answered, checked_ids, opened, requests
from gemlet.server.inside import App, answer
from gemlet.server.settings import ModelSpec, Settings

__all__ = ["BatchCounts", "run_batch", "started"]


@record(frozen=True)
class BatchCounts:
    """The numbers of requests in a batch.

    Attributes:
        total: the number of requests in the file.
        before: the number of requests that an earlier run has answered.
        answered: the number of requests that this run has answered.
        failed: the number of requests that failed in this run. Their errors are in the output.
    """

    total: int
    before: int
    answered: int
    failed: int


def run_batch(
    source: str | Path,
    output: str | Path,
    settings: Settings,
    specs: Sequence[ModelSpec],
    *,
    concurrent: int = 32,
    progress: Progress = None,
) -> BatchCounts:
    """Answers every request in ``source`` that has no answer in ``output``. Appends each answer to ``output``
    as soon as it is ready. If a run ends early, the next run computes only the requests without an answer.

    A line of ``source`` is ``{"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body":
    {...}}``. A line of ``output`` is ``{"id": ..., "custom_id": ..., "response": {"status_code": ...,
    "request_id": ..., "body": ...}, "error": null}``.

    Args:
        concurrent: the most requests that run at the same time.

    Raises:
        ModelFileError: a file cannot be read or written, a line of ``source`` is not a valid request,
            ``output`` has something other than answers, or both are the same file. In these cases, no
            request was computed and no file was changed.
        UnsupportedError: another process is writing ``output``.
        GemletError: a model cannot be loaded.
    """
    if type(concurrent) is not int or not 1 <= concurrent <= 1024:
        raise InvalidRequestError(f"concurrent: got {show_argument(concurrent)}, expected 1 to 1024")
    ids = checked_ids(source)
    _check_apart(source, output)
    with opened(output) as file:
        done = answered(file, output).keys() & ids
        counts = asyncio.run(_run(source, file, done, len(ids), settings, specs, concurrent, progress))
        os.fsync(file.fileno())
    return counts


async def _run(
    source: str | Path,
    file: BinaryIO,
    done: set[str],
    total: int,
    settings: Settings,
    specs: Sequence[ModelSpec],
    concurrent: int,
    progress: Progress,
) -> BatchCounts:
    waiting = requests(source, done)
    failed = answered = 0
    with reporting(progress, "answering", total - len(done), "requests") as advance:
        async with started(settings, specs) as app:

            async def work() -> None:
                nonlocal failed, answered
                for request in waiting:  # all workers share this iterator
                    line, good = await answer(app, request)
                    file.write(line)
                    file.flush()
                    answered, failed = answered + good, failed + (not good)
                    advance(1)

            workers = [asyncio.create_task(work()) for _ in range(min(concurrent, total - len(done)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    return BatchCounts(total, len(done), answered, failed)


@asynccontextmanager
async def started(settings: Settings, specs: Sequence[ModelSpec]) -> AsyncIterator[App]:
    """Starts the application, and yields it when its models are loaded. Stops the application at the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    ended = asyncio.Event()
    told: list[dict[str, Any]] = [{"type": "lifespan.startup"}]

    def fail(error: BaseException) -> None:
        if not ready.done():
            ready.set_exception(error)

    app = make_app(replace(settings, data=None), specs, fail)  # only a server uses the data folder

    async def receive() -> dict[str, Any]:
        if told:
            return told.pop()
        await ended.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"].endswith(".failed"):
            fail(UnsupportedError(f"the server does not start: {message.get('message')}"))

    async def wait_until_ready() -> None:
        while app.service is None or not app.service.models.is_ready:
            await asyncio.sleep(0.02)
        if not ready.done():
            ready.set_result(None)

    life = loop.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    look = loop.create_task(wait_until_ready())
    try:
        await ready
        yield app
    finally:
        look.cancel()
        ended.set()
        with contextlib.suppress(Exception):
            await life


def _check_apart(source: str | Path, output: str | Path) -> None:
    """Raises :class:`ModelFileError` if both paths lead to the same file, directly or through links."""
    try:
        is_same = os.path.samefile(source, output)
    except OSError:  # the output does not exist yet; opening the files reports other errors
        return
    if is_same:
        raise ModelFileError(f"{output}: is the same file as the requests, {source}; choose another output")
