"""The files of a batch. One has a request on each line, and answers are appended to the other as they come.
A request that has an answer is not asked again, in whatever way the earlier process ended."""

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
_NAME = "batch_req_"  # the beginning of an answer's id
_BEGIN = f'{{"id": "{_NAME}'.encode()  # the beginning of each line of the output

Shown = str | Path


class WrongLineError(ModelFileError):
    """A line is not a valid request.

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
    """Checks all requests, and returns their ``custom_id``.

    Args:
        most: how many requests there may be.
        longest: how many bytes a line may have.

    Raises:
        WrongLineError: a line is not a valid request, two requests have the same ``custom_id``, or there are
            more than ``most``.
        ModelFileError: the file cannot be read.
    """
    found: set[str] = set()
    for number, line in _lines(source, longest):
        name = read_request(line, source, number, endpoints)["custom_id"]
        if name in found:
            raise WrongLineError(
                source, number, f": an earlier line has the custom_id {show_argument(name)}, too"
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
    too_deep = f" is nested too deep; its body may have at most {MOST_DEPTH} levels"
    try:
        request = json.loads(line)
    except RecursionError:
        raise WrongLineError(source, number, too_deep) from None
    except ValueError as error:
        raise WrongLineError(source, number, f" is not JSON: {error}") from None

    def wrong(name: str, expected: str) -> WrongLineError:
        got = show_argument(request.get(name))
        return WrongLineError(source, number, f": {name}: got {got}, expected {expected}")

    if not isinstance(request, dict):
        raise WrongLineError(source, number, f": expected an object, got {show_argument(request)}")
    if is_deeper(request, MOST_DEPTH + 1):  # the line itself is one level more
        raise WrongLineError(source, number, too_deep)
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
    """The line of an answer. ``error`` says why a request was not asked."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    found = {
        "id": f"{_NAME}{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response if error is None else None,
        "error": error,
    }
    # A custom_id may have half of a surrogate pair, which becomes JSON's escape.
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


@contextlib.contextmanager
def opened(output: Shown) -> Iterator[BinaryIO]:
    """Opens the file of answers, and locks it against other processes."""
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
    """The ``custom_id`` of each request that has an answer, and whether the answer is a good one. If a killed
    process left the last line unfinished, that line is cut off. A file that has anything else stays as it is,
    and raises :class:`ModelFileError`."""
    found: dict[str, bool] = {}
    file.seek(0)
    whole = 0
    rest = b""
    for number, line in enumerate(file, 1):
        answer: tuple[str, bool] | None
        if line.endswith(b"\n"):
            answer = _read_answer(line)
        else:  # an unfinished line is ours if it begins as our lines do, as far as it goes
            answer = ("", False) if line[: len(_BEGIN)] == _BEGIN[: len(line)] else None
            rest = line
        if answer is None:
            problem = f"{name}: line {number} is not an answer of a batch; name another file"
            raise ModelFileError(problem)
        if not rest:
            found[answer[0]] = answer[1]
            whole += len(line)
    if rest:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return found


def _read_answer(line: bytes) -> tuple[str, bool] | None:
    """The ``custom_id`` of a line and whether it is a good answer; None if :func:`answer_line` cannot have
    written the line."""
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
