"""Tests of a server in its own process with nonsense requests, rude clients, many clients at a time and huge
bodies. The server never fails, and its memory does not grow. The environment variable GEMLET_CHAOS sets the
number of requests (default 200)."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.bodies import BODIES, QUESTION
from support.extras import optional
from support.servers import Answer, Process, RunningServer, spawned
from support.slow_clients import flood, head, rude, slow_clients
from support.waiting import until

pytestmark = [pytest.mark.extra("serve"), pytest.mark.slow]
COUNT = int(os.environ.get("GEMLET_CHAOS", "200"))
PARTS = 4  # the paths of the published document are split over so many tests, which can run in parallel
MOST_AGAIN = 8  # the most times that a refused request is sent again, each time with fewer mistakes
ROUNDS = 12  # the number of rounds with rude clients
NOT_OF_THE_DEMO = ("/v1/embeddings", "/api/embed")  # the demo model makes no embeddings


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    """A server with a small prefix cache, and a key whose replies may have at most three tokens."""
    from gemlet.server.keys import KeyStore, Limits

    file = str(tmp_path_factory.mktemp("keys") / "keys.db")
    store = KeyStore(file, create=True)
    key = store.create("chaos", Limits(max_reply=3), rights=["use", "metrics"])
    store.close()
    limits = ("--max-body", "1MB", "--prefix-cache-size", "2MB", "--idle-seconds", "2", "--body-seconds", "2")
    with spawned("--keys", file, *limits) as server:
        yield server, key


def operations() -> list[Any]:
    """The operations of the published document, as schemathesis reads them."""
    schemathesis = optional("schemathesis")
    if schemathesis is None:
        return []
    from gemlet.server.app import ROUTES
    from gemlet.server.openapi import document

    made = document([(way.method, way.path, way.table, way.required) for way in ROUTES])
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(made)))
    return [found.ok() for found in schema.get_all_operations()]


def mended(body: Mapping[str, Any], right: Mapping[str, Any], answer: Answer) -> dict[str, Any] | None:
    """A copy of the body with a correction of the first field that the answer names. The field gets its value
    from ``right``, or is removed if ``right`` does not have it. Returns None if the answer names no field
    that can be corrected."""
    said = answer.json["error"]
    said = said if isinstance(said, str) else said["message"]
    places = {
        found.start(): name
        for name in {**body, **right}
        if (name not in right or body.get(name) != right[name])
        and (found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said))
    }
    if not places:
        return None
    name = places[min(places)]
    rest = {key: value for key, value in body.items() if key != name}
    return {**rest, name: right[name]} if name in right else rest


@pytest.mark.extra("test-chaos")
@pytest.mark.parametrize("part", range(PARTS))
def test_the_published_document(limited: tuple[Process, str], part: int) -> None:
    """Sends valid and invalid requests that schemathesis makes from the published document. Most of the
    invalid requests have several mistakes. A refused request is sent again without the mistake that the
    answer names, until the server accepts the request."""
    server, key = limited
    client = RunningServer(server.port, None)
    schemathesis = optional("schemathesis")
    found = operations()
    assert len(found) > 20
    statuses: Counter[int] = Counter()
    ends: Counter[int] = Counter()

    def send(method: str, path: str, body: bytes | None) -> Answer:
        answer = client.ask(method, path.encode().decode("latin-1"), body, key=key)
        statuses[answer.status] += 1
        assert answer.status < 500, (method, path, body, answer.body)
        return answer

    for operation in found[part::PARTS]:
        modes = (
            list(schemathesis.GenerationMode) if operation.body else [schemathesis.GenerationMode.POSITIVE]
        )

        @settings(
            max_examples=max(2, COUNT // len(found)) if operation.body else 5,
            deadline=None,
            database=None,
            derandomize="GEMLET_CHAOS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes)))
        def ask(case: Any) -> None:
            sent = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{server.port}")
            path = sent["url"].partition(str(server.port))[2] or "/"
            body = sent.get("json", sent.get("data"))
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            answer = send(case.method, path, content)
            for _ in range(MOST_AGAIN):
                if answer.status not in (400, 404) or path not in BODIES or not isinstance(body, dict):
                    break
                if (body := mended(body, BODIES[path], answer)) is None:
                    break
                answer = send(case.method, path, json.dumps(body).encode())
            ends[answer.status] += path in BODIES and path not in NOT_OF_THE_DEMO

        ask()
    server.wait_idle(key)
    print("answers:", dict(statuses), "the last ones:", dict(ends))
    assert ends[200] > sum(ends.values()) // 3


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

    server.wait_idle(key)
    files = server.files()
    taken = []
    for number in range(ROUNDS):
        some(COUNT // ROUNDS)
        assert flood(server.port, 200, headers if number % 2 else "") >= 100
        server.wait_idle(key)
        taken.append(server.resident())
    print("MB of memory after each round:", [f"{size / 1e6:.1f}" for size in taken])
    until(lambda: server.files() <= files + 5, "connections stay open")
    third = ROUNDS // 3
    assert min(taken[-third:]) < min(taken[third : 2 * third]) + 2_000_000


def test_a_thousand_slow_clients() -> None:
    """Measures how long a fast client waits with and without slow and stuck clients. On a busy machine, other
    processes disturb both measurements, so the best of six rounds counts."""
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
                while written != before:  # until the server generates no more tokens for the slow clients
                    time.sleep(0.5)
                    before, written = written, server.status()["models"][0]["engine"]["generated_tokens"]
                ratios.append(latency() / alone)
            server.wait_idle()
            if ratios[-1] <= 1.2:
                break
        print("a fast client among slow ones:", [f"{ratio:.2f}" for ratio in ratios])
        assert min(ratios) <= 1.2
