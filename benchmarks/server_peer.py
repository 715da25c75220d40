"""Compares `gemlet serve` with llama.cpp's server (of llama-cpp-python), with many clients at a time.

    python benchmarks/server_peer.py --vocabulary model.gguf --llama-python llama/bin/python

Both servers read the same file: random weights of a published shape in Q4_0 (the embedding in Q8_0), with the
vocabulary of a real GGUF file. All clients send at once. Rounds of both servers alternate.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import shape_of
from server import over_http, prompts, server


@contextmanager
def llama_server(python: str, path: str, context: int) -> Iterator[int]:
    """The port of the server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "llama_cpp.server",
        "--model",
        path,
        "--port",
        str(port),
        "--n_ctx",
        str(context),
    ]
    # By default, a new request ends the one that is being answered.
    command += ["--n_threads", "2", "--n_threads_batch", "2", "--interrupt_requests", "false"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            else:
                log.seek(0)
                raise SystemExit(log.read().decode(errors="replace"))
            yield port
        finally:
            process.kill()
            process.wait()


def high(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="gemma3-1b")
    parser.add_argument("--vocabulary", required=True, help="a GGUF file with 262,144 pieces")
    parser.add_argument(
        "--llama-python", required=True, help="a Python that has llama-cpp-python[server] and gguf"
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "random.gguf")
        write = [options.llama_python, str(Path(__file__).with_name("peers.py")), "--write", path]
        write += [json.dumps(shape_of(options.shape)), "q4", options.vocabulary]
        subprocess.run(write, check=True)
        found: dict[str, tuple[list[float], list[float]]] = {}
        with server(path) as (port, _, _), llama_server(options.llama_python, path, 1024) as other:
            for turn in range(options.repeat + 1):
                for name, at in (("gemlet", port), ("llama.cpp", other)):
                    firsts, whole = over_http(at, prompts(turn, options.clients), options.tokens)
                    if turn:  # the first round only warms up
                        rates, times = found.setdefault(name, ([], []))
                        rates.append(options.clients * options.tokens / whole)
                        times.extend(firsts)
    print(f"{options.shape} q4, {options.clients} clients, {options.tokens} tokens each", file=sys.stdout)
    for name, (rates, times) in found.items():
        print(
            f"{name}: {statistics.median(rates):.1f} tokens/s ({min(rates):.1f} to {max(rates):.1f}), "
            f"first token {statistics.median(times):.2f} s, 95 % within {high(times):.2f} s"
        )
    ratios = sorted(
        ours / theirs for ours, theirs in zip(found["gemlet"][0], found["llama.cpp"][0], strict=True)
    )
    print(
        f"gemlet / llama.cpp: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) tokens/s"
    )


if __name__ == "__main__":
    main()
