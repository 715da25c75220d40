"""Tests of models and sequences that threads and forked processes share, or that are closed during work.

Two threads must not share one sequence, but this mistake must not end the process. Tests that could hang or
crash run in a separate process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import gemlet
from gemlet import _core
from support.core_models import int32, layer_config, model_config, random_core, sampler
from support.inside import testing
from support.pace import in_time
from support.processes import run_program
from support.programs import lifecycle
from support.waiting import PATIENCE


# --- Fork ---------------------------------------------------------------------------------------------------
@pytest.mark.tier
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_process_uses_the_same_model(threads: int) -> None:
    run_program(lifecycle.use_in_forks, threads)


def test_a_forked_process_ends_as_usual() -> None:
    """When the forked process ends, Python destroys the model, but the threads of the model exist only in the
    parent process."""
    run_program(lifecycle.end_forks)


def test_multiprocessing_with_fork() -> None:
    run_program(lifecycle.generate_in_a_pool)


def test_fork_while_another_thread_generates() -> None:
    """The other thread does not exist in the forked process, so it cannot release its locks there."""
    run_program(lifecycle.fork_while_generating)


# --- Several models or threads at the same time -------------------------------------------------------------
@pytest.mark.tier
def test_two_models_in_one_process() -> None:
    """Two models with different weight formats and numbers of threads generate alternately. Each model gives
    the same text as without the other model."""
    prompts = ["The door opened", "It was a cold morning"]

    def say(model: gemlet.Model, prompt: str) -> list[int]:
        return list(model.generate(prompt, max_tokens=16, temperature=0, ignore_eos=True).token_ids)

    with gemlet.load(weights="q8", threads=1) as model:
        alone = say(model, prompts[0])
    with gemlet.load(weights="bf16", threads=2) as model:
        other_alone = say(model, prompts[1])
    with gemlet.load(weights="q8", threads=1) as one, gemlet.load(weights="bf16", threads=2) as other:
        streams = [
            model.stream(prompt, max_tokens=16, temperature=0, ignore_eos=True)
            for model, prompt in zip((one, other), prompts, strict=True)
        ]
        for _ in zip(*streams, strict=True):
            pass
        assert [list(stream.result.token_ids) for stream in streams] == [alone, other_alone]
        one.close()
        assert say(other, prompts[1]) == other_alone


def in_threads(works: list[threading.Thread]) -> None:
    for work in works:
        work.start()
    for work in works:
        work.join(timeout=PATIENCE)
        assert not work.is_alive()


@pytest.mark.tier
def test_eight_threads_share_a_model() -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(4, 4000, length).tolist() for length in (1, 7, 30, 64, 65, 130, 200, 300)]
    with gemlet.load(threads=2) as model:

        def say(i: int) -> list[int]:
            return list(model.generate(prompts[i], max_tokens=10, seed=i, ignore_eos=True).token_ids)

        alone = [say(i) for i in range(8)]
        together: list[list[int]] = [[] for _ in range(8)]

        def work(i: int) -> None:
            together[i] = say(i)

        in_threads([threading.Thread(target=work, args=(i,)) for i in range(8)])
        assert together == alone


@pytest.mark.tier
def test_models_may_be_loaded_at_the_same_time() -> None:
    results = []

    def work() -> None:
        with gemlet.load(weights="q4", threads=2) as model:
            results.append(model.logits([2, 500, 501]))

    in_threads([threading.Thread(target=work) for _ in range(4)])
    assert len(results) == 4
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_the_core_after_close() -> None:
    core = random_core()
    begun = _core.TokenSequence(core)
    begun.extend(int32(2, 3))
    logits = begun.logits()
    core.close()
    core.close()
    assert core.closed
    np.testing.assert_array_equal(begun.logits(), logits)
    with pytest.raises(gemlet.ModelClosedError):
        begun.extend(int32(4))
    with pytest.raises(gemlet.ModelClosedError):
        _core.TokenSequence(core)
    with pytest.raises(gemlet.ModelClosedError):
        testing.taps(core, int32(2))
    assert begun.token_ids == [2, 3]
    begun.close()
    assert core.memory()["weights"] == core.memory()["embedding"] == 0
    assert core.bytes_per_token() >= 0


# --- Another thread during an extend ------------------------------------------------------------------------
LONG = 6000


@pytest.fixture(scope="module")
def core() -> Iterator[_core.Model]:
    # Without a sliding window, the attention of the first layer takes most of the time of a prefill.
    layers = layer_config(sliding_window=0), layer_config()
    model = random_core(model_config(*layers, max_context=3 * LONG))
    yield model
    model.close()


class Running:
    """Extends a sequence by ``LONG`` tokens in its own thread."""

    def __init__(self, core: _core.Model) -> None:
        self.sequence = _core.TokenSequence(core)
        self.sequence.extend(int32(1, 2, 3))
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        time.sleep(0.02)
        assert self.thread.is_alive()

    def _run(self) -> None:
        try:
            self.sequence.extend(np.full(LONG, 5, np.int32))
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(timeout=PATIENCE)
        assert not self.thread.is_alive()


def test_cancel_ends_a_running_extend(core: _core.Model) -> None:
    running = Running(core)
    started = time.process_time()
    running.sequence.cancel()
    running.join()
    taken = time.process_time() - started
    assert isinstance(running.error, gemlet.CancelledError)
    # The cancelled work ends at the next layer. Even a whole chunk takes far less than this limit.
    assert in_time(taken, 1)
    # The sequence keeps the chunks that were complete, and continues like a sequence that was never
    # cancelled.
    sequence = running.sequence
    assert (sequence.length - 3) % 512 == 0
    assert sequence.length < 3 + LONG
    with pytest.raises(gemlet.InvalidRequestError, match="no logits"):
        sequence.sample(sampler())
    fresh = _core.TokenSequence(core)
    fresh.extend(int32(1, 2, 3), logits="none")
    if sequence.length > 3:
        fresh.extend(np.full(sequence.length - 3, 5, np.int32), logits="none")
    for ids in (int32(7, 8), int32(9)):
        sequence.extend(ids)
        fresh.extend(ids)
        np.testing.assert_array_equal(sequence.logits(), fresh.logits())


def test_ctrl_c_ends_a_running_extend(core: _core.Model) -> None:
    sequence = _core.TokenSequence(core)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        sequence.extend(np.full(2 * LONG, 5, np.int32))
    assert sequence.length < 2 * LONG
    sequence.extend(int32(7))


def test_cancel_before_an_extend_does_not_end_it(core: _core.Model) -> None:
    sequence = _core.TokenSequence(core)
    sequence.cancel()
    sequence.extend(int32(1))
    assert sequence.length == 1


def test_cancelling_one_sequence_does_not_affect_others(core: _core.Model) -> None:
    one, other = Running(core), Running(core)
    one.sequence.cancel()
    one.join()
    other.join()
    assert isinstance(one.error, gemlet.CancelledError)
    assert other.error is None
    assert other.sequence.length == 3 + LONG


@pytest.mark.parametrize("threads", [1, 2])
def test_actions_of_another_thread_during_an_extend(threads: int) -> None:
    """An action of another thread may raise an error, wait or return an old value. It must not crash or
    hang."""
    found = run_program(lifecycle.act_while_extending, threads)
    assert {*found} == {*lifecycle.ACTIONS}
    for action, outcomes in found.items():
        assert len(outcomes) == (4 if action in ("two-extends", "cancel") else 2)
        assert {*outcomes} <= {"done", "ModelClosedError", "CancelledError", "InvalidRequestError"}, action


def test_two_threads_feed_one_builder() -> None:
    run_program(lifecycle.feed_one_builder_from_three_threads)
