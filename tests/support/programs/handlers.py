"""Functions that product/test_handlers.py runs in separate processes."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import gemlet
from support.programs.works import ROUNDS, Works


class OnPurposeError(Exception):
    """The exception that the signal handlers of these tests raise."""


class Handlers:
    """The methods of ``ACTIONS`` are the actions of a signal handler."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self.children: list[int] = []
        self.is_child = False

    def close(self) -> None:
        self.works.model.close()

    def close_stream(self) -> None:
        for stream in self.works.streams:
            stream.close()

    def step_stream(self) -> None:
        for stream in self.works.streams:
            with contextlib.suppress(gemlet.InvalidRequestError):  # the stream may be in the middle of a step
                next(stream, None)

    def generate(self) -> None:
        assert self.works.model.generate("The door", max_tokens=3, ignore_eos=True).completion_tokens == 3

    def load(self) -> None:
        gemlet.load(weights="f32", threads=1).close()

    def raise_error(self) -> None:
        raise OnPurposeError

    def exit(self) -> None:
        sys.exit(3)

    def drop(self) -> None:
        self.works.model = gemlet.load(threads=1, weights="q8")
        gc.collect()

    def fork(self) -> None:
        """Forks. The forked process and its parent both continue the interrupted work."""
        child = os.fork()
        if child:
            self.children.append(child)
        else:
            signal.alarm(20)
            self.is_child = True


ACTIONS = ("close", "close_stream", "step_stream", "generate", "load", "raise_error", "exit", "drop", "fork")


def interrupt_work(name: str, actions: Sequence[str]) -> None:
    """A signal handler does each of ``actions`` at random moments while the main thread works.

    The work ``name`` ends as usual or with a typed error, and later work succeeds.
    """
    works = Works()
    handlers = Handlers(works)
    work: Callable[[], None] = getattr(works, name)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    for action in actions:
        print(action, file=sys.stderr, flush=True)  # so that a failed test shows the action
        _interrupt(handlers, action, work, seconds)
        works.generate()
        if handlers.is_child:
            break


def _interrupt(handlers: Handlers, action: str, work: Callable[[], None], seconds: float) -> None:
    works = handlers.works

    def handle(number: int, frame: FrameType | None) -> None:
        getattr(handlers, action)()

    signal.signal(signal.SIGALRM, handle)
    for _ in range(ROUNDS):
        with contextlib.suppress(gemlet.ModelClosedError, gemlet.CancelledError, OnPurposeError, SystemExit):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, seconds))
                work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if action == "close":
            works.model.close()
            works.model = gemlet.load(threads=2, weights="q8")
        if handlers.is_child:
            break
        for child in handlers.children:
            assert os.waitpid(child, 0)[1] == 0
        handlers.children.clear()
