"""Reads Gemma 4's notation of a tool call: ``call:NAME{key:value,...}``.

The notation is like JSON, but keys have no quotes, and strings are between two quote tokens and have no
escapes. :func:`parse_call` also reads variants that models write, if they have only one possible meaning:
white space, strings and keys in JSON's quotes, a comma before a closing bracket, ``None``, ``True`` and
``False``. If :func:`parse_call` refuses a call with a mistake, :func:`gemlet.chat.loose_calls.repair_call`
may still read it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show

__all__ = ["MAX_BITS", "MAX_DEPTH", "QUOTE_SIGN", "CallReader", "MalformedCallError", "parse_call"]

QUOTE_SIGN = "\ud800"  # stands for the quote token: half a surrogate pair, which no decoded text contains
MAX_DEPTH = 100  # the most levels of objects and lists; many more would end in a RecursionError
MAX_BITS = 8192  # the most bits of an integer; Python refuses to print much larger integers

_SPACE = late_pattern(r"[ \t\r\n]*")
_HEAD = late_pattern(r"[ \t\r\n]*call:([^{}]+)\{")
_QUOTED = late_pattern(f"{QUOTE_SIGN}([^{QUOTE_SIGN}]*){QUOTE_SIGN}")
_JSON_STRING = late_pattern(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# A key in quotes other than those of JSON, which models also write.
_OTHER_QUOTES = late_pattern("'.+'|[\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb`].*", re.DOTALL)
_BARE = late_pattern(f'[^,:{{}}\\[\\]"{QUOTE_SIGN}]+')
_NUMBER = late_pattern(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class MalformedCallError(ValueError):
    """A call that cannot be read; the message says why."""


def parse_call(raw: str) -> tuple[str, dict[str, Any]]:
    """Reads the call ``raw``, in which :data:`QUOTE_SIGN` stands for the quote token. Returns ``(name,
    arguments)``.

    If a key appears twice, the last value counts, as in JSON.

    Raises:
        MalformedCallError: ``raw`` is not a call, or its arguments are incomplete or malformed.

    >>> parse_call(f"call:weather{{city:{QUOTE_SIGN}Oslo{QUOTE_SIGN},days:[1,2]}}")
    ('weather', {'city': 'Oslo', 'days': [1, 2]})
    """
    head = _HEAD.match(raw)
    name = head[1].strip().strip(QUOTE_SIGN + "\"'").strip(":") if head else ""
    # If the head has an open bracket, it is not only a name, but a name and the beginning of the arguments.
    if head is None or not name or QUOTE_SIGN in name or name.count("(") != name.count(")"):
        found = show(raw[:40].replace(QUOTE_SIGN, '<|"|>'))
        raise MalformedCallError(f"begins with {found}; expected call:NAME{{")
    reader = CallReader(raw, head.end())
    arguments = reader.members(1)
    reader.skip_space()
    if reader.at < len(raw):
        raise reader.wrong("the end of the call")
    return name, arguments


class CallReader:
    """Reads the arguments of a call, from the position ``at`` on.

    >>> CallReader("{a:1}", 1).members(1)
    {'a': 1}
    """

    _bare = _BARE  # a value without quotes

    def __init__(self, raw: str, at: int) -> None:
        self._raw = raw
        self.at = at

    def wrong(self, expected: str) -> MalformedCallError:
        rest = self._raw[self.at : self.at + 40].replace(QUOTE_SIGN, '<|"|>')
        found = show(rest) if rest else "the end"
        return MalformedCallError(f"character {self.at} is {found}; expected {expected}")

    def skip_space(self) -> None:
        match = _SPACE.match(self._raw, self.at)
        self.at = match.end() if match else self.at

    def _take(self, character: str) -> bool:
        self.skip_space()
        if not self._raw.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def _is_at(self, character: str) -> bool:
        """Whether ``character`` comes next. The caller has to skip white space before."""
        return self._raw.startswith(character, self.at)

    def members(self, depth: int) -> dict[str, Any]:
        """Reads ``key:value,...}``, after the opening brace."""
        if depth > MAX_DEPTH:
            raise self.wrong(f"at most {MAX_DEPTH} levels")
        found: dict[str, Any] = {}
        while not self._take("}"):
            key = self._key()
            if not self._take_colon():
                raise self.wrong("a colon")
            found[key] = self._value(depth)
            if not self._take(",") and not self._is_at("}"):
                raise self.wrong("a comma or }")
        return found

    def _take_colon(self) -> bool:
        return self._take(":")

    def _items(self, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise self.wrong(f"at most {MAX_DEPTH} levels")
        found: list[Any] = []
        while not self._take("]"):
            found.append(self._value(depth))
            if not self._take(",") and not self._is_at("]"):
                raise self.wrong("a comma or ]")
        return found

    def _string(self) -> str | None:
        """Reads a string in quote tokens or in JSON's quotes; None if the text does not begin with one."""
        self.skip_space()
        if match := _QUOTED.match(self._raw, self.at):
            self.at = match.end()
            return match[1]
        if match := _JSON_STRING.match(self._raw, self.at):
            text = self._unescaped(match[0])
            self.at = match.end()
            return text
        if self._raw.startswith((QUOTE_SIGN, '"'), self.at):
            raise self.wrong("a string with its closing quote")
        return None

    def _unescaped(self, quoted: str) -> str:
        """The text of a JSON string."""
        try:
            text = json.loads(quoted.replace(QUOTE_SIGN, '<|"|>'), strict=False)
        except ValueError:
            raise self.wrong("a string") from None
        return str(text).encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair

    def _key(self) -> str:
        text = self._string()
        if text is not None:
            return text
        match = _BARE.match(self._raw, self.at)
        key = "" if match is None else match[0].strip()
        if match is None or not key or _OTHER_QUOTES.fullmatch(key):
            raise self.wrong("a key")
        self.at = match.end()
        return key

    def _value(self, depth: int) -> Any:
        text = self._string()
        if text is not None:
            return text
        if self._take("{"):
            return self.members(depth + 1)
        if self._take("["):
            return self._items(depth + 1)
        return self._bare_value()

    def _bare_value(self) -> Any:
        match = self._bare.match(self._raw, self.at)
        value = self._word(match[0].strip() if match else "")
        self.at = match.end() if match else self.at
        return value

    def _word(self, word: str) -> Any:
        """The value of ``word``, a value without quotes."""
        if word in _WORDS:
            return _WORDS[word]
        if _NUMBER.fullmatch(word):
            return self._number(word)
        raise self.wrong("a value: a string in quotes, a number, true, false, null, { or [")

    def _number(self, word: str) -> int | float:
        parts = _NUMBER.fullmatch(word)
        try:
            value = int(word) if parts is not None and parts[1] is None and parts[2] is None else float(word)
        except ValueError:  # Python's limit on the digits of an integer
            raise self.wrong("a number of fewer digits") from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self.wrong("a number of fewer digits")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong("a finite number")
        return value
