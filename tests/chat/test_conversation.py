"""The forms in which clients send a conversation, and a reply that the model goes on with."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest

from gemlet.chat import FUNCTION_GEMMA, GEMMA, ChatFormat, Content, Gemma4Format, ToolCall, gemma4_format
from gemlet.chat.templates import ALL_PROPERTIES, CANONICAL, INTERLEAVED, LAUNCH, TOOL_MESSAGES
from gemlet.errors import InvalidRequestError
from gemlet.generation import Generation
from support.chat_conversations import official, template_text
from support.replies import gemma4_tokenizer, joined

GEMMA4 = Gemma4Format(CANONICAL, True)
REVISIONS = (LAUNCH, INTERLEAVED, TOOL_MESSAGES, ALL_PROPERTIES, CANONICAL)
WITH_TOOLS: list[ChatFormat] = [FUNCTION_GEMMA, *(Gemma4Format(revision, True) for revision in REVISIONS)]
CURRENT = "google-gemma-4-31B-it.jinja"
USER = {"role": "user", "content": "Hi"}


def call(name: str, call_id: str | None = None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": {"a": 1}}}


def caller(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def result(content: Any, call_id: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


# --- a reply as a message -----------------------------------------------------------------------------------


def generation(*calls: ToolCall, text: str = "") -> Generation:
    return Generation(text, [1], "stop", 1, 1, 0.0, 0.0, 0, 0, tool_calls=list(calls))


def test_the_message_of_a_reply_is_in_the_form_of_openai() -> None:
    arguments = {"city": "Tromsø", "days": [1, 2.5], "deep": {"x": None}}
    message = generation(ToolCall("f", arguments)).message
    (sent,) = message["tool_calls"]
    assert (sent["type"], sent["function"]["name"]) == ("function", "f")
    assert isinstance(sent["function"]["arguments"], str)
    assert json.loads(sent["function"]["arguments"]) == arguments
    assert "Tromsø" in sent["function"]["arguments"]
    assert json.loads(json.dumps(message)) == message


def test_ids_of_calls_are_unique_over_a_conversation_and_stay() -> None:
    replies = [generation(ToolCall("f", {}), ToolCall("f", {})) for _ in range(50)]
    ids = [sent["id"] for reply in replies for sent in reply.message["tool_calls"]]
    assert len(set(ids)) == 100
    assert ids == [called.id for reply in replies for called in reply.tool_calls]
    assert ToolCall("f", {}) == ToolCall("f", {})


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
def test_a_message_comes_back_with_arguments_in_either_form(chat_format: ChatFormat) -> None:
    message = generation(ToolCall("f", {"a": "b", "n": [1, None]})).message
    (sent,) = message["tool_calls"]
    loop = [USER, message, result("4", sent["id"])]
    text = chat_format.render(loop)
    sent["function"]["arguments"] = json.loads(sent["function"]["arguments"])
    assert chat_format.render(loop) == text
    assert "call:f{a:" in text
    assert "response:f{value:" in text


# --- forms of messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat_format", [GEMMA, *WITH_TOOLS], ids=lambda f: str(f.name))
def test_null_is_no_text(chat_format: ChatFormat) -> None:
    plain = [USER, assistant(""), {"role": "user", "content": ""}, assistant("x"), USER]
    null = [message | {"content": message["content"] or None} for message in plain]
    assert null != plain
    assert chat_format.render(null) == chat_format.render(plain)
    for role in ("system", "developer"):
        assert chat_format.render([{"role": role, "content": None}, *null]) == chat_format.render(plain)


@pytest.mark.parametrize("chat_format", [GEMMA, *WITH_TOOLS], ids=lambda f: str(f.name))
def test_the_name_of_a_speaker_changes_nothing(chat_format: ChatFormat) -> None:
    plain = [{"role": "system", "content": "Be brief."}, USER, assistant("x"), USER]
    named = [message | {"name": "ann"} for message in plain]
    assert chat_format.render(named) == chat_format.render(plain)


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
def test_the_first_message_of_a_developer_is_a_system_message(chat_format: ChatFormat) -> None:
    texts = [
        chat_format.render([{"role": role, "content": "Be brief."}, USER]) for role in ("system", "developer")
    ]
    assert texts[0] == texts[1]
    assert "Be brief." in texts[0]


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
def test_openais_older_form_of_tools(chat_format: ChatFormat) -> None:
    called = assistant(None, function_call={"name": "f", "arguments": '{"a": 1}'})
    answer = {"role": "function", "name": "f", "content": "4"}
    new = [USER, caller(call("f", "1")), result("4", "1"), assistant("Four.")]
    for count in range(2, 5):
        old = [USER, called, answer, assistant("Four.", function_call=None)][:count]
        assert chat_format.render(old) == chat_format.render(new[:count])


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
@pytest.mark.parametrize("ids", [("x", "y"), (None, None)])
def test_calls_spread_over_two_messages(chat_format: ChatFormat, ids: tuple[Any, Any]) -> None:
    first, second = caller(call("f", ids[0])), caller(call("g", ids[1]))
    names: list[dict[str, Any]] = [{}, {}] if ids[0] else [{"name": "f"}, {"name": "g"}]
    results = [result("1", ids[0], **names[0]), result("2", ids[1], **names[1])]
    in_turn = chat_format.render([USER, first, results[0], second, results[1], assistant("3")])
    assert in_turn.index("response:f") < in_turn.index("call:g") < in_turn.index("response:g")
    assert chat_format.render([USER, first, second, *results, assistant("3")]) == in_turn
    assert chat_format.render([USER, first, second, *results[::-1], assistant("3")]) == in_turn


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
@pytest.mark.parametrize("between", [USER, assistant("One moment."), {"role": "system", "content": "Hurry."}])
def test_a_message_between_a_call_and_its_result(chat_format: ChatFormat, between: dict[str, Any]) -> None:
    called = caller(call("f", "1"), call("g", "2"))
    results = [result("4", "1"), result("5", "2")]
    expected = chat_format.render([USER, called, *results, between])
    assert chat_format.render([USER, called, between, *results]) == expected
    assert chat_format.render([USER, called, results[0], between, results[1]]) == expected


def test_equal_ids_in_every_reply() -> None:
    """Older versions of gemlet repeated ids. A result with such an id belongs to the latest open call."""
    loop = [
        caller(call("f", "call_0")),
        result("1", "call_0"),
        caller(call("g", "call_0")),
        result("2", "call_0"),
    ]
    text = GEMMA4.render([USER, *loop])
    assert text.index("response:f") < text.index("call:g") < text.index("response:g")


@pytest.mark.parametrize("chat_format", [GEMMA, *WITH_TOOLS])
def test_calls_without_content(chat_format: ChatFormat) -> None:
    with_null = [USER, caller(call("f", "1")), result("yes", "1")]
    without = [USER, {"role": "assistant", "tool_calls": [call("f", "1")]}, result("yes", "1")]
    assert chat_format.render(without) == chat_format.render(with_null)


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda one: one.name)
def test_ids_of_a_wrong_type_count_as_missing(chat_format: ChatFormat) -> None:
    for odd in (np.array([1, 2]), ["1"], {"a": 1}):
        calls = caller({"id": odd, "function": {"name": odd, "arguments": {}}}, call("f", "1"))
        with pytest.raises(InvalidRequestError, match=r"messages\[[12]\]"):
            chat_format.render([USER, calls, result("x", odd)])


def test_results_without_ids_are_in_the_order_of_the_calls() -> None:
    calls = caller(call("f"), call("g"))
    text = GEMMA4.render([USER, calls, result("1"), result("2")])
    assert 'response:f{value:<|"|>1<|"|>}' in text
    assert 'response:g{value:<|"|>2<|"|>}' in text
    # If there is one call, its result needs no id. If there are several with ids, nothing says which one is
    # meant.
    assert "response:f{" in GEMMA4.render([USER, caller(call("f", "1")), result("1")])
    with pytest.raises(InvalidRequestError, match=r"messages\[2\]: tool_call_id is None.*'1', '2'"):
        GEMMA4.render([USER, caller(call("f", "1"), call("g", "2")), result("1")])


def test_errors_name_the_place_in_the_list_that_was_sent() -> None:
    messages = [{"role": "system", "content": None}, USER, caller(call("f", "1")), USER, result({1: 2}, "1")]
    with pytest.raises(InvalidRequestError, match=r"messages\[4\].content: the key 1"):
        GEMMA4.render(messages)


# --- asking for thoughts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", REVISIONS, ids=lambda r: str(r.name))
@pytest.mark.parametrize(
    "content",
    [
        "<|think|>Be brief.",
        "<|think|>\nBe brief.",
        " <|think|> Be brief.",
        "Be brief.\n<|think|>",
        "Be brief.<|think|>\n",
    ],
)
def test_a_system_message_that_wants_thinking(revision: Any, content: str) -> None:
    chat_format = Gemma4Format(revision, True)
    expected = chat_format.render([{"role": "system", "content": "Be brief."}, USER], thinking=True)
    assert chat_format.render([{"role": "system", "content": content}, USER]) == expected
    assert chat_format.render([{"role": "developer", "content": content}, USER], thinking=True) == expected
    ids = chat_format.encode_chat(gemma4_tokenizer(), [{"role": "system", "content": content}, USER])
    assert ids.count(gemma4_tokenizer().piece_to_id("<|think|>") or 0) == 1
    parts = [{"type": "text", "text": content}]
    plain = [{"type": "text", "text": "Be brief."}]
    assert chat_format.render([{"role": "system", "content": parts}, USER]) == chat_format.render(
        [{"role": "system", "content": plain}, USER], thinking=True
    )


def test_only_a_system_message_wants_thinking() -> None:
    tokenizer = gemma4_tokenizer()
    think = tokenizer.piece_to_id("<|think|>") or 0
    for role, content in product(("user", "assistant"), ("<|think|>Hi", "Hi<|think|>")):
        assert think not in GEMMA4.encode_chat(tokenizer, [{"role": role, "content": content}])
    mentioned = {"role": "system", "content": "The token <|think|> asks for a thought."}
    assert think not in GEMMA4.encode_chat(tokenizer, [mentioned, USER])
    assert "The token <|think|> asks" in GEMMA4.render([mentioned, USER])


# --- a reply that has begun ---------------------------------------------------------------------------------


def reference(text: str, messages: list[dict[str, Any]]) -> str:
    """The prompt that transformers makes from the template's text: it ends with the last message."""
    rendered = official(
        text, {"messages": messages, "tools": None, "thinking": False, "add_generation_prompt": False}
    )
    begun = messages[-1]["content"].strip()
    return rendered[: rendered.rindex(begun) + len(begun)]


