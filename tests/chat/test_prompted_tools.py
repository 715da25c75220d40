"""Function calling by instructions in the prompt, for the families without special tokens (Gemma 1 to 3n)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gemlet.chat import GEMMA, MalformedToolCall, Reply, ReplyEvent, ToolCall, ToolCallPiece, collect
from gemlet.chat.prompted_tools import CallFinder
from gemlet.chat.python_calls import parse_calls, write_calls
from gemlet.chat.tool_calls import MalformedCallError
from gemlet.errors import InvalidRequestError
from gemlet.tokenizer import Tokenizer
from support.tokenizer_files import trained_model

NOW = {"name": "now", "description": "The time.", "parameters": {"properties": {"zone": {"type": "string"}}}}
WEATHER = {"name": "weather", "parameters": {"properties": {"city": {}, "days": {}}}}
PARAMETERS = {"now": ["zone"], "weather": ["city", "days"]}
ASK = """You have access to functions. If you decide to invoke any of the function(s),
you MUST put it in the format of
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]

You SHOULD NOT include any other text in the response if you call a function
"""


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def read(text: str, sizes: random.Random | None = None, *, ended: bool = True) -> list[ReplyEvent]:
    """The events of a reply that comes in pieces of random size, or at once."""
    finder = CallFinder(PARAMETERS, pieces=True)
    events: list[ReplyEvent] = []
    while text:
        size = sizes.randint(1, 5) if sizes else len(text)
        events += finder.push(text[:size])
        text = text[size:]
    return events + finder.finish(ended=ended)


# --- prompts ------------------------------------------------------------------------------------------------


def test_the_prompt_is_that_of_googles_documentation() -> None:
    tools = [{"type": "function", "function": {**NOW, "return": {"type": "string"}}}]
    described = json.dumps([NOW], indent=2)
    question = {"role": "user", "content": " What time is it? "}
    end = "<end_of_turn>\n<start_of_turn>model\n"
    text = f"{ASK}{described}\nWhat time is it?"
    assert GEMMA.render([question], tools=tools) == f"<bos><start_of_turn>user\n{text}{end}"
    system = {"role": "system", "content": "Be brief."}
    expected = f"<bos><start_of_turn>user\nBe brief.\n\n{text}{end}"
    assert GEMMA.render([system, question], tools=tools) == expected
    greeting = [{"role": "assistant", "content": "Hello"}, question]
    assert GEMMA.render(greeting, tools=tools).startswith(
        f"<bos><start_of_turn>user\n{ASK}{described}<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>"
    )


def test_calls_and_results_in_the_history() -> None:
    calls = [
        {"id": "1", "function": {"name": "now", "arguments": '{"zone": "Europe/Oslo"}'}},
        {"id": "2", "function": {"name": "weather", "arguments": {"city": 'a"b', "days": [1, None, True]}}},
    ]
    messages = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "2", "content": {"rain": 0.5}},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    turns = GEMMA.render(messages, tools=[NOW, WEATHER]).split("<start_of_turn>")
    assert turns[2] == (
        "model\nLet me see.\n"
        '[now(zone="Europe/Oslo"), weather(city="a\\"b", days=[1, None, True])]<end_of_turn>\n'
    )
    assert turns[3] == (
        'user\n```tool_output\n{"name": "weather", "result": {"rain": 0.5}}\n```\n\n'
        '```tool_output\n{"name": "now", "result": "noon"}\n```<end_of_turn>\n'
    )
    assert turns[4] == "model\n"


def test_names_that_a_call_cannot_have_are_refused() -> None:
    for name in ("two words", "a(b", "3d"):
        with pytest.raises(InvalidRequestError, match="the name"):
            GEMMA.render([{"role": "user", "content": "Hi"}], tools=[{"name": name}])


# --- replies ------------------------------------------------------------------------------------------------

SHOWN_CALLS = {
    '[now(zone="a)]b")]': [call("now", zone="a)]b")],
    "[now(), weather('Oslo', days=2)]\n": [call("now"), call("weather", city="Oslo", days=2)],
    '```tool_code\nweather("Oslo")\nnow()\n```\n': [call("weather", city="Oslo"), call("now")],
    "```python\nprint(now())\n```": [call("now")],
    'now(\n  zone="x",\n)': [call("now", zone="x")],
    "[default_api.now(zone=None)]": [call("now", zone=None)],
    '{"name": "now", "parameters": {"zone": 1}}': [call("now", zone=1)],
    "{'name': 'now', 'arguments': {'zone': True}}": [call("now", zone=True)],
    '{\n  "name": "now",\n  "parameters": {\n  }\n}\n': [call("now")],
    '```json\n[{"name": "now", "parameters": {}},{"name": "now", "parameters": {"zone": "é"}}]\n```': [
        call("now"),
        call("now", zone="é"),
    ],
    '\n {"name": "now", "parameters": {}}\n{"name": "now", "parameters": {}}': [call("now"), call("now")],
    "[unknown(x=1)]": [call("unknown", x=1)],
    "```tool_code\ndefault_api.now()\n```": [call("now")],
}
# The model ended its reply before it had closed everything.
OPEN_CALLS = {
    "[now(), weather(days=[1, 2]": [call("now"), call("weather", days=[1, 2])],
    '```tool_code\nnow(zone="x")': [call("now", zone="x")],
}
TEXTS = (
    "It is noon.",
    "[1] says so",
    "now and then",
    "I call now() now.",
    "`now()`",
    '{"name": "Bob", "age": 3}',
    "Well, {\n}",
    "```python\nx = 1\n```\n",
    "[see (a)] he said",
    "Use unknown(x=1):\nunknown(x=1)",
    "[\n",
    " \n\n",
)


@pytest.mark.parametrize("text", SHOWN_CALLS)
def test_calls_are_found(text: str) -> None:
    for sizes in (None, *map(random.Random, range(20))):
        events = read(text, sizes)
        assert collect(events) == Reply("", tool_calls=SHOWN_CALLS[text])
        for each in collect(events).tool_calls:
            pieces = [e for e in events if isinstance(e, ToolCallPiece) and e.id == each.id]
            assert (pieces[0].name, pieces[0].arguments) == (each.name, "")
            assert json.loads("".join(piece.arguments for piece in pieces)) == each.arguments
        if "unknown" not in text:
            around = read(f"Let me see.\n{text}\nThere.", sizes)
            assert collect(around) == Reply("Let me see.\nThere.", tool_calls=SHOWN_CALLS[text])


@pytest.mark.parametrize("text", OPEN_CALLS)
def test_calls_without_their_last_brackets(text: str) -> None:
    for sizes in (None, *map(random.Random, range(20))):
        assert collect(read(text, sizes)) == Reply("", tool_calls=OPEN_CALLS[text])


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(text: str) -> None:
    for sizes in (None, *map(random.Random, range(20))):
        assert collect(read(text, sizes)) == Reply(text)


def test_the_name_comes_first_and_text_at_once() -> None:
    finder = CallFinder(PARAMETERS, pieces=True)
    assert [type(event).__name__ for event in finder.push("[weather(")] == ["ToolCallPiece"]
    assert finder.push('city="Os') == []
    finder = CallFinder(PARAMETERS)
    assert collect(finder.push("The time ")).content == "The time "
    assert collect(finder.push("is now")).content == "is now"


@pytest.mark.parametrize(
    "text", ["[now(zone=Oslo)]", "now(zone=open('x'))", '{"name": "now", "parameters": 3}']
)
def test_calls_that_cannot_be_read_stay_visible(text: str) -> None:
    reply = collect(read(text))
    assert reply.content == text
    assert [malformed.raw for malformed in reply.malformed] == [text]


def test_a_call_that_was_cut_off() -> None:
    (malformed, content) = read("[now(zone=1", ended=False)[1:]
    assert isinstance(malformed, MalformedToolCall)
    assert "ended within the call" in malformed.problem
    assert collect([content]).content == "[now(zone=1"


def test_long_texts_take_linear_time() -> None:
    for text in ("\n" * 20000, " " * 20000, "[" * 20000, '[now(zone="' + "x" * 20000, "now " * 5000):
        finder = CallFinder(PARAMETERS)
        for start in range(0, len(text), 4):
            finder.push(text[start : start + 4])
        finder.finish()


def test_values() -> None:
    strings = r"""d='it\'s', e='''x'y''', f="\u00e9\ud83d\ude00\x41\/\d" """
    text = f"f(a=-1.5e3, b=+2, c=1_000, {strings}, g=(1, [2]), h=null)"
    assert parse_calls(text, {}) == [
        (
            "f",
            {
                "a": -1500.0,
                "b": 2,
                "c": 1000,
                "d": "it's",
                "e": "x'y",
                "f": "é😀A/\\d",
                "g": [1, [2]],
                "h": None,
            },
        )
    ]
    for wrong in (
        "f(a=1 b=2)",
        "f(1)",
        "f(a=inf)",
        "f(a=1e999)",
        "f(a=" + "[" * 200 + "]" * 200 + ")",
        "",
        "f(a={1: 2})",
    ):
        with pytest.raises(MalformedCallError):
            parse_calls(wrong, {})
    with pytest.raises(MalformedCallError):
        parse_calls("print(" * 5000, {})


def test_written_calls_are_read_again() -> None:
    value: Any = {"a b": [None, True, -1, 1.5, "q\"'\\\n", {"": {}}], "plain": "é😀"}
    for arguments in ({}, value, {"x": value, "y": [value]}):
        assert parse_calls(write_calls([("f", arguments), ("g", {})]), {}) == [("f", arguments), ("g", {})]


def test_a_reply_in_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained_model())
    tokenizer = Tokenizer.from_file(path)
    prompt = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], tools=[NOW])
    reply = tokenizer.encode('[now(zone="a")]<end_of_turn>', add_bos=False)
    parser = GEMMA.reply_parser(tokenizer, prompt, tools=[NOW])
    assert parser.push(reply) + parser.finish() == [call("now", zone="a")]
    plain = GEMMA.reply_parser(tokenizer, prompt)
    assert collect(plain.push(reply) + plain.finish()).content == '[now(zone="a")]'
