"""Reads a call that Gemma 4 wrote with a mistake, if the call has only one possible meaning.

Models make the following mistakes, each with an example::

    call:f(a:1)   call:f({a:1})      parentheses instead of braces
    :f{a:1}   call f{a:1}   f{a:1}   no "call:"
    Call:f{a:1}   tool_call:f{a:1}   another word
    {"name": "f", "arguments": {}}   JSON
    call:f{a:[1,2   call:f{          brackets missing at the end of a call that the model ended
    call:f{a=1}                      another sign instead of the colon
    call:f{a:'it's'}   call:f{a:`b`}   other quotes
    call:f{a:"b<|"|>}                quotes of two kinds, one of them the token
    call:f{a:Oslo}                   a string without quotes

A call that may mean two things is refused.
"""

from __future__ import annotations

import re
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.chat.tool_calls import QUOTE_SIGN, CallReader, MalformedCallError

__all__ = ["repair_call"]

_IN_NAME = f"[^\\s{{}}()\\[\\]\"'=,{QUOTE_SIGN}]"
_HEAD = late_pattern(
    f"(?:(?:(?i:tool|function)_)?(?i:call)(?=[\\s:]))?[\\s:]*(?![\\s:])({_IN_NAME}{{1,256}})\\s*([{{(])"
)
_NAME = late_pattern(f"{_IN_NAME}+")
_OBJECT = late_pattern(r"\s*(?:call\s*:\s*)?\{")
_KEY = late_pattern(f"[^\\s,:={{}}()\\[\\]\"'{QUOTE_SIGN}]+")
_IN_BARE = f'[^,{{}}()\\[\\]"\u201c\u201d\u201e\u00ab\u00bb`{QUOTE_SIGN}]'
_BARE = late_pattern(f"(?:{_IN_BARE}|\\({_IN_BARE}*\\))+")
_COLON = late_pattern("[:=]")
# A string without quotes does not begin with one of these signs. After a colon or an equals sign, the first
# three are the second half of a sign such as ``:=``.
_NO_BEGINNING = (":", "=", ">", "\u2018", "\u2019")
# Another sign that stands before a key where a comma belongs. The "&" in a URL does not count.
_NEXT_KEY = late_pattern(r"[;|\uff0c\uff1b\u3001]\s*[\w@$.\-]+\s*[:=]|\A[^?]*&[\w@$.\-]+=")
# A number, or text that is almost a number.
_NUMBER = late_pattern(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]*)?")
_NO_STRING = frozenset(("nan", "inf", "infinity", "undefined"))  # values that JSON does not have
_AFTER_STRING = late_pattern(r"\s*(?:[,:=})\]]|\Z)")
_OPENING = ("{", "[", "(", ":", "=", ",")
# An opening quote -> the text of the string and the first quote that may end it. Between letters, ' is an
# apostrophe.
_STRINGS = {
    '"': re.compile(f'((?:[^"\\\\{QUOTE_SIGN}]|\\\\.)*)(["{QUOTE_SIGN}])', re.DOTALL),
    "'": late_pattern(f"((?:[^'\\\\{QUOTE_SIGN}]|\\\\.|(?<=\\w)'(?=\\w))*)(['{QUOTE_SIGN}])", re.DOTALL),
    "\u2018": late_pattern(f"((?:[^\u2018\u2019{QUOTE_SIGN}]|(?<=\\w)\u2019(?=\\w))*)(\u2019)"),
    "\u201c": late_pattern(f"([^\u201c\u201d{QUOTE_SIGN}]*)(\u201d)"),
    "\u201e": late_pattern(f"([^\u201e\u201c\u201d{QUOTE_SIGN}]*)([\u201c\u201d])"),
    "\u00ab": late_pattern(f"([^\u00ab\u00bb{QUOTE_SIGN}]*)(\u00bb)"),
    "`": late_pattern(f"([^`{QUOTE_SIGN}]*)(`)"),
}
_TOKEN_STRING = late_pattern(f"([^{QUOTE_SIGN}]*){QUOTE_SIGN}")
_TOKEN_STRING_WITH_OTHER_END = late_pattern(f"([^\"'{QUOTE_SIGN}]*)[\"']")
_TO_ESCAPE = late_pattern(r'\\.|"', re.DOTALL)


