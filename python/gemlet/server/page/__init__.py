"""The web page at ``/``. It is a few files that are served as they are, and have no data of clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["FILES", "file"]

# Maps the path of a request to the file and its type.
FILES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/main.js": ("main.js", "text/javascript"),
    "/page/chat.js": ("chat.js", "text/javascript"),
    "/page/attach.js": ("attach.js", "text/javascript"),
    "/page/markdown.js": ("markdown.js", "text/javascript"),
    "/page/server.js": ("server.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
# With these headers, a model's text could do nothing even if it became a script or a style. The page can send
# nothing to another server.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def file(path: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint for ``path``, which is one of FILES."""
    name, kind = FILES[path]
    body = (Path(__file__).parent / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(body, headers={**_HEADERS, "content-type": f"{kind}; charset=utf-8"})

    return answer
