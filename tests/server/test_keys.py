"""Tests of API keys: creating, storing and revoking them, their rights and limits, and the counting of their
usage."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError
from support.extras import optional
from support.processes import environment_of
from support.servers import RunningServer, serving

pytestmark = pytest.mark.extra("serve")
CHAT = "/v1/chat/completions"
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
BODY: Any = {"messages": QUESTION, "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    path = tmp_path_factory.mktemp("keys") / "keys.db"
    KeyStore(str(path), create=True).close()
    with serving(Settings(keys=str(path))) as running:
        yield running


@pytest.fixture
def store(server: RunningServer) -> Iterator[Any]:
    """The server's file of keys, opened a second time, as the command ``gemlet keys`` opens it."""
    from gemlet.server.keys import KeyStore

    store = KeyStore(server.server.app.service.settings.keys)
    yield store
    store.close()


def create(store: Any, name: str, **limits: int) -> str:
    from gemlet.server.keys import Limits

    return str(store.create(name, Limits(**limits)))


def test_both_headers_accept_a_key(server: RunningServer, store: Any) -> None:
    key = create(store, "headers")
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key} "},
        {"X-Api-Key": key},
        {"X-Api-Key": key, "Authorization": f"Bearer {key}"},
    ):
        assert server.ask("GET", "/v1/models", headers=headers).status == 200
    for headers in (
        {},
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {key}x"},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"Authorization": f"Bearer {key.upper()}"},
        {"X-Api-Key": key, "Authorization": "Bearer other"},
        {"Authorization": "Bearer gemlet-" + "0" * 12 + "-" + "0" * 64},
        {"Cookie": f"key={key}"},
    ):
        answer = server.ask("GET", "/v1/models", headers=headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert server.ask("GET", f"/v1/models?api_key={key}").status == 401


def test_every_wrong_key_gets_the_same_answer(server: RunningServer, store: Any) -> None:
    key = create(store, "revoked soon")
    store.revoke("revoked soon")
    bodies = {
        server.ask("GET", path, headers=headers).body
        for path in ("/v1/models", "/nothing", "/metrics")
        for headers in ({}, {"X-Api-Key": key}, {"X-Api-Key": "gemlet-x"}, {"X-Api-Key": key[:20] + "0" * 60})
    }
    assert len(bodies) == 1


def test_every_comparison_takes_the_same_work(store: Any) -> None:
    """Every attempt computes one hash and compares the whole hash, even if the key does not exist."""
    key = create(store, "timing").encode()
    attempts = {"right": key, "wrong": key[:-1] + b"!", "unknown": b"gemlet-" + b"0" * 12 + b"-" + b"0" * 64}
    for attempt in attempts.values():
        store.find(attempt)
    fastest = {}
    for name, attempt in attempts.items():
        times = []
        for _ in range(400):
            started = time.perf_counter()
            store.find(attempt)
            times.append(time.perf_counter() - started)
        fastest[name] = min(times)
    assert max(fastest.values()) < 3 * min(fastest.values())


def test_the_file_of_keys_has_no_secrets(server: RunningServer, store: Any) -> None:
    key = create(store, "hashed")
    secret = key.rpartition("-")[2].encode()
    path = Path(store.path)
    for file in path.parent.iterdir():
        assert secret not in file.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 64


def test_keys_made_and_revoked_while_the_server_runs(server: RunningServer, store: Any) -> None:
    key = create(store, "later")
    assert server.ask("GET", "/v1/models", key=key).status == 200
    store.revoke("later")
    assert server.ask("GET", "/v1/models", key=key).status == 401
    with pytest.raises(InvalidRequestError, match="no key 'later' that is in use"):
        store.revoke("later")
    with pytest.raises(InvalidRequestError, match="already"):
        create(store, "later")


def test_a_key_can_use_only_its_models(server: RunningServer, store: Any) -> None:
    key = store.create("narrow", models=["other"])
    answer = server.post(CHAT, BODY, key=key)
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    assert server.ask("GET", "/v1/models", key=key).json["data"] == []
    assert server.ask("GET", "/v1/models/demo", key=key).status == 403
    assert server.ask("GET", "/api/tags", key=key).json["models"] == []
    assert server.running() == 0


def test_longest_prompt_and_reply(server: RunningServer, store: Any) -> None:
    key = create(store, "short", max_prompt=20, max_reply=3)
    answer = server.post(CHAT, BODY, key=key)
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")
    reply = server.post(CHAT, {"messages": QUESTION, "ignore_eos": True}, key=key).json
    assert reply["usage"]["completion_tokens"] == 3
    long = [{"role": "user", "content": "Who is there? " * 5}]
    answer = server.post(CHAT, {"messages": long, "max_tokens": 1}, key=key)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    for path, body in (
        ("/v1/completions", {"prompt": "Who is there? " * 5, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [7] * 21, "max_tokens": 1}),
        ("/v1/messages", {"model": "demo", "messages": long, "max_tokens": 1}),
        ("/api/chat", {"model": "demo", "messages": long}),
    ):
        assert server.post(path, body, key=key).status == 400


def test_requests_per_minute(server: RunningServer, store: Any) -> None:
    key = create(store, "slow", requests_per_minute=2)
    first = server.post(CHAT, BODY, key=key)
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert server.post(CHAT, BODY, key=key).headers["x-ratelimit-remaining-requests"] == "0"
    third = server.post(CHAT, BODY, key=key)
    assert (third.status, third.error["type"]) == (429, "rate_limit_error")
    assert 1 <= int(third.headers["retry-after"]) <= 62
    assert third.error["message"].endswith(f"try again in {third.headers['retry-after']} s")
    assert float(third.headers["x-ratelimit-reset-requests"].removesuffix("s")) > 50
    assert server.ask("GET", "/v1/models", key=key).status == 200  # a request that only reads is not counted


@pytest.mark.extra("test-serve")
def test_the_official_client_raises_an_error_for_a_rate_limit(server: RunningServer, store: Any) -> None:
    openai = optional("openai")
    key = create(store, "client", requests_per_hour=1)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=1)
        assert error.value.code == "rate_limit_exceeded"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
