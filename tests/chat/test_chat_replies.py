"""model.chat with tools and thinking, with a model that follows a script: from messages to events and
back."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemlet
from gemlet.chat import (
    GEMMA,
    GEMMA4_MARKERS,
    Content,
    Reasoning,
    ReplyEvent,
    ToolCall,
    collect,
)
from gemlet.cli.conversation import Conversation
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.generation import Generation
from support.replies import CALL, OSLO, QUOTE, gemma4_tokenizer, joined
from support.scripted import ScriptedModel, ids_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
QUESTION = {"role": "user", "content": "Weather in Oslo?"}
THOUGHT = "<|channel>thought\nA tool will know.\n<channel|>"


def test_a_tool_loop_from_the_question_to_the_answer() -> None:
    made_up = "<|tool_response>response:weather{}"
    # With thinking, the prompt after a result opens a thought. The second reply begins inside this thought.
    model = ScriptedModel(THOUGHT + CALL + made_up, "Warm?\n<channel|>It is 4.<turn|>\nmore")
    messages: list[Any] = [QUESTION]
    reply = model.chat(messages, tools=[WEATHER], thinking=True)
    assert (reply.text, reply.reasoning, reply.tool_calls) == ("", "A tool will know.", [OSLO])
    assert (reply.finish_reason, reply.malformed_calls) == ("stop", [])
    messages.append(reply.message)
    (call,) = reply.message["tool_calls"]
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": "4 degrees"})
    answer = model.chat(messages, tools=[WEATHER], thinking=True)
    assert (answer.text, answer.reasoning, answer.tool_calls) == ("It is 4.", "Warm?", [])
    asked, told = model.asked
    assert "<|think|>" in asked
    assert "<|tool>declaration:weather{" in asked
    # The prompt with the result continues the first prompt and its reply, without a new turn.
    assert told.startswith(asked)
    assert f"{CALL}<|tool_response>response:weather{{value:{QUOTE}4 degrees{QUOTE}}}<tool_response|>" in told
    # When the user has spoken again, the history does not contain the thoughts of the answer.
    messages += [answer.message, QUESTION]
    assert answer.message == {"role": "assistant", "content": "It is 4.", "reasoning": "Warm?"}
    assert "Warm?" not in (model.chat_format or GEMMA).render(messages, thinking=True)


def test_events_come_as_soon_as_they_are_certain() -> None:
    model = ScriptedModel(THOUGHT + "Let me look." + CALL + CALL + "<|tool_response>")
    with model.stream_chat([QUESTION], tools=[WEATHER], thinking=True) as stream:
        chunks = list(stream)
    events = [event for chunk in chunks for event in chunk.events]
    assert joined(events) == [Reasoning("A tool will know."), Content("Let me look."), OSLO, OSLO]
    assert sum(isinstance(event, Reasoning) for event in events) > 2
    calls = [chunk for chunk in chunks if any(isinstance(event, ToolCall) for event in chunk.events)]
    assert [len(chunk.token_ids) for chunk in calls] == [1, 1]
    assert "".join(chunk.text for chunk in chunks) == stream.result.text == "Let me look."
    identifiers = [call["id"] for call in stream.result.message["tool_calls"]]
    assert len(set(identifiers)) == 2


@pytest.mark.parametrize("end", ["<turn|>", "<|tool_response>", "<eos>"])
def test_the_finish_reason_of_a_reply(end: str) -> None:
    model = ScriptedModel("Yes." + end + "No.")
    reply = model.chat([QUESTION])
    assert (reply.text, reply.finish_reason) == ("Yes.", "stop")
    assert reply.token_ids == ids_of("Yes.")


def test_a_call_cut_off_by_max_tokens_is_malformed() -> None:
    ids = ids_of("<|tool_call>call:weather{city:")
    reply = ScriptedModel(ids).chat([QUESTION], tools=[WEATHER], max_tokens=len(ids))
    assert (reply.tool_calls, reply.finish_reason) == ([], "length")
    assert [call.raw for call in reply.malformed_calls] == ["call:weather{city:"]
    assert reply.message == {"role": "assistant", "content": "<|tool_call>call:weather{city:"}


def test_a_call_that_cannot_be_read_stays_in_the_text_and_the_message() -> None:
    written = "<|tool_call>call:weather{city:Oslo, Norway}<tool_call|>"
    model = ScriptedModel("Let me look." + written + "<turn|>", "Sorry.<turn|>")
    with model.stream_chat([QUESTION], tools=[WEATHER]) as stream:
        chunks = list(stream)
    reply = stream.result
    assert "".join(chunk.text for chunk in chunks) == reply.text == "Let me look." + written
    assert [call.raw for call in reply.malformed_calls] == ["call:weather{city:Oslo, Norway}"]
    assert reply.message == {"role": "assistant", "content": reply.text}
    model.chat([QUESTION, reply.message, QUESTION], tools=[WEATHER])
    assert f"<|turn>model\n{reply.text}<turn|>" in model.asked[1]


def test_a_call_with_slips_is_a_call() -> None:
    # The token that ends the turn ends the call as well.
    model = ScriptedModel("<|tool_call>:weather(city='Oslo', days=[1,2])<turn|>")
    reply = model.chat([QUESTION], tools=[WEATHER])
    assert (reply.text, reply.tool_calls, reply.malformed_calls) == ("", [OSLO], [])


@pytest.mark.parametrize(
    ("reply", "text", "reasoning", "calls", "finish_reason"),
    [
        ("<|channel>thought\nnot the END yet\n<channel|>a END b<turn|>", "a ", "not the END yet", 0, "stop"),
        ("a EN" + CALL + "D b END" + CALL, "a END b ", "", 1, "stop"),
        ("a EN<|channel>thought\nHm.\n<channel|>D b EN<turn|>", "a END b EN", "Hm.", 0, "stop"),
    ],
)
def test_stop_strings_count_only_in_the_answer(
    reply: str, text: str, reasoning: str, calls: int, finish_reason: str
) -> None:
    result = ScriptedModel(reply).chat([QUESTION], stop="END")
    assert (result.text, result.reasoning, len(result.tool_calls)) == (text, reasoning, calls)
    assert result.finish_reason == finish_reason


pieces = st.sampled_from(
    [THOUGHT, CALL, "Yes. ", "héllo 世界 😀", "\n", "<|tool_call>", "a END", "E", "N", "D"]
)


@settings(deadline=None, max_examples=80)
@given(st.lists(pieces, max_size=8), st.integers(0, 2**32))
def test_a_reply_split_into_any_tokens_gives_the_same_events(parts: list[str], seed: int) -> None:
    rng = random.Random(seed)
    encode = gemma4_tokenizer().encode
    whole = "".join(parts)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, GEMMA4_MARKERS))})", whole):
        if part in GEMMA4_MARKERS:
            ids += ids_of(part)
            continue
        while part:
            size = rng.randint(1, 4)
            ids += encode(part[:size], add_bos=False, allow_control=False)
            part = part[size:]
    end = ids_of("<turn|>")
    expected = run(ids_of(whole) + end)
    found = run(ids + end)
    assert (found.text, found.reasoning, found.tool_calls) == (
        expected.text,
        expected.reasoning,
        expected.tool_calls,
    )


def run(ids: list[int]) -> Generation:
    with ScriptedModel(ids).stream_chat([QUESTION], stop="END", max_tokens=10_000) as stream:
        events: list[ReplyEvent] = [event for chunk in stream for event in chunk.events]
    reply = collect(events)
    result = stream.result
    assert (result.text, result.reasoning) == (reply.content, reply.reasoning)
    assert (result.tool_calls, result.malformed_calls) == (reply.tool_calls, reply.malformed)
    return result


def test_the_error_of_a_format_without_thinking_names_one_with_it() -> None:
    with gemlet.load() as model:
        with pytest.raises(
            UnsupportedError, match=r"the chat format gemma does not have it; the chat format of Gemma 4"
        ):
            model.chat([QUESTION], thinking=True)
        reply = model.chat([QUESTION], tools=[], max_tokens=5, seed=1)
        assert reply.message == {"role": "assistant", "content": reply.text}
    with pytest.raises(InvalidRequestError, match=r"tools\[0\]"):
        ScriptedModel("").chat([QUESTION], tools=[{"type": "function"}])


@pytest.mark.parametrize("is_terminal", [True, False])
def test_reasoning_is_shown_only_on_a_terminal(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    model = ScriptedModel(THOUGHT + "Warm.<turn|>")
    chat = Conversation(model, options={"thinking": True})
    reply = chat.ask("Weather in Oslo?")
    assert capsys.readouterr().out == ("A tool will know.\n\n" if is_terminal else "") + "Warm.\n"
    assert reply.message == {"role": "assistant", "content": "Warm.", "reasoning": "A tool will know."}
