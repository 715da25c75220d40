"""The code that all endpoints share: :class:`Service`, and functions that read requests and make events."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet.base.records import field, record, replace
from gemlet.server.answers import Rest, StreamAnswer, as_line, as_line_in_pieces
from gemlet.server.ask import Ask, Running
from gemlet.server.batches import Batches
from gemlet.server.bodies import Bodies, parse
from gemlet.server.call import Call, call_of
from gemlet.server.content_filter import ContentFilter
from gemlet.server.fields import MOST_CHOICES
from gemlet.server.kept_responses import KeptResponses
from gemlet.server.limits import Limiter
from gemlet.server.logs import log_text
from gemlet.server.metrics import Metrics
from gemlet.server.models import Models, Served
from gemlet.server.problems import Problem, as_json
from gemlet.server.schema import Integer, Kind, read
from gemlet.server.settings import Settings

__all__ = ["FIELDS", "Service", "TextEvent", "event", "fields_of", "query_of", "salt_of", "service_of"]

FIELDS = "gemlet.fields"  # the router puts the fields of a request under this key
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
_LARGE = 1 << 16  # bytes; a larger body is read and checked in a thread
_IS_LARGE = "gemlet.is_large"
_Result = TypeVar("_Result")


@record
class Service:
    """The parts of a running server.

    Attributes:
        threads: limits how many blocking calls (decisions, long texts to tokenize) run beside the event loop.
        filter: judges prompts and replies.
        batches: None if the server keeps no files.
        deep_check: is held during a deep check, so that only one runs at a time.
    """

    settings: Settings
    models: Models
    bodies: Bodies
    limiter: Limiter
    metrics: Metrics
    kept: KeptResponses
    threads: anyio.CapacityLimiter
    filter: ContentFilter
    batches: Batches | None = None
    started: float = field(default_factory=time.monotonic)
    deep_check: asyncio.Lock = field(default_factory=asyncio.Lock)
    rest: Rest = field(default_factory=Rest)

    async def read(
        self, request: Request, table: Mapping[str, Kind], required: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The checked fields of the request's body. The request gets its place when the whole body has
        arrived, so slow clients take no place. It has the place until its call settles."""
        self.models.check_ready()
        self.limiter.check(call_of(request))
        body = await self.bodies.read(request)
        request.scope[_IS_LARGE] = len(body) > _LARGE
        found = await self.beside(request, partial(parse, body))
        self.limiter.enter(call_of(request))
        ignore = self.settings.unknown_fields == "ignore"
        return await self.beside(request, partial(read, found, table, required, ignore_unknown=ignore))

    async def beside(self, request: Request, work: Callable[[], _Result]) -> _Result:
        """Returns the result of ``work``, which reads the whole body. If the body is large, a thread other
        than the event loop's does the work."""
        if not request.scope[_IS_LARGE]:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self.threads)

    async def line(self, make: Callable[[], object], *, is_large: bool) -> bytes:
        """The result of ``make`` as JSON. If it is large, a thread other than the event loop's makes it."""
        if not is_large:
            return as_line(make())
        return await anyio.to_thread.run_sync(lambda: as_line_in_pieces(make()), limiter=self.threads)

    async def answer(self, make: Callable[[], object], *, is_large: bool) -> Response:
        """An HTTP answer with the JSON of :meth:`line`."""
        return Response(await self.line(make, is_large=is_large), media_type="application/json")

    def find(self, call: Call, name: str | None) -> Served:
        """The model of a request. Raises :class:`Problem` if there is none, or the key may not use it."""
        served = self.models.find(name, () if call.key is None else call.key.models)
        if call.key is not None:
            call.key.check_model(served.name)
        call.model = served.name
        return served

    def reply_tokens(
        self, call: Call, served: Served, fields: Mapping[str, Any], *names: str, default: int | None = None
    ) -> int:
        """The most tokens that a reply may have. One of the fields ``names`` says it. Without them it is
        ``default``, or else what the context has room for. Raises :class:`Problem` if the key allows less."""
        given = {fields[name] for name in names if name in fields}
        if len(given) > 1:
            raise Problem(400, f"{' and '.join(names)} differ; send one of them", param=names[-1])
        limit = call.key.limits.max_reply if call.key is not None else None
        if given and limit is not None and max(given) > limit:
            allowed = f"this key may ask for at most {limit} tokens"
            raise Problem(400, f"{names[0]}: got {max(given)}; {allowed}", param=names[0])
        most = given.pop() if given else default or served.model.context_length
        return most if limit is None else min(most, limit)

    async def start(self, asks: Sequence[Ask], call: Call) -> Running:
        """Begins the replies. What is computed for one key is never shared with another one."""
        count = sum(ask.count for ask in asks)
        if count > MOST_CHOICES:
            raise Problem(400, f"n: got {count} replies in all, expected at most {MOST_CHOICES}", param="n")
        if call.priority:
            asks = [replace(ask, priority=call.priority) for ask in asks]
        if call.key is not None:
            asks = [replace(ask, salt=salt_of(call, ask.salt)) for ask in asks]
        most = None if call.key is None else call.key.limits.max_prompt
        if most is not None:
            for ask in asks:
                await anyio.to_thread.run_sync(ask.check_prompt, most, limiter=self.threads)
        self.metrics.begin(call)
        running = Running(asks, call, self.filter)
        if self.settings.log_text:
            call.at_end.append(lambda _: log_text(call.id, running.texts()))
        return await running.start(self.threads)

    async def check_texts(self, call: Call, served: Served, texts: Sequence[Any]) -> None:
        """Raises :class:`Problem` if the content filter blocks a text. This is for requests without a reply
        that could say so."""
        if self.filter.is_on("prompt"):
            for text in texts:
                ask = Ask(served, {}, text, salt=salt_of(call))
                if isinstance(text, list) and isinstance(text[0], Mapping):  # parts, as in a message
                    ask = replace(ask, prompt="", messages=[{"role": "user", "content": text}])
                if await self.filter.blocks(call, ask.said()):
                    raise Problem(
                        400, "the content filter refuses this text", param="input", code="content_filter"
                    )

    def stream(
        self,
        pieces: AsyncIterator[bytes],
        request: Request,
        running: Running,
        *,
        ping: bytes | None = b": ping\n\n",
        on_error: Callable[[Problem], bytes] | None = None,
    ) -> StreamAnswer:
        """Answers with server-sent events, or with lines of JSON if ``ping`` is None. The events of chunks
        that are there at the same time, or come within a short time, are sent together. An error
        is the last event, as ``on_error`` writes it, or else in the form of the dialect's other errors."""
        call, path = call_of(request), request.scope["path"]

        def as_others(problem: Problem) -> bytes:
            body = as_line(as_json(problem, path, call.id))
            if ping is None:
                return body + b"\n"
            named = b"event: error\n" if path.startswith("/v1/messages") else b""
            return named + b"data: " + body + b"\n\n"

        answer = StreamAnswer(
            pieces,
            call,
            media_type=LINES if ping is None else EVENTS,
            on_error=on_error or as_others,
            ping=ping,
            ping_seconds=self.settings.ping_seconds,
            stuck_seconds=self.settings.stuck_seconds,
        )

        async def flush_and_rest(running: Running) -> None:  # takes running as an argument, to make no cycle
            if await answer.flush():
                await self.rest(running.longest_rest())

        running.before_waiting = flush_and_rest
        return answer


