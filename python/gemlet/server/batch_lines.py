"""Reads and writes the two files of a batch, for ``gemlet batch`` and for the server. The input file has one
request on each line. Each answer is appended to the output file as soon as it is ready. A later run skips the
requests that have an answer, even if the earlier process was killed."""

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
_MOST_LINE = 64 << 20  # the longest line, in bytes
_MOST_VALUES = 1 << 20  # the most brackets, commas and colons in a line
_MOST_ID = 512  # the longest custom_id, in characters
_NAME = "batch_req_"  # the beginning of an answer's id
_BEGIN = f'{{"id": "{_NAME}'.encode()  # the beginning of each line of the output

Shown = str | Path


class WrongLineError(ModelFileError):
    """A line is not a valid request.

    Attributes:
        line: the number of the line. The first line is 1.
        problem: a message that says why the line is wrong, without the name of the file.
    """

    def __init__(self, shown: Shown, line: int, problem: str) -> None:
        super().__init__(f"{shown}: line {line}{problem}")
        self.line = line
        self.problem = f"the line{problem}"


def requests(source: Shown, done: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
    """Yields the requests in the file whose ``custom_id`` is not in ``done``."""
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
    """Checks all requests, and returns the set of their ``custom_id``.

    Args:
        most: the most requests that the file may have; None for no limit.
        longest: the most bytes that a line may have.

    Raises:
        WrongLineError: a line is not a valid request, two requests have the same ``custom_id``, or the file
            has more than ``most`` requests.
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
    if is_deeper(request, MOST_DEPTH + 1):  # the body is one level below the line
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
    """Returns the output line for a request. If the request was not computed, ``error`` says why."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    found = {
        "id": f"{_NAME}{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response if error is None else None,
        "error": error,
    }
    # A custom_id may have half of a surrogate pair. UTF-8 cannot encode it, so it becomes a JSON escape.
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


@contextlib.contextmanager
def opened(output: Shown) -> Iterator[BinaryIO]:
    """Opens the output file, and locks it against other processes."""
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
    """Returns the ``custom_id`` of each request that has an answer, and whether the answer is good (status
    200). If a killed process left the last line unfinished, this function removes that line. If the file has
    any other line that is not an answer, it raises :class:`ModelFileError` and does not change the file."""
    found: dict[str, bool] = {}
    file.seek(0)
    whole = 0
    rest = b""
    for number, line in enumerate(file, 1):
        answer: tuple[str, bool] | None
        if line.endswith(b"\n"):
            answer = _read_answer(line)
        else:  # unfinished: it must match the beginning of an answer as far as it goes
            answer = ("", False) if line[: len(_BEGIN)] == _BEGIN[: len(line)] else None
            rest = line
        if answer is None:
            got = show_argument(line[:40].decode("utf-8", "replace"))
            problem = (
                f"{name}: line {number}: got {got}, expected an answer of a batch; choose another output"
            )
            raise ModelFileError(problem)
        if not rest:
            found[answer[0]] = answer[1]
            whole += len(line)
    if rest:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return found


def _read_answer(line: bytes) -> tuple[str, bool] | None:
    """Returns the ``custom_id`` of an answer and whether its status is 200. Returns None if the line does not
    come from :func:`answer_line`."""
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
