"""The errors that clients get: :class:`Problem`, and its form in each dialect."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from gemlet.base.patterns import late_pattern
from gemlet.errors import (
    ContextLengthError,
    InvalidRequestError,
    MemoryLimitError,
    ModelClosedError,
    TokenizerError,
    UnsupportedError,
)

__all__ = [
    "NO_RETRY",
    "ClientGone",
    "Problem",
    "as_json",
    "forget_frames",
    "key_revoked",
    "problem_of",
    "stopping",
]


class ClientGone(Exception):  # noqa: N818  an event, not an error
    """The client has closed the connection, so no answer can be sent."""


class Problem(Exception):  # noqa: N818  the error that clients see
    """An error as an answer.

    Attributes:
        status: the status of HTTP.
        kind, param, code: ``type``, ``param`` and ``code`` in OpenAI's form.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


_OVERLOADED = {"Retry-After": "1"}
NO_RETRY = {"x-should-retry": "false"}  # official clients would try again, which does not help
_FUNCTIONS = ("chat", "embed", "generate")  # functions that not every model has


def problem_of(
    error: BaseException, *, hidden: str = "", shown: str = "", names: Mapping[str, str] = {}
) -> Problem:
    """Makes the problem that tells a client about ``error``.

    Args:
        hidden, shown: messages of the library may name the source of the model, which may be a path of this
            machine. ``shown`` replaces ``hidden`` in them.
        names: messages of the library name its arguments. This maps them to the fields of the request. If the
            name of an argument ends with ``[]``, its field is a list with the same items, and the message
            names the item. Otherwise the message names the whole field.

    >>> from gemlet.errors import InvalidRequestError
    >>> problem_of(InvalidRequestError("texts[1]: too odd"), names={"texts[]": "input"}).message
    'input[1]: too odd'
    >>> problem_of(InvalidRequestError("messages[3].content is 5"), names={"messages": "input"}).param
    'input'
    >>> problem_of(ContextLengthError("prompt: too long")).code
    'context_length_exceeded'
    >>> problem_of(UnsupportedError("chat: small makes embeddings; use embed()")).message
    'small makes embeddings'
    >>> from gemlet.errors import ModelFileError
    >>> problem_of(ModelFileError("/secret/path: has changed")).message
    'the server failed; see the log of the server'
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):  # the router raised it
        said = {404: "there is no such path here", 405: "this path has other methods"}.get(error.status_code)
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        return Problem(error.status_code, said or error.detail, kind=kind, headers=error.headers)
    message = _in_fields(str(error).replace(hidden, shown) if hidden else str(error), names)
    if isinstance(error, ContextLengthError):
        return Problem(400, message, code="context_length_exceeded")
    if isinstance(error, InvalidRequestError | TokenizerError):
        return Problem(400, message, param=_argument(message))
    if isinstance(error, UnsupportedError):
        function, _, cannot = message.partition(": ")
        if function in _FUNCTIONS:  # clients do not call functions of the library
            return Problem(400, cannot.partition("; use ")[0], param="model", code="unsupported")
        return Problem(400, message, param=_argument(message), code="unsupported")
    if isinstance(error, MemoryLimitError):
        return Problem(503, message, kind="overloaded_error", code="overloaded", headers=_OVERLOADED)
    if isinstance(error, ModelClosedError):
        return stopping()
    if isinstance(error, sqlite3.OperationalError) and "locked" in message:
        return Problem(
            503,
            "another process has locked a file of the server; try again",
            kind="overloaded_error",
            code="overloaded",
            headers=_OVERLOADED,
        )
    if _is_full(error):
        return Problem(507, "the server has no room left on its disk", kind="server_error", headers=NO_RETRY)
    return Problem(500, "the server failed; see the log of the server", kind="server_error")


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full, or its user may not use more of it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)  # Python 3.10 has no codes


def key_revoked() -> Problem:
    return Problem(401, "the key was revoked", kind="authentication_error", code="invalid_api_key")


def stopping() -> Problem:
    return Problem(503, "the server is stopping", kind="unavailable_error", headers=_OVERLOADED)


def forget_frames(error: BaseException | None) -> None:
    """Removes the traceback of an error that has been handled, and of the errors that caused it. The frames
    of the traceback keep the whole request, and one of them often keeps the error, which is a cycle. Python
    would free the cycle only when there are many new objects, however large these are."""
    while error is not None:
        behind = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = behind


def _in_fields(message: str, names: Mapping[str, str]) -> str:
    """Replaces the argument of the library with which a message begins by the field of the request."""
    found = _BEGINNING.match(message) if names else None
    if found is None:
        return message
    name, rest = found[1], message[found.end() :]
    if f"{name}[]" in names:
        return names[f"{name}[]"] + message[found.end(1) :]
    if name not in names:
        return message
    return names[name] + (rest if rest.startswith(":") else f": a part{rest}")


_BEGINNING = late_pattern(r"([a-z_]{1,40})(?:\[\d+\]|\.[a-z_]{1,40})*(?=:| )")
_PLACE = late_pattern(r"([a-z_]{1,40})(?:((?:\[\d+\]|\.[a-z_]{1,40})+)(?=:| )|(?=:))")


def _argument(message: str) -> str | None:
    """The argument, or the place in one, with which a message of the library begins.

    >>> _argument("temperature: got -1"), _argument("messages[0].content is 5"), _argument("it is late")
    ('temperature', 'messages[0].content', None)
    """
    found = _PLACE.match(message)
    return None if found is None else found[1] + (found[2] or "")


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def as_json(problem: Problem, path: str, request_id: str) -> dict[str, Any]:
    """``problem`` in the form of the dialect that the path belongs to.

    >>> as_json(Problem(404, "no such model"), "/api/chat", "req_1")
    {'error': 'no such model'}
    """
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC.get(
            problem.status, "api_error" if problem.status >= 500 else "invalid_request_error"
        )
        said: dict[str, Any] = {"type": kind, "message": problem.message}
        if problem.code is not None:
            said["details"] = {"error_code": problem.code}
        return {"type": "error", "error": said, "request_id": request_id}
    if path.startswith("/api/"):
        return {"error": problem.message}
    return {
        "error": {
            "message": problem.message,
            "type": problem.kind,
            "param": problem.param,
            "code": problem.code,
        }
    }
