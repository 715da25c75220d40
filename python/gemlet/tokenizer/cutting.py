"""Cuts text at places that do not change its token ids: :class:`Cutter`."""

from __future__ import annotations

from collections.abc import Iterator

from gemlet.base.patterns import late_pattern
from gemlet.errors import TokenizerError
from gemlet.tokenizer.sentencepiece_model import BYTE
from gemlet.tokenizer.vocabulary import SPACE, Vocabulary

__all__ = ["PART", "Cutter"]

PART = 8192  # characters that are encoded at once if the text can be cut
_NEWLINE = late_pattern(r"\n(?=[^\n])")
_LOOKS = 64  # neighbouring places that are tried
_MAX_CHECKS = 4096  # the most substrings that are looked up for one place; enough for pieces of 90 characters
# The most characters that are encoded at once. Each takes SentencePiece 60 bytes and up to 2 us.
_MOST_AT_ONCE = 4 * 1024 * 1024
_MOST_AT_ONCE_BY_MERGES = 256 * 1024  # limit for the encoder in Python


class Cutter:
    """Cuts text for a vocabulary. Texts of more than ``part`` characters are cut.

    A text may be cut at a place if no piece reaches across it, because encoding joins neighbours only into
    pieces.
    """

    def __init__(self, vocabulary: Vocabulary, part: int = PART) -> None:
        self._vocabulary = vocabulary
        self._part = part
        self._by_merges = vocabulary.merge_encoder is not None
        self._pieces: frozenset[str] | None = None
        self._lengths: list[int] = []
        self._longest = 0
        self._has_bytes = False

    def parts(self, text: str) -> Iterator[str]:
        """Yields ``text`` in parts. The ids of the parts, one after the other, are the ids of the text.

        Raises :class:`TokenizerError` if a part would be too long for a call that cannot be interrupted.
        """
        start = 0
        while len(text) - start > self._part:
            end = self.place(text, start + self._part)
            self._check_length(end - start, start)
            yield text[start:end]
            start = end
        if start < len(text) or not text:
            yield text[start:] if start else text

    def place(self, text: str, at: int) -> int:
        """The first place from ``at`` on at which ``text`` can certainly be cut, or its end. In a long text
        without newlines, only some places are tried."""
        while self._vocabulary.may_cut and at < len(text):
            newline = _NEWLINE.search(text, at, at + self._part)
            if newline is not None:
                return newline.end()
            for candidate in range(at, min(at + _LOOKS, len(text))):
                if self._nothing_reaches_across(text, candidate):
                    return candidate
            at += self._part
        return len(text)

    @property
    def longest(self) -> int | None:
        """The most characters that a token stands for; None if a token may stand for any number of them."""
        self._read_pieces()
        vocabulary = self._vocabulary
        if not vocabulary.may_cut or vocabulary.loses_text or not self._has_bytes:
            return None  # white space may vanish, or many unknown characters may be one token
        return self._longest

    def _nothing_reaches_across(self, text: str, at: int) -> bool:
        pieces = self._read_pieces()
        if sum(self._lengths) > _MAX_CHECKS:
            return False
        reach = self._lengths[-1] if self._lengths else 1
        first = max(0, at - reach + 1)
        near = text[first : at + reach - 1].replace(" ", SPACE)
        middle = at - first
        if not self._has_bytes and not {near[middle - 1], near[middle]} <= pieces:
            return False  # unknown characters in a row become one token
        return not any(
            near[begin : begin + length] in pieces
            for length in self._lengths
            for begin in range(max(0, middle - length + 1), min(middle, len(near) - length + 1))
        )

    def _read_pieces(self) -> frozenset[str]:
        if self._pieces is None:
            self._has_bytes = BYTE in self._vocabulary.types
            pieces = frozenset(self._vocabulary.pieces)
            lengths = {len(piece) for piece in pieces}
            self._longest = max(lengths)
            self._lengths = sorted(lengths - {0, 1})
            self._pieces = pieces  # set it last, because other threads check it first
        return self._pieces

    def _check_length(self, length: int, start: int) -> None:
        most = _MOST_AT_ONCE_BY_MERGES if self._by_merges else _MOST_AT_ONCE
        if length > most:
            raise TokenizerError(
                f"text: it has {length} characters from character {start} on that cannot be cut into parts, "
                f"but at most {most} can be encoded at once; pass them in shorter texts"
            )
