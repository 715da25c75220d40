"""Keeps slow work out of the event loop: :func:`off_loop`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gemlet.chat.media_places import MEDIA_TYPES

__all__ = ["off_loop", "takes_long"]

_Result = TypeVar("_Result")
_MOST = 20_000  # characters, token ids and values: encoding more takes milliseconds
_SLOW = ("images", "videos", "audio", "json_schema", "regex", "choice", "grammar")


def takes_long(asked: object, options: Mapping[str, Any]) -> bool:
    """Whether a prompt or a conversation takes more than a moment to check and encode: it is long, it has
    images or sounds, or its reply has to follow a grammar.

    >>> takes_long("Who is there?", {"max_tokens": 5}), takes_long("Who is there?", {"regex": "a+"})
    (False, True)
    """
    if any(options.get(name) is not None for name in _SLOW):
        return True
    if options.get("tool_choice") not in (None, "auto", "none"):
        return True  # a grammar gives a required call its form
    left, found = _MOST, [asked, options.get("tools")]
    while found and left >= 0:
        one = found.pop()
        if isinstance(one, str):
            left -= len(one)
        elif isinstance(one, Mapping):
            kind = one.get("type")
            if isinstance(kind, str) and kind in MEDIA_TYPES:
                return True
            left -= len(one)
            found += one.values()
        elif isinstance(one, list | tuple):
            left -= len(one)
            if left >= 0:
                found += one
    return left < 0


async def off_loop(work: Callable[[], _Result], asked: object, options: Mapping[str, Any]) -> _Result:
    """Returns what ``work`` returns. ``work`` runs in a thread if ``asked`` takes long to read. A task that
    is cancelled in that time does not wait for the thread."""
    import asyncio

    return await asyncio.to_thread(work) if takes_long(asked, options) else work()
