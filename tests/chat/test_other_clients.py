"""Messages as other programs send them: texts of classes derived from ``str``, refusals, and roles."""

from __future__ import annotations

from typing import Any

import pytest

import gemlet
from gemlet.chat import FUNCTION_GEMMA, GEMMA, ChatFormat, gemma4_format
from gemlet.errors import InvalidRequestError

FORMATS = [GEMMA, FUNCTION_GEMMA, gemma4_format()]
USER = {"role": "user", "content": "Weather?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks it up.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "where", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


class Text(str):
    """Like a member of an enumeration that is derived from ``str``."""

    def __str__(self) -> str:
        return "Wrong.TEXT"

    def __format__(self, spec: str) -> str:
        return "Wrong.TEXT"


def with_texts(value: Any, *, keys: bool) -> Any:
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, dict):
        # The names of the members of a message or a tool are part of the form, and not of what is said.
        return {Text(key) if keys else key: with_texts(item, keys=keys) for key, item in value.items()}
    return [with_texts(item, keys=keys) for item in value] if isinstance(value, list) else value


def reply(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    reply(None, tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sun"},
    reply("Sun."),
    USER,
    reply(None, tool_calls=[CALL | {"id": "c2"}]),
    {"role": "tool", "tool_call_id": "c2", "content": {"sky": "sun"}},
]


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("chat_format", FORMATS, ids=lambda f: str(f.name))
def test_texts_of_derived_classes_are_texts(chat_format: ChatFormat, keys: bool) -> None:
    messages, tools = with_texts(CONVERSATION, keys=keys), with_texts([TOOL], keys=keys)
    for count in range(2, len(CONVERSATION) + 1):
        expected = chat_format.render(CONVERSATION[:count], tools=[TOOL])
        assert chat_format.render(messages[:count], tools=tools) == expected
    assert "Wrong" not in chat_format.render([with_texts(USER, keys=keys)])


@pytest.mark.extra("templates")
def test_roles_of_derived_classes_reach_foreign_templates() -> None:
    template = "{# #}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    with gemlet.load(threads=1, chat_template=template) as model:
        assert model.chat_format is not None
        assert model.chat_format.render([with_texts(USER, keys=False)]) == "<user>Weather?"


@pytest.mark.parametrize("chat_format", FORMATS, ids=lambda f: str(f.name))
def test_the_role_model_is_the_assistant(chat_format: ChatFormat) -> None:
    def conversation(role: str) -> list[dict[str, Any]]:
        return [USER, reply("Sun.") | {"role": role}]

    own, others = conversation("model"), conversation("assistant")
    assert chat_format.render([*own, USER]) == chat_format.render([*others, USER])
    assert chat_format.render(own, continue_final_message=True) == chat_format.render(
        others, continue_final_message=True
    )


@pytest.mark.parametrize("chat_format", FORMATS, ids=lambda f: str(f.name))
def test_a_refusal_is_what_the_assistant_said(chat_format: ChatFormat) -> None:
    expected = chat_format.render([USER, reply("No."), USER])
    for refused in (
        reply(None, refusal="No."),
        reply("", refusal="No."),
        reply([{"type": "refusal", "refusal": "No."}]),
        reply("No.", refusal=None),
    ):
        assert chat_format.render([USER, refused, USER]) == expected
    for wrong in (reply(None, refusal=3), reply([{"type": "refusal", "refusal": None}])):
        with pytest.raises(InvalidRequestError, match="expected a string"):
            chat_format.render([USER, wrong, USER])
