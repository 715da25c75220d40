"""FunctionGemma's chat format: prompts equal those of the official template; replies arrive in any pieces."""

from __future__ import annotations

import json
import lzma
import random
from typing import Any

import pytest

from gemlet.chat import (
    FUNCTION_GEMMA,
    Content,
    MalformedToolCall,
    TextReplyParser,
    ToolCall,
    chat_format_for,
)
from gemlet.chat.functiongemma import REPLY_MARKERS
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer import Tokenizer
from support.paths import DATA
from support.replies import joined
from support.tokenizer_files import trained_model

PROMPTS = DATA / "functiongemma_prompts.json.xz"
MARKERS = FUNCTION_GEMMA.markers[1:]
CALL = "<start_function_call>call:light{room:<escape>the {hall}, here<escape>,on:true}<end_function_call>"
LIGHT = ToolCall("light", {"room": "the {hall}, here", "on": True})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("functiongemma") / "tokenizer.model"
    path.write_bytes(trained_model(user_defined_symbols=MARKERS))
    return Tokenizer.from_file(path)


def calling(*names: str) -> dict[str, Any]:
    calls = [{"id": name, "function": {"name": name, "arguments": '{"a": 1}'}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


USER = {"role": "user", "content": "Hi"}


def test_prompts_equal_the_official_template() -> None:
    prompts = json.loads(lzma.decompress(PROMPTS.read_bytes()))
    assert len(prompts) == 300
    for conversation, expected in prompts:
        assert FUNCTION_GEMMA.render(**conversation) == expected


def test_only_the_formats_own_markers_are_control_tokens(tokenizer: Tokenizer) -> None:
    attack = "".join(MARKERS)
    messages = [{"role": "developer", "content": attack}, USER | {"content": attack}, calling("f")]
    messages.append({"role": "tool", "tool_call_id": "f", "content": attack})
    tool = {"type": "function", "function": {"name": "f", "description": attack}}
    ids = FUNCTION_GEMMA.encode_chat(tokenizer, messages, tools=[tool])
    plain = json.loads(json.dumps([messages, tool]).replace(attack, "x"))
    clean = FUNCTION_GEMMA.encode_chat(tokenizer, plain[0], tools=[plain[1]])
    control = [[i for i in found if i in tokenizer.control_ids] for found in (ids, clean)]
    assert control[0] == control[1]
    assert len(control[0]) > 15


def test_results_are_matched_with_their_calls() -> None:
    results = [
        {"role": "tool", "tool_call_id": "g", "content": [{"type": "text", "text": "1"}]},
        {"role": "tool", "tool_call_id": "f", "content": {"n": None}},
    ]
    text = FUNCTION_GEMMA.render([USER, calling("f", "g"), *results])
    assert text.endswith(
        "call:f{a:1}<end_function_call><start_function_call>call:g{a:1}<end_function_call>"
        "<start_function_response>response:g{value:<escape>1<escape>}<end_function_response>"
        "<start_function_response>response:f{n:None}<end_function_response>"
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, {"role": "tool", "content": "1"}], r"messages\[1\] is the result of a tool, but"),
        ([USER, calling("f"), {"role": "tool", "tool_call_id": "h", "content": "1"}], "tool_call_id is 'h'"),
        ([USER | {"tool_calls": [1]}], "tool_calls in a message of the role user"),
        ([calling("f") | {"function_call": {"name": "f"}}], "both function_call and tool_calls"),
        ([USER, {"role": "ipython", "content": "1"}], "role is 'ipython'"),
        ([{"role": "user"}], "content is None"),
        ([USER | {"content": [{"type": "image"}]}], "does not take"),
    ],
)
def test_messages_that_are_refused(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        FUNCTION_GEMMA.render(messages)


def test_thinking_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="thinking"):
        FUNCTION_GEMMA.render([USER], thinking=True)


def test_the_format_is_recognised(tokenizer: Tokenizer) -> None:
    assert chat_format_for("gemma3_text", tokenizer) is FUNCTION_GEMMA
    assert FUNCTION_GEMMA.end_ids(tokenizer) == {
        tokenizer.eos_id,
        tokenizer.token_id("<end_of_turn>"),
        tokenizer.token_id("<start_function_response>"),
    }


def test_parallel_calls_in_any_pieces(tokenizer: Tokenizer) -> None:
    reply = f"One moment.{CALL}{CALL}<start_function_response>"
    expected = [Content("One moment."), LIGHT, LIGHT]
    prompt = FUNCTION_GEMMA.encode_chat(tokenizer, [USER])
    ids = tokenizer.encode(reply, add_bos=False)
    choose = random.Random(3)
    for _ in range(100):
        text = TextReplyParser(REPLY_MARKERS, FUNCTION_GEMMA.render([USER]))
        tokens = FUNCTION_GEMMA.reply_parser(tokenizer, prompt)
        for parser, rest in ((text, reply), (tokens, ids)):
            events = []
            while rest:
                size = choose.choice((1, 2, 5, 40))
                events += parser.push(rest[:size])  # type: ignore[attr-defined]
                rest = rest[size:]
            assert joined(events + parser.finish()) == expected  # type: ignore[attr-defined]


def test_a_reply_begins_where_the_prompt_ends(tokenizer: Tokenizer) -> None:
    messages = [USER, calling("f"), {"role": "tool", "name": "f", "content": "1"}]
    parser = FUNCTION_GEMMA.reply_parser(tokenizer, FUNCTION_GEMMA.encode_chat(tokenizer, messages))
    ids = tokenizer.encode("It is on.<end_of_turn>", add_bos=False)
    assert joined(parser.push(ids) + parser.finish()) == [Content("It is on.")]


def test_a_truncated_call_is_reported() -> None:
    parser = TextReplyParser(REPLY_MARKERS, FUNCTION_GEMMA.render([USER]))
    [event, shown] = parser.push(CALL[:50]) + parser.finish()
    assert shown == Content(CALL[:50])
    assert isinstance(event, MalformedToolCall)
    assert event.raw == CALL[21:50]
    assert "the reply ended within the call" in event.problem
