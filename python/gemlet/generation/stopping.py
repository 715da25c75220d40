"""Turns token ids into text that is safe to show, and ends the text at a stop string.

Two things make "decode the new token and print it" wrong: a character may be spread over several tokens (the
tokenizer's stream decoder holds incomplete bytes back), and so may a stop string (its beginning must not be
shown before it is known not to be the stop string). :class:`StopScanner` does the second,
:class:`ReplyEmitter` puts the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gemlet.chat.reply import Content, ReplyEvent
from gemlet.tokenizer.decoding import StreamDecoder

__all__ = ["ReplyEmitter", "ReplyReader", "StopScanner", "TextReader"]


class ReplyReader(Protocol):
    """The type that :meth:`gemlet.chat.ChatFormat.reply_parser` returns. It turns token ids into events."""

    def push(self, ids: Iterable[int], /) -> list[ReplyEvent]: ...
    def finish(self, *, ended: bool = False) -> list[ReplyEvent]: ...


def _fallback_table(stop: str) -> list[int]:
    """``table[i]``: length of the longest proper prefix of ``stop`` that also ends ``stop[: i + 1]``."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table


class StopScanner:
    """Finds the first of several stop strings in a text that arrives in pieces.

    The stop string that is *completed* first wins (of two completed by the same character, the longer one),
    so the outcome depends only on the text and never on how it was cut into tokens. Each character costs
    amortised constant time per stop string (Knuth, Morris and Pratt, "Fast pattern matching in strings",
    1977).

    >>> scanner = StopScanner(["END"])
    >>> scanner.push("all is well E")
    'all is well '
    >>> scanner.push("N"), scanner.push("Ds here"), scanner.stopped
    ('', '', True)
    """

    def __init__(self, stops: Iterable[str]) -> None:
        # Longest first: on a tie the first match found is the one to keep.
        self._stops = sorted(stops, key=len, reverse=True)
        self._tables = [_fallback_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._pending = ""
        self.stopped = False

    def push(self, text: str, may_stop: bool = True) -> str:
        """Adds ``text``; returns what is now known to belong to no stop string. A match sets ``stopped``.

        Unless it ``may_stop``, a stop string that ``text`` completes is text like any other.
        """
        if self.stopped:
            return ""
        if not self._stops:
            return text
        offset = len(self._pending)
        self._pending += text
        for position, character in enumerate(text, start=offset):
            for which, stop in enumerate(self._stops):
                length = self._matched[which]
                while length and stop[length] != character:
                    length = self._tables[which][length - 1]
                if stop[length] == character:
                    length += 1
                if length == len(stop) and not may_stop:
                    length = self._tables[which][length - 1]
                elif length == len(stop):
                    self.stopped = True
                    return self._take(position + 1 - length)
                self._matched[which] = length
        return self._take(len(self._pending) - max(self._matched))

    def flush(self) -> str:
        """The text held back, once it is certain that nothing follows (none after a stop string)."""
        if self.stopped:
            return ""
        self._matched = [0] * len(self._stops)
        return self._take(len(self._pending))

    def _take(self, count: int) -> str:
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken


class TextReader:
    """Reads a text without structure, with the interface of the parsers of :mod:`gemlet.chat`."""

    def __init__(self, decoder: StreamDecoder | None) -> None:
        self._decoder = decoder

    def push(self, ids: Iterable[int]) -> list[ReplyEvent]:
        """The text that ``ids`` make certain; none without a decoder (a model without tokenizer)."""
        return [] if self._decoder is None else _content("".join(map(self._decoder.next_text, ids)))

    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        """The bytes that were held back, from an unfinished character."""
        return [] if self._decoder is None else _content(self._decoder.finish())


class ReplyEmitter:
    """Takes token ids and gives events that are safe to show. Stop strings count only in the answer's text:
    not in reasoning, and not across a tool call."""

    def __init__(self, reader: ReplyReader, stops: Iterable[str]) -> None:
        self._reader = reader
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been completed; nothing is emitted after it."""
        return self._scanner.stopped

    def push(self, token_id: int, *, may_stop: bool = True) -> list[ReplyEvent]:
        """Adds ``token_id``, and returns the events that are now certain. Often there are none; sometimes
        they cover more than this token."""
        return self._scan(self._reader.push((token_id,)), may_stop)

    def finish(self, *, ended: bool) -> list[ReplyEvent]:
        """Returns the events that were held back: bytes of an unfinished character, or the beginning of a
        stop string.

        ``ended``: the reply ended with an end token, which was not pushed.
        """
        events = self._scan(self._reader.finish(ended=ended))
        return events + _content(self._scanner.flush())

    def _scan(self, events: Iterable[ReplyEvent], may_stop: bool = True) -> list[ReplyEvent]:
        shown: list[ReplyEvent] = []
        for event in events:
            if isinstance(event, Content):
                shown += _content(self._scanner.push(event.text, may_stop))
            elif not self.stopped:
                shown += [*_content(self._scanner.flush()), event]
        return shown


def _content(text: str) -> list[ReplyEvent]:
    return [Content(text)] if text else []
