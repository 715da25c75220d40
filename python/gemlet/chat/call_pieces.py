"""Writes the arguments of a call as JSON while the model is still writing the call: :class:`PieceWriter`.

The input is Gemma 4's notation (:mod:`.tool_calls`). The output is JSON, given as soon as it is certain.
Keys, numbers and words are given when they are complete, strings as they grow. If the model departs from the
notation, the rest of the JSON is given at the end of the call. For this, :mod:`.loose_calls` must be able to
read the call.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.chat.tool_calls import MAX_DEPTH, QUOTE_SIGN, CallReader, MalformedCallError

__all__ = ["PieceWriter"]

_HEAD = late_pattern(r"[ \t\r\n]*call:([\w.-]+)\{")
_SPACE = " \t\r\n"
_KEY = late_pattern(f'[^,:{{}}\\[\\]"{QUOTE_SIGN}]+')
_BARE = late_pattern(f'[^,:{{}}\\[\\]"{QUOTE_SIGN}]+(?=[,}}\\]])')
_QUOTED = late_pattern(f"{QUOTE_SIGN}([^{QUOTE_SIGN}]*){QUOTE_SIGN}")
_JSON_STRING = late_pattern(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# The beginning of an unfinished string that later text cannot change. A string that began with the quote
# token may end with another quote if the text after that quote can follow a value.
_BEGUN = late_pattern(f'[{QUOTE_SIGN}"]([^"\'\\\\{QUOTE_SIGN}]*)')
# A string that began with the quote token and contains another quote that cannot end it. From there on, only
# the quote token can end the string (``_is_free``).
_FREE = late_pattern(f"{QUOTE_SIGN}[^\"'{QUOTE_SIGN}]*[\"']\\s*[^\\s,:=}})\\]{QUOTE_SIGN}]")
_BEGUN_FREE = late_pattern(f"{QUOTE_SIGN}([^{QUOTE_SIGN}]*)")
_LONGEST_WORD = 500  # characters of a name, a key or a value without quotes
_LONGEST_HELD = 5000  # characters of a string that are held back because later text may change them
_CLOSING = {"{": "}", "[": "]"}


class PieceWriter:
    """Takes the text of a call in pieces and gives the arguments as JSON. :meth:`push` does not give the last
    bracket, because later text may still make the call unreadable. ``name`` is the name of the function, and
    None until it is known.

    >>> writer = PieceWriter()
    >>> writer.push("call:weather{city:"), writer.name
    ('{"city": ', 'weather')
    >>> writer.push(f"{QUOTE_SIGN}Os"), writer.push(f"lo{QUOTE_SIGN},days:[1,2"), writer.push("]}")
    ('"Os', 'lo", "days": [1', ', 2]')
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._text = ""  # the text of the call that has not been read yet
        self._written: list[str] = []
        self._open: list[str] = []  # the closing brackets that are still expected
        self._expects = "head"  # or "key", "value", "comma", "string"
        # Whether only the last bracket is missing, or the text departs from the notation.
        self._is_over = False
        self._first = True  # whether the next item is the first in its object or list
        self._is_free = False  # whether only the quote token can end the string that is being written

    def push(self, text: str) -> str:
        """Takes text of the call and returns the JSON that it makes certain."""
        if self._is_over:
            return ""
        self._text += text
        is_held = self._expects == "string" and not self._is_free and len(self._text) > 300
        if is_held and not set(text) & set(f'{QUOTE_SIGN}"'):  # the string does not end in this text
            return ""
        before = len(self._written)
        try:
            while self._step():
                pass
            if len(self._text) > (_LONGEST_HELD if self._expects == "string" else _LONGEST_WORD):
                self._is_over = True  # finish() gives the rest
        except MalformedCallError:
            self._is_over = True
        return "".join(self._written[before:])

    def finish(self, arguments: dict[str, Any]) -> str:
        """The rest of the JSON of ``arguments``, which are the arguments of the complete call.

        >>> writer = PieceWriter()
        >>> writer.push("call:f{a:1,a:[2,b='x'"), writer.finish({"a": 3})
        ('{"a": 1, "a": [2', '], "a": 3}')
        """
        whole, written = json.dumps(arguments, ensure_ascii=False), "".join(self._written)
        if whole.startswith(written):
            return whole[len(written) :]
        # The JSON written so far is not the beginning of the whole JSON, because a key appears twice. The
        # last value of the key counts.
        ends = self._end_of_part() + "".join(reversed(self._open[1:]))
        found = json.loads(written + ends + "}")
        rest = {
            key: value
            for key, value in arguments.items()
            if key not in found or json.dumps(found[key]) != json.dumps(value)  # in Python, True is 1
        }
        more = json.dumps(rest, ensure_ascii=False)[1:]
        return ends + (", " if rest else "") + more

    def _end_of_part(self) -> str:
        """The text that ends the string or the member that is being written."""
        if self._expects == "string":
            return '"'
        return "null" if self._expects == "value" and self._open[-1] == "}" else ""

    def _step(self) -> bool:
        """Reads the next part of the call. Returns False if this needs more text."""
        if self._expects == "head":
            head = _HEAD.match(self._text)
            if head is None:
                return False
            self.name = head[1]
            self._take(head.end())
            self._begin("{")
            return True
        if self._expects == "string":
            return self._string()
        self._text = self._text.lstrip(_SPACE)
        if not self._text or self._is_over:
            return False
        return {"key": self._key, "value": self._value, "comma": self._comma}[self._expects]()

    def _take(self, count: int) -> None:
        self._text = self._text[count:]

    def _begin(self, bracket: str) -> None:
        if len(self._open) > MAX_DEPTH:
            raise MalformedCallError
        self._write(bracket)
        self._open.append(_CLOSING[bracket])
        self._first = True
        self._expects = "key" if bracket == "{" else "value"

    def _write(self, json_text: str) -> None:
        self._written.append(json_text)

    def _separate(self) -> None:
        if not self._first:
            self._write(", ")
        self._first = False

    def _close(self) -> bool:
        """Reads the closing bracket of the object or list. Returns False if the text has no such bracket
        here."""
        if not self._text.startswith(self._open[-1]):
            return False
        self._take(1)
        self._first = False
        if len(self._open) == 1:
            self._is_over, self._expects = True, "comma"
            return True
        self._write(self._open.pop())
        self._expects = "comma"
        return True

    def _key(self) -> bool:
        if self._close():
            return True
        match = _QUOTED.match(self._text) or _JSON_STRING.match(self._text)
        if match is None and self._text[0] in f'{QUOTE_SIGN}"':
            return False
        match = match or _KEY.match(self._text)
        if match is None:
            raise MalformedCallError
        behind = self._text[match.end() :].lstrip(_SPACE)
        if not behind:
            return False
        # finish() gives a member ``key=value``, and one with a key whose closing quote may still be missing.
        if not behind.startswith(":") or "=" in match[0] or match[0].startswith("'"):
            raise MalformedCallError
        key = CallReader(match[0] + ":0}", 0).members(1)
        (name,) = key
        self._text = behind[1:]
        self._separate()
        self._write(json.dumps(name, ensure_ascii=False) + ": ")
        self._expects = "value"
        return True

    def _value(self) -> bool:
        is_item = self._open[-1] == "]"
        if is_item and self._close():
            return True
        first = self._text[0]
        bare = _BARE.match(self._text)
        if first not in f'{QUOTE_SIGN}"{{[' and bare is None:
            if re.search('[,:{}\\[\\]"' + QUOTE_SIGN + "]", self._text):
                raise MalformedCallError
            return False
        value = CallReader("a:" + bare[0] + "}", 0).members(1)["a"] if bare else None
        if is_item:
            self._separate()
        if bare:
            self._write(json.dumps(value))
            self._take(bare.end())
            self._expects = "comma"
        elif first in "{[":
            self._take(1)
            self._begin(first)
        else:
            self._write('"')
            self._is_free = False
            self._expects = "string"
        return True

    def _string(self) -> bool:
        match = _QUOTED.match(self._text) or _JSON_STRING.match(self._text)
        if match is None or match.end() == len(self._text):  # later text shows whether the string ends here
            self._is_free = self._is_free or _FREE.match(self._text) is not None
            begun = (_BEGUN_FREE if self._is_free else _BEGUN).match(self._text)
            if begun is not None:
                self._write(json.dumps(begun[1], ensure_ascii=False)[1:-1])
                self._text = self._text[0] + self._text[begun.end() :]
            return False
        if self._text[match.end() :].lstrip(_SPACE)[:1] not in ("", ",", "}", "]"):
            raise MalformedCallError
        text = CallReader("a:" + match[0] + "}", 0).members(1)["a"]
        self._write(json.dumps(text, ensure_ascii=False)[1:])
        self._take(match.end())
        self._expects = "comma"
        return True

    def _comma(self) -> bool:
        if self._close():
            return True
        if not self._text.startswith(","):
            raise MalformedCallError
        self._take(1)
        self._expects = "key" if self._open[-1] == "}" else "value"
        return True
