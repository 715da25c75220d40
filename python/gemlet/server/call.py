"""The state of one HTTP request while it runs, for limits, metrics and the log: :class:`Call`."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.requests import Request

from gemlet.base.records import field, record

if TYPE_CHECKING:
    from gemlet.server.keys import Key
    from gemlet.server.problems import Problem

__all__ = ["Call", "call_of"]

_PLACE = "gemlet.call"


@record
class Call:
    """A request and its outcome. A call has no text from a prompt or a reply, so it is safe to log.

    Attributes:
        key: the key of the request; None if the server has no keys.
        priority: waiting requests with a higher priority begin first. The priority of batches is below 0.
        route: the route of the server, such as "/v1/files/{id}"; "" if no route has the path.
        traceparent: the ``traceparent`` header of the client, which names its tracing span.
        at_end: functions to call once, after the work has ended and before the answer ends.
        closers: functions to call when the request ends, to free its memory.
        cancels: functions that cancel the work for this request.
        ending: the problem that makes the server end the request early; None if there is none.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    started: float = field(default_factory=time.monotonic)
    key: Key | None = None
    priority: int = 0
    method: str = ""
    route: str = ""
    traceparent: str = ""
    status: int = 0
    model: str = ""
    prompt_tokens: int = 0
    audio_tokens: int = 0  # the tokens among prompt_tokens that stand for sound
    image_tokens: int = 0  # the tokens among prompt_tokens that stand for images
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None  # seconds from the start of the request
    gaps: array[float] = field(default_factory=lambda: array("f"))  # seconds between tokens of a reply
    prefill_seconds: float | None = None  # time of the forward passes up to the first token
    finish: str = ""
    problem: str = ""
    verdicts: list[str] = field(default_factory=list)  # verdicts of the content filter: place, rule, action
    headers: dict[str, str] = field(default_factory=dict)  # headers of the answer
    at_end: list[Callable[[Call], None]] = field(default_factory=list)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    cancels: list[Callable[[], None]] = field(default_factory=list)
    ending: Problem | None = None

    def settle(self) -> None:
        """Calls each function in :attr:`at_end` once."""
        actions, self.at_end = self.at_end, []
        for action in actions:
            action(self)

    async def close(self) -> None:
        """Calls the closers and then :meth:`settle`. A second call does nothing."""
        closers, self.closers = self.closers, []
        for close in closers:
            await close()
        self.settle()

    def end(self, problem: Problem) -> None:
        """Cancels the work for this request. The client gets ``problem`` as the error."""
        self.ending = problem
        for cancel in self.cancels:
            cancel()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def put_into(self, scope: object) -> None:
        scope[_PLACE] = self  # type: ignore[index]


def call_of(request: Request) -> Call:
    """Returns the call that :mod:`gemlet.server.guard` has put into the request."""
    call = request.scope[_PLACE]
    assert isinstance(call, Call)
    return call
