"""A server in a process of its own among requests of every kind of nonsense, rude clients, floods and huge
bodies: nothing fails, nothing is lost, its memory stays. GEMLET_CHAOS says how many requests (200)."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.extras import optional
from support.servers import Process, RunningServer, spawned
from support.slow_clients import QUESTION, flood, head, rude, slow_clients
from support.waiting import until

pytestmark = [pytest.mark.extra("serve"), pytest.mark.slow]
COUNT = int(os.environ.get("GEMLET_CHAOS", "200"))


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    """A server, and a key that may have replies of three tokens."""
    from gemlet.server.keys import KeyStore, Limits

    file = str(tmp_path_factory.mktemp("keys") / "keys.db")
    store = KeyStore(file, create=True)
    key = store.create("chaos", Limits(max_reply=3), rights=["use", "metrics"])
    store.close()
    with spawned("--keys", file, "--max-body", "1MB", "--idle-seconds", "2", "--body-seconds", "2") as server:
        yield server, key


def operations() -> list[Any]:
    """Those of the published document, as schemathesis knows them."""
    schemathesis = optional("schemathesis")
    if schemathesis is None:
        return []
    from gemlet.server.app import ROUTES
    from gemlet.server.openapi import document

    made = document([(way.method, way.path, way.table, way.required) for way in ROUTES])
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(made)))
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.extra("test-chaos")
def test_the_published_document(limited: tuple[Process, str]) -> None:
    server, key = limited
    client = RunningServer(server.port, None)
    schemathesis = optional("schemathesis")
    found = operations()
    assert len(found) > 20
    statuses: dict[int, int] = {}
    for index, operation in enumerate(found):
        has_body = bool(operation.body)
        cases = st.one_of(
            *(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)
            if has_body
            else [operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)]
        )

        @settings(
            max_examples=max(2, COUNT // len(found)) if has_body else 5,
            deadline=None,
            database=None,
            derandomize="GEMLET_CHAOS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def ask(case: Any) -> None:
            sent = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{server.port}")
            path = sent["url"].partition(str(server.port))[2] or "/"
            body = sent.get("json", sent.get("data"))
            body = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            answer = client.ask(case.method, path.encode().decode("latin-1"), body, key=key)
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status < 500, (case.method, path, body, answer.body)

        ask()
        del index
    server.wait_idle(key)
    assert statuses[200] > 10
    assert statuses[400] > 10


def test_rude_clients(limited: tuple[Process, str]) -> None:
    server, key = limited
    pick = random.Random(COUNT)
    headers = f"Authorization: Bearer {key}\r\n"
    bodies: list[tuple[str, Any]] = [
        ("/v1/chat/completions", {"messages": QUESTION, "stream": True}),
        ("/v1/completions", {"prompt": ["The", "It"], "n": 2}),
        ("/v1/messages", {"model": "demo", "messages": QUESTION, "max_tokens": 3, "stream": True}),
        ("/api/generate", {"model": "demo", "prompt": "The"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x" * 1000}),
    ]

    def some(count: int) -> None:
        for number in range(count):
            path, body = pick.choice(bodies)
            content = json.dumps(body).encode()
            if number % 100 == 99:
                content = b'{"messages": "' + b"x" * pick.choice([900_000, 1_100_000, 5_000_000])
            status = rude(server.port, head(path, len(content), headers) + content, pick)
            assert status is None or status < 500, (path, status)

    some(COUNT // 2)
    server.wait_idle(key)
    memory, files = server.resident(), server.files()
    some(COUNT // 2)
    for _ in range(3):
        assert flood(server.port, 200) >= 100
    server.wait_idle(key)
    until(lambda: server.files() <= files + 5, "connections stay open")
    assert server.resident() < memory + 8_000_000


def test_a_thousand_slow_clients() -> None:
    """What a fast client waits, among slow and stuck ones. (On a busy machine, others disturb the one and the
    other: the best of six rounds counts.)"""
    with spawned("--idle-seconds", "300", "--body-seconds", "300", "--stuck-seconds", "300") as server:
        client = RunningServer(server.port, None)

        def latency() -> float:
            taken = []
            for _ in range(40):
                started = time.perf_counter()
                assert client.post("/v1/completions", {"prompt": "The", "max_tokens": 8}).status == 200
                taken.append(time.perf_counter() - started)
            return statistics.median(taken)

        latency()
        ratios = []
        for _ in range(6):
            alone = latency()
            with slow_clients(server.port, 1000):
                written, before = 0, -1
                while written != before:  # until the streams have got stuck
                    time.sleep(0.5)
                    before, written = written, server.status()["models"][0]["engine"]["generated_tokens"]
                ratios.append(latency() / alone)
            server.wait_idle()
            if ratios[-1] <= 1.2:
                break
        print("a fast client among slow ones:", [f"{ratio:.2f}" for ratio in ratios])
        assert min(ratios) <= 1.2
