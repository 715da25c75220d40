"""Random calls in every form and with random changes, read by every parser of replies: any split gives the
same events, the pieces of a call add up to its arguments, nothing is lost, and no call is misread."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from gemlet.chat import (
    GEMMA4_MARKERS,
    Content,
    MalformedToolCall,
    Reasoning,
    ReplyEvent,
    TextReplyParser,
    ToolCall,
    ToolCallPiece,
)
from gemlet.chat.functiongemma import REPLY_MARKERS
from gemlet.chat.prompted_tools import CallFinder
from support.pace import assert_quick
from support.random_calls import WORD, LooseWriter, PythonWriter, Values, changed
from support.replies import QUOTE, gemma4_tokenizer, joined, read_ids

CASES = 1500  # cases for each parser
_PARAMETERS = {"now": ["zone"], "weather": ["city", "days"], "a.b": []}
_OF_FUNCTIONGEMMA = {
    "<|turn>": "<start_of_turn>",
    "<turn|>": "<end_of_turn>",
    "<|tool_call>": "<start_function_call>",
    "<tool_call|>": "<end_function_call>",
    "<|tool_response>": "<start_function_response>",
    "<tool_response|>": "<end_function_response>",
    QUOTE: "<escape>",
}
_NOT_OF_THE_REPLY = re.compile(
    r"<turn\|>|<end_of_turn>|(?:<\|turn>|<start_of_turn>)\s*(?:user|system|tool)|<\|tool_response>|<start_function_resp"
)


def reader(markers: Mapping[str, str], pieces: bool) -> TextReplyParser:
    return TextReplyParser(markers, pieces=pieces)


def in_pieces(parser: Any, text: str, rng: random.Random | None, ended: bool) -> list[ReplyEvent]:
    most = rng.choice((1, 2, 5, 40)) if rng else max(1, len(text))
    events: list[ReplyEvent] = []
    while text:
        size = rng.randint(1, most) if rng else most
        events += parser.push(text[:size])
        text = text[size:]
    return events + list(parser.finish(ended=ended))


def without_pieces(events: list[ReplyEvent]) -> list[ReplyEvent]:
    """Checks the pieces of calls, and returns the other events."""
    rest = joined([event for event in events if not isinstance(event, ToolCallPiece)])
    pieces = [event for event in events if isinstance(event, ToolCallPiece)]
    calls = [event for event in rest if isinstance(event, ToolCall | MalformedToolCall)]
    assert {piece.id for piece in pieces} <= {call.id for call in calls}
    for call in calls:
        own = [piece for piece in pieces if piece.id == call.id]
        written = "".join(piece.arguments for piece in own)
        if isinstance(call, ToolCall):
            assert {piece.name for piece in own} == {call.name}
            assert own[0].arguments == ""
            assert same(json.loads(written), call.arguments), (written, call)
            json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()
        elif written:
            with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
                json.loads(written)
    return rest


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def read_in_all_ways(
    make: Callable[[bool], Any], text: str, rng: random.Random, ended: bool
) -> list[ReplyEvent]:
    """The events of ``text``: at once, in pieces, and without pieces of calls."""
    first = without_pieces(in_pieces(make(True), text, None, ended))
    assert without_pieces(in_pieces(make(True), text, rng, ended)) == first
    assert in_pieces_joined(make(False), text, rng, ended) == first
    return first


def in_pieces_joined(parser: Any, text: str, rng: random.Random, ended: bool) -> list[ReplyEvent]:
    return joined(in_pieces(parser, text, rng, ended))


def assert_nothing_is_lost(text: str, events: list[ReplyEvent]) -> None:
    """Every word is in a text, a thought or a call. If a key occurs twice, only the last one counts."""
    words = WORD.findall(_NOT_OF_THE_REPLY.split(text)[0])
    if len(set(words)) == len(words):
        shown = [
            json.dumps([event.name, event.arguments])
            if isinstance(event, ToolCall)
            else event.text
            if isinstance(event, Content | Reasoning)
            else ""
            for event in events
        ]
        assert [word for word in words if word not in " ".join(shown)] == []


def assert_meant(expected: list[tuple[str, Any]], events: list[ReplyEvent]) -> bool:
    """Checks that a call that was read is the one that was meant. Returns whether it was read."""
    calls = [(event.name, event.arguments) for event in events if isinstance(event, ToolCall)]
    assert not calls or same(calls, expected), (calls, expected)
    return bool(calls)


def random_reply(rng: random.Random) -> tuple[str, str, dict[str, Any], bool]:
    """A reply with a call, its name and arguments, and whether it was changed."""
    quotes = rng.choice(LooseWriter.QUOTES)
    name = rng.choice(("f", "get_weather", "a.b", "ns:f", "x-y"))
    arguments = Values(rng, is_bare="" in quotes).arguments()
    call = LooseWriter(rng, quotes).call(name, arguments)
    before = rng.choice(("", "", "Look. ", "<|channel>thought\nHm.\n<channel|>"))
    end = rng.choice(("<tool_call|>", "<tool_call|>", "<turn|>", "<|tool_response>", ""))
    is_changed = rng.random() < 0.5
    reply = before + "<|tool_call>" + (changed(rng, call) if is_changed else call) + end
    if is_changed and rng.random() < 0.2:
        reply = changed(rng, reply)
    return reply, name, arguments, is_changed


@pytest.mark.parametrize("family", ["gemma4", "functiongemma"])
def test_calls_in_loose_forms(family: str) -> None:
    read = 0
    for seed in range(CASES):
        rng = random.Random(f"{family} {seed}")
        reply, name, arguments, is_changed = random_reply(rng)
        markers: Mapping[str, str] = GEMMA4_MARKERS
        if family == "functiongemma":
            markers = REPLY_MARKERS
            for token, own in _OF_FUNCTIONGEMMA.items():
                reply = reply.replace(token, own)
        case = f"seed {seed} of {family}: {reply!r}"
        ended = rng.random() < 0.5
        try:
            make = partial(reader, markers)
            events = read_in_all_ways(make, reply, rng, ended)
            assert_nothing_is_lost(reply, events)
            if not is_changed:
                read += assert_meant([(name, arguments)], events)
            if family == "gemma4" and seed % 4 == 0 and not ended:
                assert read_ids(gemma4_tokenizer().encode(reply, add_bos=False)) == events
        except Exception as problem:
            raise AssertionError(case) from problem
    assert read > CASES // 3  # most calls that were not changed are read


def test_calls_in_plain_text() -> None:
    read = 0
    for seed in range(CASES):
        rng = random.Random(f"plain {seed}")
        values = Values(rng)
        calls = [(rng.choice(list(_PARAMETERS)), values.arguments()) for _ in range(rng.choice((1, 1, 2, 3)))]
        text = PythonWriter(rng).calls(calls)
        before, behind = rng.choice(("", "Let me see w900z.\n")), rng.choice(("", "\n", "\nDone w901z."))
        reply = before + text + behind
        is_changed = rng.random() < 0.6
        reply = changed(rng, reply) if is_changed else reply
        ended = rng.random() < 0.5
        try:
            events = read_in_all_ways(
                lambda pieces: CallFinder(_PARAMETERS, pieces=pieces), reply, rng, ended
            )
            assert_nothing_is_lost(reply, events)
            if not is_changed:
                read += assert_meant(calls, events)
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {reply!r}") from problem
    assert read > CASES // 3


HEADS = ("<|turn>", "<|channel>", *(f"<|tool_call>{head}" for head in ("", "call:f{", "call:f{a:", "f(a=['")))
LONG = (
    *(
        "{",
        "[",
        "(",
        ",",
        ":",
        "=",
        " ",
        "\n",
        "'",
        '"',
        QUOTE,
        "\\",
        "a:1,",
        "a='x',",
        "a:'x'y",
        f"a:{QUOTE}x{QUOTE},",
    ),
    *("“", "`", "(x", "; a:", "[1,", "call:", "model", "<|", "thought"),
)


@pytest.mark.parametrize("head", HEADS)
def test_long_replies_take_linear_time(head: str) -> None:
    for part in LONG:
        reply = head + part * (30_000 // len(part))
        parser = TextReplyParser(GEMMA4_MARKERS, pieces=True)

        def read(parser: TextReplyParser = parser, reply: str = reply) -> None:
            for start in range(0, len(reply), 4):
                parser.push(reply[start : start + 4])
            parser.finish(ended=True)

        assert_quick(read, 0.3)
