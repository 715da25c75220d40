"""Arguments of model.chat besides the messages: the beginning of the reply, and thinking. Also how a reply
may end."""

from __future__ import annotations

from typing import Any, cast

import pytest

import gemlet
from gemlet import GenerationConfig
from gemlet.chat import GEMMA4_MARKERS, TokenReplyParser, collect
from gemlet.errors import InvalidRequestError
from support.replies import QUOTE, gemma4_tokenizer
from support.scripted import ScriptedModel, ids_of

QUESTION = {"role": "user", "content": "Weather in Oslo?"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather now"}}


def test_the_beginning_of_a_reply_is_continued() -> None:
    model = ScriptedModel(" four degrees.<turn|>")
    begun = [QUESTION, {"role": "assistant", "content": "It has"}]
    reply = model.chat(begun, continue_final_message=True)
    assert "<turn|>\n<|turn>model\nIt has four" in model.asked[0]
    assert (reply.text, reply.message["content"]) == (" four degrees.", " four degrees.")
    with gemlet.load() as demo:
        for continues, ends in (
            (True, "model\nIt has"),
            (False, "It has<end_of_turn>\n<start_of_turn>model\n"),
        ):
            stream = demo.stream_chat(begun, continue_final_message=continues, max_tokens=1)
            list(stream)
            prompt = gemlet.chat.GEMMA.render(begun, continue_final_message=continues)
            assert prompt.endswith(ends)
            assert stream.result.prompt_tokens == len(demo.tokenizer.encode(prompt))


@pytest.mark.parametrize(
    "messages",
    [
        [QUESTION],
        [
            QUESTION,
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]},
        ],
    ],
)
def test_only_a_text_of_the_assistant_is_continued(messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[.\] .*continue_final_message"):
        ScriptedModel("").chat(messages, continue_final_message=True)


@pytest.mark.parametrize("name", ["thinking", "continue_final_message"])
def test_switches_must_be_true_or_false(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name}: got 'yes', expected True or False"):
        ScriptedModel("").chat([QUESTION], **cast(Any, {name: "yes"}))
    assert ScriptedModel("Cold.<turn|>").chat([QUESTION], **cast(Any, {name: None})).text == "Cold."


THOUGHT = "Hm. " * 400  # this is longer than the 256 tokens that a reply without a thought may have
LONG = f"<|channel>thought\n{THOUGHT}\n<channel|>Cold.<turn|>"


@pytest.mark.parametrize(
    "messages", [[QUESTION], [{"role": "system", "content": "<|think|>Be brief."}, QUESTION]]
)
def test_with_thinking_a_reply_has_more_room(messages: Any) -> None:
    thinking = len(messages) == 1  # without it, the system message asks for it
    for config in (None, GenerationConfig(temperature=0), GenerationConfig().replace(seed=3)):
        reply = ScriptedModel(LONG).chat(messages, config, thinking=thinking)
        assert (reply.text, reply.finish_reason) == ("Cold.", "stop")
        assert reply.reasoning.strip() == THOUGHT.strip()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (None, {"max_tokens": 256}),
        (GenerationConfig(max_tokens=256), {}),
        (GenerationConfig(max_tokens=256).replace(seed=1), {"max_tokens": None}),
    ],
)
def test_a_thought_ends_at_the_limit_that_was_asked_for(config: Any, options: Any) -> None:
    reply = ScriptedModel(LONG).chat([QUESTION], config, thinking=True, **options)
    assert (reply.completion_tokens, reply.finish_reason) == (256, "length")


def test_without_a_thought_a_reply_has_256_tokens() -> None:
    reply = ScriptedModel("Cold. " * 400).chat([QUESTION])
    assert (reply.completion_tokens, reply.finish_reason) == (256, "length")


@pytest.mark.parametrize("end", ["<turn|>", "<eos>", "<|tool_response>", "<tool_call|><turn|>"])
@pytest.mark.parametrize("written", [
    f"call:weather{{city:{QUOTE}Oslo{QUOTE}",
    "call:weather(city='Oslo'",
    "weather{city=Oslo",
    f'call:weather({{city:"Oslo{QUOTE}',
])  # fmt: skip
def test_the_end_of_the_reply_ends_a_call(written: str, end: str) -> None:
    with ScriptedModel("<|tool_call>" + written + end).stream_chat([QUESTION], tools=[WEATHER]) as stream:
        events = [event for chunk in stream for event in chunk.events]
    assert [(call.name, call.arguments) for call in stream.result.tool_calls] == [
        ("weather", {"city": "Oslo"})
    ]
    assert events == stream.result.tool_calls
    assert stream.result.text == ""


@pytest.mark.parametrize("written", [
    "call:weather(city:'Oslo')",
    ":weather{city:Oslo}",
    "weather{city=Oslo}",
    f'call:weather{{city:"Oslo{QUOTE}}}',
    f"call:weather{{@city:{QUOTE}Oslo{QUOTE}}}",
    f"call:weather{{city:{QUOTE}Os{{lo{QUOTE}",
    "call:weather{city:[Oslo",
    '{"name": "weather", "arguments": {"city": "Oslo"}}',
    "call:weather{city:Oslo}}",
    "call:weather{city:Oslo, Norway}",
    f"call:weather{{city:{QUOTE}Oslo",
    "weather",
    "",
])  # fmt: skip
@pytest.mark.parametrize("end", ["<tool_call|>", "<turn|>"])
def test_a_call_is_the_same_token_by_token_and_at_once(written: str, end: str) -> None:
    ids = ids_of(f"Let me look.<|tool_call>{written}{end}")
    at_once = TokenReplyParser(gemma4_tokenizer(), GEMMA4_MARKERS)
    expected = collect(at_once.push(ids) + at_once.finish())
    reply = ScriptedModel([*ids, *ids_of("<turn|>")]).chat([QUESTION], tools=[WEATHER])
    assert (reply.text, reply.tool_calls) == (expected.content, expected.tool_calls)
    assert [call.raw for call in reply.malformed_calls] == [call.raw for call in expected.malformed]
    assert len(reply.tool_calls) + len(reply.malformed_calls) == 1
    visible = f"<|tool_call>{written}" in reply.text
    assert visible == bool(reply.malformed_calls)


@pytest.mark.parametrize("how", ["max_tokens", "close"])
def test_a_call_that_was_cut_off_is_not_completed(how: str) -> None:
    ids = ids_of("<|tool_call>call:weather{days:1")  # the beginning of days:14
    model = ScriptedModel([*ids, *ids_of("4}<tool_call|>")])
    stream = model.stream_chat([QUESTION], tools=[WEATHER], max_tokens=len(ids) + (how == "close"))
    for _ in ids:
        next(stream)
    stream.close()
    assert stream.result.tool_calls == []
    assert [call.raw for call in stream.result.malformed_calls] == ["call:weather{days:1"]


def test_calls_of_a_conversation_have_different_ids() -> None:
    call = "<|tool_call>call:weather{}<tool_call|>"
    model = ScriptedModel(*[call + call + "<turn|>"] * 3)
    replies = [model.chat([QUESTION], tools=[WEATHER]).message for _ in range(3)]
    assert len({call["id"] for message in replies for call in message["tool_calls"]}) == 6