def service_of(request: Request) -> Service:
    service = request.app.service
    assert isinstance(service, Service)
    return service


def fields_of(request: Request) -> dict[str, Any]:
    """The checked fields of the request's body."""
    fields: dict[str, Any] = request.scope[FIELDS]
    return fields


def salt_of(call: Call, given: str | None = None) -> str | None:
    """The salt for what is computed for a request. It keeps the cached text of each key apart."""
    return given if call.key is None else f"{call.key.id} {given or ''}"


def query_of(request: Request, table: Mapping[str, Kind]) -> dict[str, Any]:
    """The checked fields of the request's query."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise Problem(400, f"{name[:100]} is in the query twice; send it once", param=name[:100])
        is_number = isinstance(table.get(name), Integer) and re.fullmatch(r"[0-9]{1,9}", value)
        found[name] = int(value) if is_number else value
    ignore = service_of(request).settings.unknown_fields == "ignore"
    return read(found, table, ignore_unknown=ignore)


class TextEvent:
    """Makes events of a stream fast if they differ only in one text, as most do. ``value`` is such an event
    that has :attr:`TEXT` in the place of the text.

    >>> TextEvent({"a": {"text": TextEvent.TEXT}, "b": None}).of("Hi")
    b'data: {"a":{"text":"Hi"},"b":null}\\n\\n'
    """

    TEXT = "\ue000"  # no other text in an event is equal to it

    def __init__(self, value: object, name: str | None = None) -> None:
        self._before, self._after = event(value, name).split(as_line(self.TEXT))

    def of(self, text: str) -> bytes:
        return self._before + as_line(text) + self._after


def event(value: object, name: str | None = None) -> bytes:
    """A server-sent event.

    >>> event({"a": 1}, "ping")
    b'event: ping\\ndata: {"a":1}\\n\\n'
    """
    named = b"" if name is None else f"event: {name}\n".encode()
    return named + b"data: " + as_line(value) + b"\n\n"
