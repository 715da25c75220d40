"""Reads replies of Gemma 4 in one call, from text or token ids, and brings the events into one form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gemlet.chat import (
    GEMMA4_MARKERS,
    Content,
    Reasoning,
    ReplyEvent,
    TextReplyParser,
    TokenReplyParser,
    ToolCall,
)
from gemlet.tokenizer import Tokenizer
from support.tokenizer_files import gemma4_gguf

QUOTE = '<|"|>'
CALL = f"<|tool_call>call:weather{{city:{QUOTE}Oslo{QUOTE},days:[1,2]}}<tool_call|>"
OSLO = ToolCall("weather", {"city": "Oslo", "days": [1, 2]})


@cache
def gemma4_tokenizer() -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(gemma4_gguf())
        return Tokenizer.from_file(path)


def joined(events: list[ReplyEvent]) -> list[ReplyEvent]:
    """The events, with neighbouring texts of one kind joined. No split of a reply may change this."""
    found: list[ReplyEvent] = []
    for event in events:
        if isinstance(event, Content | Reasoning):
            assert event.text
            if found and type(found[-1]) is type(event):
                before: Any = found.pop()
                event = type(event)(before.text + event.text)
        found.append(event)
    return found


def read(reply: str, prompt: str = "", **options: Any) -> list[ReplyEvent]:
    parser = TextReplyParser(GEMMA4_MARKERS, prompt, **options)
    return joined(parser.push(reply) + parser.finish())


def read_ids(
    ids: list[int], prompt_ids: list[int] | None = None, sizes: Iterator[int] | None = None
) -> list[ReplyEvent]:
    """``sizes``: the numbers of ids to push in one call, repeated as often as needed; None pushes all."""
    parser = TokenReplyParser(gemma4_tokenizer(), GEMMA4_MARKERS, prompt_ids or [])
    events: list[ReplyEvent] = []
    while ids:
        size = next(sizes) if sizes else len(ids)
        events += parser.push(ids[:size])
        ids = ids[size:]
    return joined(events + parser.finish())
