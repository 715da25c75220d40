"""Finds what a client says in a conversation: every text of messages and tools that the model may see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gemlet.server.sent_media import is_media

__all__ = ["content_of", "strings_in", "texts_of"]

# Names of fields and of types that belong to the formats of messages, tools and schemas.
_PRESCRIBED = frozenset(
    (
        *("type", "text", "function", "id", "name", "arguments", "strict", "tool_use", "tool_result"),
        *("description", "parameters", "properties", "required", "enum", "items", "additionalProperties"),
        *("object", "string", "number", "integer", "boolean", "array", "null", "title", "default", "format"),
        *("anyOf", "oneOf", "allOf", "const", "pattern", "minimum", "maximum", "minItems", "maxItems"),
        *("minLength", "maxLength", "$ref", "$defs", "cache_control", "nullable"),
    )
)


def texts_of(message: Mapping[str, Any], *, joined: bool = True) -> Iterator[str]:
    """The texts of a message, also in its calls. If ``joined``, the joined texts of its parts come too, as
    chat formats write them.

    >>> list(texts_of({"role": "user", "content": ["gob", "lin"]}))
    ['gob', 'lin', 'goblin']
    """
    for name, value in message.items():
        if name == "content":
            parts = value if isinstance(value, list | tuple) else [value]
            for part in parts:
                if not is_media(part):
                    yield from strings_in(part)
            texts = content_of(message)
            if joined and len(texts) > 1:
                yield from {"".join(texts): None, "".join(map(str.strip, texts)): None}
        elif name != "role":
            yield from strings_in(value)


def content_of(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message's parts."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def strings_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, and all names in it except those that belong to a format. If the arguments
    of a call are JSON in a text, that JSON is searched too, because the model gets its values.

    >>> list(strings_in({"type": "string", "why": ["so", 1]}))
    ['why', 'so']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _PRESCRIBED:
                yield str(name)
            if name == "arguments" and isinstance(inner, str):
                yield from strings_in(_read(inner))
            if not (name == "type" and isinstance(inner, str) and inner in _PRESCRIBED):
                yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # the chat format reports what is wrong
