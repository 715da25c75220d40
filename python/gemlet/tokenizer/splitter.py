"""Finding control and added tokens in text: :class:`Splitter`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from gemlet.tokenizer.vocabulary import LSTRIP, NORMALIZED, RSTRIP, SINGLE_WORD, SPACE

__all__ = ["Splitter"]

# Unicode's White_Space, which the reference strips. str.isspace() is also true for U+001C to U+001F.
_WHITE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_WORD_CATEGORIES = ("Nd", "Nl", "Pc")  # besides letters and marks
_JOINERS = "\u200c\u200d"
# Letters in circles and squares. They are symbols, but Unicode counts them as alphabetic.
_ENCLOSED = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))


class Splitter:
    """Cuts text at literal tokens. The leftmost token counts, and at one place the longest.

    ``flags`` says how some tokens are found (``Vocabulary.flags``). As in the library ``tokenizers``,
    normalized tokens are looked for last, in the text between the other tokens.

    >>> list(Splitter({"<a>": 7}, {"<a>": LSTRIP}).split("one  <a> two"))
    ['one', 7, ' two']
    """

    def __init__(self, tokens: Mapping[str, int], flags: Mapping[str, int]) -> None:
        late = [text for text in tokens if flags.get(text, 0) & NORMALIZED]
        self._early = _Finder({text: tokens[text] for text in tokens.keys() - late}, flags, _WHITE)
        self._late = None
        if late:
            # Normalized text has U+2581 instead of U+0020; U+2581 does not count as white space.
            names = {text.replace(" ", SPACE): text for text in late}
            self._late = _Finder(
                {name: tokens[text] for name, text in names.items()},
                {name: flags[text] for name, text in names.items()},
                _WHITE.replace(" ", ""),
            )

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of ``text`` between tokens, and the ids of the tokens, in order. No part is empty."""
        if self._late is None:
            yield from self._early.split(text)
            return
        for part in self._early.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._late.split(part.replace(" ", SPACE))


class _Finder:
    """One search for some of the tokens. ``white`` has the white space that tokens may take beside them."""

    def __init__(self, tokens: Mapping[str, int], flags: Mapping[str, int], white: str) -> None:
        self._tokens = tokens
        self._flags = flags
        self._white = white
        self._lengths = sorted({len(text) for text in tokens}, reverse=True)
        self._first = _begins(tokens)

    def split(self, text: str) -> Iterator[str | int]:
        done = 0  # the end of the last token and of the white space that it takes
        for at, token in self._find(text):
            flags = self._flags.get(token, 0)
            end = at + len(token)
            if flags & SINGLE_WORD and (_is_word(text[at - 1 : at]) or _is_word(text[end : end + 1])):
                continue
            if flags & RSTRIP:
                while end < len(text) and text[end] in self._white:
                    end += 1
            if flags & LSTRIP:
                at = max(done, len(text[:at].rstrip(self._white)))
            if done < at:
                yield text[done:at]
            if at < end:  # otherwise the token before this one has taken all characters of it
                yield self._tokens[token]
            done = end
        if done < len(text):
            yield text[done:] if done else text

    def _find(self, text: str) -> Iterator[tuple[int, str]]:
        """The places of tokens, and the tokens, without a look at their flags. They do not overlap."""
        start = 0
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if at < start:
                continue
            for length in self._lengths:
                token = text[at : at + length]
                if token in self._tokens:
                    yield at, token
                    start = at + length
                    break


def _begins(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the places at which one of ``tokens`` may begin. It looks at two characters, because a
    text may have many "<"."""
    seconds: dict[str, set[str]] = {}
    for text in tokens:
        seconds.setdefault(text[0], set()).add(text[1:2])
    places = [
        re.escape(first) + ("" if "" in then else f"(?=[{''.join(map(re.escape, sorted(then)))}])")
        for first, then in sorted(seconds.items())
    ]
    return re.compile("|".join(places)) if places else None


def _is_word(character: str) -> bool:
    """Whether it belongs to a word, as Unicode defines it for regular expressions (UTS 18, annex C)."""
    if not character:
        return False
    category = unicodedata.category(character)
    return (
        category[0] in "LM"
        or category in _WORD_CATEGORIES
        or character in _JOINERS
        or any(low <= ord(character) <= high for low, high in _ENCLOSED)
    )
