"""Tests of structured output in chats whose models think first or call tools. A scripted model gives the
tokens of the reply, and the mask of the grammar must allow each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import gemlet
from gemlet.chat import ToolCall
from support.replies import CALL, OSLO
from support.scripted import ScriptedModel, ScriptedRequest, ids_of

pytestmark = [pytest.mark.extra("grammar"), pytest.mark.slow]  # a vocabulary of 262,144 tokens

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
THOUGHT = "<|channel>thought\nOne, or {two}.\n<channel|>"


class RefusedError(Exception):
    """The mask of the grammar forbids a token of the script."""


class MaskedRequest(ScriptedRequest):
    is_masked = False
    mask: Any = None

    def set_mask(self, position: int, mask: Any) -> None:
        assert position == len(self.given)
        self.is_masked, self.mask = True, mask

    def next_token(self) -> int:
        token_id = super().next_token()
        if self.is_masked and not self.mask[token_id // 32] >> (token_id % 32) & 1:
            raise RefusedError(f"{token_id} after {self.given}")
        self.mask = None
        return token_id


def reply(script: str | list[int], **options: Any) -> gemlet.Generation:
    """The result of a scripted reply. The reply ends at the end of the script, or earlier if the grammar
    allows no further token."""
    model = ScriptedModel([*(ids_of(script) if isinstance(script, str) else script), *ids_of("<turn|>")])
    model.engine.kind = MaskedRequest
    return model.chat("A number?", **{"json_schema": SCHEMA, "max_tokens": 200, **options})


def refused(script: str | Sequence[int], **options: Any) -> bool:
    try:
        reply(script if isinstance(script, str) else list(script), **options)
    except RefusedError:
        return True
    return False


def test_the_answer_must_match_the_schema() -> None:
    result = reply('{"n": 12}')
    assert (result.text, result.finish_reason) == ('{"n": 12}', "stop")
    assert refused("The number is 12")
    assert refused('{"n": 1')  # the end of the turn follows the script, and the JSON is incomplete
    assert refused("<|tool_call>")
    assert refused("<|turn>")


def test_with_thinking_a_thought_may_come_first() -> None:
    result = reply(THOUGHT + '{"n": 12}', thinking=True)
    assert (result.reasoning, result.text) == ("One, or {two}.", '{"n": 12}')
    assert reply('{"n":12}', thinking=True).text == '{"n":12}'
    assert refused(THOUGHT + '{"n": 12}')
    assert refused(THOUGHT + "The number is 12", thinking=True)
    assert refused(THOUGHT + THOUGHT, thinking=True)
    assert refused('{"n": 1' + THOUGHT, thinking=True)


def test_a_thought_does_not_end_the_reply() -> None:
    begun = ids_of("<|channel>thought\nOne")
    for end in ("<turn|>", "<eos>", "<|turn>", "<|tool_call>", "<|channel>"):
        assert refused([*begun, *ids_of(end)], thinking=True), end


def test_tool_calls_may_replace_the_answer() -> None:
    result = reply(CALL, tools=TOOLS)
    assert (result.text, result.tool_calls) == ("", [OSLO])
    assert [type(call) for call in reply(CALL + CALL, tools=TOOLS).tool_calls] == [ToolCall, ToolCall]
    assert reply(THOUGHT + CALL, tools=TOOLS, thinking=True).tool_calls == [OSLO]
    assert reply('{"n": 12}', tools=TOOLS).text == '{"n": 12}'
    assert refused(CALL)
    assert refused(CALL + '{"n": 12}', tools=TOOLS)
    assert refused('{"n": 12' + CALL, tools=TOOLS)
    assert refused("<|tool_call>call:weather{<turn|>", tools=TOOLS)


def test_a_tool_choice_makes_a_grammar() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    other = CALL.replace("weather", "now")
    for choice in ("required", named):
        asked: dict[str, Any] = {"json_schema": None, "tools": TOOLS, "tool_choice": choice}
        assert reply(CALL, **asked).tool_calls == [OSLO]
        assert reply(THOUGHT + CALL, thinking=True, **asked).tool_calls == [OSLO]
        for script in ("No.", "<turn|>", THOUGHT + CALL, CALL.replace("[1,2]", "true"), other):
            assert refused(script, **asked), script
        assert refused(THOUGHT + "No.", thinking=True, **asked)
        with pytest.raises(
            gemlet.InvalidRequestError, match="json_schema: cannot be combined with a tool_choice"
        ):
            reply(CALL, **{**asked, "json_schema": SCHEMA})
    now = "<|tool_call>call:now{}<tool_call|>"
    assert reply(now, json_schema=None, tools=TOOLS, tool_choice="required").tool_calls[0].name == "now"
    assert refused(now, json_schema=None, tools=TOOLS, tool_choice=named)


def test_a_required_call_applies_only_to_the_first_reply() -> None:
    def weather(city: str, days: list[int]) -> str:
        return f"{city}: snow"

    model = ScriptedModel([*ids_of(CALL), *ids_of("<turn|>")], [*ids_of("Snow."), *ids_of("<turn|>")])
    model.engine.kind = MaskedRequest
    said = model.chat("Oslo?", tools=[weather], tool_choice="required", run_tools=True, max_tokens=200)
    assert said.text == "Snow."


def test_any_model_calls_a_required_tool() -> None:
    def weather(city: str, days: int) -> str:
        return city

    with gemlet.load() as model:
        for seed in range(5):
            result = model.chat(
                "Oslo?", tools=[weather], tool_choice="required", max_tokens=300, temperature=1.5, seed=seed
            )
            if result.finish_reason == "stop":
                assert [call.name for call in result.tool_calls] == ["weather"]
                assert isinstance(result.tool_calls[0].arguments["days"], int)
