"""Images and sounds that clients send: only what is in the request itself, never a file of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemlet.server.problems import Problem

__all__ = ["check_sent_media", "has_media"]

# Types of parts whose values may be paths, which only a program may give.
_OF_PROGRAMS = {
    "image": 'send {"type": "image_url", "image_url": {"url": "data:..."}}',
    "audio": 'send {"type": "input_audio", "input_audio": {"data": base64, "format": ...}}',
    "video": "send its frames as images",
}


def check_sent_media(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises :class:`Problem` for a part of a message that could name a file."""
    for where, kind, part in _parts(messages):
        if kind in _OF_PROGRAMS:
            raise Problem(400, f"{where} is of type {kind}; {_OF_PROGRAMS[kind]}", param="messages")
        if kind == "input_audio" and not isinstance(part.get("input_audio"), Mapping):
            raise Problem(400, f"{where}: input_audio has to be an object with data", param="messages")


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is anything else than text in them.

    >>> has_media([{"role": "user", "content": "Hello"}])
    False
    """
    return any(kind != "text" for _, kind, _ in _parts(messages))


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Place, type and part, for each part that has a type."""
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for j, part in enumerate(content if isinstance(content, list | tuple) else ()):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str):
                yield f"messages[{i}].content[{j}]", kind, part
