"""Function calls that models write in plain text, in the form of Python or of JSON::

    [weather(city="Oslo", days=[1, 2]), now()]
    {"name": "weather", "parameters": {"city": "Oslo"}}

:func:`parse_calls` reads both forms, and :func:`write_calls` writes the first form. Nothing is evaluated:
arguments are read as JSON values, in Python's or JSON's spelling.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.chat.tool_calls import MAX_BITS, MAX_DEPTH, MalformedCallError

__all__ = ["NAME", "parse_calls", "write_calls"]

NAME = r"[A-Za-z_][\w.-]*"
_SPACE = late_pattern(r"\s*")
_BETWEEN = late_pattern(r"[\s,;]*")
_NAME = late_pattern(NAME)
_HEAD = late_pattern(rf"({NAME})\s*\(")
_KEYWORD = late_pattern(r"([^\W\d]\w*)\s*=(?!=)")
_NUMBER = late_pattern(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WORD = late_pattern(r"[A-Za-z_]\w*")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_STRINGS = {
    quote: late_pattern(rf"{quote}((?:[^{quote[0]}\\]|\\.{more})*){quote}", re.DOTALL)
    for quote, more in (
        ('"""', r'|"(?!"")'),
        ("'''", r"|'(?!'')"),
        ('"', ""),
        ("'", ""),
    )
}
_ESCAPE = late_pattern(
    r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": "", "/": "/"}
_CALL_KEYS = ({"name", "parameters"}, {"name", "arguments"})
_IGNORED_KEYS = ("id", "type")


def parse_calls(text: str, parameters: Mapping[str, Sequence[str]]) -> list[tuple[str, dict[str, Any]]]:
    """Reads a text that consists only of calls. Returns ``(name, arguments)`` of each call.

    Args:
        text: one or more calls in the forms above, with or without brackets.
        parameters: the names of the parameters of each known function. Positional arguments get these names.

    Raises:
        MalformedCallError: ``text`` has anything but calls, or arguments are not JSON values.

    >>> parse_calls('[weather("Oslo", days=2)]', {"weather": ["city", "days"]})
    [('weather', {'city': 'Oslo', 'days': 2})]
    >>> parse_calls('{"name": "now", "parameters": {}}', {})
    [('now', {})]
    """
    reader = _Reader(text, parameters)
    calls: list[tuple[str, dict[str, Any]]] = []
    while reader.skip(_BETWEEN) < len(text):
        calls += reader.calls()
    if not calls:
        raise reader.wrong("a call")
    return calls


class _Reader:
    def __init__(self, text: str, parameters: Mapping[str, Sequence[str]]) -> None:
        self._text = text
        self._parameters = parameters
        self.at = 0

    def wrong(self, expected: str) -> MalformedCallError:
        rest = self._text[self.at : self.at + 40]
        return MalformedCallError(
            f"character {self.at} is {show(rest) if rest else 'the end'}; expected {expected}"
        )

    def skip(self, pattern: re.Pattern[str] = _SPACE) -> int:
        match = pattern.match(self._text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _take(self, character: str) -> bool:
        self.skip()
        if not self._text.startswith(character, self.at):
            return False
        self.at += len(character)
        return True

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self.at)
        self.at = match.end() if match else self.at
        return match

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """Reads one call, or several calls in brackets."""
        if not self._take("["):
            return [self._call()]
        found = []
        while not self._take("]"):
            found.append(self._call())
            if not self._take(",") and not self._text.startswith("]", self.skip()):
                raise self.wrong("a comma or ]")
        return found

    def _call(self, may_print: bool = True) -> tuple[str, dict[str, Any]]:
        self.skip()
        if self._text.startswith("{", self.at):
            return self._json_call()
        head = self._match(_HEAD)
        if head is None:
            raise self.wrong("the name of a function and (")
        name = head[1]
        prints = name == "print" and name not in self._parameters and may_print
        if prints and _HEAD.match(self._text, self.skip()):  # print(weather())
            call = self._call(may_print=False)
            if not self._take(")"):
                raise self.wrong(")")
            return call
        if name not in self._parameters and name.rpartition(".")[2] in self._parameters:
            name = name.rpartition(".")[2]  # module.name
        return name, self._arguments(name)

    def _json_call(self) -> tuple[str, dict[str, Any]]:
        value = self._value(1)
        found = {key: item for key, item in value.items() if key not in _IGNORED_KEYS}
        name, arguments = found.get("name"), found.get("parameters", found.get("arguments"))
        if found.keys() not in _CALL_KEYS or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.wrong("a name and its parameters before it")
        if not isinstance(arguments, dict):
            raise self.wrong("parameters that are an object before it")
        return name, arguments

    def _arguments(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        positions = iter(self._parameters.get(name, ()))
        while not self._take(")"):
            if self._take("**"):
                more = self._value(1)
                if not isinstance(more, dict):
                    raise self.wrong("an object before it")
                found |= more
            elif keyword := self._match(_KEYWORD):
                self.skip()
                found[keyword[1]] = self._value(1)
            else:
                value = self._value(1)
                position = next((each for each in positions if each not in found), None)
                if position is None:
                    raise self.wrong("an argument with its name before it")
                found[position] = value
            if not self._take(",") and not self._text.startswith(")", self.skip()):
                raise self.wrong("a comma or )")
        return found

    # --- values -------------------------------------------------------------------------------------------

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.wrong(f"at most {MAX_DEPTH} levels")
        if self._take("{"):
            return self._members(depth)
        for opening, closing in (("[", "]"), ("(", ")")):
            if self._take(opening):
                return self._items(closing, depth)
        text = self._string()
        if text is not None:
            return text
        if match := self._match(_NUMBER):
            return self._number(match[0])
        if (match := _WORD.match(self._text, self.at)) and match[0] in _WORDS:
            self.at = match.end()
            return _WORDS[match[0]]
        raise self.wrong("a value: a string in quotes, a number, True, False, None, [ or {")

    def _members(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._take("}"):
            self.skip()
            key = self._string()
            if key is None:
                raise self.wrong("a key in quotes")
            if not self._take(":"):
                raise self.wrong("a colon")
            found[key] = self._value(depth + 1)
            if not self._take(",") and not self._text.startswith("}", self.skip()):
                raise self.wrong("a comma or }")
        return found

    def _items(self, closing: str, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self._take(closing):
            found.append(self._value(depth + 1))
            if not self._take(",") and not self._text.startswith(closing, self.skip()):
                raise self.wrong(f"a comma or {closing}")
        return found

    def _string(self) -> str | None:
        quote = next((quote for quote in _STRINGS if self._text.startswith(quote, self.at)), None)
        if quote is None:
            return None
        match = self._match(_STRINGS[quote])
        if match is None:
            raise self.wrong("a string with its closing quote")
        text = _ESCAPE.sub(_unescaped, match[1])
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _number(self, word: str) -> int | float:
        try:
            value = float(word) if re.search(r"[.eE]", word) else int(word)
        except ValueError:
            raise self.wrong("a number of fewer digits before it") from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self.wrong("a number of fewer digits before it")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong("a finite number before it")
        return value


def _unescaped(match: re.Match[str]) -> str:
    four, eight, two, octal, other = match.groups()
    if other is not None:
        return _ESCAPES.get(other, other if other in "\"'\\" else match[0])
    code = int(octal, 8) if octal else int(four or eight or two, 16)
    return chr(code) if code < 0x110000 else "\ufffd"


# --- writing ------------------------------------------------------------------------------------------------


def write_calls(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Writes calls in Python's form. Each call is ``(name, arguments)``, and the arguments are JSON values.

    >>> write_calls([("weather", {"city": "Oslo", "now": True}), ("odd", {"a b": None})])
    '[weather(city="Oslo", now=True), odd(**{"a b": None})]'
    """
    return "[" + ", ".join(f"{name}({_written_arguments(arguments)})" for name, arguments in calls) + "]"


def _written_arguments(arguments: Mapping[str, Any]) -> str:
    if all(_KEYWORD.fullmatch(f"{key}=") for key in arguments):
        return ", ".join(f"{key}={_written(value)}" for key, value in arguments.items())
    return f"**{_written(dict(arguments))}"


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
