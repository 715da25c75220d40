"""Chooses a replica for each request. The router prefers the replica that has already computed the beginning
of the request. If that replica is much busier than another one, the router chooses the least busy replica."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from gemlet.replicas.request import Request

__all__ = ["PrefixRouter", "beginnings"]

_BLOCK = 512  # bytes; every beginning of a body, except the whole body, is a multiple of this length
_MOST_BLOCKS = 256  # the most beginnings of one request
_MOST_KNOWN = 200_000  # the most beginnings that are remembered


def beginnings(request: Request) -> list[bytes]:
    """Returns a name for each beginning of the request. The name of the longest beginning comes first.

    A name is a hash of the bytes of the body. This works for every API, because the next turn of a
    conversation begins with the same bytes as the turn before. The API key is part of the hash, because
    requests with different keys share no caches.

    >>> one = Request("POST", "/v1/chat/completions", body=b"a" * 1100)
    >>> two = Request("POST", "/v1/chat/completions", body=b"a" * 1024 + b"b" * 600)
    >>> [name in beginnings(two) for name in beginnings(one)]
    [False, True, True]
    """
    whose = b"\0".join(
        value for name, value in request.headers if name.lower() in (b"authorization", b"x-api-key")
    )
    name = hashlib.blake2b(request.path.encode() + b"\0" + whose, digest_size=16)
    found = []
    for begin in range(0, min(len(request.body), _BLOCK * _MOST_BLOCKS), _BLOCK):
        name.update(request.body[begin : begin + _BLOCK])
        found.append(name.digest())
    return found[::-1]


class PrefixRouter(RequestRouter):
    """A request router for Ray Serve.

    The router remembers which replica got the beginning of a request. A later request with the same beginning
    goes to the same replica, if that replica has at most ``most_ahead`` more requests than the least busy
    replica. Otherwise the request goes to the least busy replica. The default of ``most_ahead`` is 4.
    """

    def initialize_state(self, most_ahead: int = 4) -> None:
        self._most_ahead = most_ahead
        self._known: OrderedDict[bytes, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: Sequence[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        busy = {r.replica_id: self.replica_queue_len_cache.get(r.replica_id) or 0 for r in candidate_replicas}
        if pending_request is None or not busy:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True
        least = min(busy.values())
        known = self._owner(beginnings(pending_request.args[0]), busy)
        first = (
            [r for r in candidate_replicas if r.replica_id == known]
            if known is not None and busy[known] <= least + self._most_ahead
            else [r for r in candidate_replicas if busy[r.replica_id] == least]
        )
        return [first, [r for r in candidate_replicas if r not in first]]

    def _owner(self, names: Sequence[bytes], there: dict[ReplicaID, int]) -> ReplicaID | None:
        return next((self._known[name] for name in names if self._known.get(name) in there), None)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        for name in beginnings(pending_request.args[0]):
            self._known[name] = replica_id
            self._known.move_to_end(name)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
