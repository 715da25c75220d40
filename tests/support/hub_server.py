"""A server on localhost that replaces the Hugging Face hub in tests. It has the part of the hub's HTTP API
that is needed for downloading models."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = hashlib.sha1(b"main").hexdigest()
TOKEN = "hf_" + "x" * 34


class Hub:
    """The repositories of the server, by name. A repository maps the names of files to their contents. Some
    words in the name of a repository change the answers:

    - "gated" and "private" require TOKEN.
    - "down" and "garbage" answer like a broken server.
    - "rangeless" ignores the requested range and sends whole files.
    - "endless" sends more bytes than requested, and "short" sends fewer.
    - "moving" gives another size of the file in each answer.
    - "lfs" redirects requests for weights to another host.

    ``served`` lists the files that the server has sent, whole or in part. ``sent`` counts the bytes.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.served: list[str] = []
        self.sent: Counter[str] = Counter()
        self.url = ""


@contextmanager
def hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    state = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses the hub at ``url`` and keeps downloads in ``home``."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        **more,
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client closed the connection
                super().handle()

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
                self._api(match[1], match[2], match[3] or "main", body)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(match[1], match[2], match[3], body)
            else:
                self._send(404, b"", {}, body)

        def _allowed(self, name: str, revision: str, body: bool) -> bool:
            if "down" in name:
                self._send(500, b"", {}, body)
            elif "garbage" in name:
                self._send(200, b"<html>a captive portal</html>", {}, body)
            elif ("gated" in name or "private" in name) and self.headers[
                "Authorization"
            ] != f"Bearer {TOKEN}":
                code = "GatedRepo" if "gated" in name else "RepoNotFound"
                self._send(403 if "gated" in name else 401, b"{}", {"X-Error-Code": code}, body)
            elif name not in hub.repositories:
                # The real hub answers a client without a login in this way if the name does not exist.
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            elif revision not in ("main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            else:
                return True
            return False

        def _api(self, name: str, what: str | None, revision: str, body: bool) -> None:
            if not self._allowed(name, revision, body):
                return
            files = hub.repositories[name]
            answer: Any
            if what == "tree":
                answer = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
            else:
                siblings = [{"rfilename": file} for file in files]
                answer = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

        def _file(self, name: str, revision: str, file: str, body: bool) -> None:
            if not self._allowed(name, revision, body):
                return
            data = hub.repositories[name].get(file)
            if data is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            if body:
                hub.served.append(file)
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if "lfs" in name and file.endswith(".safetensors") and body and self.headers["Host"][0] == "1":
                elsewhere = hub.url.replace("127.0.0.1", "localhost") + self.path
                self._send(302, b"", {"Location": elsewhere}, body)
                return
            if self.headers["Host"][0] != "1":
                assert self.headers["Authorization"] is None
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            status, size = 200, len(data)
            if asked and "rangeless" not in name:
                begin, end = int(asked[1]), min(int(asked[2]) + 1, size)
                size += len(hub.served) if "moving" in name else 0
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
                status, data = 206, data[begin : end - (1 if "short" in name else 0)]
                data += bytes(1 << 27) if "endless" in name else b""
            hub.sent[f"{name}/{file}"] += len(data) if body else 0
            self._send(status, data, headers, body)

        def _send(self, status: int, data: bytes, headers: Mapping[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler
