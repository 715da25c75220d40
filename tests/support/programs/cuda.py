"""Functions that forward/test_cuda_driver.py runs in separate processes, each with its own emulated GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import gemlet
from gemlet.loading.builder import make_builder
from gemlet.loading.options import LoadOptions

Outcome = tuple[str, str]


def _outcome(action: Callable[[], object]) -> Outcome:
    try:
        return "none", str(action())
    except gemlet.GemletError as error:
        return type(error).__name__, str(error)


def _load() -> gemlet.Model:
    return gemlet.load(weights="q4", max_context=512, threads=1, device="cuda")


def _tokens(model: gemlet.Model) -> list[int]:
    return list(model.generate("The door", max_tokens=3, ignore_eos=True, temperature=0).token_ids)


def load() -> tuple[Outcome, str]:
    """The error when a model is loaded with the device "cuda", and the device that "auto" chooses."""
    return _outcome(lambda: _load().close()), LoadOptions(device="auto").device


def inspect(max_memory: str | None) -> tuple[str | None, int, int]:
    """The problem that inspect() reports, the total of the memory plan, and the part of the plan for the
    process."""
    found = gemlet.inspect(weights="q4", max_context=512, device="cuda", max_memory=max_memory)
    return found.problem, found.plan.total, found.plan.process


def allocate_too_much() -> Outcome:
    """Allocates more weights than fit, without a memory plan that would refuse them."""
    config = gemlet.inspect().config
    return _outcome(lambda: make_builder(config, LoadOptions(weights="q4", max_context=512, device="cuda")))


def lose() -> tuple[Outcome, Outcome]:
    """On a GPU that fails, the error of a running generation and the error of loading the next model."""
    with _load() as model:
        first = _outcome(lambda: _tokens(model))
        return first, _outcome(_load)


def fork() -> tuple[list[int], str]:
    """Tokens that this process generates, and the results of a forked process: with the model of its parent,
    with its own model, and with the device "auto"."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
    with _load() as model:
        expected = _tokens(model)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            outcomes = [_outcome(lambda: _tokens(model)), _outcome(_load)]
            model.close()
            text = "\n".join(f"{name}: {said}" for name, said in outcomes)
            os.write(writer, f"{text}\n{LoadOptions(device='auto').device}".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert _tokens(model) == expected
        return expected, said
