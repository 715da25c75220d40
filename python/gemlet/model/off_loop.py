"""Keeps slow work out of the event loop: :func:`off_loop`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gemlet.chat.media_places import MEDIA_TYPES

__all__ = ["off_loop", "takes_long"]

_Result = TypeVar("_Result")
# The most characters, token ids and values that are encoded in the event loop. More would take milliseconds.
_MOST = 20_000
_SLOW = ("images", "videos", "audio", "json_schema", "regex", "choice", "grammar")


def takes_long(asked: object, options: Mapping[str, Any]) -> bool:
    """Whether it takes long to check and encode ``asked``, a prompt or a conversation. It does if ``asked``
    is long or has images or sounds, or if the reply has to follow a grammar.

    >>> takes_long("Who is there?", {"max_tokens": 5}), takes_long("Who is there?", {"regex": "a+"})
    (False, True)
    """
    if any(options.get(name) is not None for name in _SLOW):
        return True
    if options.get("tool_choice") not in (None, "auto", "none"):
        return True  # a required call follows a grammar
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
    """Runs ``work`` and returns its result. If ``asked`` takes long to read, ``work`` runs in a thread. A
    task that is cancelled in that time does not wait for the thread."""
    import asyncio

    return await asyncio.to_thread(work) if takes_long(asked, options) else work()
