"""Finds the images and sounds in a conversation, and puts their placeholders into the prompt.

:func:`take_media` replaces each image or sound in a message with a sentinel, a text that no client can have
written. A format writes the sentinel like any text, and :func:`with_places` replaces the sentinel with the
tokens of the image or sound. So the formats do not need to know about media, and a client's text cannot
become a placeholder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError

__all__ = ["MEDIA_TYPES", "MediaPart", "Place", "stands_for_media", "take_media", "take_parts", "with_places"]

# A part of a prompt, as pairs ``(text, is a marker)`` like those of Segments.
Place = Sequence[tuple[str, bool]]

_CODES = ("source_lang_code", "target_lang_code")  # keys that TranslateGemma reads in a part
_SENTINEL = late_pattern("\uf8ff[0-9a-f]{32}:[0-9]+\uf8ff")
# The type of a part in a message -> the kind of the part, and the keys that may hold its value.
_TYPES = {
    "image": ("image", ("image", "path", "url", "base64")),
    "image_url": ("image", ("image_url",)),
    "input_image": ("image", ("image_url",)),
    "video": ("video", ("video", "path", "url")),
    "video_url": ("video", ("video_url",)),
    "input_video": ("video", ("video_url",)),
    "audio": ("audio", ("audio", "path", "url")),
    "input_audio": ("audio", ("input_audio", "audio")),
    "audio_url": ("audio", ("audio_url", "audio")),
}
MEDIA_TYPES = frozenset(_TYPES)


@record(frozen=True)
class MediaPart:
    """An image or a sound in a message.

    Attributes:
        kind: "image", "video", "audio", or "track" for the sound of a video.
        value: the value that the client sent.
        where: the place of the part in the conversation, for errors.
        sentinel: the text that stands for the image or sound in the prompt.
    """

    kind: str
    value: Any
    where: str
    sentinel: str


def take_media(
    messages: Any, kinds: Collection[str], *, load_audio_from_video: bool = False
) -> tuple[Any, list[MediaPart]]:
    """Replaces each part of the ``kinds`` in ``messages`` with a sentinel. Returns the new messages and the
    replaced parts. Everything else stays unchanged; the format checks it later.

    With ``load_audio_from_video``, a sentinel for the sound follows the sentinel of every video. transformers
    needs ``{"type": "audio"}`` after a video for the sound. Such a part is accepted here and adds nothing.

    >>> found, parts = take_media([{"role": "user", "content": [{"type": "audio", "audio": b""}]}], ["audio"])
    >>> parts[0].where, found[0]["content"][0]["type"]
    ('messages[0].content[0]', 'text')
    >>> take_media([{"role": "user", "content": "Hello"}], ["audio"])
    ([{'role': 'user', 'content': 'Hello'}], [])
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages, []
    parts: list[MediaPart] = []
    result: list[Any] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            result.append(message)
            continue
        written, found = take_parts(content, kinds, f"messages[{i}].content", load_audio_from_video)
        parts += found
        result.append({**message, "content": written})
    return (result, parts) if parts else (messages, [])


def take_parts(
    content: Sequence[Any], kinds: Collection[str], where: str, load_audio_from_video: bool = False
) -> tuple[list[Any], list[MediaPart]]:
    """Does the work of :func:`take_media` for ``content``, the parts of one message. ``where`` is the place
    of the parts, for errors."""
    parts: list[MediaPart] = []
    secret, video = "", None
    written: list[Any] = []
    for j, part in enumerate(content):
        if parts and parts[-1].kind == "track" and part == {"type": "audio"} and content[j - 1] is video:
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        known = _TYPES.get(kind) if isinstance(kind, str) else None
        if known is None or known[0] not in kinds:
            written.append(part)
            continue
        secret = secret or os.urandom(16).hex()
        sentinel = f"\uf8ff{secret}:{len(parts)}\uf8ff"
        value = _value(part, known[1], f"{where}[{j}]")
        parts.append(MediaPart(known[0], value, f"{where}[{j}]", sentinel))
        codes = {name: part[name] for name in _CODES if name in part}
        written.append({"type": "text", "text": sentinel, **codes})
        if known[0] == "video" and load_audio_from_video:
            sentinel, video = f"\uf8ff{secret}:{len(parts)}\uf8ff", part
            parts.append(MediaPart("track", value, f"{where}[{j}]", sentinel))
            written.append({"type": "text", "text": sentinel, **codes})
    return written, parts


def _value(part: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    for key in keys:
        if key in part:
            value = part[key]
            if key.startswith("input_") and isinstance(value, str):
                raise InvalidRequestError(
                    f'{where}.{key}: got {show(value)}, expected {{"data": base64, "format": "wav"}}'
                )
            if key == "base64" and isinstance(value, str):
                value = f"data:;base64,{value}"
            if key.endswith("_url") and isinstance(value, Mapping):
                value = value.get("url")
            if key.endswith("_url") and not (isinstance(value, str) and value.startswith("data:")):
                raise InvalidRequestError(f"{where}: the URL is {show(value)}; expected a data URL")
            return value
    raise InvalidRequestError(f"{where} has no {keys[0]}; expected one of the keys {', '.join(keys)}")


def stands_for_media(text: str) -> bool:
    """Whether ``text`` is a sentinel of :func:`take_media`, and nothing else.

    >>> found, _ = take_media([{"content": [{"type": "audio", "audio": b""}]}], ["audio"])
    >>> stands_for_media(found[0]["content"][0]["text"]), stands_for_media("audio")
    (True, False)
    """
    return _SENTINEL.fullmatch(text) is not None


def with_places(segments: Sequence[tuple[str, bool]], places: Mapping[str, Place]) -> list[tuple[str, bool]]:
    """The segments of a prompt, in which each sentinel is replaced. ``places`` maps a sentinel to the
    segments that replace it.

    >>> with_places([("a!b", False)], {"!": [("<image>", True)]})
    [('a', False), ('<image>', True), ('b', False)]
    """
    found = list(segments)
    for sentinel, place in places.items():
        parted: list[tuple[str, bool]] = []
        for text, is_marker in found:
            if is_marker or sentinel not in text:
                parted.append((text, is_marker))
                continue
            before, *others = text.split(sentinel)
            parted.append((before, False))
            for other in others:
                parted += [*place, (other, False)]
        found = parted
    return found
