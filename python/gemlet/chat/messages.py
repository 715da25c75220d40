"""Reads a conversation in OpenAI's form, and checks its messages, tools and arguments.

Clients are not trusted. Each function here returns plain values that the formats can write without further
checks, or raises :class:`InvalidRequestError`, which names the place (``messages[2].tool_calls[0]``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.chat.functions import PythonTool
from gemlet.chat.media_places import MEDIA_TYPES
from gemlet.chat.tool_calls import MAX_BITS, MAX_DEPTH
from gemlet.errors import InvalidRequestError, TokenizerError

__all__ = [
    "check_flags",
    "checked_messages",
    "checked_tools",
    "is_same",
    "json_object",
    "json_value",
    "least_characters",
    "mapping_at",
    "named_surrogate",
    "plain",
    "refuse_other_than_text",
    "role_of",
    "text_parts",
]

_JSON = (bool, int, float, str, Sequence, Mapping)
_COUNTED = ("user", "system", "developer", "assistant")
_THOUGHT = "<channel|>"  # the end of a thought in a reply
_NOT_TEXT = (*MEDIA_TYPES, "file")
_SURROGATE = late_pattern("[\ud800-\udfff]")


def checked_messages(messages: Any) -> list[Mapping[str, Any]]:
    """Checks that ``messages`` is a list of mappings and is not empty, and returns it."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        kind = type(messages).__name__
        raise InvalidRequestError(f"messages has to be a list of messages, got a {kind}")
    if not messages:
        raise InvalidRequestError("messages is empty; expected at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise InvalidRequestError(
                f"messages[{index}] is a {kind}; expected a mapping with role and content"
            )
        for key in ("role", "tool_calls", "tool_responses", "function_call"):
            value = message.get(key)
            # Later code asks whether a value is true, which is an error for an array.
            if value is not None and not isinstance(value, _JSON):
                raise InvalidRequestError(f"messages[{index}].{key} is {show(value)}; expected JSON")
    return [_with_plain_texts(message) for message in messages]


def _with_plain_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    changed = {key: plain(value) for key, value in message.items() if isinstance(value, str)}
    if all(value is message[key] for key, value in changed.items()):
        return message
    return {**message, **changed}


def plain(text: str) -> str:
    """``text`` as a ``str`` and not as a class derived from it. Some clients have an enumeration of roles
    that is derived from ``str``, and an f-string writes the name of such a member instead of its value.

    >>> from enum import Enum
    >>> role = Enum("Role", {"user": "user"}, type=str).user
    >>> plain(role), type(plain(role))
    ('user', <class 'str'>)
    """
    return text if type(text) is str else str.__str__(text)


