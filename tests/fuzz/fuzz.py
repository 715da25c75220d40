"""Feeds a reader broken files: ``python tests/fuzz/fuzz.py safetensors --runs 1000000``.

The inputs are random mutations of good files. With ``--guided`` libFuzzer makes them, guided by the coverage
that ``atheris`` sees. A run ends and leaves the input in ``crash.bin`` if a reader raises anything but a
GemletError, if one input takes ten seconds of processor time or MEMORY bytes of address space, or if the
process has grown by LEAK bytes after many inputs. ``--trace`` also checks PER_BYTE for every input (with
``tracemalloc``, four times slower). If an input ends the process itself, ``last.bin`` has its length in eight
bytes and the input.

If the core in PYTHONPATH was built with ``GEMLET_SANITIZE`` (see ``section_sanitize`` in ``.ci/run``), its
AddressSanitizer checks the run too."""

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

SECONDS = 10  # the limit in processor time, because elapsed time is useless on a busy machine
MEMORY = 256 << 20
LEAK = 64 << 20
# An input of n bytes may take IN_ANY_CASE + n * PER_BYTE. Python's objects for short JSON values cost the
# most.
PER_BYTE, IN_ANY_CASE = 100, 4 << 20
LONGEST = 1 << 20
REPORT = 50_000


class TooMuchError(BaseException):
    """Too much time or memory. It is not an Exception, so no reader can treat it as the error of a broken
    file."""


def run_one(reader: Reader, data: bytes) -> bool:
    """Whether the reader accepted ``data``. Every error except GemletError is raised."""
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
    """An endless series of mutated good files."""
    chance = random.Random(seed)
    seeds = reader.seeds()
    while True:
        data = chance.choice(seeds)
        mutate = reader.mutate if reader.mutate and chance.random() < 0.7 else mutate_bytes
        data = mutate(chance, data)
        if len(data) <= LONGEST:  # lists can double many times
            yield data


def pages(which: int) -> int:
    """Bytes of this process: 0 is its address space, 1 its resident memory."""
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
            # Code that does not return to Python never sees the timer's signal. It ends after an hour.
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