@pytest.mark.extra("templates")
@pytest.mark.parametrize("begun", ["It is", " It is \n", "1.", "two\n\nlines"])
def test_a_reply_goes_on_as_with_the_official_template(begun: str) -> None:
    text = template_text(CURRENT)
    chat_format = gemma4_format(text)
    assert chat_format is not None
    for messages in (
        [USER, assistant(begun)],
        [{"role": "system", "content": "Be brief."}, USER, assistant("No."), USER, assistant(begun)],
    ):
        found = chat_format.render(messages, continue_final_message=True)
        assert found == reference(text, messages)
        assert found == chat_format.render(messages, False, continue_final_message=True)


@pytest.mark.parametrize(
    ("chat_format", "expected"),
    [
        (GEMMA, "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nIt is"),
        (FUNCTION_GEMMA, "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nIt is"),
        *((each, "<bos><|turn>user\nHi<turn|>\n<|turn>model\nIt is") for each in WITH_TOOLS[1:]),
    ],
    ids=lambda value: str(getattr(value, "name", "")),
)
def test_a_reply_that_has_begun_is_left_open(chat_format: ChatFormat, expected: str) -> None:
    messages = [USER, assistant("It is ")]
    assert chat_format.render(messages, continue_final_message=True) == expected
    closed = chat_format.render(messages, False)
    assert closed.removeprefix(expected) in ("<end_of_turn>\n", "<turn|>\n")


