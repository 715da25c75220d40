"""Finds the tools that a reply may call, and the tools of which it has to call one: :func:`chosen_tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.text import show
from gemlet.chat.messages import checked_tools
from gemlet.errors import InvalidRequestError

__all__ = ["chosen_tools"]

_EXPECTED = '"auto", "none", "required" or {"type": "function", "function": {"name": ...}}'


def chosen_tools(tools: Any, choice: Any) -> tuple[list[Any], list[str]]:
    """The tools of a request in OpenAI's form, and the names of the tools of which the reply has to call one.

    Args:
        tools: the tools of the request; None means no tools.
        choice: OpenAI's ``tool_choice``. With None or "auto", the model decides. With "none", the model gets
            no tools. With "required", the model has to call a tool. With a mapping that names a tool, the
            model has to call this tool.

    Returns:
        The tools and the names. The names are empty if the model need not call a tool.

    Raises:
        InvalidRequestError: ``choice`` is none of these, or names a tool that ``tools`` does not have.

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
            raise InvalidRequestError("tool_choice: got 'required', but the request has no tools to call")
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
