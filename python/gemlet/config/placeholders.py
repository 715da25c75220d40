"""The token ids that stand for pictures, videos and sound: :func:`with_placeholders`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.records import replace
from gemlet.config.families import WITH_GEMMA4_TOWERS
from gemlet.config.text_config import TextConfig

__all__ = ["with_placeholders"]

# By family: the keys of a multimodal file that name a placeholder, and their defaults.
_GEMMA4 = {"image_token_id": 258880, "audio_token_id": 258881, "video_token_id": 258884}
_NAMES: Mapping[str, Mapping[str, int]] = {
    "gemma3": {"image_token_index": 262144},
    **dict.fromkeys(WITH_GEMMA4_TOWERS, _GEMMA4),
}
# Gemma 3n: the first ids of the vocabularies of pictures and of sound.
_OFFSETS = {"vision_config": 262144, "audio_config": 262272}


def with_placeholders(config: TextConfig, outer: Keys) -> TextConfig:
    """``config`` with the ids that stand for media in ``outer``, the object of a multimodal file.

    Raises :class:`ConfigError` for a value that is not an id.

    >>> from gemlet.config import shape_config
    >>> found = with_placeholders(shape_config("gemma4-e2b"), Keys({}, "config.json", ""))
    >>> found.placeholder_ids, found.placeholders_read_as
    ((258880, 258881, 258884), 0)
    """
    if config.family == "gemma3n":
        first = min(_offset(outer, name, default) for name, default in _OFFSETS.items())
        return replace(config, text_ids=first) if first < config.vocab_size else config
    names = _NAMES.get(config.family, {})
    named = {_id(outer, name, default) for name, default in names.items()}
    ids = tuple(sorted(i for i in named if i is not None and i < config.vocab_size))
    if not ids:
        return config
    if config.family not in WITH_GEMMA4_TOWERS:
        return replace(config, placeholder_ids=ids)
    pad = config.pad_token_id or 0
    return replace(config, placeholder_ids=ids, placeholders_read_as=pad if pad < config.vocab_size else 0)


def _id(keys: Keys, name: str, default: int) -> int | None:
    if name == "image_token_index" and "image_token_id" in keys.raw:
        name = "image_token_id"
    value: Any = keys.raw.get(name, default)
    if value is None:
        return None
    if type(value) is not int or not -1 <= value < 1 << 31:
        raise keys.wrong(name, "a token id, or null")
    return None if value == -1 else value


def _offset(outer: Keys, name: str, default: int) -> int:
    inner = outer.inner(outer.mapping(name), name, {"vocab_offset": default})
    return inner.integer("vocab_offset", (1 << 31) - 1)
