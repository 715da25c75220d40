"""Functions that server/test_replicas.py runs in separate processes: they use two replicas of the demo model
on Ray, and Ray Data."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KILLED_AFTER = 3.0  # seconds of load before a replica is killed
WORKS = 9.0


@contextmanager
def _on_ray() -> Iterator[None]:
    # By default, Ray's processes have a low priority (nice 15), so they start slowly on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "60"
    import ray

    ray.init(
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=150_000_000,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _replicas() -> list[int]:
    """The process ids of the replicas."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica") and b"Replica" in title.partition(b"ServeReplica")[2]:
            found.append(int(process))
    return found


def serve_and_kill() -> dict[str, Any]:
    """Sends requests to two replicas, and kills one replica under load. Returns all answers."""
    from ray import serve

    from gemlet.replicas import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    question = {"messages": [{"role": "user", "content": "Who is there?"}], "max_tokens": 12, "seed": 1}
    with _on_ray():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(replicas=2, cpus=1), name="gemlet")
        found: dict[str, Any] = {
            "page": _ask(port, "GET", "/"),
            "texts": [
                json.loads(_ask(port, "POST", "/v1/chat/completions", question)[1])["choices"][0]["message"][
                    "content"
                ]
                for _ in range(4)
            ],
            "stream": _ask(port, "POST", "/v1/chat/completions", {**question, "stream": True})[1],
            "wrong": _ask(port, "POST", "/v1/chat/completions", {"messages": 1})[0],
            "before": _replicas(),
        }
        statuses: Counter[str] = Counter()
        end = time.monotonic() + WORKS

        def work(name: int) -> None:
            number = 0
            while time.monotonic() < end:
                number += 1
                asked = {"prompt": f"{name} {number} doors", "max_tokens": 60, "ignore_eos": True}
                try:
                    statuses[str(_ask(port, "POST", "/v1/completions", asked)[0])] += 1
                except OSError as error:
                    statuses[type(error).__name__] += 1

        workers = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for worker in workers:
            worker.start()
        time.sleep(KILLED_AFTER)
        os.kill(_replicas()[0], signal.SIGKILL)
        for worker in workers:
            worker.join()
        found["statuses"] = dict(statuses)
        found["after"] = _replicas()
        serve.shutdown()
    return found


def answer_with_ray_data(lines: list[str]) -> list[dict[str, Any]]:
    import ray
    import ray.data

    from gemlet.replicas.data import Answers

    with _on_ray():
        rows = ray.data.from_items([{"text": line} for line in lines])
        size = ray.data.ActorPoolStrategy(size=2)
        answered = rows.map_batches(Answers, compute=size, num_cpus=1, batch_size=8).take_all()
    return [json.loads(row["answer"]) for row in answered]
