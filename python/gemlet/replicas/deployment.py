"""The two kinds of processes that Ray Serve starts: replicas and a front. Each replica loads the models and
runs the application of ``gemlet serve``. The front has no model. It sends every request to a replica."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig

from gemlet.errors import InvalidRequestError
from gemlet.replicas.request import Request
from gemlet.replicas.router import PrefixRouter
from gemlet.server.answers import as_line
from gemlet.server.batch import started
from gemlet.server.problems import Problem, as_json
from gemlet.server.settings import ModelSpec, Settings, default_alias, read_file_of_settings

__all__ = ["Front", "Replica", "application", "build"]

Message = MutableMapping[str, Any]
_log = logging.getLogger("ray.serve")
_TRIES = 2  # the most replicas that get the same request


class Replica:
    """A process with the application of ``gemlet serve``."""

    # Ray Serve awaits this constructor.
    async def __init__(self, settings: Settings, specs: Sequence[ModelSpec]) -> None:  # type: ignore[misc]
        self._life = AsyncExitStack()  # keeps the application running
        self._app: Any = await self._life.enter_async_context(started(settings, specs))

    async def check_health(self) -> None:
        self._app.service.models.check_ready()

    async def answer(self, request: Request) -> AsyncIterator[Message]:
        """Yields the ASGI messages of the answer. If the caller stops reading, the request is cancelled."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(64)
        unread: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            try:
                await self._app(request.scope(), receive, messages.put)
            finally:
                await messages.put(None)

        working = asyncio.create_task(work())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await working
        finally:
            gone.set()
            working.cancel()


class Front:
    """The process that talks to clients. If a replica dies, the front sends its requests to another replica
    once. If the client already has a part of an answer, the answer ends with an error instead."""

    def __init__(self, replicas: Any, most_body: int, most_bodies: int) -> None:
        self._replicas = replicas.options(stream=True)
        self._most_body = most_body
        self._most_bodies = most_bodies
        self._held = 0

    def __serve_build_asgi_app__(self) -> Any:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await self._asgi(scope, receive, send)

        return asgi  # uvicorn would treat a bound method as an application of ASGI 2

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        pieces: list[bytes] = []
        held = 0
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                pieces.append(message.get("body", b""))
                held += len(pieces[-1])
                self._held += len(pieces[-1])
                more = message.get("more_body", False)
                if held > self._most_body:
                    raise Problem(
                        413, f"the body is larger than {self._most_body} bytes; send a smaller request"
                    )
                if self._held > self._most_bodies:
                    raise _busy("the server is reading too many large requests; try again")
            await self._pass_on(Request.of(scope, b"".join(pieces)), send)
        except Problem as problem:
            await _send_problem(problem, scope["path"], send)
        finally:
            self._held -= held

    async def _pass_on(self, request: Request, send: Any) -> None:
        for tries_left in reversed(range(_TRIES)):
            # Hold back the first message, which has the status and the headers, until the next message comes.
            # Until then another replica can compute the request again.
            start: Message | None = None
            began = False
            answer = self._replicas.answer.remote(request)
            try:
                async for message in answer:
                    if message["type"] == "http.response.start":
                        start = message
                        continue
                    if not began and start is not None:
                        began = True
                        await send(start)
                    await send(message)
                return
            except RayActorError as error:
                _log.warning("a replica is gone: %s", type(error).__name__)
                if began:
                    await _end_stream(start, request.path, send)
                    return
                if not tries_left:
                    raise _busy("two replicas died while they computed the answer; try again") from None
            finally:
                answer.cancel()  # does nothing if the answer has ended


def _busy(message: str) -> Problem:
    return Problem(503, message, kind="overloaded_error", code="overloaded", headers={"Retry-After": "1"})


async def _send_problem(problem: Problem, path: str, send: Any) -> None:
    body = as_line(as_json(problem, path, ""))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    await send(
        {
            "type": "http.response.start",
            "status": problem.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _end_stream(start: Message | None, path: str, send: Any) -> None:
    """Ends the stream of a dead replica with an error event."""
    kinds = [value for name, value in (start or {}).get("headers", ()) if name.lower() == b"content-type"]
    kind = kinds[0] if kinds else b""
    problem = Problem(
        502,
        "the replica that computed this answer died; send the request again",
        kind="server_error",
        code="replica_gone",
    )
    body = as_line(as_json(problem, path, ""))
    if kind.startswith(b"text/event-stream"):
        named = b"event: error\n" if path.startswith("/v1/messages") else b""
        body = named + b"data: " + body + b"\n\n"
    elif kind.startswith(b"application/x-ndjson"):
        body += b"\n"
    else:  # the client knows the length, so only a closed connection shows the error
        raise ConnectionError("the replica died in the middle of an answer")
    await send({"type": "http.response.body", "body": body, "more_body": False})


def application(
    settings: Settings | None = None,
    specs: Sequence[ModelSpec] | None = None,
    *,
    replicas: int = 2,
    cpus: float = 1,
    most_ahead: int = 4,
) -> Any:
    """The application for ``ray.serve.run``.

    Args:
        settings: the settings of every replica, as for ``gemlet serve``; None for the defaults.
        specs: the models that every replica loads; None for the demo model. Replicas on the same machine
            share the memory of packed models.
        replicas: the number of replicas.
        cpus: the number of processors of each replica. This is also the number of threads of each model,
            unless the options of the model set another number.
        most_ahead: see :class:`~gemlet.replicas.router.PrefixRouter`.

    Raises:
        InvalidRequestError: a setting works only with a single process.
    """
    settings = settings or Settings()
    for name in _OF_ONE_PROCESS:
        if getattr(settings, name, None):
            raise InvalidRequestError(
                f"{name}: got a folder, but several replicas cannot share it; leave this setting out"
            )
    threads = max(1, int(cpus))
    given = specs or [ModelSpec(default_alias(None))]
    loaded = [dataclasses.replace(s, options={"threads": threads, **s.options}) for s in given]
    replica = serve.deployment(
        name="Replica",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=settings.max_requests,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"most_ahead": most_ahead}
        ),
        health_check_period_s=2,
    )(Replica).bind(settings, loaded)
    front = serve.deployment(
        name="Front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.max_requests * replicas,
    )(serve.ingress()(Front))
    return front.bind(replica, settings.max_body, settings.max_bodies)


_OF_ONE_PROCESS = ("data",)


def build(arguments: Mapping[str, str]) -> Any:
    """Returns the application for the command ``serve run gemlet.replicas:build config=serve.toml replicas=2
    cpus=2``. ``config`` is a settings file for ``gemlet serve``."""
    known = {"config", "replicas", "cpus"}
    if not arguments.keys() <= known:
        raise InvalidRequestError(
            f"arguments: got {', '.join(arguments)}; expected only {', '.join(sorted(known))}"
        )
    values, specs = read_file_of_settings(arguments["config"]) if "config" in arguments else ({}, [])
    return application(
        Settings(**values),
        specs,
        replicas=_number(int, arguments, "replicas", 2, "a whole number of at least 1"),
        cpus=_number(float, arguments, "cpus", 1.0, "a number above 0"),
    )


_Number = TypeVar("_Number", int, float)


def _number(
    kind: type[_Number], arguments: Mapping[str, str], name: str, default: _Number, expected: str
) -> _Number:
    given = arguments.get(name, default)
    try:
        found = kind(given)
    except ValueError:
        found = kind(0)
    if not 0 < found < float("inf"):
        raise InvalidRequestError(f"{name}: got {given!r}, expected {expected}")
    return found
