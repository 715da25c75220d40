"""Calls with the slips that Gemma 4 makes: repaired if they can mean only one call, and otherwise left in the
text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat import Content, MalformedToolCall, ReplyEvent, ToolCall
from gemlet.chat.loose_calls import repair_call
from gemlet.chat.tool_calls import MAX_DEPTH, QUOTE_SIGN, MalformedCallError
from support.pace import assert_quick
from support.replies import QUOTE, gemma4_tokenizer, read, read_ids

CITY = {"city": "Oslo"}
BOTH = {"city": "Oslo", "days": 2}


def read_call(raw: str, end: str = "<tool_call|>") -> list[ReplyEvent]:
    """Reads a call from text and from token ids, which give the same."""
    reply = f"<|tool_call>{raw}{end}"
    events = read(reply)
    assert read_ids(gemma4_tokenizer().encode(reply, add_bos=False)) == events
    return events


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        # Parentheses instead of braces.
        (f"call:f(city:{QUOTE}Oslo{QUOTE})", CITY),
        (f"call:f(city={QUOTE}Oslo{QUOTE}, days=2)", BOTH),
        ('call:f({"city": "Oslo"})', CITY),
        ('call:f( { "city": "Oslo" } )', CITY),
        ("call:f(city:Oslo)", CITY),
        ("call:f({'city':'Oslo'})", CITY),
        ("call:f{'city':'Oslo','days':2}", BOTH),
        ("call:f()", {}),
        ("call:f({})", {}),
        ("call:f(a:[1,2],b:{c:1})", {"a": [1, 2], "b": {"c": 1}}),
        (f"call:f{{city:{QUOTE}Oslo{QUOTE})", CITY),
        # The word in front of the name.
        (f":f{{city:{QUOTE}Oslo{QUOTE}}}", CITY),
        (f"call::f{{city:{QUOTE}Oslo{QUOTE}}}", CITY),
        (f"f{{city:{QUOTE}Oslo{QUOTE}}}", CITY),
        (f"call f{{city:{QUOTE}Oslo{QUOTE}}}", CITY),
        (f'call:"f"{{city:{QUOTE}Oslo{QUOTE}}}', CITY),
        (f"call:{QUOTE}f{QUOTE}{{city:{QUOTE}Oslo{QUOTE}}}", CITY),
        ("f(city='Oslo')", CITY),
        ("Call:f{days:2}", {"days": 2}),
        ("tool_call:f{city:Oslo}", CITY),
        ("call:f:{days:2}", {"days": 2}),
        ('{"name": "f", "arguments": {"city": "Oslo"}}', CITY),
        ('call:{"name": "f", "parameters": {"city": "Oslo"}}', CITY),
        # Brackets missing at the end.
        (f"call:f{{city:{QUOTE}Oslo{QUOTE}", CITY),
        (f"call:f{{city:{QUOTE}Oslo{QUOTE}\n", CITY),
        ("call:f{city:Oslo", CITY),
        ("call:f{days:2", {"days": 2}),
        (f"call:f{{a:{{b:[{QUOTE}x{QUOTE}]}}", {"a": {"b": ["x"]}}),
        (f"call:f{{a:{{b:[{QUOTE}x{QUOTE}", {"a": {"b": ["x"]}}),
        ("call:f{a:{}", {"a": {}}),
        ("call:f(days=2", {"days": 2}),
        ('call:f({"days": 2}', {"days": 2}),
        ("call:f{", {}),
        ("call:f( ", {}),
        ("call:f({", {}),
        # Single quotes.
        ("call:f{city:'Oslo'}", CITY),
        ("call:f{'city': 'Oslo', 'days': 2}", BOTH),
        ("call:f{a:''}", {"a": ""}),
        ("call:f{a:'it's here'}", {"a": "it's here"}),
        ("call:f{a:'it\\\\'s'}".replace("\\\\", "\\"), {"a": "it's"}),
        ("call:f{a:'he said \"no\", then'}", {"a": 'he said "no", then'}),
        ("call:f{a:'two\\nlines'}", {"a": "two\nlines"}),
        ("call:f{a:['x','y']}", {"a": ["x", "y"]}),
        (r"call:f{'it\'s':1}", {"it's": 1}),
        # Other quotes.
        ("call:f{city:\u201cOslo\u201d,days:2}", BOTH),
        ("call:f{\u201ccity\u201d:\u2018Oslo\u2019}", CITY),
        ("call:f{city:\u201eOslo\u201c}", CITY),
        ("call:f{city:\u00abOslo\u00bb}", CITY),
        ("call:f{city:`Oslo`}", CITY),
        ("call:f{a:\u2018it\u2019s, here\u2019}", {"a": "it\u2019s, here"}),
        ("call:f{a:Oslo\u2019s}", {"a": "Oslo\u2019s"}),
        # Quotes of two kinds.
        (f'call:f{{city:"Oslo{QUOTE}}}', CITY),
        (f"call:f{{city:'Oslo{QUOTE},days:2}}", BOTH),
        (f'call:f{{city:{QUOTE}Oslo",days:2}}', BOTH),
        (f"call:f{{city:{QUOTE}Oslo'}}", CITY),
        (f'call:f{{city:"Oslo{QUOTE},b:"Rome{QUOTE}}}', {"city": "Oslo", "b": "Rome"}),
        (f'call:f{{city:{QUOTE}Oslo",b:{QUOTE}x{QUOTE}}}', {"city": "Oslo", "b": "x"}),
        (f'call:f{{"city{QUOTE}:{QUOTE}Oslo{QUOTE}}}', CITY),
        # Keys that begin with @.
        (f"call:f{{@city:{QUOTE}Oslo{QUOTE}}}", {"@city": "Oslo"}),
        ("call:f{@city:Oslo,@days:2}", {"@city": "Oslo", "@days": 2}),
        ("call:f(@city='Oslo')", {"@city": "Oslo"}),
        # Another sign instead of the colon.
        (f"call:f{{city={QUOTE}Oslo{QUOTE},days=2}}", BOTH),
        ("call:f{city = Oslo, days = 2}", BOTH),
        ("call:f{a={b=true}}", {"a": {"b": True}}),
        # Strings without quotes.
        ("call:f{city:Oslo,days:2}", BOTH),
        ("call:f{city: New York}", {"city": "New York"}),
        ("call:f{a:[x,y z,3]}", {"a": ["x", "y z", 3]}),
        ("call:f{day:2026-11-30,at:12:30}", {"day": "2026-11-30", "at": "12:30"}),
        ("call:f{url:https://a.b/c?d=e}", {"url": "https://a.b/c?d=e"}),
        ("call:f{url:https://a.b/c?d=e&f=g}", {"url": "https://a.b/c?d=e&f=g"}),
        ("call:f{address:192.168.0.1}", {"address": "192.168.0.1"}),
        ("call:f{expression:sin(x) + 1}", {"expression": "sin(x) + 1"}),
        ("call:f{a:don't,b:2}", {"a": "don't", "b": 2}),
    ],
)
@pytest.mark.parametrize("end", ["<tool_call|>", "<turn|>", "<|tool_response>"])
def test_mistakes_with_only_one_meaning_are_repaired(raw: str, arguments: dict[str, Any], end: str) -> None:
    (event,) = read_call(raw, end)
    assert isinstance(event, ToolCall)
    assert event.name == "f"
    assert json.dumps(event.arguments) == json.dumps(arguments)


@pytest.mark.parametrize(
    "raw",
    [
        "Sure, I can help.",
        "call:f{city:Oslo, Norway}",
        "call:f{city:Oslo days:2}",
        "call:f{city:Oslo country=Norway}",
        "call:f{city:Oslo;days:2}",
        "call:f{city:Oslo|days:2}",
        "call:f{city=Oslo&days=2}",
        "call:f{city:Oslo\uff0cdays:2}",
        "call:f{city:\u2018Oslo}",
        "call:f{city:Oslo\u201d}",
        "call:f{\u201ccity:2}",
        "call:f{city:'Oslo}",
        "call:f{city:'the dogs' bowl'}",
        "call:f{a:'x' 'y'}",
        f"call:f{{city:{QUOTE}Oslo}}",
        f'call:f{{a:{QUOTE}b"c}}',
        'call:f{a:"b" "c"}',
        "call:f(Oslo)",
        'call:f("Oslo")',
        "call:f(a:1))",
        "call:f{a:1}}",
        "call:f{a:(1}",
        "call:f{a:[1)}",
        "call:f({a:1}x)",
        "call:f{a:",
        "call:f{a:1,",
        "call:f{a:[",
        "call:f{a:=1}",
        "call:f{a=>1}",
        "call:f{a=}",
        "call:f{a:nan}",
        "call:f{a:-Infinity}",
        "call:f{a:1.2.}x",
        "call:f{a:+1}",
        "call:f{a:" + "9" * 2500 + "}",
        "call:f{a:" + "9" * 5000 + "}",
        "call{a:1}",
        "(a:1)",
        '{"name": "f"}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "", "arguments": {}}',
        '{"name": "f g", "arguments": {}}',
        '{"name": "f", "arguments": {}, "more": 1}',
        f"call:{QUOTE}{{a:1}}",
    ],
)
def test_ambiguous_calls_stay_visible(raw: str) -> None:
    event, shown = read_call(raw)
    assert isinstance(event, MalformedToolCall)
    assert event.raw == raw
    assert shown == Content(f"<|tool_call>{raw}<tool_call|>")


@pytest.mark.parametrize("raw", ["call:f{a:1", "call:f(a:1", "call:f{a:Os", f"call:f{{a:{QUOTE}Oslo{QUOTE}"])
def test_a_call_that_was_cut_off_is_not_completed(raw: str) -> None:
    event, shown = read_call(raw, "")
    assert isinstance(event, MalformedToolCall)
    assert "ended within the call" in event.problem
    assert shown == Content(f"<|tool_call>{raw}")
    assert read_call("call:f(a='x')", "") == [ToolCall("f", {"a": "x"})]  # this one is closed


def test_an_empty_call_stays_visible() -> None:
    for raw in ("", " ", "{}", "call:"):
        assert read_call(raw)[1] == Content(f"<|tool_call>{raw}<tool_call|>")


def refuse(raw: str) -> None:
    with pytest.raises(MalformedCallError):
        repair_call(raw, complete=True)


def test_depth_and_time_are_bounded() -> None:
    deep = "[" * (MAX_DEPTH + 1)
    with pytest.raises(MalformedCallError, match="levels"):
        repair_call(f"call:f(a={deep}", complete=True)
    for raw in (":" * 200_000, " " * 200_000, "call:f(a=" + "(x" * 100_000, "call:f(a='" + "x'y" * 70_000):
        assert_quick(lambda raw=raw: refuse(raw), 1)


pieces = st.sampled_from(
    [
        "call:",
        "f",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        ":",
        "=",
        "'",
        '"',
        QUOTE_SIGN,
        "@a",
        " ",
        "1",
        "\\",
        "x y",
        "\n",
    ]
)


@settings(deadline=None, max_examples=500)
@given(st.lists(pieces, max_size=16).map("".join), st.booleans())
def test_a_repaired_call_has_json_without_special_quotes(raw: str, complete: bool) -> None:
    try:
        name, arguments = repair_call(raw, complete=complete)
    except MalformedCallError:
        return
    assert name
    text = json.dumps([name, arguments], ensure_ascii=False, allow_nan=False)
    assert QUOTE_SIGN not in text
