"""A call while the model writes it: first the name, then the arguments as JSON in pieces."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat import GEMMA4_MARKERS, MalformedToolCall, ReplyEvent, ReplyParser, ToolCall, ToolCallPiece
from gemlet.chat.base import Segments
from gemlet.chat.functiongemma import REPLY_MARKERS
from gemlet.chat.gemma4_tools import WrittenCall, write_call

TEXTS = st.text(alphabet="ab\"'\\{}[],:=()\n <|é😀\x01", max_size=12)
# A model may write a key in single quotes; it means the key without them.
KEYS = TEXTS.filter(lambda key: key.strip() and not re.fullmatch(r"\s*'.+'\s*", key, re.DOTALL))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def read(parts: Segments, sizes: random.Random) -> list[ReplyEvent]:
    parser = ReplyParser(GEMMA4_MARKERS, pieces=True)
    parser.begin()
    events: list[ReplyEvent] = []
    for text, is_marker in parts:
        if is_marker:
            events += parser.marker(text)
            continue
        while text:
            size = sizes.randint(1, 6)
            events += parser.text(text[:size])
            text = text[size:]
    return events + parser.finish(ended=True)


def segments(text: str) -> Segments:
    """A reply that is a call; ``~`` stands for the token of quotes."""
    parts = Segments()
    parts.marker("<|tool_call>")
    for index, part in enumerate(text.split("~")):
        if index:
            parts.marker('<|"|>')
        parts.text(part)
    parts.marker("<tool_call|>")
    return parts


def arguments(events: list[ReplyEvent]) -> str:
    return "".join(event.arguments for event in events if isinstance(event, ToolCallPiece))


@settings(max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=3), st.randoms(use_true_random=False))
def test_pieces_add_up_to_the_arguments(given_arguments: dict[str, Any], sizes: random.Random) -> None:
    parts = Segments()
    write_call(parts, WrittenCall("f", given_arguments), "null")
    events = read(parts, sizes)
    call = events[-1]
    assert isinstance(call, ToolCall)
    assert json.loads(arguments(events)) == call.arguments
    first = events[0]
    assert isinstance(first, ToolCallPiece)
    assert (first.name, first.arguments) == ("f", "")
    assert {event.id for event in events if isinstance(event, ToolCallPiece)} == {call.id}


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    parser = ReplyParser(GEMMA4_MARKERS, pieces=True)
    parser.begin()
    given_so_far = []
    for text in (
        "call:write{",
        "a:1",
        ",text:",
        "~",
        "print(",
        "'hi'",
        ") and ",
        "more~",
        ",b:[tr",
        "ue,",
        "{}]}",
    ):
        before: list[ReplyEvent] = [] if given_so_far else parser.marker("<|tool_call>")
        for index, part in enumerate(text.split("~")):
            before += parser.marker('<|"|>') if index else []
            before += parser.text(part)
        given_so_far.append(arguments(before))
    assert given_so_far == [
        "{",
        '"a": ',
        '1, "text": ',
        '"',
        "print(",
        "'hi'",
        ") and ",
        "more",
        '", "b": [',
        "true",
        ", {}]",
    ]  # the last bracket comes with the whole call
    last, call = parser.marker("<tool_call|>")
    assert isinstance(last, ToolCallPiece)
    assert (last.arguments, type(call)) == ("}", ToolCall)


# Text with a slip, and the call that it means. Other quotes may end a string that the token began.
REPAIRED = {
    "call:f(a:1)": {"a": 1},
    'call:f{a:~b"}': {"a": "b"},
    'call:f{a:~it\'s "b" so~}': {"a": 'it\'s "b" so'},
    "call:f{a:~x~,b:[1,2": {"a": "x", "b": [1, 2]},
    "call:f{a:~x~,b=2}": {"a": "x", "b": 2},
    "call:f{a:Oslo}": {"a": "Oslo"},
    "call:f{a=b:c}": {"a": "b:c"},
    'call: {"name": "f", "arguments": {"a": 1}}': {"a": 1},
    "call:f{a:1,}": {"a": 1},
    "call:f{a:1,a:2,b='x'}": {"a": 2, "b": "x"},
    "call:f{a:1,b:2,a:3": {"a": 3, "b": 2},
    "call:f{a:[1,{b:2}],a:[1,{c=3}]}": {"a": [1, {"c": 3}]},
    "call:f{a:true,a:~x~,b:['y',1]": {"a": "x", "b": ["y", 1]},
    "call:f{'a:b~:1}": {"a:b": 1},
    "call:f{": {},
    "call:f{a:" + "9" * 1000 + "}": {"a": int("9" * 1000)},
}


@pytest.mark.parametrize("text", REPAIRED)
def test_pieces_of_calls_that_are_repaired(text: str) -> None:
    for seed in range(20):
        events = read(segments(text), random.Random(seed))
        call = events[-1]
        assert isinstance(call, ToolCall)
        assert call.arguments == REPAIRED[text]
        assert json.loads(arguments(events)) == call.arguments


def test_a_call_that_cannot_be_read() -> None:
    """The pieces of an unreadable call never look like a whole call."""
    for text in ("call:f{a:~x~ b:2,}", "call:f{a:1} or call:f{a:2}", "call:f{a:[1]}{}", "call:f{}]"):
        events = read(segments(text), random.Random(0))
        pieces = [event for event in events if isinstance(event, ToolCallPiece)]
        (malformed,) = [event for event in events if isinstance(event, MalformedToolCall)]
        assert {piece.id for piece in pieces} == {malformed.id}
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(arguments(events))


def test_a_key_that_is_there_twice() -> None:
    events = read(segments("call:f{a:1,a:2,b:3}"), random.Random(0))
    call = events[-1]
    assert isinstance(call, ToolCall)
    assert (
        call.arguments == json.loads(arguments(events)) == {"a": 2, "b": 3}
    )  # as in JSON, the last value of a repeated key counts


def test_by_default_a_call_is_one_event() -> None:
    parser = ReplyParser(REPLY_MARKERS)
    parser.begin()
    events = [
        *parser.marker("<start_function_call>"),
        *parser.text("call:f{a:1}"),
        *parser.marker("<end_function_call>"),
    ]
    assert events == [ToolCall("f", {"a": 1})]


def test_long_strings_take_linear_time() -> None:
    for text in ("call:f{a:~" + "x" * 40000, 'call:f{a:~",' + "x" * 40000, 'call:f{a:"\\n' + "x" * 40000):
        read(segments(text), random.Random(0))
