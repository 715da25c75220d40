"""Images, videos and sounds that clients send. They must be in the request itself, and are never files of
this machine."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gemlet.base.text import show
from gemlet.media.containers import kind_of
from gemlet.media.images import decoded_bytes as image_bytes
from gemlet.media.sounds import decoded_bytes as sound_bytes
from gemlet.media.videos import decoded_bytes as video_bytes
from gemlet.server.problems import Problem

__all__ = [
    "MOST_DECODED",
    "MOST_PARTS",
    "check_part",
    "check_sent_inputs",
    "check_sent_media",
    "has_media",
    "images_of",
    "is_media",
    "media_part",
    "part_of_file",
]

# Maps the types of parts that clients may send to the field that has the data. Other types are refused,
# because the library takes paths in some of them.
_SENT = {
    "image_url": "image_url",
    "input_image": "image_url",
    "video_url": "video_url",
    "input_video": "video_url",
    "audio_url": "audio_url",
    "input_audio": "input_audio",
}
_INSTEAD = {
    "image": 'send {"type": "image_url", "image_url": {"url": "data:..."}}',
    "audio": 'send {"type": "input_audio", "input_audio": {"data": base64, "format": ...}}',
    "video": 'send {"type": "video_url", "video_url": {"url": "data:..."}}',
}
MOST_PARTS = 64  # images, videos and sounds in a request
_MOST_VIDEOS = 4  # videos among these, because a small file may take long to decode
MOST_DECODED = 1 << 28  # bytes of all images, videos and sounds in a request, when they are decoded
_BESIDE = {
    "type",
    "detail",
    "cache_control",
    "source_lang_code",
    "target_lang_code",
}  # fields that a part may have besides its data


def check_sent_media(messages: Sequence[Mapping[str, Any]], *, load_audio_from_video: bool = False) -> None:
    """Raises :class:`Problem` if a part of a message could name a file or an address, and if there are too
    many parts. If ``load_audio_from_video``, the sound of videos counts too, because it will be decoded."""
    _check_all(_parts(messages), "messages", load_audio_from_video)


def check_sent_inputs(inputs: Sequence[Any]) -> None:
    """Like :func:`check_sent_media`, for texts to embed. Some of them are lists of parts."""
    _check_all(_typed((f"input[{i}]", one) for i, one in enumerate(inputs)), "input")


def _check_all(
    parts: Iterable[tuple[str, str, Mapping[str, Any]]], param: str, hears_videos: bool = False
) -> None:
    count = videos = size = 0
    for where, kind, part in parts:
        if kind == "text":
            continue
        check_part(part, where, param=param)
        count += 1
        videos += _SENT[kind] == "video_url"
        if videos > _MOST_VIDEOS:
            raise Problem(400, f"{where}: a request has at most {_MOST_VIDEOS} videos", param=param)
        size += _decoded_bytes(part, hears_videos)
        if size > MOST_DECODED:
            limit = f"have at most {MOST_DECODED} bytes together when they are decoded"
            raise Problem(400, f"{where}: the images, videos and sounds of a request {limit}", param=param)
        if count > MOST_PARTS:
            limit = f"at most {MOST_PARTS} images, videos and sounds"
            raise Problem(400, f"{where}: a request has {limit}", param=param)


def images_of(message: Mapping[str, Any]) -> list[Any]:
    """The data URLs of the images in a message, which :func:`check_sent_media` must have checked.

    >>> images_of({"role": "user", "content": [media_part("image", "AAEC")]})
    ['data:;base64,AAEC']
    """
    urls = [part["image_url"] for _, _, part in _parts([message]) if _SENT.get(part["type"]) == "image_url"]
    return [url["url"] if isinstance(url, Mapping) else url for url in urls]


def _decoded_bytes(part: Mapping[str, Any], hears_videos: bool) -> int:
    """The size that a part will have when it is decoded, according to its headers."""
    key = _SENT[str(part["type"])]
    value = part[key]
    text = value if isinstance(value, str) else value["data" if key == "input_audio" else "url"]
    try:
        data = base64.b64decode(text[text.find(",") + 1 :])
    except ValueError:
        return 0  # the library reports what is wrong
    sizes = {"image_url": image_bytes, "video_url": video_bytes}
    heard = sound_bytes(data) if key == "video_url" and hears_videos else 0
    return sizes.get(key, sound_bytes)(data) + heard


def check_part(part: Mapping[str, Any], where: str, param: str) -> None:
    """Raises :class:`Problem` if a part is not an image, a video or a sound in the request itself."""
    kind = str(part.get("type"))
    if kind not in _SENT:
        instead = _INSTEAD.get(kind, "gemlet takes text, image_url, video_url and input_audio")
        raise Problem(400, f"{where} is of type {show(kind)}; {instead}", param=param)
    key = _SENT[kind]
    other = sorted(name for name in part if name not in _BESIDE and name != key)
    if other:
        raise Problem(400, f"{where}: {show(other[0])} is not a field of {kind}", param=param)
    value = part.get(key)
    if key == "input_audio":
        if not isinstance(value, Mapping) or not isinstance(value.get("data"), str):
            raise Problem(400, f"{where}: input_audio: expected an object with data, a text", param=param)
        return
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url.startswith("data:"):
        raise Problem(400, f"{where}: {kind}: expected a data URL; gemlet fetches nothing", param=param)


def media_part(kind: str, data: str) -> dict[str, Any]:
    """A part of a message, made from data that a dialect sends as base64. ``kind`` is "image", "video" or
    "audio". The first bytes of the data show their format.

    >>> media_part("image", "AAEC")
    {'type': 'image_url', 'image_url': {'url': 'data:;base64,AAEC'}}
    """
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:;base64,{data}"}}


def part_of_file(data: str) -> dict[str, Any]:
    """Like :func:`media_part`, but the first bytes of the data also decide the kind.

    >>> part_of_file(base64.b64encode(b"RIFF....WAVEfmt ").decode())["type"]
    'audio_url'
    """
    try:
        head = base64.b64decode(data[:64].encode("ascii").translate(None, b" \t\r\n")[:16])
    except ValueError:
        head = b""  # the library reports what is wrong
    return media_part(kind_of(head), data)


def is_media(part: object) -> bool:
    """Whether a part of a message is an image, a video or a sound."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind in _SENT


def has_media(message: Mapping[str, Any]) -> bool:
    """Whether a message has an image, a video or a sound.

    >>> has_media({"content": [media_part("video", "AAEC")]}), has_media({"content": "A cat"})
    (True, False)
    """
    content = message.get("content")
    return isinstance(content, list | tuple) and any(map(is_media, content))


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    return _typed(
        (f"messages[{i}].content", message.get("content") if isinstance(message, Mapping) else None)
        for i, message in enumerate(messages)
    )


def _typed(contents: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The place, the type and the part, for each part that has a type. ``contents`` are pairs of a place and
    a content."""
    for where, content in contents:
        for j, part in enumerate(content if isinstance(content, list | tuple) else ()):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str):
                yield f"{where}[{j}]", kind, part
