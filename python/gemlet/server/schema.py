"""Checks the fields of requests: kinds of values, and tables of fields.

A table maps the name of a field to its kind. A kind checks a value, and describes itself as a JSON schema for
the published OpenAPI document. :class:`Ignored` is the kind of fields that change no answer, and
:class:`Refused` is the kind of fields that gemlet does not support. A field that is not in the table is
refused, unless its value says nothing (null, false, "", [], {}) or the server was told to ignore such fields.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.names import not_known
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.generation.grammar_text import MOST_BYTES
from gemlet.server.problems import Problem

__all__ = [
    "Anything",
    "Either",
    "Flag",
    "Ignored",
    "Integer",
    "Kind",
    "ListOf",
    "Number",
    "Object",
    "OneOf",
    "Refused",
    "Schema",
    "Text",
    "read",
    "says_nothing",
]


def wrong(where: str, value: object, expected: str) -> Problem:
    return Problem(400, f"{where}: got {show(value)}, expected {expected}", param=where)


def says_nothing(value: object) -> bool:
    """Whether a value is null, false, "", [] or {}. Clients send these for fields that they do not use."""
    return value is None or value is False or value in ("", [], {})


class _NoUnicode(Problem):
    """A text has half of a surrogate pair, but is valid otherwise."""


class Kind(ABC):
    """The values that a field may have."""

    @abstractmethod
    def check(self, value: Any, where: str) -> Any:
        """Returns ``value`` as the server uses it. Raises :class:`Problem`, which names ``where``."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The JSON schema."""


@record(frozen=True)
class Text(Kind):
    """A string of valid Unicode, with ``least`` to ``most`` characters."""

    most: int = 1 << 25
    least: int = 0

    def check(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not self.least <= len(value) <= self.most:
            raise wrong(where, value, f"a string of {self.least} to {self.most} characters")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise _NoUnicode(
                    400, f"{where}: got half of a surrogate pair, expected valid Unicode", param=where
                ) from None
        return value

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.least, "maxLength": self.most}


