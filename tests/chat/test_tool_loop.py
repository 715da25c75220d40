"""Functions that gemlet runs when the model calls them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from gemlet import Generation
from gemlet.chat import GEMMA, ToolCall
from gemlet.errors import InvalidRequestError
from support.scripted import ScriptedModel

QUESTION = {"role": "user", "content": "Well?"}
Q = '<|"|>'


def calls(*written: str) -> str:
    return "".join(f"<|tool_call>call:{each}<tool_call|>" for each in written) + "<|tool_response>"


def double(x: int) -> int:
    """Doubles.

    Args:
        x: A number.
    """
    return 2 * x


def results(reply: Generation) -> list[Any]:
    return [message["content"] for message in reply.messages if message["role"] == "tool"]


def test_functions_are_run_until_the_model_answers() -> None:
    seen: list[str] = []

    def look_up(name: str, deep: bool = False) -> dict[str, Any]:
        """Looks it up."""
        seen.append(name)
        return {"name": name, "deep": deep}

    model = ScriptedModel(
        "One moment." + calls("double{x:4}", f"look_up{{deep:true,name:{Q}a{Q}}}"),
        calls("double{x:8}"),
        "16.<turn|>",
    )
    messages = [QUESTION]
    reply = model.chat(messages, tools=[double, look_up], run_tools=True)
    assert (reply.text, seen, messages) == ("16.", ["a"], [QUESTION])
    assert results(reply) == ["8", {"name": "a", "deep": True}, "16"]
    assert [message["role"] for message in reply.messages] == [
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    first, *answers = reply.messages[:3]
    assert first["content"] == "One moment."
    assert [call["id"] for call in first["tool_calls"]] == [answer["tool_call_id"] for answer in answers]
    assert reply.messages[-1] == reply.message
    assert f"response:double{{value:{Q}8{Q}}}" in model.asked[1]
    assert f"response:look_up{{deep:true,name:{Q}a{Q}}}" in model.asked[1]
    assert model.chat_format is not None
    again = model.chat_format.render([*messages, *reply.messages, QUESTION], tools=[double, look_up])
    assert again.count("response:double{") == 2


def test_nothing_is_run_without_being_asked() -> None:
    def never() -> None:
        raise AssertionError

    model = ScriptedModel(calls("never{}"))
    reply = model.chat([QUESTION], tools=[never])
    assert reply.tool_calls == [ToolCall("never", {})]
    assert reply.messages == [reply.message]
    with pytest.raises(InvalidRequestError, match="approve"):
        ScriptedModel("").chat([QUESTION], tools=[never], approve=lambda call: True)


def test_the_model_is_told_about_errors_of_functions() -> None:
    def fails() -> None:
        raise ZeroDivisionError("by zero")

    def odd() -> object:
        return {1, 2}.__class__

    written = calls("fails{}", f"double{{x:{Q}4{Q}}}", "double{}", "triple{x:1}", "odd{}", "double{x:1,y:2}")
    reply = ScriptedModel(written, "So be it.").chat([QUESTION], tools=[fails, double, odd], run_tools=True)
    *errors, _ = found = results(reply)
    assert [sorted(each) for each in found if isinstance(each, dict)] == [["error"]] * 5
    assert errors[0] == {"error": "ZeroDivisionError: by zero"}
    assert errors[1]["error"].endswith("x: got a string, expected an integer")
    assert errors[2]["error"].endswith("x is missing")
    assert errors[3] == {"error": "there is no function triple; there are fails, double, odd"}
    assert errors[4] == "<class 'set'>"
    assert found[5]["error"].endswith("y is unknown; expected some of x")
    assert reply.text == "So be it."


def test_calls_run_only_if_they_are_approved() -> None:
    asked: list[Any] = []

    def approve(call: ToolCall) -> Any:
        asked.append((call.name, call.arguments))
        return {1: True, 2: False, 3: None, 4: 1}[call.arguments["x"]]

    written = calls("double{x:1}", "double{x:2}", "double{x:3}", "double{x:4}", "double{}", "other{}")
    reply = ScriptedModel(written, "Well.").chat([QUESTION], tools=[double], run_tools=True, approve=approve)
    assert asked == [("double", {"x": x}) for x in (1, 2, 3, 4)]
    refused = {"error": "the user refused this call"}
    assert results(reply)[:4] == ["2", refused, refused, refused]


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_the_rounds_are_limited(rounds: int) -> None:
    model = ScriptedModel(*[calls("double{x:1}")] * (rounds + 1))
    reply = model.chat([QUESTION], tools=[double], run_tools=True, max_tool_rounds=rounds)
    assert reply.tool_calls == [ToolCall("double", {"x": 1})]
    assert results(reply) == ["2"] * rounds
    assert len(model.engine.requests) == rounds + 1


def test_a_reply_that_was_cut_off_is_not_run() -> None:
    model = ScriptedModel(calls("double{x:1}") + "and more")
    reply = model.chat([QUESTION], tools=[double], run_tools=True, max_tokens=8)
    assert (reply.finish_reason, results(reply)) == ("length", [])


def test_an_interrupt_in_a_function_ends_the_chat() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScriptedModel(calls("interrupted{}")).chat([QUESTION], tools=[interrupted], run_tools=True)


def test_tools_that_cannot_be_run_are_refused() -> None:
    async def later() -> None: ...

    described = {"type": "function", "function": {"name": "double"}}
    for options, what in (
        ({}, "no tools"),
        ({"tools": []}, "no tools"),
        ({"tools": [described]}, r"tools\[0\] .*needs Python functions"),
        ({"tools": [double, double]}, r"tools\[1\]: there is another tool of the name double"),
        ({"tools": [later]}, "asynchronous"),
        ({"tools": [double], "max_tool_rounds": -1}, "max_tool_rounds"),
        ({"tools": [double], "max_tool_rounds": True}, "max_tool_rounds"),
        ({"tools": [double], "approve": 3}, "approve"),
    ):
        with pytest.raises(InvalidRequestError, match=what):
            ScriptedModel("").chat([QUESTION], run_tools=True, **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match=what):
            asyncio.run(ScriptedModel("").achat([QUESTION], run_tools=True, **options))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="run_tools"):
        ScriptedModel("").chat([QUESTION], tools=[double], run_tools="yes")  # type: ignore[arg-type]


def test_a_stream_gives_calls_in_pieces() -> None:
    model = ScriptedModel(calls(f"double{{x:{Q}long text{Q}}}"))
    stream = model.stream_chat([QUESTION], tools=[double])
    chunks = list(stream)
    pieces = [piece for chunk in chunks for piece in chunk.call_pieces]
    assert [event for chunk in chunks for event in chunk.events] == stream.result.tool_calls
    assert len(pieces) > 2
    assert pieces[0].name == "double"
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"x": "long text"}
    assert stream.result.tool_calls == [ToolCall("double", {"x": "long text"})]
    assert {piece.id for piece in pieces} == {stream.result.tool_calls[0].id}


def test_prompted_calls_are_run() -> None:
    model = ScriptedModel("[double(x=4)]<turn|>", "8.<turn|>", chat_format=_GemmaOfGemma4())
    reply = model.chat("Well?", tools=[double], run_tools=True)
    assert (reply.text, results(reply)) == ("8.", ["8"])
    assert '```tool_output\n{"name": "double", "result": "8"}\n```' in model.asked[1]


class _GemmaOfGemma4(type(GEMMA)):  # type: ignore[misc]
    """The format of Gemma 3 in the vocabulary of the scripted model."""

    markers = ("<bos>", "<|turn>", "<turn|>")
    ends = ("<turn|>",)


def test_a_choice_of_tools() -> None:
    model = ScriptedModel("No.", "No.")
    model.chat([QUESTION], tools=[double], tool_choice="none")
    model.chat([QUESTION], tools=[double], tool_choice="auto")
    assert ["declaration:double" in asked for asked in model.asked] == [False, True]
    named = {"type": "function", "function": {"name": "double"}}
    refused = ScriptedModel(calls("double{x:1}")).chat(
        [QUESTION], tools=[double], tool_choice="none", run_tools=True
    )
    assert results(refused) == []
    for wrong, tools in (
        ("required", None),
        (named, None),
        (named, [{"name": "other"}]),
        ("any", [double]),
        (3, [double]),
        ({"type": "function"}, [double]),
        ({"type": "web", "name": "double"}, [double]),
    ):
        with pytest.raises(InvalidRequestError, match="tool_choice"):
            model.chat([QUESTION], tools=tools, tool_choice=wrong)  # type: ignore[arg-type]


def test_a_session_runs_functions_too() -> None:
    model = ScriptedModel(calls("double{x:4}"), "8.<turn|>", "Yes.<turn|>")
    session = model.session()
    reply = session.chat("Well?", tools=[double], run_tools=True)
    assert (reply.text, results(reply)) == ("8.", ["8"])
    assert session.messages == [QUESTION, *reply.messages]
    session.chat("Sure?", run_tools=False, max_tool_rounds=None, approve=None)
    assert "response:double{" in model.asked[2]


def test_running_functions_excludes_continuing_a_message() -> None:
    begun = [QUESTION, {"role": "assistant", "content": "It"}]
    with pytest.raises(InvalidRequestError, match="continue_final_message"):
        ScriptedModel("").chat(begun, tools=[double], run_tools=True, continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="empty"):
        ScriptedModel("").chat("", tools=[double], run_tools=True)


def test_options_of_what_is_not_run_are_refused() -> None:
    for options in ({"max_tool_rounds": 3}, {"approve": lambda call: True}):
        for run_tools in (False, None):
            with pytest.raises(
                InvalidRequestError, match="needs run_tools=True; without it no function is run"
            ):
                ScriptedModel("").chat([QUESTION], tools=[double], run_tools=run_tools, **options)  # type: ignore[arg-type]
    for name in ("n", "best_of"):
        with pytest.raises(InvalidRequestError, match=f"{name}: cannot be combined with run_tools"):
            ScriptedModel("").chat([QUESTION], tools=[double], run_tools=True, **{name: 2})


def test_a_stream_says_where_functions_are_run() -> None:
    model = ScriptedModel("")
    session = model.session()
    for stream in (model.stream_chat, model.astream_chat, session.stream_chat):
        with pytest.raises(InvalidRequestError, match=r"chat\(\) and achat\(\) run functions"):
            stream([QUESTION], tools=[double], run_tools=True)  # type: ignore[call-arg]


def test_functions_run_beside_the_event_loop() -> None:
    """The functions run in separate threads, so that other tasks go on meanwhile."""
    seen: list[threading.Thread] = []

    def slow(x: int) -> int:
        """Waits.

        Args:
            x: A number.
        """
        seen.append(threading.current_thread())
        time.sleep(0.05)
        return x

    async def main() -> Generation:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        beating = asyncio.create_task(beat())
        model = ScriptedModel(calls("slow{x:4}", "slow{x:5}"), "Done.<turn|>")
        reply = await model.achat([QUESTION], tools=[slow], run_tools=True, approve=lambda call: True)
        beating.cancel()
        assert beats >= 4
        return reply

    reply = asyncio.run(main())
    assert (reply.text, results(reply)) == ("Done.", ["4", "5"])
    assert threading.main_thread() not in seen


def test_a_task_that_is_cancelled_runs_no_more_functions() -> None:
    ran: list[int] = []

    def slow(x: int) -> int:
        """Waits.

        Args:
            x: A number.
        """
        ran.append(x)
        time.sleep(0.05)
        return x

    async def main() -> None:
        model = ScriptedModel(calls("slow{x:1}", "slow{x:2}"), "Done.<turn|>")
        task = asyncio.create_task(model.achat([QUESTION], tools=[slow], run_tools=True))
        while not ran:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ran == [1]
