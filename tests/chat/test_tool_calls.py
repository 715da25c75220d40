"""Gemma 4's tool calls: any JSON arguments are read back, and an unreadable call keeps the text of the
model."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat import (
    Content,
    Gemma4Format,
    MalformedToolCall,
    ReplyEvent,
    Segments,
    TextReplyParser,
    ToolCall,
)
from gemlet.chat.gemma4_tools import WrittenCall, write_call
from gemlet.chat.templates import CANONICAL, TOOL_MESSAGES
from gemlet.chat.tool_calls import MAX_DEPTH, MalformedCallError, parse_call
from gemlet.errors import InvalidRequestError
from support.replies import CALL, OSLO, QUOTE, gemma4_tokenizer, read, read_ids

# --- calls --------------------------------------------------------------------------------------------------

# Half a surrogate pair is not text. U+2581 stands for a space in the vocabulary.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
# A model may write a key in or after single or typographic quotes; it means the key without them.
keys = (
    (
        st.text(characters, max_size=6)
        | st.sampled_from(
            ["city", "a:b", "a,b", '"a"', " a", "a b", "{", "}", "true", "1", "<tool_call|>", QUOTE]
        )
    )
    .filter(lambda key: not re.fullmatch(r"\s*'[^']+'\s*", key))
    .filter(lambda key: key.strip()[:1] not in tuple("\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb`"))
)
texts = st.text(characters, max_size=10) | st.sampled_from(
    ["}", '"', "\\", '\\"', "}<tool_call|>", QUOTE, f"{QUOTE},b:{QUOTE}", "a\nb", "null", "1", " "]
)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
names = st.from_regex(r"[A-Za-z_]([A-Za-z0-9_.:/-]{0,20}[A-Za-z0-9_./-])?", fullmatch=True)


def same(found: Any, expected: Any) -> bool:
    """Whether two values are equal; 1 differs from 1.0 and True."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@settings(deadline=None, max_examples=400)
@given(name=names, arguments=st.dictionaries(keys, values, max_size=5), seed=st.integers(0, 2**32))
def test_any_arguments_are_read_back_from_the_ids(name: str, arguments: dict[str, Any], seed: int) -> None:
    tokenizer = gemma4_tokenizer()
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
    }
    whole = Gemma4Format(TOOL_MESSAGES, True).encode_chat(tokenizer, [message], False)
    start, end = (tokenizer.token_id(marker) for marker in ("<|tool_call>", "<tool_call|>"))
    assert start is not None
    assert end is not None
    ids = whole[whole.index(start) : whole.index(end) + 1]
    rng = random.Random(seed)
    (event,) = read_ids(ids, sizes=iter(lambda: rng.randint(1, 4), 0))
    assert isinstance(event, ToolCall)
    assert event.name == name
    assert same(event.arguments, arguments)


def unmarked(value: Any) -> Any:
    """``value`` without markers, because in text they would look like real ones."""
    return json.loads(json.dumps(value).replace("<", "("))


@settings(deadline=None, max_examples=200)
@given(name=names, arguments=st.dictionaries(keys, values, max_size=5), seed=st.integers(0, 2**32))
def test_any_arguments_are_read_back_from_the_text(name: str, arguments: dict[str, Any], seed: int) -> None:
    arguments = unmarked(arguments)
    written = Segments()
    write_call(written, WrittenCall(name, arguments), "null")
    rest = "".join(text for text, _ in written)
    rng = random.Random(seed)
    parser = TextReplyParser()
    events: list[ReplyEvent] = []
    while rest:
        size = rng.randint(1, 9)
        events += parser.push(rest[:size])
        rest = rest[size:]
    (event,) = events + parser.finish()
    assert isinstance(event, ToolCall)
    assert same([event.name, event.arguments], [name, arguments])


