"""Lists of words and patterns that a text may not have. Their files have one on each line.

RE2 does the search. Its time is at most proportional to the length of the text and to the length of the
patterns.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from gemlet.base.files import read_file
from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.errors import ConfigError, missing_extra

__all__ = ["WordList", "read_lines", "tail"]

_MOST_BYTES = 4 << 20
_MOST_WORDS = 20_000
_MOST_PATTERNS = 500
_LONGEST = 1000  # characters of a line
_MOST_STATES = 5_000  # states of all patterns together; a search takes at most this times the text's length
_MOST_WORD_STATES = 500_000
_MEMORY = 64 << 20  # bytes that RE2 may take for its cache of states during a search
_EDGE = r"[^\pL\pN\pM_]"  # a character that may be next to a word


class WordList:
    """Searches texts for words and patterns.

    Only whole words are found, in upper or lower case, in any of Unicode's forms, and also with invisible
    characters between their letters. Patterns have RE2's syntax, and see the text as it is.

    Raises:
        ConfigError: a line is not a valid pattern, or there are too many.

    >>> found = WordList(words=["bad  word"], patterns=["sk-[a-z]{4,}"])
    >>> found.search("A BAD word!"), found.search("a bad wordsmith"), found.search("my sk-abcd")
    ('words', None, 'patterns')
    """

    def __init__(self, words: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        self._searches: list[tuple[str, Callable[[str], str], Any]] = []
        if words:
            whole = "|".join(_quoted(word) for word in words)
            regex = _compiled(f"(?:^|{_EDGE})(?:{whole})(?:$|{_EDGE})", "words", _MOST_WORD_STATES)
            self._searches.append(("words", _plain, regex))
        if patterns:
            for pattern in patterns:
                _compiled(pattern, f"pattern {show(pattern)}", _MOST_STATES)
            joined = "|".join(f"(?:{pattern})" for pattern in patterns)
            self._searches.append(("patterns", _valid, _compiled(joined, "patterns", _MOST_STATES)))

    def search(self, text: str) -> str | None:
        """The list with a match in the text: "words", "patterns", or None."""
        for name, form, regex in self._searches:
            if regex.search(form(text)) is not None:
                return name
        return None

    def search_part(self, text: str, *, is_cut: bool, is_over: bool) -> tuple[str | None, bool]:
        """Searches a part of a text. Returns the list with a match, or None, and whether a match is open. A
        match is open if it ends at the end of the part and the text goes on, because more text may change it.
        An open match does not count yet.

        Args:
            is_cut: whether the part has text before it. Then its first character cannot be in a match, and is
                only used to look back.
            is_over: whether the text ends with the part.
        """
        is_open = False
        for name, form, regex in self._searches:
            seen = form(text)
            if is_cut and name == "words":
                seen = f"_{seen}"
            match = regex.search(seen, int(is_cut))
            if match is not None:
                if is_over or match.end() < len(seen):
                    return name, False
                is_open = True
        return None, is_open


def tail(text: str, count: int) -> int:
    """The index at which the last ``count`` visible characters of the text begin.

    >>> tail("abc", 2), tail("a\\u200bb\\u200bc", 2), tail("abc", 5)
    (1, 2, 0)
    """
    place = len(text)
    while count > 0 and place > 0:
        place -= 1
        count -= _INVISIBLE.match(text[place]) is None
    return place


def read_lines(path: str, what: str, most: int | None = None) -> list[str]:
    """The lines of a file of words or patterns. Empty lines, and lines that begin with #, are left out.

    Raises:
        ConfigError: the file is not UTF-8, or has too many lines, or a line that is too long.
        ModelFileError: the file cannot be read.
    """
    most = most or (_MOST_WORDS if what == "words" else _MOST_PATTERNS)
    try:
        text = read_file(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: {error}") from None
    lines = [line.strip("\r") for line in text.split("\n")]
    found = [line for line in lines if line.strip() and not line.startswith("#")]
    if len(found) > most:
        raise ConfigError(f"{path}: has {len(found)} {what}, expected at most {most}")
    for line in found:
        if len(line) > _LONGEST:
            raise ConfigError(f"{path}: {show(line)} is longer than {_LONGEST} characters")
    return found


def _compiled(pattern: str, what: str, most: int) -> Any:
    try:
        import re2
    except ImportError:
        raise missing_extra("a list of words or patterns", "filter") from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        found = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigError(f"{what}: cannot be used by RE2: {reason}") from None
    if found.programsize > most:
        raise ConfigError(
            f"{what}: needs {found.programsize} states, expected at most {most}; make it simpler"
        )
    return found


def _quoted(word: str) -> str:
    import re2

    parts = _plain(word).split()
    if not parts:
        raise ConfigError(f"words: {show(word)} has no visible character")
    return r"\s+".join(str(re2.escape(part)) for part in parts)


def _valid(text: str) -> str:
    """Replaces halves of surrogate pairs with question marks, because RE2 does not take them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


_INVISIBLE = late_pattern(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0]"
)


def _plain(text: str) -> str:
    """The text in lower case and in one form of Unicode, without invisible characters.

    >>> _plain("\\uff22a\\u200bd")
    'bad'
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", _valid(text))).casefold()
