"""The check in front of every route: it checks host names, origins and keys, gives each request its id, and
writes the log. It denies by default: an unknown path needs a key like all others."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemlet.base.patterns import late_pattern
from gemlet.server import page
from gemlet.server.answers import as_line
from gemlet.server.call import Call
from gemlet.server.inside import INSIDE, Inside
from gemlet.server.keys import Key, KeyStore
from gemlet.server.logs import log_call
from gemlet.server.metrics import Metrics
from gemlet.server.problems import ClientGone, Problem, as_json, forget_frames, problem_of, stopping
from gemlet.server.tracing import Tracing

__all__ = ["OPEN", "Guard"]

_log = logging.getLogger("gemlet.server")
_MOST_UNREAD = 1 << 16  # bytes of a body that a refused request may have without losing its connection
_BEHIND = -1  # the priority of the server's own requests
# These requests need no key if they have no query. The page has no data, and asks its user for the key.
OPEN = {("GET", path) for path in ("/health", "/ready", *page.FILES)}
# A name, an IPv4 address, or an IPv6 address in brackets; then a port. A label has no dot, so the pattern can
# match a name in only one way. A pattern that has to try many ways would take forever.
_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST = late_pattern(rf"({_LABEL}(?:\.{_LABEL}){{0,31}}\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(?::(\d{{1,5}}))?")
_ORIGIN = late_pattern(r"https?://(\S+)")
# The headers that pages of allowed origins may send, and those that they may read. The clients of OpenAI and
# Anthropic send the x-stainless headers.
_STAINLESS = ("arch", "async", "helper-method", "lang", "os", "package-version", "retry-count", "runtime")
_ALLOWED = ", ".join(
    (
        *("authorization", "content-type", "x-api-key", "anthropic-version", "anthropic-beta", "traceparent"),
        *(
            "anthropic-dangerous-direct-browser-access",
            "openai-beta",
            "openai-organization",
            "openai-project",
        ),
        *(f"x-stainless-{name}" for name in (*_STAINLESS, "runtime-version", "timeout", "read-timeout")),
    )
)
_ANTHROPIC = "/v1/messages"
_EXPOSED = ", ".join(
    (
        *("x-request-id", "request-id", "retry-after", "x-should-retry"),
        *(
            name
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens")
            for name in (f"x-ratelimit-{what}-{of}", f"anthropic-ratelimit-{of}-{what}")
        ),
    )
)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """An ASGI application around another one.

    Args:
        tracing: gets every request that has ended.
        asks_for_keys: whether requests need a key. :attr:`keys` is set when the file of keys is open.
        hosts: the names that a Host header may have. If it is empty, a server with keys takes all names, and
            one without keys takes the names of loopback.
        origins: the origins whose web pages may send requests, besides the server's own page.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None = None,
        *,
        asks_for_keys: bool,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self.app = app
        self.keys: KeyStore | None = None
        self.service: Any = None  # a gemlet.server.service.Service; None before the lifespan
        self._asks_for_keys = asks_for_keys
        self._metrics = metrics
        self._tracing = tracing
        self._hosts = {host.lower() for host in hosts or (() if asks_for_keys else _LOOPBACK)}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._calls: dict[str, Call] = {}  # the running calls, by the ids of their connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    def end_all(self) -> None:
        """Ends what connections wait for; they are told that the server stops."""
        for call in list(self._calls.values()):
            call.end(stopping())

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn keeps its own scope until the connection closes or sends another request.
        scope = dict(scope)
        call = Call(method=scope["method"][:16])
        call.put_into(scope)
        scope["app"] = self  # so that the router raises 404 and 405, and requests find the service

        unread = _body_length(scope)

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            if not message.get("more_body", False):
                unread = 0
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers = {"x-request-id": call.id, "x-content-type-options": "nosniff", **call.headers}
                if _dialect(scope) == _ANTHROPIC:
                    headers |= _of_anthropic(headers)
                if unread > _MOST_UNREAD or (unread and call.status == 408):
                    headers["connection"] = "close"
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in headers.items()),
                ]
            await send(message)

        inside = scope.get(INSIDE)
        try:
            if isinstance(inside, Inside):
                call.key, call.priority = inside.key, _BEHIND
            else:
                self._calls[call.id] = call
                _check_length(scope)
                self._check_host(scope)
                origin = self._foreign_origin(scope)
                if origin is not None:
                    call.headers |= _cors(origin)
                    if _is_preflight(scope):  # browsers send it without a key
                        await _send_preflight(sending)
                        return
                call.key = self._who(scope)
            await self.app(scope, receiving, sending)
        except ClientGone:
            call.status, call.problem = call.status or 499, "client_gone"
        except Exception as error:
            problem = problem_of(error)
            call.problem = problem.code or problem.kind
            if problem.status == 500:
                _log_failure(call, error)
            await call.close()
            forget_frames(error)
            if not call.status:
                await _send_problem(problem, scope, call, sending)
        finally:
            self._calls.pop(call.id, None)
            await call.close()
            self._metrics.count_response(call)
            log_call(call)
            if self._tracing is not None:
                call.traceparent = _header(scope, b"traceparent")
                self._tracing.record(call)

    def _check_host(self, scope: Scope) -> None:
        """Refuses malformed host names, and the name of a web page that was made to point to this machine."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or int(match[2] or 0) > 65535:
            raise Problem(400, "the request needs one well-formed Host header", code="bad_host")
        name = match[1].lower().rstrip(".")
        if self._hosts and name not in self._hosts:
            raise Problem(
                403,
                "this server does not answer to this host name; --allowed-hosts allows one more",
                kind="permission_error",
                code="bad_host",
            )

    def _foreign_origin(self, scope: Scope) -> str | None:
        """The origin of the web page that sends the request, if it is an allowed one. None if the request
        comes from the server's own page, or from no page. Raises :class:`Problem` for all other origins."""
        sent: list[str] = [v.decode("latin-1") for name, v in scope["headers"] if name == b"origin"]
        if not sent:
            return None
        host = next(value.decode("latin-1") for name, value in scope["headers"] if name == b"host")
        origin = sent[0].lower()
        if len(sent) == 1 and origin in self._origins:
            return sent[0]
        found = _ORIGIN.fullmatch(origin)
        if len(sent) == 1 and found is not None and found[1] == host.lower():
            return None
        raise Problem(
            403,
            "requests of web pages of this origin are refused; --allowed-origins allows one more",
            kind="permission_error",
            code="bad_origin",
        )

    def _who(self, scope: Scope) -> Key | None:
        is_open = (scope["method"], scope["path"]) in OPEN and not scope["query_string"]
        if not self._asks_for_keys or is_open:
            return None
        sent: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"authorization":
                kind, _, token = value.partition(b" ")
                sent.append(token.strip() if kind.lower() == b"bearer" else b"")
            elif name == b"x-api-key":
                sent.append(value)
        # The official client of Anthropic may send both headers.
        token = sent[0] if sent and len(set(sent)) == 1 else b""
        key = None if self.keys is None else self.keys.find(token)
        if key is None:
            raise Problem(
                401,
                "a valid key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key


def _check_length(scope: Scope) -> None:
    """Refuses a body with two lengths. A proxy in front may have used the other length. Then this server
    could read a part of the body as the next request of somebody else."""
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        raise Problem(
            400,
            "the request has Content-Length and Transfer-Encoding; send one of them",
            code="bad_length",
        )


def _body_length(scope: Scope) -> float:
    """Bytes of the body, as far as the head tells. Who expects to be asked for it may not send it."""
    found: dict[bytes, bytes] = dict(scope["headers"])
    if b"transfer-encoding" in found or b"expect" in found:
        return math.inf
    length = found.get(b"content-length", b"0")
    return int(length) if length.isdigit() else math.inf


def _header(scope: Scope, wanted: bytes) -> str:
    """The value of a header; "" if it was not sent exactly once."""
    found: list[bytes] = [value for name, value in scope["headers"] if name == wanted]
    return found[0].decode("latin-1") if len(found) == 1 else ""


def _cors(origin: str) -> dict[str, str]:
    """The headers that let a page of this origin read the answer. They do not allow cookies, which are not
    used as keys."""
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": _EXPOSED,
        "vary": "origin",
    }


