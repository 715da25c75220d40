"""Replies that have to call a function do so, whatever the model prefers."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
import pytest

import gemlet
from gemlet.chat import ToolCall, collect, gemma4_format
from gemlet.chat.arguments import problem_of
from gemlet.chat.functions import PythonTool
from gemlet.errors import InvalidRequestError
from gemlet.generation.grammar import compile_grammar
from gemlet.generation.grammar_text import call_text
from gemlet.generation.masked import MaskPlan, Masks
from support.replies import gemma4_tokenizer

pytestmark = pytest.mark.extra("grammar")

NAMED = {"type": "function", "function": {"name": "weather"}}
# With these options, all tokens that fit are about equally likely.
HOT = {"temperature": 100.0, "max_tokens": 400}


def weather(unit: Literal["c", "f"], days: int, hourly: bool = False) -> str:
    """The weather."""
    return f"{days} days of rain"


def now() -> str:
    """The time."""
    return "noon"


SCHEMA = PythonTool.of(weather, "weather").description["function"]["parameters"]


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load(threads=1) as loaded:
        yield loaded


def check(calls: list[ToolCall]) -> None:
    for call in calls:
        schema = SCHEMA if call.name == "weather" else {"additionalProperties": False}
        assert call.name in ("weather", "now")
        assert problem_of(schema, call.arguments) == ""


def test_a_call_of_some_function(model: gemlet.Model) -> None:
    for seed in range(6):
        reply = model.chat("Hi", tools=[weather, now], tool_choice="required", seed=seed, **HOT)
        assert (reply.finish_reason, reply.text, reply.malformed_calls) == ("stop", "", [])
        assert reply.tool_calls
        check(reply.tool_calls)


def test_a_call_of_one_function(model: gemlet.Model) -> None:
    stream = model.stream_chat("Hi", tools=[weather, now], tool_choice=NAMED, seed=1, **HOT)
    pieces = [piece for chunk in stream for piece in chunk.call_pieces]
    (call,) = stream.result.tool_calls
    assert call.name == pieces[0].name == "weather"
    check([call])


def test_the_first_reply_has_to_call(model: gemlet.Model) -> None:
    reply = model.chat(
        "Hi", tools=[weather], tool_choice="required", run_tools=True, temperature=0, max_tokens=60
    )
    assert [message["role"] for message in reply.messages][:2] == ["assistant", "tool"]
    assert reply.messages[1]["content"].endswith("days of rain")


def test_a_tool_choice_excludes_other_forms(model: gemlet.Model) -> None:
    with pytest.raises(InvalidRequestError, match="regex: cannot be combined with a tool_choice"):
        model.chat("Hi", tools=[now], tool_choice="required", regex="a")


def test_calls_in_gemma4s_tokens() -> None:
    """A walk through all tokens that the masks allow."""
    tokenizer = gemma4_tokenizer()
    chat_format = gemma4_format()
    tools = [PythonTool.of(function, "tool").description for function in (weather, now)]
    grammar = compile_grammar(call_text(chat_format.call_grammar(tools)), tokenizer)
    ends = chat_format.end_ids(tokenizer)
    prompt = chat_format.encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], tools=tools)
    for seed in range(8):
        walk = random.Random(seed)
        masks = Masks(MaskPlan(grammar, tokenizer.vocab_size, ends, ends))
        ids: list[int] = []
        while not masks.is_complete and len(ids) < 2000:
            bits = np.unpackbits(masks.next().view(np.uint8), bitorder="little")
            token_id = walk.choice(np.flatnonzero(bits).tolist())
            if token_id in ends:
                break
            ids.append(token_id)
            masks.push([token_id])
        parser = chat_format.reply_parser(tokenizer, prompt, tools=tools)
        reply = collect(parser.push(ids) + parser.finish(ended=True))
        assert (reply.content, reply.malformed) == ("", [])
        assert reply.tool_calls
        check(reply.tool_calls)
