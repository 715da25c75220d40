"""Finds the tools that a request may use, and whether it has to use one: :func:`chosen_tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.text import show
from gemlet.chat.messages import checked_tools
from gemlet.errors import InvalidRequestError

__all__ = ["chosen_tools"]

_EXPECTED = '"auto", "none", "required" or {"type": "function", "function": {"name": ...}}'


def chosen_tools(tools: Any, choice: Any) -> tuple[list[Any], list[str]]:
    """The tools of a request in OpenAI's form, and names: the request has to call one of these.

    Args:
        tools: the tools of a request; None means no tools.
        choice: OpenAI's ``tool_choice``. None and "auto" leave it to the model, "none" leaves the tools out,
            "required" demands a call, and a mapping with a name demands a call of that one.

    Returns:
        No names if the model need not call a tool.

    Raises:
        InvalidRequestError: it is none of these, or asks for a tool that is not there.

    >>> chosen_tools([{"name": "now"}], "required")
    ([{'type': 'function', 'function': {'name': 'now'}}], ['now'])
    >>> chosen_tools([{"name": "now"}], "none")
    ([], [])
    """
    read = checked_tools(tools)
    word = choice if isinstance(choice, str) else None
    if choice is None or word == "auto":
        return read, []
    if word == "none":
        return [], []
    names = [_name(tool) for tool in read]
    if word == "required":
        if not names:
            raise InvalidRequestError("tool_choice: 'required', but there are no tools to call")
        return read, names
    asked: Mapping[str, Any] = choice if isinstance(choice, Mapping) else {}
    function = asked.get("function", asked)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or asked.get("type", "function") != "function":
        raise InvalidRequestError(f"tool_choice: got {show(choice)}, expected {_EXPECTED}")
    if name not in names:
        raise InvalidRequestError(f"tool_choice: there is no tool {show(name)}; there are {show(names)}")
    return read, [name]


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None
