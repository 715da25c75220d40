"""Reading JSON that nobody vouches for: size limit, strict UTF-8, no duplicate keys, no NaN, bounded nesting.

``json.loads`` alone keeps the last of two equal keys, accepts ``NaN`` and ``Infinity``, and lets deep nesting
end in a ``RecursionError``. Each of these is an error here, of the type the caller chose, naming the file.
:class:`Keys` then reads the object key by key, each with a type and a range.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from gemlet.errors import ConfigError, GemletError, ModelFileError

__all__ = ["Keys", "no_waiting", "parse_json_object", "read_json_list", "read_json_object", "show"]

MAX_JSON_BYTES = 10 * 1024 * 1024
MAX_END_IDS = 64


def show(value: object, limit: int = 80) -> str:
    """``repr(value)``, cut to about ``limit`` characters: what a file says enters messages escaped and short.

    >>> show("a" * 100, limit=12)
    "'aaa...aaaa'"
    """
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = limit
    short.maxlevel = 3
    text = short.repr(value)
    return text if len(text) <= 2 * limit else text[: 2 * limit] + "..."


def no_waiting(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` that a FIFO cannot hang; a regular file is not affected."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse_json_object(data: bytes, *, where: str, error: type[GemletError]) -> dict[str, Any]:
    """The JSON object in ``data``; ``error`` naming ``where`` for anything else.

    >>> parse_json_object(b'{"a": 1}', where="config.json", error=ModelFileError)
    {'a': 1}
    """
    value = _parse_json(data, where=where, error=error)
    if not isinstance(value, dict):
        raise error(f"{where}: holds a JSON {type(value).__name__}; expected an object")
    return value


def _parse_json(data: bytes, *, where: str, error: type[GemletError]) -> Any:
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise error(f"{where}: the key {show(key)} appears twice; expected each key once")
            seen[key] = value
        return seen

    def no_constant(name: str) -> Any:
        raise error(f"{where}: holds {name}, which is not JSON; expected a finite number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError:
        raise error(f"{where}: nested too deeply; expected a flat JSON object") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 at byte {problem.start}; expected JSON text in UTF-8") from None
    except ValueError as problem:  # JSONDecodeError, and the interpreter's limit on the digits of an integer
        raise error(f"{where}: not valid JSON: {problem}") from None


def read_json_object(
    path: str | os.PathLike[str], *, error: type[GemletError], max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Raises :class:`ModelFileError` when the file cannot be read or is larger than ``max_bytes``, ``error``
    when what it holds is not a JSON object.
    """
    where = os.fspath(path)
    return parse_json_object(read_file(where, max_bytes), where=where, error=error)


def read_json_list(path: str | os.PathLike[str], *, error: type[GemletError]) -> list[Any]:
    """The JSON list in the file ``path``; raises as :func:`read_json_object` does."""
    where = os.fspath(path)
    value = _parse_json(read_file(where, MAX_JSON_BYTES), where=where, error=error)
    if not isinstance(value, list):
        raise error(f"{where}: holds a JSON {type(value).__name__}; expected a list")
    return value


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """What is in the file ``path``. Raises :class:`ModelFileError` when it cannot be read or is larger than
    ``max_bytes``.
    """
    where = os.fspath(path)
    try:
        with open(where, "rb", opener=no_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{where}: not a regular file")
            # One more than allowed, as it may grow; read() takes memory for all that it is asked.
            data = file.read(status.st_size + 1) if status.st_size <= max_bytes else None
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
        if isinstance(problem, ModelFileError):
            raise
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise ModelFileError(f"{where}: cannot be read: {reason}") from None
    if data is None or len(data) > max_bytes:
        raise ModelFileError(f"{where}: larger than {max_bytes} bytes; expected a small JSON file")
    return data


class Keys:
    """One JSON object with its place in the file: typed, range-checked reads whose errors name the key."""

    def __init__(
        self, raw: Mapping[str, Any], where: str, prefix: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.raw = raw
        self.where = where
        self.prefix = prefix
        self.defaults = {} if defaults is None else defaults

    def label(self, key: str) -> str:
        return f"{self.where}: {self.prefix}{key}"

    def wrong(self, key: str, expected: str) -> ConfigError:
        got = f"is {show(self.get(key))}" if key in self.raw else "is missing"
        return ConfigError(f"{self.label(key)} {got}; expected {expected}")

    def get(self, key: str) -> Any:
        return self.raw.get(key, self.defaults.get(key))

    def refuse_unknown(self, ignored: frozenset[str], fixed: Mapping[str, tuple[Any, ...]]) -> None:
        """An error for a key neither read nor ignored, and for one of ``fixed`` with another value."""
        for key, value in self.raw.items():
            if key in fixed:
                # type() too: 0 == False and 1.0 == 1 in Python
                if not any(type(value) is type(choice) and value == choice for choice in fixed[key]):
                    supported = " or ".join(show(c) for c in fixed[key])
                    raise self.wrong(key, f"{supported} (gemlet supports nothing else)")
            elif key not in self.defaults and key not in ignored:
                raise ConfigError(
                    f"{self.where}: unknown key {show(self.prefix + key)} (value {show(value)}); expected "
                    "only keys gemlet knows, because any other may change what the model computes"
                )

    def integer(self, key: str, limit: int, low: int = 1) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= limit:
            raise self.wrong(key, f"an integer from {low} to {limit}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def cap(self, key: str) -> float:
        """A soft cap; 0.0 for null, which means none."""
        return 0.0 if self.get(key) is None else self.number(key, 1e-3, 1e6)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not True and value is not False:
            raise self.wrong(key, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object or null")
        return value

    def token_id(self, key: str, vocab_size: int) -> int | None:
        value = self.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise self.wrong(key, f"a token id from 0 to {vocab_size - 1}, or null")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One id, a list of ids, or null for none."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if len(ids) > MAX_END_IDS or any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
            raise self.wrong(key, f"up to {MAX_END_IDS} token ids from 0 to {vocab_size - 1}")
        return tuple(ids)