def least_characters(messages: Any) -> int:
    """The least number of characters that a prompt of these messages can have. White space around a text,
    replies with a thought and results of tools do not count, because formats may leave them out or shorten
    them. Malformed messages do not count either; the format refuses them later.

    >>> least_characters([{"role": "user", "content": " Hello "}, {"role": "tool", "content": "{}"}])
    5
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return 0
    count = 0
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in _COUNTED:
            continue
        content = message.get("content")
        if isinstance(content, str | Mapping):
            content = (content,)
        if not isinstance(content, list | tuple):
            continue
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        found = [text for text in texts if isinstance(text, str)]
        if role == "assistant" and any(_THOUGHT in text for text in found):
            continue
        count += sum(len(text.strip()) for text in found)
    return count


def check_flags(**flags: object) -> None:
    """Raises :class:`InvalidRequestError` for an argument that is neither True nor False."""
    for name, flag in flags.items():
        if flag is not True and flag is not False:
            raise InvalidRequestError(f"{name}: got {show(flag)}, expected True or False")


def checked_tools(tools: Any) -> list[Any]:
    """``tools`` as a list in OpenAI's form; an empty list for None. A Python function is replaced by its
    description. A tool in the form of OpenAI's newer API, with the name beside the ``parameters``, gets the
    form of the older API.

    >>> checked_tools([{"name": "now"}])
    [{'type': 'function', 'function': {'name': 'now'}}]
    """
    if tools is None:
        return []
    if isinstance(tools, str | bytes | bytearray) or not isinstance(tools, Sequence):
        raise InvalidRequestError(f"tools: got {show(tools)}, expected a list of functions")
    return [_in_openai_form(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _in_openai_form(tool: Any, where: str) -> Any:
    if callable(tool):
        return PythonTool.of(tool, where).description
    if isinstance(tool, Mapping) and "name" in tool and "function" not in tool:
        return {"type": "function", "function": {key: tool[key] for key in tool if key != "type"}}
    return tool


def is_same(one: object, other: object) -> bool:
    """Whether ``one`` and ``other`` are the same name or the same id. A value of another type, such as an
    array, is the same as nothing.

    >>> is_same("call_1", "call_1"), is_same(["call_1"], ["call_1"])
    (True, False)
    """
    return isinstance(one, str | int) and isinstance(other, str | int) and one == other


def role_of(message: Mapping[str, Any], where: str, roles: Sequence[str], format_name: str) -> str:
    """The role of ``message``. Raises :class:`InvalidRequestError` if it is not one of ``roles``."""
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        expected = ", ".join(roles)
        raise InvalidRequestError(
            f"{where}: role is {show(role)}; expected a role of the format {format_name}: {expected}"
        )
    return role


def text_parts(content: Any, where: str) -> list[str]:
    """The texts of a message's ``content``, which is a string or a list of text parts."""
    if isinstance(content, str):
        return [plain(content)]
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return [_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    raise InvalidRequestError(
        f"{where}: content is {show(content)}; expected a string or a list of text parts"
    )


def refuse_other_than_text(part: Any, where: str) -> Any:
    """Raises :class:`InvalidRequestError` for a part that is an image, a sound, a video or a file. Returns
    the type of any other part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _NOT_TEXT:
        raise InvalidRequestError(f"{where} is of type {kind}, which this model does not take")
    return kind


def _text_part(part: Any, where: str) -> str:
    kind = refuse_other_than_text(part, where)
    if kind != "text":
        raise InvalidRequestError(f'{where} is {show(part)}; expected {{"type": "text", "text": ...}}')
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}: text is {show(text)}; expected a string")
    return plain(text)


def named_surrogate(error: TokenizerError, **given: Any) -> TokenizerError:
    """``error``, which is about a lone surrogate in a prompt, with the place of the surrogate in ``given``.
    The prompt was made of these arguments.

    >>> message = {"role": "user", "content": [{"type": "text", "text": "a" + chr(0xD83D)}]}
    >>> print(named_surrogate(TokenizerError("text: ..."), messages=[message]))
    messages[0].content[0].text: character 1 is the lone surrogate U+D83D; expected valid Unicode
    """
    left = list(given.items())
    while left:
        where, value = left.pop()
        if isinstance(value, str):
            found = _SURROGATE.search(value)
            if found is not None:
                got = f"character {found.start()} is the lone surrogate U+{ord(found[0]):04X}"
                return TokenizerError(f"{where}: {got}; expected valid Unicode")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                is_name = isinstance(key, str) and _SURROGATE.search(key) is None
                place = f"{where}.{key[:40]}" if is_name else f"{where}: the name of a member"
                left.append((place, item if is_name else key))
        elif isinstance(value, Sequence):
            left += [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    # No text has the surrogate itself. It is an escape in a string of JSON.
    return TokenizerError(f"{next(iter(given))}: a text in them{str(error).removeprefix('text')}")


def mapping_at(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{where} is {show(value)}; expected a mapping")
    return value


def json_value(value: Any, where: str, depth: int = 0) -> Any:
    """``value`` converted to a value of JSON: a dict with string keys, list, str, int, float, bool or None.

    >>> json_value({"a": (1, None)}, "arguments")
    {'a': [1, None]}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise InvalidRequestError(f"{where} is an integer of more than {MAX_BITS} bits; send it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequestError(f"{where} is {value}, which is not JSON; expected a finite number")
        return float(value)
    if depth >= MAX_DEPTH:
        raise InvalidRequestError(f"{where[:80]}... is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequestError(f"{where}: the key {show(key)} is not a string")
        return {
            plain(key): json_value(item, f"{where}.{key}"[:200], depth + 1) for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [json_value(item, f"{where}[{i}]"[:200], depth + 1) for i, item in enumerate(value)]
    kind = type(value).__name__
    raise InvalidRequestError(f"{where} is a {kind}; expected a value that JSON can hold")


def json_object(value: Any, where: str) -> dict[str, Any]:
    """``value`` converted to a JSON object. A string is parsed, because arguments are strings in OpenAI's
    API.

    >>> json_object('{"city": "Oslo"}', "arguments")
    {'city': 'Oslo'}
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as problem:
            raise InvalidRequestError(f"{where} is {show(value)}, not a JSON object: {problem}") from None
    result = json_value({} if value is None else value, where)
    if not isinstance(result, dict):
        raise InvalidRequestError(f"{where} is {show(value)}; expected a JSON object")
    return result
