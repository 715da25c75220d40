"""Gives tests access to the parts of a model that have no public name, such as its core in C++.

All tests use these parts through this file. ``testing`` is the part of the core that only tests use: single
kernels, the intermediate results of a forward pass, several contexts in one pass, and counters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import gemlet
from gemlet import _core
from gemlet._core import testing as testing
from gemlet.chat import template_process as template_processes
from gemlet.model.loaded_adapters import LoadedAdapters


def core_of(model: gemlet.Model) -> _core.Model:
    return model._resident.core


def adapters_of(model: gemlet.Model) -> LoadedAdapters:
    """The object that holds the loaded adapters of a model and the memory limit for them."""
    return model._adapters


def drafter_of(model: gemlet.Model) -> _core.Model:
    found = model._resident.drafter
    assert found is not None
    return found


def always_guess(model: gemlet.Model) -> None:
    """Gives the model a new engine that drafts tokens in every step, even if drafting makes it slower."""
    _put_engine(model, drafts="always", drafter=model._resident.drafter, prefix_cache_bytes=1 << 24)


def never_guess(model: gemlet.Model) -> None:
    """Gives the model a new engine that drafts no tokens and has no prefix cache."""
    _put_engine(model, drafts="never")


def _put_engine(model: gemlet.Model, **options: Any) -> None:
    resident = model._resident
    assert resident._engine is None
    resident._engine = _core.Engine(resident.core, **options)


def core_adapter(model: gemlet.Model, name: str | None) -> _core.Adapter | None:
    return adapters_of(model).find(name).core


def context_of(model: gemlet.Model, adapter: str | None = None) -> _core.TokenSequence:
    """An empty context of a model, to which a test feeds tokens in pieces."""
    return _core.TokenSequence(core_of(model), core_adapter(model, adapter))


def taps_of(model: gemlet.Model, ids: ArrayLike, **options: Any) -> dict[str, NDArray[np.float32]]:
    """The intermediate results (taps) of one forward pass over ``ids``, with the same names as in the
    goldens."""
    return testing.taps(core_of(model), np.asarray(ids, np.int32), **options)


def template_process() -> Any:
    """The ``subprocess.Popen`` of the process that runs chat templates, or None if it has not started yet."""
    return template_processes._process._running
