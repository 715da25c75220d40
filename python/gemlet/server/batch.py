"""Requests from a file, in OpenAI's batch form, answered into another: :func:`run_batch`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gemlet.base.progress import Progress, reporting
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.server.app import make_app
from gemlet.server.settings import ModelSpec, Settings

__all__ = ["ENDPOINTS", "BatchCounts", "run_batch"]

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_MOST_LINE = 64 << 20  # bytes
_MOST_ID = 512  # characters
_NAME = "batch_req_"  # begins the id of an answer
_BEGIN = f'{{"id": "{_NAME}'.encode()  # begins a line of the output

App = Callable[..., Any]


@dataclass(frozen=True)
class BatchCounts:
    """Attributes:
    total: requests in the file.
    before: those that an earlier run had answered.
    answered, failed: of this run. A failed one has its error in the output.
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
    """Answers every request in ``source`` that ``output`` has no answer to, and appends the answers as they
    come. So a run that was ended, in whatever way, goes on where it was.

    A line of ``source`` is ``{"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body":
    {...}}``, and of ``output`` ``{"id": ..., "custom_id": ..., "response": {"status_code": ..., "request_id":
    ..., "body": ...}, "error": null}``.

    Args:
        concurrent: requests that are computed together at most.

    Raises:
        ModelFileError: a file cannot be read or written, a line of ``source`` is no request, ``output`` has
            something else than answers, or both are the same file. Nothing was computed or changed then.
        UnsupportedError: another process writes ``output``.
        GemletError: a model cannot be loaded.
    """
    if type(concurrent) is not int or not 1 <= concurrent <= 1024:
        raise InvalidRequestError(f"concurrent: got {show_argument(concurrent)}, expected 1 to 1024")
    ids = _checked_ids(source)
    _check_apart(source, output)
    with _opened(output) as file:
        done = _answered(file, output) & ids
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
    waiting = _requests(source, done)
    failed = answered = 0
    with reporting(progress, "answering", total - len(done), "requests") as advance:
        async with _started(settings, specs) as app:

            async def work() -> None:
                nonlocal failed, answered
                for request in waiting:  # the workers share it
                    line = await _answer(app, request)
                    file.write(line.encode() + b"\n")
                    file.flush()
                    good = json.loads(line)["response"]["status_code"] == 200
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


async def _answer(app: App, request: Mapping[str, Any]) -> str:
    """The line of the output."""
    if request["body"].get("stream"):
        name, status = f"req_{secrets.token_hex(12)}", 400
        body: Any = _refusal("stream: a batch has whole answers; leave it out")
    else:
        name, status, body = await _post(app, request["url"], json.dumps(request["body"]).encode())
    found = {
        "id": f"{_NAME}{secrets.token_hex(12)}",
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": name, "body": body},
        "error": None,
    }
    return json.dumps(found, ensure_ascii=False)


def _refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


async def _post(app: App, path: str, content: bytes) -> tuple[str, int, Any]:
    """Asks the application as an HTTP server would: its id for the request, the status, the body."""
    name, status, parts = "", 500, []
    unsent = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if unsent:
            return unsent.pop()
        await asyncio.Event().wait()  # nobody closes this connection
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal name, status
        if message["type"] == "http.response.start":
            status = message["status"]
            name = dict(message["headers"]).get(b"x-request-id", b"").decode()
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(content))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
    await app(scope, receive, send)
    return name, status, json.loads(b"".join(parts))


@asynccontextmanager
async def _started(settings: Settings, specs: Sequence[ModelSpec]) -> AsyncIterator[App]:
    """The application between the beginning and the end of its lifespan, with its models loaded."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    ended = asyncio.Event()
    told: list[dict[str, Any]] = [{"type": "lifespan.startup"}]

    def fail(error: BaseException) -> None:
        if not ready.done():
            ready.set_exception(error)

    app = make_app(settings, specs, fail)

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


@contextlib.contextmanager
def _opened(output: str | Path) -> Iterator[BinaryIO]:
    """The output, for this process alone."""
    try:
        with open(output, "ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UnsupportedError(f"{output}: another process is writing it") from None
            yield file
    except OSError as error:
        raise ModelFileError(f"{output}: cannot be written: {error.strerror or error}") from None


def _check_apart(source: str | Path, output: str | Path) -> None:
    """Refuses one file as both, by whatever links."""
    try:
        is_same = os.path.samefile(source, output)
    except OSError:  # the output is not there yet; what else is wrong, opening says
        return
    if is_same:
        raise ModelFileError(f"{output}: it is the file of the requests, {source}; name another output")


def _answered(file: BinaryIO, name: str | Path) -> set[str]:
    """The requests that have an answer. What a killed process wrote of a line is cut off. A file that has
    anything else stays as it is."""
    found: set[str] = set()
    file.seek(0)
    whole = 0
    rest = b""
    for number, line in enumerate(file, 1):
        if line.endswith(b"\n"):
            custom_id = _id_of_answer(line)
        else:  # it is ours if it begins as our lines do, as far as it goes
            custom_id = "" if line[: len(_BEGIN)] == _BEGIN[: len(line)] else None
            rest = line
        if custom_id is None:
            problem = f"{name}: line {number} is no answer of a batch; name another file"
            raise ModelFileError(problem)
        if not rest:
            found.add(custom_id)
            whole += len(line)
    if rest:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return found


def _id_of_answer(line: bytes) -> str | None:
    """The ``custom_id`` of a line that :func:`_answer` may have written; None for any other."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("response"), dict):
        return None
    name, custom_id = answer.get("id"), answer.get("custom_id")
    if not isinstance(name, str) or not name.startswith(_NAME) or not isinstance(custom_id, str):
        return None
    return custom_id


def _lines(source: str | Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(source, "rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE + 1):
                number += 1
                if len(line) > _MOST_LINE:
                    raise ModelFileError(f"{source}: line {number} is longer than {_MOST_LINE} bytes")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ModelFileError(f"{source}: cannot be read: {error.strerror or error}") from None


def _requests(source: str | Path, done: set[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in _lines(source):
        request = _request(line, f"{source}: line {number}")
        if request["custom_id"] not in done:
            yield request


def _checked_ids(source: str | Path) -> set[str]:
    """The names of all requests; raises for a line that is none, and for a name that two have."""
    found: set[str] = set()
    for number, line in _lines(source):
        where = f"{source}: line {number}"
        name = _request(line, where)["custom_id"]
        if name in found:
            raise ModelFileError(f"{where}: custom_id {show_argument(name)} stands in an earlier line, too")
        found.add(name)
    return found


def _request(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is no JSON: {error}") from None
    if not isinstance(request, dict):
        raise ModelFileError(f"{where}: expected an object, got {show_argument(request)}")
    name = request.get("custom_id")
    if not isinstance(name, str) or not 1 <= len(name) <= _MOST_ID:
        raise ModelFileError(
            f"{where}: custom_id: got {show_argument(name)}, expected 1 to {_MOST_ID} characters"
        )
    if request.get("method", "POST") != "POST":
        raise ModelFileError(f"{where}: method: got {show_argument(request['method'])}, expected POST")
    if request.get("url") not in ENDPOINTS:
        expected = ", ".join(ENDPOINTS)
        raise ModelFileError(f"{where}: url: got {show_argument(request.get('url'))}, expected {expected}")
    if not isinstance(request.get("body"), dict):
        raise ModelFileError(f"{where}: body: got {show_argument(request.get('body'))}, expected an object")
    return request
