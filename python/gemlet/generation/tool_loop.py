"""Runs the functions that a model calls, and lets it go on with their results: :func:`reply_with_tools`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemlet.base.text import show
from gemlet.chat.functions import PythonTool
from gemlet.chat.messages import checked_messages, json_value
from gemlet.chat.reply import ToolCall
from gemlet.errors import InvalidRequestError
from gemlet.generation.result import Generation

__all__ = ["Approve", "reply_with_tools"]

Approve = Callable[[ToolCall], bool]
_Messages = list[Mapping[str, Any]]
_MOST_ROUNDS = 1000
_log = logging.getLogger("gemlet")


def reply_with_tools(
    ask: Callable[[_Messages], Generation],
    messages: str | Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    max_rounds: int,
    approve: Approve | None,
) -> Generation:
    """Asks the model, runs the functions that its reply calls, asks again with their results, and so on until
    a reply calls none or the rounds are used up.

    What goes wrong with a call is told to the model as its result: an unknown function, arguments that do not
    fit, what the function raised, a refusal. An interrupt (KeyboardInterrupt and the like) goes through.

    Args:
        ask: gives the reply to a conversation.
        messages: the conversation, which is not changed.
        tools: Python functions.
        max_rounds: how many replies' calls are run at most.
        approve: asked before each call; anything but True refuses it. None: every call is run.

    Returns:
        The last reply, with all messages that were added (:attr:`Generation.messages`).

    Raises:
        InvalidRequestError: a tool is no Python function, two have the same name, or an argument is wrong.

    >>> def double(x: int) -> int:
    ...     return 2 * x
    >>> calls = [ToolCall("double", {"x": 4})], []
    >>> replies = iter([Generation("", [], "stop", 1, 1, 0.0, 0.0, 1, 0, tool_calls=made) for made in calls])
    >>> done = reply_with_tools(lambda messages: next(replies), "Hi", [double], 8, None)
    >>> [(message["role"], message["content"]) for message in done.messages]
    [('assistant', ''), ('tool', '8'), ('assistant', '')]
    """
    functions = _functions(tools)
    if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or not 0 <= max_rounds <= _MOST_ROUNDS:
        raise InvalidRequestError(
            f"max_tool_rounds: got {show(max_rounds)}, expected a number from 0 to {_MOST_ROUNDS}"
        )
    if approve is not None and not callable(approve):
        raise InvalidRequestError(f"approve: got {show(approve)}, expected a function of the call, or None")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}] if messages else []
    conversation: _Messages = checked_messages(messages)
    added: list[dict[str, Any]] = []
    for done in range(max_rounds + 1):
        reply = ask([*conversation, *added])
        # A reply that was cut off may lack calls; it is for the caller to decide.
        if not reply.tool_calls or reply.finish_reason != "stop" or done == max_rounds:
            break
        added.append(reply.message)
        for call in reply.tool_calls:
            added.append(
                {
                    "role": "tool",
                    "tool_call_id": call.id,
                    "name": call.name,
                    "content": _run(functions, call, approve),
                }
            )
    return dataclasses.replace(reply, earlier_messages=added)


def _functions(tools: Sequence[Any] | None) -> dict[str, PythonTool]:
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes) or not tools:
        raise InvalidRequestError("run_tools: there are no tools; expected tools=[a Python function, ...]")
    found: dict[str, PythonTool] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not callable(tool):
            raise InvalidRequestError(
                f"{where} is {show(tool)}, which cannot be run; run_tools=True needs Python functions"
            )
        read = PythonTool.of(tool, where)
        if inspect.iscoroutinefunction(tool):
            raise InvalidRequestError(f"{where}: {read.name} is asynchronous; expected an ordinary function")
        if read.name in found:
            raise InvalidRequestError(f"{where}: there is another tool of the name {read.name}")
        found[read.name] = read
    return found


def _run(functions: Mapping[str, PythonTool], call: ToolCall, approve: Approve | None) -> Any:
    """The content of the message that answers ``call``."""
    function = functions.get(call.name)
    if function is None:
        return _error(f"there is no function {call.name}; there are {', '.join(functions)}")
    try:
        arguments = function.read(call.arguments)
    except InvalidRequestError as problem:
        return _error(f"wrong arguments, the function was not called: {problem}")
    if approve is not None and approve(call) is not True:
        return _error("the user refused this call")
    try:
        result = function.function(*arguments.args, **arguments.kwargs)
    except Exception as problem:
        _log.info("the tool %s raised an exception", call.name, exc_info=True)
        return _error(f"{type(problem).__name__}: {problem}")
    return _content(result)


def _error(text: str) -> dict[str, str]:
    return {"error": text}


def _content(result: Any) -> Any:
    """A function's result as the content of a message: an object or a text."""
    if isinstance(result, str):
        return result
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    try:
        value = json_value(result, "result")
    except InvalidRequestError:
        return str(result)
    return value if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
