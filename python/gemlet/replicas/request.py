""":class:`Request`: an HTTP request with its body, which the front process sends to a replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """The method, path, query, headers and body of an HTTP request."""

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @classmethod
    def of(cls, scope: Mapping[str, Any], body: bytes) -> Request:
        """The request of an ASGI ``scope`` with its ``body``."""
        return cls(
            scope["method"],
            scope["path"],
            scope["query_string"],
            tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body,
        )

    def scope(self) -> dict[str, Any]:
        """Returns the scope for an ASGI application. The scope has no address of the client or the server."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": None,
            "server": None,
            "state": {},
        }
