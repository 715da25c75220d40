"""Tests of signal handlers that raise an exception at any line of a stream's step: the stream ends, and its
result has the text so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gemlet


class OnPurposeError(Exception):
    pass


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(threads=1) as loaded:
        yield loaded


def interrupt(stream: gemlet.TextStream, at: int, error: type[BaseException]) -> tuple[str, bool]:
    """Reads the stream, counts the lines of Python code that its steps run, and raises ``error`` at line
    ``at``. Returns the text so far, and False if fewer lines ran."""
    lines = 0
    texts: list[str] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        path = Path(frame.f_code.co_filename)
        if path.parent.name not in ("generation", "chat", "tokenizer") or frame.f_code.co_name == "__next__":
            return trace
        if event == "line":
            lines += 1
            if lines == at:
                raise error("on purpose")
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        for chunk in stream:
            texts.append(chunk.text)
    except error:
        pass
    finally:
        sys.settrace(previous)
    return "".join(texts), lines >= at


@pytest.mark.parametrize(
    "error", [OnPurposeError, KeyboardInterrupt, gemlet.TensorError, gemlet.CancelledError]
)
@pytest.mark.parametrize("is_chat", [False, True])
def test_the_text_so_far_is_the_result(
    model: gemlet.Model, is_chat: bool, error: type[BaseException]
) -> None:
    options: dict[str, Any] = {"max_tokens": 3, "seed": 1, "ignore_eos": True}
    user = [{"role": "user", "content": "Hi"}]
    at, is_interrupted = 1, True
    while is_interrupted:
        stream = model.stream_chat(user, **options) if is_chat else model.stream([2, 500], **options)
        text, is_interrupted = interrupt(stream, at, error)
        stream.close()
        result = stream.result
        assert result.text.startswith(text)
        assert result.finish_reason in (("cancelled", "length") if is_interrupted else ("length",))
        assert list(stream) == []
        at += 3
    assert at > 100
