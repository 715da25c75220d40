"""Functions that product/test_lifecycle.py runs in separate processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

import gemlet
from gemlet import _core
from support.core_models import builder_of, int32, model_config, random_core, sampler
from support.inside import context_of, testing
from support.processes import in_fork

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads


def text(model: gemlet.Model, tokens: int = 12) -> Sequence[int]:
    return model.generate("The door opened", max_tokens=tokens, temperature=0, ignore_eos=True).token_ids


# --- Fork ---------------------------------------------------------------------------------------------------
def use_in_forks(threads: int) -> None:
    model = gemlet.load(threads=threads)
    expected = text(model)
    for _ in range(3):
        in_fork(lambda: text(model) == expected)
        assert text(model) == expected

    def child() -> bool:  # the forked process generates, and then forks again
        assert text(model) == expected
        in_fork(lambda: text(model) == expected)
        return text(model) == expected

    in_fork(child)
    in_fork(lambda: in_fork(lambda: text(model) == expected) is None)

    sequence = context_of(model)  # both processes continue this sequence
    sequence.extend(int32(2, 300, 301))

    def go_on() -> bool:
        sequence.extend(int32(302))
        return sequence.token_ids == [2, 300, 301, 302]

    in_fork(go_on)
    assert go_on()

    in_fork(lambda: model.close() is None)
    assert text(model) == expected
    model.close()


def end_forks() -> None:
    model = gemlet.load(threads=3)
    expected = text(model)
    for use in (True, False):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            sys.exit(text(model) != expected if use else 0)
        assert os.waitpid(child, 0)[1] == 0
    assert text(model) == expected


inherited: list[gemlet.Model] = []  # the processes of a pool inherit this list through the fork


def answer(i: int) -> tuple[int, Sequence[int]]:
    return i, text(inherited[0])


def generate_in_a_pool() -> None:
    inherited.append(gemlet.load(threads=2))
    expected = text(inherited[0])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(answer, range(4)).get(timeout=40) == [(i, expected) for i in range(4)]


def fork_while_generating() -> None:
    model = gemlet.load(threads=2)
    expected = text(model)
    done = threading.Event()

    def generate() -> None:
        while not done.is_set():
            text(model, tokens=40)

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        for i in range(8):
            time.sleep(0.01 + 0.003 * i)
            in_fork(lambda: text(model) == expected)
    finally:
        done.set()
        thread.join()


# --- Another thread during an extend ------------------------------------------------------------------------
LONG = 3000


class Shared:
    """A core model and one of its sequences, which two threads use at the same time."""

    def __init__(self, threads: int) -> None:
        self.core = random_core(max_context=3 * LONG, threads=threads)
        self.ids = np.full(LONG, 5, np.int32)
        self.sequence = _core.TokenSequence(self.core)

    def begin(self) -> None:
        self.sequence = _core.TokenSequence(self.core)
        self.sequence.extend(int32(1, 2, 3))

    def replace_model(self) -> None:
        self.core.close()
        self.core = random_core(max_context=9000)

    def extend_and_look(self) -> None:
        self.sequence.extend(int32(4))
        self.sequence.logits()


ACTIONS: dict[str, Callable[[Shared], object]] = {
    "close": lambda shared: shared.sequence.close(),
    "close-model": Shared.replace_model,
    "logits": lambda shared: shared.sequence.logits().sum(),
    "properties": lambda shared: (
        len(shared.sequence.token_ids),
        shared.sequence.length,
        testing.cache_bytes(shared.sequence),
    ),
    "sample": lambda shared: shared.sequence.sample(sampler()),
    "extend": lambda shared: shared.sequence.extend(
        np.full(len(shared.ids) + 500, 6, np.int32), logits="all"
    ),
    "two-extends": Shared.extend_and_look,
    "cancel": lambda shared: shared.sequence.cancel(),
}


def act_while_extending(threads: int) -> dict[str, list[str]]:
    """Does each of ``ACTIONS`` while another thread extends a sequence. For each action, the result lists
    "done" or the name of the error for each extend."""
    outcomes = {}
    for action in ACTIONS:
        print(action, file=sys.stderr, flush=True)  # so that a failed test shows the action
        outcomes[action] = _act(action, threads)
    return outcomes


def _act(action: str, threads: int) -> list[str]:
    """Runs one or two extends during the action, and repeats this once."""
    extends = 2 if action in ("two-extends", "cancel") else 1
    shared = Shared(threads)
    started = time.monotonic()
    _core.TokenSequence(shared.core).extend(shared.ids[:500])
    if time.monotonic() - started > 0.05:
        # With a sanitizer, the work is slow, so three forward passes are enough.
        shared.ids = shared.ids[:1100]
    outcomes = []

    def extend(sequence: _core.TokenSequence) -> None:
        try:
            sequence.extend(shared.ids, logits="all")
            outcomes.append("done")
        except gemlet.GemletError as error:
            outcomes.append(type(error).__name__)

    for _ in range(2):
        shared.begin()
        running = [threading.Thread(target=extend, args=(shared.sequence,)) for _ in range(extends)]
        for thread in running:
            thread.start()
        until = time.monotonic() + 0.15
        while any(thread.is_alive() for thread in running) and time.monotonic() < until:
            time.sleep(0.004)
            with contextlib.suppress(gemlet.GemletError):
                ACTIONS[action](shared)
        for thread in running:
            thread.join()
        shared.sequence.close()
    return outcomes


def feed_one_builder_from_three_threads() -> None:
    def add(builder: _core.ModelBuilder, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(gemlet.GemletError):
                builder.add(name, np.ones(shapes[name], np.float32), "f32")

    for _ in range(3):
        builder = builder_of(model_config(vocab_size=20_000), weights="q8", threads=2)
        shapes = builder.tensors()
        names = list(shapes)
        parts = (names, names[::-1], names[::2])
        threads = [threading.Thread(target=add, args=(builder, part)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        builder.finish().close()