def repair_call(raw: str, *, complete: bool) -> tuple[str, dict[str, Any]]:
    """Reads a call that :func:`~gemlet.chat.tool_calls.parse_call` refuses. Returns ``(name, arguments)``.

    Args:
        raw: the call, as :func:`~gemlet.chat.tool_calls.parse_call` takes it.
        complete: whether the model has ended the call. If not, missing brackets are not added.

    Raises:
        MalformedCallError: ``raw`` is not a call, or it may mean more than one thing.

    >>> repair_call("call:weather(city='Oslo', days=[1,2]", complete=True)
    ('weather', {'city': 'Oslo', 'days': [1, 2]})
    """
    head = _HEAD.match(raw, len(raw) - len(raw.lstrip()))
    name = head[1].rstrip(":") if head else ""
    if head is None or name in ("", "call"):
        return _read_json(raw, complete)
    within = _OBJECT.match(raw, head.end()) if head[2] == "(" else None  # call:f({...})
    reader = _LooseReader(raw, within.end() if within else head.end(), complete)
    arguments = reader.members(1)
    reader.end(")" if within else "")
    return name, arguments


def _read_json(raw: str, complete: bool) -> tuple[str, dict[str, Any]]:
    """Reads a call that is a JSON object with a name and arguments."""
    head = _OBJECT.match(raw)
    if head is not None:
        reader = _LooseReader(raw, head.end(), complete)
        found = reader.members(1)
        reader.end("")
        name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
        if len(found) != 2 or not isinstance(name, str) or not isinstance(arguments, dict):
            raise reader.wrong("a name and its arguments before it")
        if _NAME.fullmatch(name):
            return name, arguments
    raise MalformedCallError(f"begins with {show(raw[:40])}; expected call:NAME{{")


class _LooseReader(CallReader):
    _bare = _BARE

    def __init__(self, raw: str, at: int, complete: bool) -> None:
        super().__init__(raw, at)
        # Missing brackets may be added, unless the call ends where a value is missing. A call without any
        # arguments lacks no value.
        has_value = not raw.rstrip().endswith(_OPENING) or not raw[at:].strip()
        self._may_close = complete and has_value

    def end(self, closer: str) -> None:
        """Reads ``closer`` and the end of the call."""
        if closer and not self._take(closer):
            raise self.wrong(closer)
        self.skip_space()
        if self.at < len(self._raw):
            raise self.wrong("the end of the call")

    def _is_at(self, character: str) -> bool:
        if super()._is_at(character) or (character == "}" and super()._is_at(")")):
            return True
        return character in ("}", "]", ")") and self._may_close and self.at == len(self._raw)

    def _take(self, character: str) -> bool:
        self.skip_space()
        if not self._is_at(character):
            return False
        self.at = min(self.at + 1, len(self._raw))
        return True

    def _take_colon(self) -> bool:
        return self._take(":") or self._take("=")

    def _string(self) -> str | None:
        self.skip_space()
        quote = self._raw[self.at : self.at + 1]
        if quote == QUOTE_SIGN:
            return self._token_string()
        if quote not in _STRINGS:
            return None
        match = _STRINGS[quote].match(self._raw, self.at + 1)
        if match is None or not _AFTER_STRING.match(self._raw, match.end()):
            raise self.wrong("a string with its closing quote")
        text = self._unescaped('"' + _TO_ESCAPE.sub(_as_in_json, match[1]) + '"')
        self.at = match.end()
        return text

    def _token_string(self) -> str:
        for pattern in (_TOKEN_STRING, _TOKEN_STRING_WITH_OTHER_END):
            match = pattern.match(self._raw, self.at + 1)
            if match is not None and _AFTER_STRING.match(self._raw, match.end()):
                self.at = match.end()
                return match[1]
        raise self.wrong("a string with its closing quote")

    def _key(self) -> str:
        text = self._string()
        if text is not None:
            return text
        match = _KEY.match(self._raw, self.at)
        if match is None:
            raise self.wrong("a key")
        self.at = match.end()
        return match[0]

    def _word(self, word: str) -> Any:
        try:
            return super()._word(word)
        except MalformedCallError:
            parts = word.split()
            is_value = word.lower().lstrip("+-") in _NO_STRING or all(map(_NUMBER.fullmatch, parts))
            next_key = _NEXT_KEY.search(word) or (len(parts) > 1 and _COLON.search(word))
            if is_value or word.startswith(_NO_BEGINNING) or next_key:  # a comma may be missing before a key
                raise
            return word


def _as_in_json(match: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(match[0], match[0])
