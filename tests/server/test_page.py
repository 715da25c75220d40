"""Tests of the files of the web page at ``/``, and of ``GET /status``, which the page requests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import ROOT
from support.servers import RunningServer, serving

pytestmark = pytest.mark.extra("serve")
FOLDER = ROOT / "python/gemlet/server/page"
BODY = {"prompt": "The door", "max_tokens": 5, "ignore_eos": True}


def test_the_files_of_the_page(server: RunningServer) -> None:
    from gemlet.server.page import FILES

    assert {name for name, _ in FILES.values()} == {
        path.name for path in FOLDER.iterdir() if path.suffix != ".py" and path.is_file()
    }
    for path, (name, kind) in FILES.items():
        answer = server.ask("GET", path)
        assert answer.body == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_content_security_policy_allows_no_other_server(server: RunningServer) -> None:
    policy = server.ask("GET", "/").headers["content-security-policy"]
    said = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert said.pop("default-src") == "'none'"
    assert said.pop("require-trusted-types-for") == "'script'"
    assert set(said.values()) == {"'self'", "'none'"}
    assert {said["script-src"], said["style-src"], said["connect-src"]} == {"'self'"}


def test_the_page_names_no_other_server() -> None:
    for path in FOLDER.iterdir():
        if path.suffix in (".html", ".css", ".js", ".svg"):
            text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
            assert not re.search(r"""["'(]\s*(https?:)?//\w""", text), path.name


def test_the_page_cannot_turn_text_into_markup() -> None:
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert name not in text, path.name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)", page)
    assert not re.search(r"\son\w+=|\sstyle=|<style", page)


def test_the_status_has_the_state_of_the_server(server: RunningServer) -> None:
    before = server.ask("GET", "/status").json["models"][0]["engine"]["generated_tokens"]
    server.post("/v1/completions", BODY)
    state = server.ask("GET", "/status").json
    assert state["ready"]
    assert state["requests"] == {"running": 0, "most": 256}
    assert state["memory_bytes"] > 1_000_000
    [model] = state["models"]
    assert (model["id"], model["chats"], model["thinks"]) == ("demo", True, False)
    assert (model["sees"], model["hears"]) == (False, False)
    assert model["memory"]["weights"] > 1_000_000
    assert model["engine"]["generated_tokens"] == before + 5
    steps = model["first_token_seconds"]
    assert steps[-1][0] is None
    assert steps[-1][1] >= 1
    assert [count for _, count in steps] == sorted(count for _, count in steps)
    assert "usage" not in state


def test_each_key_sees_its_own_status(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    file = str(tmp_path / "keys.db")
    store = KeyStore(file, create=True)
    alice = store.create("alice")
    store.create("bob")
    other = store.create("other", models=["another"])
    board = store.create("board", rights=["metrics"])
    store.close()
    with serving(Settings(keys=file)) as server:
        server.post("/v1/completions", BODY, key=alice)
        assert server.ask("GET", "/status").status == 401
        assert server.ask("GET", "/", key="wrong").status == 200
        assert server.ask("GET", "/?x").status == server.ask("GET", "/page/").status == 401
        own, all_ = (server.ask("GET", "/status", key=key).json for key in (alice, board))
        assert [row["key"] for row in own["usage"]] == ["alice"]
        assert [row["key"] for row in all_["usage"]] == ["alice"]
        assert "engine" not in own["models"][0]
        assert "first_token_seconds" not in own["models"][0]
        assert all_["models"][0]["engine"]["generated_tokens"] == 5
        hidden = server.ask("GET", "/status", key=other).json
        assert hidden["models"] == []
        assert hidden["usage"] == []
