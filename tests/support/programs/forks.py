"""forks.py WORK ACTION: forks at random moments while other threads do WORK; the forked process does ACTION.

It and its parent end as usual: through the end of Python, where everything is destroyed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable

import gemlet
from support.programs import works

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads

FORKS = 25
TOKENS = {"max_tokens": 8, "ignore_eos": True, "temperature": 0.0}
expected = works.model.generate("The door", **TOKENS).token_ids  # type: ignore[arg-type]
streams: list[gemlet.generation.TextStream] = []


def stream_on() -> None:
    """A stream that the forked process finds in the middle of whatever it is doing."""
    stream = works.model.stream(works.LONG[:100], max_tokens=100, ignore_eos=True)
    streams.append(stream)
    for _ in stream:
        pass
    streams.remove(stream)


def generate() -> None:
    assert works.model.generate("The door", **TOKENS).token_ids == expected  # type: ignore[arg-type]


def close() -> None:
    works.model.close()
    works.embedding_model.close()
    with contextlib.suppress(gemlet.ModelClosedError):
        works.model.generate("The door")
        raise AssertionError("it is closed")


def close_streams() -> None:
    for stream in streams:
        stream.close()
        assert stream.result.finish_reason in ("length", "cancelled")
    generate()


def step_streams() -> None:
    """One that was in the middle of a step is lost, and says so."""
    for stream in streams:
        with contextlib.suppress(gemlet.ModelClosedError):
            next(stream, None)
        with contextlib.suppress(StopIteration, gemlet.ModelClosedError):
            next(stream)
    generate()


def drop() -> None:
    del works.model, works.embedding_model
    streams.clear()
    gc.collect()


def load() -> None:
    with gemlet.load(weights="q8", threads=2) as model:
        assert model.generate("The door", **TOKENS).token_ids == expected  # type: ignore[arg-type]


def fork() -> None:
    child = os.fork()
    generate()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        close()


def nothing() -> None:
    pass


ACTIONS: dict[str, Callable[[], None]] = {
    "generate": generate,
    "close": close,
    "close-streams": close_streams,
    "step-streams": step_streams,
    "drop": drop,
    "load": load,
    "fork": fork,
    "nothing": nothing,
}


def main() -> None:
    work = {**works.WORKS, "stream": stream_on}[sys.argv[1]]
    action = ACTIONS[sys.argv[2]]
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(FORKS):
            time.sleep(random.uniform(0.001, 0.02))
            child = os.fork()
            if child == 0:
                done.set()
                signal.alarm(20)
                action()
                return
            status = os.waitpid(child, 0)[1]
            assert status == 0, f"the forked process ended with {os.waitstatus_to_exitcode(status)}"
    finally:
        done.set()
    for thread in threads:
        thread.join()


main()
