"""Functions that product/test_cli_chat.py runs in separate processes."""

from __future__ import annotations

import sys
import time
from typing import Any

import gemlet
from gemlet.cli import main
from gemlet.generation import Chunk, TextStream
from support.waiting import PATIENCE

WAIT = "Wait"  # the reply to this message begins late, as if the message had a video


def chat_slowly(*arguments: str) -> None:
    """Runs ``gemlet chat`` with pauses between the pieces of a reply."""
    read, begin = TextStream.__next__, gemlet.Model.stream_chat

    def slow_read(stream: TextStream) -> Chunk:
        time.sleep(0.05)
        return read(stream)

    def slow_begin(model: gemlet.Model, messages: Any, **options: Any) -> TextStream:
        if messages[-1]["content"] == WAIT:
            print("waiting", flush=True)
            time.sleep(PATIENCE / 2)
        return begin(model, messages, **options)

    TextStream.__next__ = slow_read  # type: ignore[method-assign]
    gemlet.Model.stream_chat = slow_begin  # type: ignore[method-assign, assignment]
    sys.exit(main(["chat", *arguments]))
