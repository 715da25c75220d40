"""The files of a batch: requests, a line each, and answers, which are appended as they come. What has an
answer is not asked again, however the process that asked was ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gemlet.base.text import show_argument
from gemlet.errors import ModelFileError, UnsupportedError
from gemlet.server.bodies import MOST_DEPTH, has_more_values, is_deeper

__all__ = [
    "ENDPOINTS",
    "WrongLineError",
    "answer_line",
    "answered",
    "checked_ids",
    "opened",
    "read_request",
    "requests",
]

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/decisions",
)
_MOST_LINE = 64 << 20  # bytes
_MOST_VALUES = 1 << 20  # brackets, commas and colons of a line
_MOST_ID = 512  # characters
_NAME = "batch_req_"  # begins the id of an answer
_BEGIN = f'{{"id": "{_NAME}'.encode()  # begins a line of the output

Shown = str | Path


class WrongLineError(ModelFileError):
    """A line is no request.

    Attributes:
        line: its number, from 1.
        problem: what is wrong with it.
    """

    def __init__(self, shown: Shown, line: int, problem: str) -> None:
        super().__init__(f"{shown}: line {line}{problem}")
        self.line = line
        self.problem = f"the line{problem}"


def requests(source: Shown, done: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
    """The requests in the file, except those in ``done``."""
    for number, line in _lines(source, _MOST_LINE):
        request = read_request(line, source, number, ENDPOINTS)
        if request["custom_id"] not in done:
            yield request


def checked_ids(
    source: Shown,
    *,
    endpoints: Collection[str] = ENDPOINTS,
    most: int | None = None,
    longest: int = _MOST_LINE,
) -> set[str]:
    """The names of all requests.

    Args:
        most: how many requests there may be.
        longest: how many bytes a line may have.

    Raises:
        WrongLineError: a line is no request, two have one name, or there are more than ``most``.
        ModelFileError: the file cannot be read.
    """
    found: set[str] = set()
    for number, line in _lines(source, longest):
        name = read_request(line, source, number, endpoints)["custom_id"]
        if name in found:
            raise WrongLineError(
                source, number, f": custom_id {show_argument(name)} stands in an earlier line, too"
            )
        if most is not None and len(found) == most:
            raise WrongLineError(source, number, f": a batch has at most {most} requests")
        found.add(name)
    return found


def _lines(source: Shown, longest: int) -> Iterator[tuple[int, bytes]]:
    try:
        with open(source, "rb") as file:
            number = 0
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise WrongLineError(source, number, f" is longer than {longest} bytes")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ModelFileError(f"{source}: cannot be read: {error.strerror or error}") from None


def read_request(line: bytes, source: Shown, number: int, endpoints: Collection[str]) -> Mapping[str, Any]:
    if has_more_values(line, _MOST_VALUES):
        raise WrongLineError(source, number, f" has more than {_MOST_VALUES} brackets, commas and colons")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WrongLineError(source, number, f" is no JSON: {error}") from None

    def wrong(name: str, expected: str) -> WrongLineError:
        got = show_argument(request.get(name))
        return WrongLineError(source, number, f": {name}: got {got}, expected {expected}")

    if not isinstance(request, dict):
        raise WrongLineError(source, number, f": expected an object, got {show_argument(request)}")
    if is_deeper(request, MOST_DEPTH + 1):  # one level is the line's own
        raise WrongLineError(source, number, f": its body is nested more than {MOST_DEPTH} levels deep")
    name = request.get("custom_id")
    if not isinstance(name, str) or not 1 <= len(name) <= _MOST_ID:
        raise wrong("custom_id", f"1 to {_MOST_ID} characters")
    if request.get("method", "POST") != "POST":
        raise wrong("method", "POST")
    url = request.get("url")
    if not isinstance(url, str) or url not in endpoints:
        raise wrong("url", ", ".join(endpoints))
    if not isinstance(request.get("body"), dict):
        raise wrong("body", "an object")
    return request


# --- answers ------------------------------------------------------------------------------------------------


def answer_line(
    custom_id: str, *, status: int = 0, request_id: str = "", body: object = None, error: object = None
) -> bytes:
    """The line of an answer; with ``error``, of a request that was not asked."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    found = {
        "id": f"{_NAME}{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response if error is None else None,
        "error": error,
    }
    # Half of a surrogate pair, which a custom_id may have, becomes JSON's escape.
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


@contextlib.contextmanager
def opened(output: Shown) -> Iterator[BinaryIO]:
    """The file of answers, for this process alone."""
    try:
        with open(output, "ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UnsupportedError(f"{output}: another process is writing it") from None
            yield file
    except OSError as error:
        raise ModelFileError(f"{output}: cannot be written: {error.strerror or error}") from None


def answered(file: BinaryIO, name: Shown) -> dict[str, bool]:
    """The requests that have an answer, and whether it is a good one. What a killed process wrote of a line
    is cut off. A file that has anything else stays as it is."""
    found: dict[str, bool] = {}
    file.seek(0)
    whole = 0
    rest = b""
    for number, line in enumerate(file, 1):
        answer: tuple[str, bool] | None
        if line.endswith(b"\n"):
            answer = _read_answer(line)
        else:  # it is ours if it begins as our lines do, as far as it goes
            answer = ("", False) if line[: len(_BEGIN)] == _BEGIN[: len(line)] else None
            rest = line
        if answer is None:
            problem = f"{name}: line {number} is no answer of a batch; name another file"
            raise ModelFileError(problem)
        if not rest:
            found[answer[0]] = answer[1]
            whole += len(line)
    if rest:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return found


def _read_answer(line: bytes) -> tuple[str, bool] | None:
    """The ``custom_id`` of a line that :func:`answer_line` may have written, and whether all went well; None
    for any other."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("response"), dict):
        return None
    name, custom_id = answer.get("id"), answer.get("custom_id")
    if not isinstance(name, str) or not name.startswith(_NAME) or not isinstance(custom_id, str):
        return None
    return custom_id, answer["response"].get("status_code") == 200