@record(frozen=True)
class Integer(Kind):
    low: int
    high: int

    def check(self, value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():  # 64.0, as some clients write integers
            value = int(value)
        if type(value) is not int or not self.low <= value <= self.high:
            raise wrong(where, value, f"an integer from {self.low} to {self.high}")
        return value

    def has_all(self, values: list[Any]) -> bool:
        """Whether all values are integers in the range. It is fast, because it checks them all at once.

        >>> Integer(0, 9).has_all([1, 9]), Integer(0, 9).has_all([1, True])
        (True, False)
        """
        return set(map(type, values)) == {int} and self.low <= min(values) and max(values) <= self.high

    def describe(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@record(frozen=True)
class Number(Kind):
    low: float
    high: float

    def check(self, value: Any, where: str) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high or not math.isfinite(value):
            raise wrong(where, value, f"a number from {self.low:g} to {self.high:g}")
        return float(value)

    def describe(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@record(frozen=True)
class Flag(Kind):
    def check(self, value: Any, where: str) -> bool:
        if value is not True and value is not False:
            raise wrong(where, value, "true or false")
        return value

    def describe(self) -> dict[str, Any]:
        return {"type": "boolean"}


class OneOf(Kind):
    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def check(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise wrong(where, value, f"one of {', '.join(self.choices)}")
        return value

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}


@record(frozen=True)
class ListOf(Kind):
    item: Kind
    most: int
    least: int = 0

    def check(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            found = f"a list of {len(value)}" if isinstance(value, list) else show(value)
            raise Problem(
                400, f"{where}: got {found}, expected a list of {self.least} to {self.most}", param=where
            )
        if isinstance(self.item, Integer) and self.item.has_all(value):  # millions of token ids
            return value
        return [self.item.check(item, f"{where}[{i}]") for i, item in enumerate(value)]

    def describe(self) -> dict[str, Any]:
        return {
            "type": "array",
            "items": self.item.describe(),
            "minItems": self.least,
            "maxItems": self.most,
        }


@record(frozen=True)
class Object(Kind):
    """An object with the ``fields``. Other fields are refused."""

    fields: Mapping[str, Kind]
    required: Sequence[str] = ()

    def check(self, value: Any, where: str) -> dict[str, Any]:
        return read(value, self.fields, self.required, where=where)

    def describe(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {name: kind.describe() for name, kind in self.fields.items()},
            "required": list(self.required),
            "additionalProperties": False,
        }


class Either(Kind):
    """A value of one of the ``kinds``; the first that takes it is used. ``expected`` describes them in
    words."""

    def __init__(self, expected: str, *kinds: Kind) -> None:
        self.expected = expected
        self.kinds = kinds

    def check(self, value: Any, where: str) -> Any:
        for kind in self.kinds:
            try:
                return kind.check(value, where)
            except _NoUnicode:
                raise
            except Problem:
                continue
        raise wrong(where, value, self.expected)

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [kind.describe() for kind in self.kinds]}


@record(frozen=True)
class Anything(Kind):
    """A value that is checked later, by the code that reads it. Only the limit on bodies bounds its size."""

    what: type = object

    def check(self, value: Any, where: str) -> Any:
        if not isinstance(value, self.what):
            raise wrong(where, value, "an object")
        return value

    def describe(self) -> dict[str, Any]:
        return {"type": "object"} if self.what is dict else {}


class Schema(Kind):
    """A JSON schema, as an object of a limited length. The library checks what the schema says."""

    def check(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "a JSON schema, an object")
        length = len(json.dumps(value))
        if length > MOST_BYTES:
            raise Problem(
                400, f"{where}: the schema has {length} bytes, expected at most {MOST_BYTES}", param=where
            )
        return value

    def describe(self) -> dict[str, Any]:
        return {"type": "object"}


class Ignored(Kind):
    """A field that changes no answer."""

    def check(self, value: Any, where: str) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"description": "accepted, and changes nothing"}


class Refused(Kind):
    """A field that gemlet does not support. It may have one of the values ``unless``, which change nothing.
    Programs recognize the refusal by its ``code``."""

    def __init__(self, why: str, *unless: Any, code: str = "unsupported") -> None:
        self.why = why
        self.unless = unless
        self.code = code

    def check(self, value: Any, where: str) -> None:
        if says_nothing(value) or any(type(value) is type(x) and value == x for x in self.unless):
            return None
        raise Problem(400, f"{where}: {self.why}", param=where, code=self.code)

    def describe(self) -> dict[str, Any]:
        return {"description": f"not supported: {self.why}", "enum": [None, *self.unless]}


def read(
    body: Any,
    table: Mapping[str, Kind],
    required: Sequence[str] = (),
    *,
    where: str = "",
    ignore_unknown: bool = False,
) -> dict[str, Any]:
    """Checks ``body``, and returns its fields that are in the table and are not null.

    >>> read({"seed": 7, "user": None}, {"seed": Integer(0, 9)})
    {'seed': 7}
    >>> read({"sed": 7}, {"seed": Integer(0, 9)})
    Traceback (most recent call last):
    gemlet.server.problems.Problem: sed is not a field of this request; did you mean seed? Known are seed
    """
    if not isinstance(body, dict):
        raise wrong(where or "body", body, "a JSON object")
    found: dict[str, Any] = {}
    for name, value in body.items():
        place = f"{where}.{name[:100]}" if where else name[:100]
        kind = table.get(name)
        if kind is None:
            if not ignore_unknown and not says_nothing(value):
                known = [n for n, k in table.items() if not isinstance(k, Ignored | Refused)]
                raise Problem(
                    400,
                    f"{place} is not a field of {where or 'this request'}{not_known(name, known)}",
                    param=place,
                    code="unknown_field",
                )
        elif value is not None:
            checked = kind.check(value, place)
            if checked is not None:
                found[name] = checked
    for name in required:
        if name not in found:
            place = f"{where}.{name}" if where else name
            raise Problem(400, f"{place} is missing", param=place, code="missing_field")
    return found
