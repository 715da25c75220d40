"""``tool_choice`` of the type ``allowed_tools``: the model gets only these tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.text import show
from gemlet.server.fields import MOST_TOOLS
from gemlet.server.problems import Problem
from gemlet.server.schema import ListOf, Object, OneOf, Text

__all__ = ["ALLOWED", "allowed"]

_NAME = Text(64, 1)
_MODE = OneOf("auto", "required")
_OF_CHAT = Object(
    {
        "type": OneOf("allowed_tools"),
        "allowed_tools": Object(
            {
                "mode": _MODE,
                "tools": ListOf(
                    Object(
                        {"type": OneOf("function"), "function": Object({"name": _NAME}, ["name"])},
                        ["function"],
                    ),
                    MOST_TOOLS,
                ),
            },
            ["mode", "tools"],
        ),
    },
    ["type", "allowed_tools"],
)
# The same choice in /v1/responses.
ALLOWED = Object(
    {
        "type": OneOf("allowed_tools"),
        "mode": _MODE,
        "tools": ListOf(Object({"type": OneOf("function"), "name": _NAME}, ["name"]), MOST_TOOLS),
    },
    ["type", "mode", "tools"],
)


def allowed(tools: Sequence[Mapping[str, Any]], choice: Any) -> tuple[Sequence[Mapping[str, Any]], Any]:
    """The tools that the model may call, and the choice without the list of allowed tools ("auto" or
    "required"). ``tools`` have the form of chat completions.

    >>> f, g = ({"type": "function", "function": {"name": name}} for name in "fg")
    >>> allowed([f, g], {"type": "allowed_tools", "mode": "required", "tools": [{"name": "g"}]})
    ([{'type': 'function', 'function': {'name': 'g'}}], 'required')
    >>> allowed([f, g], "auto")[1]
    'auto'
    """
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return tools, choice
    if "allowed_tools" in choice:
        choice = _OF_CHAT.check(choice, "tool_choice")["allowed_tools"]
    else:
        choice = ALLOWED.check(choice, "tool_choice")
    names = [tool["function"]["name"] if "function" in tool else tool["name"] for tool in choice["tools"]]
    known = {tool["function"]["name"]: tool for tool in tools}
    for name in names:
        if name not in known:
            raise Problem(
                400,
                f"tool_choice: there is no tool {show(name)}; there are {show(list(known))}",
                param="tool_choice",
            )
    return [known[name] for name in known if name in names], choice["mode"]
