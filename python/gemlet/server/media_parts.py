"""Images and sounds in the messages of clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemlet.server.problems import Problem

__all__ = ["has_media", "is_media", "refuse_paths"]

_TYPES = ("audio", "image", "video")


def is_media(part: Any) -> bool:
    """Whether a part of a message's content is an image, a video or a sound.

    >>> is_media({"type": "input_audio", "input_audio": {}}), is_media({"type": "text", "text": ""})
    (True, False)
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and any(name in kind for name in _TYPES)


def _parts(messages: Sequence[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts that are media, each with its place."""
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            for j, part in enumerate(content):
                if is_media(part):
                    yield f"messages[{i}].content[{j}]", part


def has_media(messages: Sequence[Any]) -> bool:
    """Whether there is any in the messages."""
    return next(_parts(messages), None) is not None


def refuse_paths(messages: Sequence[Any]) -> None:
    """Raises :class:`Problem` for media that are not in the request itself: the library would take a text for
    the path of a file of this machine."""
    for where, part in _parts(messages):
        for name, value in part.items():
            if name == "type":
                continue
            given = value.get("url") if isinstance(value, Mapping) else value
            if isinstance(given, str) and not given.startswith("data:"):
                raise Problem(
                    400, f"{where}.{name}: expected a data URL, or base64 as input_audio", param="messages"
                )