def _dialect(scope: Scope) -> str:
    """A path of the dialect that the client speaks. That of models is OpenAI's and Anthropic's."""
    path: str = scope["path"]
    if path.startswith(_ANTHROPIC) or (
        path.startswith("/v1/models") and _header(scope, b"anthropic-version")
    ):
        return _ANTHROPIC
    return path


def _of_anthropic(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that Anthropic's clients read: the id of the request and the rest of its limits. Times are
    dates."""
    found = {"request-id": headers["x-request-id"]}
    for name, value in headers.items():
        if name.startswith("x-ratelimit-"):
            _, _, what, of = name.split("-")
            if what == "reset":
                at = datetime.now(timezone.utc) + timedelta(seconds=float(value.removesuffix("s")))
                value = at.isoformat(timespec="seconds").replace("+00:00", "Z")
            found[f"anthropic-ratelimit-{of}-{what}"] = value
    return found


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


async def _send_preflight(send: Send) -> None:
    headers = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": _ALLOWED,
        "access-control-max-age": "600",
        "content-length": "0",
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


async def _send_problem(problem: Problem, scope: Scope, call: Call, send: Send) -> None:
    body = as_line(as_json(problem, _dialect(scope), call.id))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    await send(
        {
            "type": "http.response.start",
            "status": problem.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _log_failure(call: Call, error: BaseException) -> None:
    """Logs the type of an error and where it happened. Its message is left out, because it may quote a
    prompt."""
    while isinstance(error, Problem) and error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    _log.error("failure", extra={"fields": {"id": call.id, "error": type(error).__name__, "where": where}})
