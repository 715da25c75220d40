"""handlers.py WORK ACTION: a signal handler does ACTION at random moments while the main thread does WORK.

Every time the work must end, with what it gives or with a typed error, and what comes after must work.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import gemlet
from support.programs import works

ROUNDS = 30
seconds = 0.02  # of the work alone, at least
children: list[int] = []
stream: gemlet.generation.TextStream | None = None


class OnPurpose(Exception):
    """What a handler raises."""


def close() -> None:
    works.model.close()


def close_stream() -> None:
    if stream is not None:
        stream.close()


def step_stream() -> None:
    if stream is not None:
        with contextlib.suppress(gemlet.InvalidRequestError):  # in the middle of a step
            next(stream, None)


def generate() -> None:
    with contextlib.suppress(gemlet.ModelClosedError):
        assert works.model.generate("The door", max_tokens=3, ignore_eos=True).completion_tokens == 3


def load() -> None:
    gemlet.load(weights="f32", threads=1).close()


def raise_on_purpose() -> None:
    raise OnPurpose


def exit_on_purpose() -> None:
    sys.exit(3)


def collect() -> None:
    works.model = gemlet.load(threads=1, weights="q8")
    gc.collect()


def fork() -> None:
    """The forked process goes on with what was interrupted, as its parent does."""
    child = os.fork()
    if child:
        children.append(child)
    else:
        signal.alarm(20)
        children[:] = [0]


ACTIONS: dict[str, Callable[[], None]] = {
    "close": close,
    "close-stream": close_stream,
    "step-stream": step_stream,
    "generate": generate,
    "load": load,
    "raise": raise_on_purpose,
    "exit": exit_on_purpose,
    "collect": collect,
    "fork": fork,
}


def stream_on() -> None:
    """A stream that handlers know; its result is there whatever they did."""
    global stream
    stream = works.model.stream([2, 500], max_tokens=60, ignore_eos=True)
    texts = []
    running = stream
    try:
        for chunk in running:
            texts.append(chunk.text)
    finally:
        running.close()  # a handler may raise before or after a step
        result, stream = running.result, None
    assert result.finish_reason in ("length", "cancelled")
    if sys.argv[2] != "step-stream":  # where a handler may have had a chunk
        assert result.text.startswith("".join(texts)), (result.text, texts)


def main() -> None:
    global seconds
    work = {**works.WORKS, "stream": stream_on}[sys.argv[1]]
    action = ACTIONS[sys.argv[2]]

    def handle(number: int, frame: FrameType | None) -> None:
        action()

    signal.signal(signal.SIGALRM, handle)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    for _ in range(ROUNDS):
        if works.model._closed:
            works.model = gemlet.load(threads=2, weights="q8")
        with contextlib.suppress(gemlet.ModelClosedError, gemlet.CancelledError, OnPurpose, SystemExit):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, seconds))
                work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if children == [0]:  # a forked process
            works.generate()
            return
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        children.clear()
    if not works.model._closed:
        works.generate()


main()
