"""Calls of tools in streams. Each call comes in pieces first, and then as a whole."""

from __future__ import annotations

import json

from gemlet.chat.reply import MalformedToolCall, ReplyEvent, ToolCall, ToolCallPiece
from gemlet.generation.result import Chunk

__all__ = ["StreamedCalls"]


class StreamedCalls:
    """Puts the events of one reply in order. A call without pieces gets two: its name, then its arguments.

    Attributes:
        count: the number of calls that have begun.
        has_whole: whether one of them is complete.

    >>> calls = StreamedCalls()
    >>> for event in calls.events(Chunk("", [], None, [ToolCall("now", {"zone": 2})])):
    ...     print(event)
    ToolCallPiece(name='now', arguments='')
    ToolCallPiece(name='now', arguments='{"zone": 2}')
    ToolCall(name='now', arguments={'zone': 2})
    """

    def __init__(self) -> None:
        self.count = 0
        self.has_whole = False
        self._open = ""  # the id of the call that has begun

    def events(self, chunk: Chunk) -> list[ReplyEvent]:
        """The events of a chunk. Pieces of a call that ends in the chunk come before the call, other pieces
        at the end."""
        if not chunk.call_pieces and not any(isinstance(event, ToolCall) for event in chunk.events):
            return chunk.events
        found: list[ReplyEvent] = []
        pieces = chunk.call_pieces
        for event in chunk.events:
            if isinstance(event, ToolCall | MalformedToolCall):
                self._add([piece for piece in pieces if piece.id == event.id], found)
                pieces = [piece for piece in pieces if piece.id != event.id]
            if isinstance(event, ToolCall):
                if event.id != self._open:
                    arguments = json.dumps(event.arguments, ensure_ascii=False)
                    self._add([ToolCallPiece(event.name, text, event.id) for text in ("", arguments)], found)
                self.has_whole = True
            found.append(event)
        self._add(pieces, found)
        return found

    def _add(self, pieces: list[ToolCallPiece], found: list[ReplyEvent]) -> None:
        for piece in pieces:
            if piece.id != self._open:
                self.count += 1
                self._open = piece.id
            found.append(piece)
