"""Feeds a reader broken files: ``python tests/fuzz/fuzz.py safetensors --runs 1000000``.

Inputs are random mutations of good files, or with ``--guided`` those of libFuzzer, guided by the coverage
that ``atheris`` sees. Anything but a GemletError ends the run and leaves the input in a file; so do ten
seconds of processor time on one input, MEMORY of address space beyond what the process had, and LEAK bytes
that it has gained after many inputs. ``--trace`` holds every input to PER_BYTE (``tracemalloc``, four times
slower). What ends the process itself leaves the input in ``last.bin``, after its length in eight bytes.

With the core built by ``GEMLET_SANITIZE`` in PYTHONPATH (how: ``section_sanitize`` of ``.ci/run``) its
AddressSanitizer looks on.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import random
import resource
import signal
import sys
import time
import tracemalloc
from pathlib import Path
from types import FrameType

sys.path.insert(0, Path(__file__).resolve().parent.parent.as_posix())

from fuzz.mutate import mutate_bytes
from fuzz.readers import READERS, Reader
from gemlet.errors import GemletError, MemoryLimitError

SECONDS = 10  # of processor time: on a busy machine the clock says nothing
MEMORY = 256 << 20
LEAK = 64 << 20
# An input of n bytes may take this much: Python's objects for the shortest JSON values are what costs most.
PER_BYTE, IN_ANY_CASE = 100, 4 << 20
LONGEST = 1 << 20
REPORT = 50_000


class TooMuchError(BaseException):
    """Time or memory; nothing that a reader could take for a broken file."""


def run_one(reader: Reader, data: bytes) -> bool:
    """Whether ``data`` was accepted. Raises what is not a GemletError."""
    try:
        reader.run(data)
    except MemoryLimitError:
        raise TooMuchError("asked for more memory than the file justifies") from None
    except GemletError:
        return False
    return True


def run_traced(reader: Reader, data: bytes) -> bool:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    accepted = run_one(reader, data)
    taken = tracemalloc.get_traced_memory()[1] - before
    if taken > IN_ANY_CASE + PER_BYTE * len(data):
        raise TooMuchError(f"{taken} bytes of memory for a file of {len(data)}")
    return accepted


def inputs(reader: Reader, seed: int):  # type: ignore[no-untyped-def]
    """Mutated good files, without end."""
    chance = random.Random(seed)
    seeds = reader.seeds()
    while True:
        data = chance.choice(seeds)
        mutate = reader.mutate if reader.mutate and chance.random() < 0.7 else mutate_bytes
        data = mutate(chance, data)
        if len(data) <= LONGEST:  # lists can double and double
            yield data


def pages(which: int) -> int:
    """Bytes of this process: 0 its address space, 1 what is resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[which]) * resource.getpagesize()


def too_slow(signal_number: int, frame: FrameType | None) -> None:
    raise TooMuchError(f"took more than {SECONDS} seconds")


def fuzz_random(reader: Reader, runs: int, seed: int, traced: bool) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, too_slow)
    with open("last.bin", "w+b") as file:
        file.truncate(8 + LONGEST)
        last = mmap.mmap(file.fileno(), 0)
    if traced:
        tracemalloc.start()
    run = run_traced if traced else run_one
    started, resident, accepted = time.process_time(), 0, 0
    for count, data in zip(range(1, runs + 1), inputs(reader, seed), strict=False):
        last[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            accepted += run(reader, data)
            if count % REPORT == 0 or count == runs:
                resident = resident or pages(1)
                if pages(1) > resident + LEAK:
                    raise TooMuchError(f"{pages(1) - resident} bytes more than after {REPORT} inputs")
        except BaseException:
            Path("crash.bin").write_bytes(data)
            print(f"input {count} of seed {seed} is in crash.bin", file=sys.stderr)
            raise
        if count % REPORT == 0 or count == runs:
            # What does not return to Python, where the timer's signal is seen, ends after an hour here.
            faulthandler.dump_traceback_later(3600, exit=True)
            rate = count / (time.process_time() - started)
            print(
                f"{count} inputs, {accepted} accepted, {rate:.0f} per second of processor time, "
                f"{pages(1) >> 20} MB",
                flush=True,
            )
    signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz_guided(name: str, reader: Reader, runs: int, seed: int) -> None:
    import tempfile

    import atheris

    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(reader.seeds()):
            (Path(corpus) / f"seed{i}").write_bytes(data)
        arguments = [name, corpus, f"-runs={runs}", f"-seed={seed}", "-timeout=600", "-max_len=200000"]
        atheris.Setup(arguments, lambda data: run_one(reader, data) and None)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="the memory of every input")
    parser.add_argument("--guided", action="store_true", help="by coverage; needs atheris")
    arguments = parser.parse_args()
    reader = READERS[arguments.reader]
    faulthandler.enable()
    for data in reader.seeds():
        if not run_one(reader, data):
            raise SystemExit("a good file was refused")
    if arguments.guided:
        fuzz_guided(arguments.reader, reader, arguments.runs, arguments.seed)
    else:
        fuzz_random(reader, arguments.runs, arguments.seed, arguments.trace)


if __name__ == "__main__":
    main()
