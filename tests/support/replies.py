"""Parses whole replies of Gemma 4, given as text or as token ids, and joins the events that the parser
gives."""

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
    """The events, with neighbouring texts of the same kind joined. The result must not depend on the pieces
    in which the parser got the reply."""
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
    """Parses a reply of token ids. ``sizes`` are the numbers of ids that the parser gets in its calls; the
    list is repeated as often as needed. With None, the parser gets all ids in one call."""
    parser = TokenReplyParser(gemma4_tokenizer(), GEMMA4_MARKERS, prompt_ids or [])
    events: list[ReplyEvent] = []
    while ids:
        size = next(sizes) if sizes else len(ids)
        events += parser.push(ids[:size])
        ids = ids[size:]
    return joined(events + parser.finish())
