"""Functions that product/test_threads.py runs in separate processes."""

from __future__ import annotations

import os
import resource
import tempfile
import threading

import numpy as np
import pytest

import gemlet
from support.core_models import model_config, random_core
from support.processes import command_of, environment_of

STACK = 1 << 40  # the size of a thread's stack, which exceeds the limit of the address space
ADDRESS_SPACE = 1 << 38


def without_threads(kind: str) -> None:
    """Calls the function ``kind`` in a process that cannot start a thread.

    The limit of the number of threads does not apply to root. So this limits the address space instead, and
    makes the stacks of threads too large for it.
    """
    for limit, size in ((resource.RLIMIT_STACK, STACK), (resource.RLIMIT_AS, ADDRESS_SPACE)):
        resource.setrlimit(limit, (size, resource.getrlimit(limit)[1]))
    command = command_of(KINDS[kind])
    os.execve(command[0], command, environment_of(OPENBLAS_NUM_THREADS="1"))


def check_that_there_are_none() -> None:
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()


def default() -> None:
    """By default, the model then uses only one thread, and everything else works as usual."""
    check_that_there_are_none()
    with gemlet.load() as model:
        assert (model.threads, model.decode_threads) == (1, 1)
        answer = model.generate("The door opened", max_tokens=30, seed=1)
        assert answer.completion_tokens == 30
        assert np.isfinite(model.logits(list(range(4, 300)))).all()
        model.chat([{"role": "user", "content": "Who is there?"}], max_tokens=4)
    random_core(model_config(bidirectional=True, max_context=400)).embed([[5] * 300])


def one() -> None:
    check_that_there_are_none()
    with gemlet.load(threads=1) as model:
        assert model.generate("The door opened", max_tokens=30, seed=1).completion_tokens == 30
    with tempfile.TemporaryDirectory() as folder:
        gemlet.convert(None, f"{folder}/packed", weights="q4")
        with gemlet.load(f"{folder}/packed") as model:
            assert model.threads == 1


def several() -> None:
    """An explicit number of threads causes an error."""
    for arguments in ({"threads": 4}, {"decode_threads": 4}, {"threads": 1, "decode_threads": 4}):
        with pytest.raises(gemlet.MemoryLimitError, match=r"cannot start 4 threads, only 1; ask for fewer"):
            gemlet.load(**arguments)
    core = random_core(threads=4, fewer_threads=True)
    assert (core.threads, core.decode_threads) == (1, 1)


KINDS = {"default": default, "one": one, "several": several}
