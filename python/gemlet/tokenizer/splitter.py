"""Finding control and added tokens in text: :class:`Splitter`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from gemlet.tokenizer.vocabulary import STRIP_SPACE

__all__ = ["Splitter"]

# Unicode's White_Space, which the reference strips; str.isspace() also has U+001C to U+001F.
_WHITE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_BUT_U0020 = _WHITE.replace(" ", "")


class Splitter:
    """Cuts text at literal tokens: the leftmost first, of several at one place the longest.

    ``strips`` says which of them take the white space beside them (``Vocabulary.strips``).

    >>> list(Splitter({"<a>": 7}, {"<a>": (STRIP_SPACE, 0)}).split("one  <a> two"))
    ['one', 7, ' two']
    """

    def __init__(self, tokens: Mapping[str, int], strips: Mapping[str, tuple[int, int]]) -> None:
        self._tokens = tokens
        self._strips = strips
        self._lengths = sorted({len(text) for text in tokens}, reverse=True)
        self._first = _begins(tokens)

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of ``text`` between tokens, and the ids of the tokens, in order; no part is empty."""
        start = 0
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if at < start:
                continue
            for length in self._lengths:
                token = text[at : at + length]
                identifier = self._tokens.get(token)
                if identifier is not None:
                    left, right = self._strips.get(token, (0, 0))
                    before = text[start:at]
                    if left:
                        before = before.rstrip(_white(left))
                    if before:
                        yield before
                    yield identifier
                    start = at + length
                    if right:
                        white = _white(right)
                        while start < len(text) and text[start] in white:
                            start += 1
                    break
        if start < len(text):
            yield text[start:] if start else text


def _begins(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Finds where one of ``tokens`` may begin: by its first two characters, as a text may be full of "<"."""
    seconds: dict[str, set[str]] = {}
    for text in tokens:
        seconds.setdefault(text[0], set()).add(text[1:2])
    places = [
        re.escape(first) + ("" if "" in then else f"(?=[{''.join(map(re.escape, sorted(then)))}])")
        for first, then in sorted(seconds.items())
    ]
    return re.compile("|".join(places)) if places else None


def _white(strip: int) -> str:
    return _WHITE if strip == STRIP_SPACE else _BUT_U0020
