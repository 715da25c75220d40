"""Feeds a reader broken files: ``python tests/fuzz/fuzz.py safetensors --runs 1000000``.

Inputs are random mutations of good files, or with ``--guided`` those of libFuzzer, guided by the coverage
that ``atheris`` sees. Anything but a GemletError ends the run and leaves the input in a file; so does one
that takes more than ten seconds, or 256 MB beyond what the process had.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, Path(__file__).resolve().parent.parent.as_posix())

from fuzz.mutate import mutate_bytes, mutate_json
from fuzz.readers import READERS, Reader
from gemlet.errors import GemletError, MemoryLimitError

SECONDS = 10
MEMORY = 256 << 20


def run_one(reader: Reader, data: bytes) -> bool:
    """Whether ``data`` was accepted. Raises what is not a GemletError."""
    try:
        reader.run(data)
    except MemoryLimitError:
        raise AssertionError("asked for more memory than the file justifies") from None
    except GemletError:
        return False
    return True


def inputs(reader: Reader, seed: int):  # type: ignore[no-untyped-def]
    """Mutated good files, without end."""
    chance = random.Random(seed)
    seeds = reader.seeds()
    while True:
        data = chance.choice(seeds)
        if reader.text and chance.random() < 0.7:
            yield mutate_json(chance, data)
        else:
            yield mutate_bytes(chance, data)


def limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def fuzz_random(reader: Reader, runs: int, seed: int) -> None:
    started = time.perf_counter()
    accepted = 0
    for count, data in zip(range(1, runs + 1), inputs(reader, seed), strict=False):
        signal.alarm(SECONDS)
        try:
            accepted += run_one(reader, data)
        except BaseException:
            Path("crash.bin").write_bytes(data)
            print(f"input {count} of seed {seed} is in crash.bin", file=sys.stderr)
            raise
        if count % 50_000 == 0 or count == runs:
            rate = count / (time.perf_counter() - started)
            print(f"{count} inputs, {accepted} accepted, {rate:.0f} per second", flush=True)
    signal.alarm(0)


def fuzz_guided(name: str, reader: Reader, runs: int, seed: int) -> None:
    import tempfile

    import atheris

    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(reader.seeds()):
            (Path(corpus) / f"seed{i}").write_bytes(data)
        arguments = [name, corpus, f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS}", "-max_len=200000"]
        atheris.Setup(arguments, lambda data: run_one(reader, data) and None)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true", help="by coverage; needs atheris")
    arguments = parser.parse_args()
    reader = READERS[arguments.reader]
    for data in reader.seeds():
        if not run_one(reader, data):
            raise SystemExit("a good file was refused")
    if arguments.guided:
        fuzz_guided(arguments.reader, reader, arguments.runs, arguments.seed)
    else:
        limit_memory()
        fuzz_random(reader, arguments.runs, arguments.seed)


if __name__ == "__main__":
    main()