def test_the_deepest_arguments_are_read_back() -> None:
    value: Any = []
    for level in range(MAX_DEPTH - 2):
        value = [value] if level % 2 else {"a": value}
    chat_format = Gemma4Format(CANONICAL, True)
    function: dict[str, Any] = {"name": "f", "arguments": {"a": value}}
    text = chat_format.render([{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}])
    (event,) = read(text[text.index("<|tool_call>") :])
    assert event == ToolCall("f", {"a": value})
    function["arguments"] = {"a": [value]}
    with pytest.raises(InvalidRequestError, match="levels"):
        chat_format.render([{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}])
    bad, _ = read("<|tool_call>call:f{a:" + "[" * 100_000)
    assert isinstance(bad, MalformedToolCall)
    assert "levels" in bad.problem


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("{}", {}),
        (" { } ", {}),
        ("{a:1,b:-2.5e3,c:0}", {"a": 1, "b": -2500.0, "c": 0}),
        ("{a:true,b:false,c:null}", {"a": True, "b": False, "c": None}),
        ("{a:True,b:False,c:None}", {"a": True, "b": False, "c": None}),
        ("{a: [1, 2 ,3], b : {c:[]}\n}", {"a": [1, 2, 3], "b": {"c": []}}),
        ("{a:[1,],b:2,}", {"a": [1], "b": 2}),
        (f"{{{QUOTE}a b{QUOTE}:{QUOTE}{QUOTE}}}", {"a b": ""}),
        (f'{{a:{QUOTE}he said "no", {{}}[]:,\n\\n{QUOTE}}}', {"a": 'he said "no", {}[]:,\n\\n'}),
        ('{"a": "b\\n\\u00e9\\"", "c": {"d": ["e"]}}', {"a": 'b\né"', "c": {"d": ["e"]}}),
        ('{a:"two\nlines"}', {"a": "two\nlines"}),
        ("{first name:1}", {"first name": 1}),
        ("{a:1,a:2}", {"a": 2}),
        (f"{{a:{QUOTE}<|image|><channel|>{QUOTE}}}", {"a": "<|image|><channel|>"}),
    ],
)
def test_other_notations_with_only_one_meaning_are_read(inside: str, arguments: dict[str, Any]) -> None:
    (event,) = read(f"<|tool_call>call:f{inside}<tool_call|>")
    assert isinstance(event, ToolCall)
    assert same(event.arguments, arguments)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "call:{}",
        "call: {}",
        "call:f",
        "call:f{a}",
        "call:f{a:}",
        "call:f{:1}",
        "call:f{,}",
        "call:f{a:1 2}",
        "call:f{a:1}}",
        "call:f{a:1}x",
        "call:f{a:1}call:g{}",
        "call:f{a:[1}",
        "call:f{a:[1 2]}",
        "call:f{a:01}",
        "call:f{a:1.}",
        "call:f{a:NaN}",
        "call:f{a:1e999}",
        "call:f{a:" + "9" * 10_000 + "}",
        f"call:f{{a:{QUOTE}b}}",
        f"call:f{{a:{QUOTE}b{QUOTE}c}}",
        'call:f{a:"b}',
        'call:f{a:"\\x"}',
    ],
)
def test_malformed_calls_keep_their_text(raw: str) -> None:
    written = f"<|tool_call>{raw}<tool_call|>"
    event, shown = read(written)
    assert isinstance(event, MalformedToolCall)
    assert event.raw == raw
    assert shown == Content(written)
    assert 0 < len(event.problem) < 300
    assert "\ud800" not in event.problem
    after = read(f"<|tool_call>{raw}<tool_call|>Sorry." + CALL)
    assert after == [event, Content(written + "Sorry."), OSLO]
    with pytest.raises(MalformedCallError):
        parse_call(raw.replace(QUOTE, "\ud800"))


def test_a_truncated_call_says_so() -> None:
    event, shown = read("<|tool_call>call:f{a:1")
    assert isinstance(event, MalformedToolCall)
    assert shown == Content("<|tool_call>call:f{a:1")
    assert event.raw == "call:f{a:1"
    assert "ended" in event.problem


def test_a_long_argument_costs_linear_time() -> None:
    text = "x" * 200_000
    parser = TextReplyParser()
    events = parser.push(f"<|tool_call>call:f{{a:{QUOTE}")
    for start in range(0, len(text), 100):
        events += parser.push(text[start : start + 100])
    assert events + parser.push(f"{QUOTE}}}<tool_call|>") == [ToolCall("f", {"a": text})]
