"""Compares `gemlet serve` with the library: streams, the first token, memory, the start.

    python benchmarks/server.py                      # the demo model
    python benchmarks/server.py FOLDER --tokens 64   # a packed model

The server runs in a separate process. The library runs in this process. This process is also the client of
the server, so the time to read the answers counts against the server. Rounds of both alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gemlet


@contextmanager
def server(model: str | None) -> Iterator[tuple[int, int, float]]:
    """The server's port, its process, and the seconds from the start until it is ready."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "gemlet", "serve", "--port", "0"]
        command += ["--model", f"m={model}"] if model else []
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (found := re.search(rb"127\.0\.0\.1:(\d+)", os.pread(log.fileno(), 4096, 0))):
                assert process.poll() is None
                time.sleep(0.002)
            port = int(found[1])
            while status(port) != 200:
                time.sleep(0.002)
            yield port, process.pid, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def resident(process: int | str) -> float:
    """Megabytes."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def body(prompt: str, tokens: int, seed: int) -> bytes:
    content = json.dumps(
        {"prompt": prompt, "max_tokens": tokens, "seed": seed, "ignore_eos": True, "stream": True}
    ).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def over_http(port: int, prompts: Sequence[str], tokens: int) -> tuple[list[float], float]:
    """Seconds until the first piece of each stream, and until the end of all."""
    with selectors.DefaultSelector() as selector:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in prompts]
        started, firsts = time.perf_counter(), dict.fromkeys(clients, 0.0)
        for index, client in enumerate(clients):
            client.sendall(body(prompts[index], tokens, index))
            selector.register(client, selectors.EVENT_READ, bytearray())
        while selector.get_map():
            for key, _ in selector.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                piece = client.recv(1 << 16)
                tail = key.data
                if not firsts[client] and b"data: " in piece:
                    firsts[client] = time.perf_counter() - started
                tail += piece
                if b"[DONE]" in tail:
                    selector.unregister(client)
                assert piece or b"[DONE]" in tail, bytes(tail)
                del tail[:-64]
        whole = time.perf_counter() - started
        for client in clients:
            client.close()
    return list(firsts.values()), whole


async def in_process(model: gemlet.Model, prompts: Sequence[str], tokens: int) -> tuple[float, float]:
    first = 0.0
    started = time.perf_counter()

    async def one(index: int) -> None:
        nonlocal first
        options = {"max_tokens": tokens, "seed": index, "ignore_eos": True}
        async with model.astream(prompts[index], **options) as stream:
            async for _ in stream:
                first = first or time.perf_counter() - started

    await asyncio.gather(*map(one, range(len(prompts))))
    return first, time.perf_counter() - started


def prompts(turn: int, count: int) -> list[str]:
    """Prompts with different beginnings, so that the prefix cache does not help."""
    return [
        f"{turn * 100 + i} doors opened, and behind them stood a dark house by the sea." for i in range(count)
    ]


def shown(name: str, values: Sequence[float], unit: str) -> None:
    print(
        f"{name}: median {statistics.median(values):.4g} {unit}, {min(values):.4g} to {max(values):.4g}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--streams", type=int, default=16)
    arguments = parser.parse_args()
    starts, memory = [], []
    for _ in range(5):
        with server(arguments.model) as (_, process, seconds):
            starts.append(seconds)
            memory.append(resident(process))
    shown("start to ready", starts, "s")
    program = (
        "import sys, gemlet\nwith gemlet.load(*sys.argv[1:]) as model:\n"
        " print(open('/proc/self/statm').read().split()[1])"
    )
    alone = []
    for _ in range(3):
        command = [sys.executable, "-c", program, *([arguments.model] if arguments.model else [])]
        pages = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        alone.append(int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    shown("memory of the server, idle", memory, "MB")
    shown("memory of the library, model loaded", alone, "MB")
    with gemlet.load(arguments.model) as model, server(arguments.model) as (port, _, _):
        total = arguments.streams * arguments.tokens
        rates: dict[str, list[float]] = {"server": [], "library": []}
        firsts: dict[str, list[float]] = {"server": [], "library": []}
        for turn in range(arguments.turns + 1):
            texts = prompts(turn, arguments.streams)
            _, http_whole = over_http(port, texts, arguments.tokens)
            _, own_whole = asyncio.run(in_process(model, texts, arguments.tokens))
            if turn:  # the first round only warms up
                rates["server"].append(total / http_whole)
                rates["library"].append(total / own_whole)
        for turn in range(1000, 1040):
            text = prompts(turn, 1)
            firsts["server"].append(over_http(port, text, 4)[0][0] * 1000)
            firsts["library"].append(asyncio.run(in_process(model, text, 4))[0] * 1000)
    for name in ("server", "library"):
        shown(f"{arguments.streams} streams, {name}", rates[name], "tokens/s")
    shown("server / library", [a / b for a, b in zip(rates["server"], rates["library"], strict=True)], "")
    for name in ("server", "library"):
        shown(f"first token, {name}", firsts[name], "ms")
    gaps = [a - b for a, b in zip(firsts["server"], firsts["library"], strict=True)]
    shown("server - library", gaps, "ms")


if __name__ == "__main__":
    main()
