"""Tests of ``gemlet top``: its output as text, as JSON and on a terminal, its use of keys, and its errors if
another program answers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.commands import failed, run, run_here
from support.servers import RunningServer, serving
from support.terminal import on_terminal

pytestmark = pytest.mark.extra("serve")
BODY = {"prompt": "The door", "max_tokens": 5, "ignore_eos": True}
SHORT = ("--interval", "0.1")


def test_top_can_show_the_state_once(server: RunningServer) -> None:
    server.post("/v1/completions", BODY)
    for arguments in ((), ("--once",)):  # if the output is a pipe, --once is the default
        done = run("top", server.url, *SHORT, *arguments)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert lines[0].startswith("gemlet ")
        assert re.match(r"ready, up \d+ (s|min), \d+ of 256 requests, \d+ MB", lines[1])
        assert lines[3].split()[:5] == ["model", "run", "wait", "tok/s", "read/s"]
        assert re.match(r"demo +0 +0 +0\.0 +0\.0 +\d+ ms +\d+ ms", lines[4])
        assert "\x1b" not in done.stdout.decode()


def test_json_with_rates(server: RunningServer) -> None:
    done_looking = threading.Event()

    def ask() -> None:
        while not done_looking.is_set():
            server.post("/v1/completions", {**BODY, "max_tokens": 40})

    busy = threading.Thread(target=ask)
    busy.start()
    done = run("top", server.url.removeprefix("http://"), "--json", "--interval", "0.3")
    done_looking.set()
    busy.join()
    [model] = json.loads(done.stdout)["models"]
    assert model["tokens_per_second"] > 1
    assert model["first_token_p50"] <= model["first_token_p95"] < 10
    assert 0 <= model["cached_share"] <= 1


def test_keys(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    file = str(tmp_path / "keys.db")
    store = KeyStore(file, create=True)
    alice, board = store.create("alice"), store.create("board", rights=["metrics"])
    store.close()
    with serving(Settings(keys=file)) as server:
        server.post("/v1/completions", BODY, key=alice)
        assert "it needs a key" in failed(run("top", server.url, *SHORT))
        assert "does not take this key" in failed(run("top", server.url, *SHORT, "--key", "wrong"))
        own = run("top", server.url, *SHORT, GEMLET_KEY=alice).stdout.decode()
        everything = run("top", server.url, *SHORT, "--key", board).stdout.decode()
        assert "alice" in own
        assert " ms" not in own
        assert "alice" in everything
        assert " ms" in everything


def test_top_updates_a_terminal(server: RunningServer) -> None:
    code, screen = on_terminal(["top", server.url, *SHORT], [("cache", ""), ("\x1b[H", "\x03")])
    assert code == 0
    assert screen.index("\x1b[?1049h") < screen.index("demo") < screen.index("\x1b[?1049l")
    assert screen.count("\x1b[?25h") == 1


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that gives this answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


STATE: dict[str, Any] = {
    "version": "1",
    "ready": True,
    "uptime_seconds": 1,
    "requests": {"running": 0, "most": 1},
    "memory_bytes": 1,
    "models": [{"id": "a", "parent": None}],
}


@pytest.mark.parametrize(
    "state",
    [
        *({}, {"models": 1}, {**STATE, "models": [1]}, {**STATE, "uptime_seconds": "x"}),
        *({**STATE, "requests": None}, {**STATE, "models": [{**STATE["models"][0], "engine": []}]}),
        *({**STATE, "usage": [1]}, {**STATE, "models": [{**STATE["models"][0], "memory": {"weights": "x"}}]}),
        {**STATE, "models": [{**STATE["models"][0], "first_token_seconds": [[0.1, 5], ["x", 9]]}]},
    ],
)
def test_top_refuses_a_status_of_another_program(state: object, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, json.dumps(state).encode()) as url:
        assert "is not that of a gemlet serve" in failed(run_here(capsys, "top", url, *SHORT))


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[1]"), (302, b""), (500, b"{}"), (200, b"\xff"), (200, b"")],
)
def test_top_refuses_other_answers(status: int, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(status, body) as url:
        failed(run_here(capsys, "top", url, *SHORT))


def test_a_server_cannot_steer_the_terminal() -> None:
    state = {**STATE, "version": "\x1b]0;bad\x07", "models": [{"id": "\x1b[2J" + "x" * 99, "parent": None}]}
    with answering(200, json.dumps(state).encode()) as url:
        done = run("top", url, *SHORT)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b"x" * 41 not in done.stdout


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://x:99999", "http://user:pass@x", "http://[x"]
)
def test_wrong_addresses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "url" in failed(run_here(capsys, "top", url)).lower()


def test_top_says_that_no_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not answer" in failed(run_here(capsys, "top", "http://127.0.0.1:9"))
    assert "interval" in failed(run_here(capsys, "top", "http://127.0.0.1:9", "--interval", "nan"))