def test_limits_of_tokens(server: RunningServer, store: Any, limit: str) -> None:
    key = create(store, limit, **{limit: 20})
    used = 0
    while used < 20:
        answer = server.post(CHAT, BODY, key=key)
        assert answer.status == 200
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 20 - used
        used += answer.json["usage"]["total_tokens"]
    refused = server.post(CHAT, BODY, key=key)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) <= (62 if limit == "tokens_per_minute" else 87_900)


def test_the_headers_show_the_nearest_of_two_limits(server: RunningServer, store: Any) -> None:
    key = create(store, "two", requests_per_minute=5, requests_per_hour=1)
    assert server.post(CHAT, BODY, key=key).headers["x-ratelimit-limit-requests"] == "1"
    refused = server.post(CHAT, BODY, key=key)
    assert refused.status == 429
    assert "an hour" in refused.error["message"]
    assert 3000 < int(refused.headers["retry-after"]) <= 3662


def test_a_key_limits_concurrent_requests(server: RunningServer, store: Any) -> None:
    from support.scripted_streams import saying

    key = create(store, "single", concurrent=1)
    with saying(20.0) as begun:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", CHAT, json.dumps({**BODY, "stream": True}), {"X-Api-Key": key})
        while not begun:
            time.sleep(0.01)
        refused = server.post(CHAT, BODY, key=key)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.error["message"] == "this key may have 1 concurrent requests; try again in 1 s"
        connection.close()
        server.wait_idle()
    assert server.post(CHAT, BODY, key=key).status == 200


def test_usage(server: RunningServer, store: Any) -> None:
    key, other = create(store, "counted"), create(store, "nobody")
    total = [server.post(CHAT, BODY, key=key).json["usage"] for _ in range(3)]
    (row,) = server.ask("GET", "/v1/usage", key=key).json["data"]
    assert row["requests"] == 3
    assert row["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in total)
    assert row["completion_tokens"] == sum(usage["completion_tokens"] for usage in total) == 12
    assert server.ask("GET", "/v1/usage", key=other).json["data"] == []
    assert next(r for r in store.usage() if r["key"] == "counted")["requests"] == 3


def test_usage_while_another_process_keeps_the_file_locked(server: RunningServer, store: Any) -> None:
    key = create(store, "locked")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("begin immediate")
    assert server.post(CHAT, BODY, key=key).status == 200
    other.execute("commit")
    other.close()
    assert server.post(CHAT, BODY, key=key).status == 200
    (row,) = server.ask("GET", "/v1/usage", key=key).json["data"]
    assert row["requests"] == 2


def test_limits_count_usage_before_a_restart(server: RunningServer, store: Any) -> None:
    """After a restart, the server counts the stored usage against the limits."""
    from gemlet.server.call import Call
    from gemlet.server.limits import Limiter
    from gemlet.server.problems import Problem

    key = create(store, "returning", tokens_per_day=10)
    store.add_usage(key.split("-")[1], "demo", 6, 6)
    found = store.find(key.encode())
    with pytest.raises(Problem) as refused:
        Limiter(5, store).enter(Call(key=found))
    assert refused.value.status == 429


def test_files_that_are_not_keys_are_refused(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore

    with pytest.raises(ModelFileError, match="gemlet keys create"):
        KeyStore(str(tmp_path / "missing.db"))
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(ModelFileError, match="cannot be used"):
        KeyStore(str(tmp_path / "text.db"))
    database = sqlite3.connect(tmp_path / "newer.db")
    database.execute("pragma user_version = 7")
    database.close()
    with pytest.raises(ModelFileError, match="version 7"):
        KeyStore(str(tmp_path / "newer.db"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = str(tmp_path / "keys.db")
    assert main(["keys", "create", "alice", "--db", db, "--concurrent", "2", "--models", "demo"]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("gemlet-")
    assert main(["keys", "list", "--db", db, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["keys"]
    assert listed["name"] == "alice"
    assert listed["limits"] == {"concurrent": 2, "models": ["demo"]}
    assert main(["keys", "revoke", "alice", "--db", db]) == 0
    assert main(["keys", "revoke", "alice", "--db", db]) == 1
    assert main(["keys", "create", "bob", "--db", db, "--concurrent", "0"]) == 1
    assert main(["keys", "create", "bob", "--db", db, "--rights", "everything"]) == 1
    assert main(["usage", "--db", db]) == 0
    assert "in all" in capsys.readouterr().out
    assert main(["usage", "--db", db, "--key", "nobody"]) == 1
    assert main(["keys", "list", "--db", db]) == 0
    assert "alice" in capsys.readouterr().out


def test_usage_is_kept_when_the_server_is_killed(tmp_path: Path) -> None:
    """If a client has received the end of its reply, the reply is counted, even if the server is killed
    next."""
    from gemlet.server.keys import KeyStore

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    key = create(store, "killed")
    command = [sys.executable, "-m", "support.programs.serve_until_killed", path]
    process = subprocess.Popen(command, env=environment_of(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = RunningServer(int(process.stdout.readline()), None)
        usages = [server.post(CHAT, BODY, key=key).json["usage"] for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    (row,) = store.usage()
    store.close()
    assert (row["requests"], row["completion_tokens"]) == (3, 12)
    assert row["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
