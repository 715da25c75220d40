"""Runs the functions that a model calls, and lets it go on with their results: :func:`reply_with_tools`, and
:func:`areply_with_tools` for programs with an event loop."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any

from gemlet.base.late import dataclasses, inspect, log
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.chat.functions import PythonTool
from gemlet.chat.messages import checked_messages, json_value
from gemlet.chat.reply import ToolCall
from gemlet.errors import InvalidRequestError
from gemlet.generation.option_values import check_flag
from gemlet.generation.result import Generation

__all__ = [
    "MOST_ROUNDS",
    "Approve",
    "Conversation",
    "areply_with_tools",
    "reply_with_tools",
    "runs_tools",
    "without_own",
]

Approve = Callable[[ToolCall], bool]
Conversation = str | Sequence[Mapping[str, Any]]
MOST_ROUNDS = 8  # the default
_LARGEST = 1000


def runs_tools(options: Mapping[str, Any]) -> bool:
    """Whether the ``options`` of a chat ask to run tools.

    Raises:
        InvalidRequestError: ``run_tools`` is neither True nor False, or is off but other options need it.

    >>> runs_tools({"run_tools": True, "tools": []})
    True
    """
    runs = check_flag("run_tools", options.get("run_tools"))
    for name in ("approve", "max_tool_rounds"):
        if options.get(name) is not None and not runs:
            raise InvalidRequestError(f"{name}: needs run_tools=True; without it no function is run")
    return runs


def without_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``options`` for a single reply.

    >>> without_own({"run_tools": True, "seed": 1})
    {'seed': 1}
    """
    own = ("run_tools", "max_tool_rounds", "approve")
    return {name: value for name, value in options.items() if name not in own}


def reply_with_tools(
    ask: Callable[[Conversation, Mapping[str, Any]], Generation],
    messages: Conversation,
    options: Mapping[str, Any],
) -> Generation:
    """Asks the model, runs the functions that its reply calls, asks again with their results, and so on until
    a reply calls none or the rounds are used up.

    The model gets a failure of a call as its result: an unknown function, arguments that do not fit, an
    exception, a refusal. An interrupt (KeyboardInterrupt and the like) is raised.

    Args:
        ask: takes messages to add to the conversation and the options of the reply; returns the model's
            reply.
        messages: the first messages to add.
        options: the options of :meth:`gemlet.Model.chat`.

    Returns:
        The last reply, with all messages that were added (:attr:`Generation.messages`).

    Raises:
        InvalidRequestError: a tool is not a Python function, two have the same name, or an argument is wrong.

    >>> def double(x: int) -> int:
    ...     return 2 * x
    >>> calls = [ToolCall("double", {"x": 4})], []
    >>> replies = iter([Generation("", [], "stop", 1, 1, 0.0, 0.0, 1, 0, tool_calls=made) for made in calls])
    >>> done = reply_with_tools(lambda messages, options: next(replies), "Hi", {"tools": [double]})
    >>> [(message["role"], message["content"]) for message in done.messages]
    [('assistant', ''), ('tool', '8'), ('assistant', '')]
    """
    steps = _Steps(messages, options)
    while (step := steps.next()) is not None:
        steps.answer = ask(step.messages, step.options) if isinstance(step, _Ask) else step.run()
    return steps.reply


async def areply_with_tools(
    ask: Callable[[Conversation, Mapping[str, Any]], Awaitable[Generation]],
    messages: Conversation,
    options: Mapping[str, Any],
) -> Generation:
    """:func:`reply_with_tools` for programs with an event loop: functions run in a thread, one after the
    other, while the event loop goes on. A task that is cancelled does not wait for the one that runs."""
    import asyncio

    steps = _Steps(messages, options)
    while (step := steps.next()) is not None:
        if isinstance(step, _Ask):
            steps.answer = await ask(step.messages, step.options)
        else:
            steps.answer = await asyncio.to_thread(step.run)
    return steps.reply


@record
class _Ask:
    """A step: ask the model."""

    messages: Conversation
    options: Mapping[str, Any]


@record
class _Call:
    """A step: run a function, if it is approved."""

    functions: Mapping[str, PythonTool]
    call: ToolCall
    approve: Approve | None

    def run(self) -> Any:
        return _run(self.functions, self.call, self.approve)


class _Steps:
    """The steps to do, one after the other.

    Attributes:
        answer: the result of the last step: a reply, or the content of a message.
        reply: the last reply, once there are no more steps.
    """

    def __init__(self, messages: Conversation, options: Mapping[str, Any]) -> None:
        self.answer: Any = None
        self._left = _steps(messages, options)

    def next(self) -> _Ask | _Call | None:
        """The next step; None at the end."""
        try:
            return self._left.send(self.answer)
        except StopIteration as end:
            self.reply: Generation = end.value
            return None


def _steps(messages: Conversation, options: Mapping[str, Any]) -> Generator[_Ask | _Call, Any, Generation]:
    """Yields the next step and receives its result: a reply, or the content of a message."""
    functions = _functions(options.get("tools"))
    rounds = options.get("max_tool_rounds")
    rounds = MOST_ROUNDS if rounds is None else rounds
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 0 <= rounds <= _LARGEST:
        raise InvalidRequestError(
            f"max_tool_rounds: got {show(rounds)}, expected a number from 0 to {_LARGEST}"
        )
    approve = options.get("approve")
    if approve is not None and not callable(approve):
        raise InvalidRequestError(f"approve: got {show(approve)}, expected a function of the call, or None")
    for name in ("n", "best_of"):
        if options.get(name) is not None:
            raise InvalidRequestError(
                f"{name}: cannot be combined with run_tools, which needs a single reply"
            )
    if options.get("continue_final_message"):
        raise InvalidRequestError("continue_final_message: cannot be combined with run_tools")
    asked = without_own(options)
    chosen = asked.get("tool_choice")
    chosen = chosen if isinstance(chosen, str) else None
    is_text = isinstance(messages, str) and messages
    reply: Generation = yield _Ask(messages if is_text else checked_messages(messages or []), asked)
    added: list[dict[str, Any]] = []
    for _ in range(rounds):
        # A reply that was cut off may lack calls, so the caller decides. Without tools to choose from, no
        # call was asked for.
        if not reply.tool_calls or reply.finish_reason != "stop" or chosen == "none":
            break
        results = []
        for call in reply.tool_calls:
            content = yield _Call(functions, call, approve)
            results.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})
        added += [reply.message, *results]
        asked["tool_choice"] = "auto"  # the model had to call a tool, and has done so
        reply = yield _Ask(results, asked)
    return replace(reply, earlier_messages=added)


def _functions(tools: Any) -> dict[str, PythonTool]:
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
        log.info("the tool %s raised an exception", call.name, exc_info=True)
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
