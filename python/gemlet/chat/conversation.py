"""Converts a conversation from the forms that clients send to the form that the chat formats read.

- A message of the role ``function`` becomes the result of a tool, and ``function_call`` becomes a call. Both
  belong to OpenAI's older form of tools.
- A ``content`` of null becomes an empty text, or the text of ``refusal`` in OpenAI's API. A system message
  with null as its content is left out.
- The role ``model``, the name in Gemma's own templates, becomes ``assistant``.
- Each result is moved behind the message whose call it answers, even if the calls are spread over several
  messages, or other messages came before the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemlet.base.records import record
from gemlet.chat.messages import checked_messages, is_same
from gemlet.errors import InvalidRequestError

__all__ = ["read_conversation"]

_Placed = tuple[str, Mapping[str, Any]]  # the place of a message, for errors, and the message


@record
class _Call:
    call_id: Any
    name: Any
    is_answered: bool


@record
class _Group:
    """A message, its calls, and the results that follow it."""

    first: _Placed
    calls: list[_Call]
    results: list[_Placed]


def read_conversation(messages: Any) -> list[_Placed]:
    """The messages in the order in which a format writes them, as pairs ``(where, message)``. ``where`` is
    the place of the message in the caller's list, for errors.

    Raises:
        InvalidRequestError: ``messages`` is not a list of mappings, or no message has content.

    >>> answer = {"role": "function", "name": "now", "content": "noon"}
    >>> call = {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}}
    >>> [(where, message["role"]) for where, message in read_conversation([call, answer])]
    [('messages[0]', 'assistant'), ('messages[1]', 'tool')]
    """
    groups: list[_Group] = []
    callers: list[_Group] = []  # the messages with calls
    for index, message in enumerate(checked_messages(messages)):
        where = f"messages[{index}]"
        message = _in_one_form(message)
        if message.get("role") == "tool" and groups:
            # If no call fits, the format raises an error, or takes the name in the result itself.
            caller, call = _answered_call(callers, message) or (groups[-1], None)
            if call is not None:
                call.is_answered = True
                if message.get("name") is None:
                    message = {**message, "name": call.name}
            caller.results.append((where, message))
        elif message.get("role") not in ("system", "developer") or message.get("content", "") is not None:
            groups.append(_Group((where, message), list(_calls_of(message)), []))
            callers += groups[-1:] if groups[-1].calls else []
    if not groups:
        raise InvalidRequestError("messages has no message with content; expected at least one")
    return [placed for group in groups for placed in (group.first, *group.results)]


def _in_one_form(message: Mapping[str, Any]) -> Mapping[str, Any]:
    role = message.get("role")
    if role == "function":
        return {**message, "role": "tool"}
    if role == "model":
        role, message = "assistant", {**message, "role": "assistant"}
    if role == "assistant":
        message = _with_refusal(message)
    if role == "assistant" and message.get("function_call") and not message.get("tool_calls"):
        message = {**message, "tool_calls": [{"function": message["function_call"]}], "function_call": None}
    if role in ("user", "assistant") and message.get("content", "") is None:
        message = {**message, "content": ""}
    return message


def _with_refusal(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turns a refusal by the assistant, which is a part of the content or a field, into text."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list | tuple):
        parts = [
            {"type": "text", "text": part.get("refusal")}
            if isinstance(part, Mapping) and part.get("type") == "refusal"
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return {**message, "content": refusal} if refusal is not None and not content else message


def _calls_of(message: Mapping[str, Any]) -> Iterator[_Call]:
    """The calls of a message. Malformed calls are skipped here; the format refuses them later."""
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        return
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield _Call(call.get("id"), function.get("name"), bool(message.get("tool_responses")))


def _answered_call(callers: Sequence[_Group], message: Mapping[str, Any]) -> tuple[_Group, _Call] | None:
    """The call that the result ``message`` answers, with its group. It is the first matching call in the
    latest message that has a matching call. Calls without a result are preferred."""
    call_id, name = message.get("tool_call_id"), message.get("name")

    def fits(call: _Call, is_alone: bool) -> bool:
        if call_id is not None:
            return is_same(call.call_id, call_id)
        return is_same(call.name, name) if name is not None else is_alone or call.call_id is None

    for is_answered in (False, True):
        for group in reversed(callers):
            for call in group.calls:
                if call.is_answered is is_answered and fits(call, len(group.calls) == 1):
                    return group, call
    return None
