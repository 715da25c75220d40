"""Functions that product/test_forks.py runs in separate processes."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gemlet
from gemlet.base.handlers import importing
from support.programs.works import ROUNDS, Works
from support.waiting import PATIENCE, until

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads


class Forks:
    """The methods of ``ACTIONS`` are the actions of a forked process."""

    def __init__(self, works: Works) -> None:
        self.works = works
        self.expected = self.answer(works.model)

    def answer(self, model: gemlet.Model) -> list[int]:
        return list(model.generate("The door", max_tokens=8, ignore_eos=True, temperature=0).token_ids)

    def generate(self) -> None:
        assert self.answer(self.works.model) == self.expected

    def close(self) -> None:
        self.works.model.close()
        self.works.embedding_model.close()
        with contextlib.suppress(gemlet.ModelClosedError):
            self.works.model.generate("The door")
            raise AssertionError("the closed model did not raise an error")

    def close_streams(self) -> None:
        for stream in self.works.streams:
            stream.close()
            assert stream.result.finish_reason in ("length", "cancelled")
        self.generate()

    def step_streams(self) -> None:
        """Continues the streams. A stream whose step was interrupted by the fork must raise an error that
        says so."""
        for stream in self.works.streams:
            with contextlib.suppress(gemlet.ModelClosedError):
                for _ in stream:
                    pass
        self.generate()

    def drop(self) -> None:
        del self.works.model, self.works.embedding_model
        self.works.streams.clear()
        gc.collect()

    def load(self) -> None:
        with gemlet.load(weights="q8", threads=2) as model:
            assert self.answer(model) == self.expected

    def fork(self) -> None:
        child = os.fork()
        self.generate()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            self.close()

    def nothing(self) -> None:
        pass


ACTIONS = ("generate", "close", "close_streams", "step_streams", "drop", "load", "fork", "nothing")


def fork_beside_an_import(folder: str) -> None:
    """Forks while another thread imports a module. The forked process then imports the same module."""
    Path(folder, "slow_module.py").write_text("import time\ntime.sleep(1)\n")
    sys.path.insert(0, folder)

    def work() -> None:
        with importing():
            importlib.import_module("slow_module")

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: "slow_module" in sys.modules)
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))
        work()
        return
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the forked process ended with {os.waitstatus_to_exitcode(status)}"
    thread.join()


def fork_beside(name: str, actions: Sequence[str]) -> None:
    """Forks at random moments while other threads do the work ``name``. Each forked process does one of
    ``actions``.

    Each process and the parent end normally, so that Python destroys all objects.
    """
    works = Works()
    forks = Forks(works)
    work: Callable[[], None] = getattr(works, name)
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for action in [*actions] * ROUNDS:
            time.sleep(random.uniform(0.001, 0.02))
            child = os.fork()
            if child == 0:
                signal.alarm(int(PATIENCE))
                done.set()
                getattr(forks, action)()
                return
            status = os.waitpid(child, 0)[1]
            assert status == 0, f"{action}: the forked process ended with {os.waitstatus_to_exitcode(status)}"
    finally:
        done.set()
    for thread in threads:
        thread.join()