def test_a_reply_goes_on_after_a_result_and_after_a_thought() -> None:
    after_result = [USER, caller(call("f", "1")), result("4", "1"), assistant("It is")]
    text = GEMMA4.render(after_result, continue_final_message=True)
    assert text.endswith('response:f{value:<|"|>4<|"|>}<tool_response|>It is')
    thought = [USER, assistant("", reasoning="Hm.")]
    text = GEMMA4.render(thought, continue_final_message=True)
    assert text.endswith("<|turn>model\n<|channel>thought\nHm.\n<channel|>")


def test_the_reply_has_only_the_text_that_the_model_adds() -> None:
    tokenizer = gemma4_tokenizer()
    ids = GEMMA4.encode_chat(tokenizer, [USER, assistant("It is")], continue_final_message=True)
    assert ids == tokenizer.encode(GEMMA4.render([USER, assistant("It is")], continue_final_message=True))
    parser = GEMMA4.reply_parser(tokenizer, ids)
    events = parser.push(tokenizer.encode(" four.<turn|>", add_bos=False)) + parser.finish()
    assert joined(events) == [Content(" four.")]


@pytest.mark.parametrize("chat_format", WITH_TOOLS, ids=lambda f: str(f.name))
@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER], r"messages\[0\] has the role user"),
        ([USER, caller(call("f", "1"))], r"messages\[1\] calls tools"),
        ([USER, caller(call("f", "1")), result("4", "1")], r"messages\[2\] has the role tool"),
        ([], "empty"),
    ],
)
def test_messages_that_cannot_be_continued_are_refused(
    chat_format: ChatFormat, messages: list[Any], problem: str
) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        chat_format.render(messages, continue_final_message=True)
