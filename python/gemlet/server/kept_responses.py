"""Keeps the newest conversations of ``/v1/responses`` in memory, so that later requests can continue them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.records import record

__all__ = ["KeptResponse", "KeptResponses"]


@record(frozen=True)
class KeptResponse:
    """A response, and the conversation up to its end.

    Attributes:
        owner: the id of the API key that made the response; None if the server has no keys.
        messages: the conversation without the instructions, because each request sends its own instructions.
    """

    owner: str | None
    response: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    size: int


class KeptResponses:
    """The newest responses, up to ``most`` bytes for all of them together.

    >>> kept = KeptResponses(1000)
    >>> kept.put(None, {"id": "resp_1"}, [], 20)
    >>> kept.find(None, "resp_1").response, kept.find("somebody", "resp_1")
    ({'id': 'resp_1'}, None)
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._kept: OrderedDict[str, KeptResponse] = OrderedDict()

    def put(
        self,
        owner: str | None,
        response: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        size: int,
    ) -> None:
        """Keeps a response, which has ``size`` bytes as JSON, with its messages."""
        self._kept[response["id"]] = KeptResponse(owner, response, messages, size)
        self._size += size
        while self._size > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size

    def find(self, owner: str | None, name: str) -> KeptResponse | None:
        found = self._kept.get(name)
        if found is None or found.owner != owner:
            return None
        self._kept.move_to_end(name)
        return found

    def remove(self, owner: str | None, name: str) -> bool:
        found = self.find(owner, name)
        if found is not None:
            del self._kept[name]
            self._size -= found.size
        return found is not None
