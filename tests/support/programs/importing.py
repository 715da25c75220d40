"""Functions that product/test_importing.py runs in separate processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import gemlet


class Interrupting:
    """An import finder that finds nothing. It sends the signal ``number`` when Python looks for
    ``module``."""

    def __init__(self, module: str, number: int) -> None:
        self.module = module
        self.number = number

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == self.module:
            self.module = ""
            os.kill(os.getpid(), self.number)
        return None


def interrupt_import(module: str, number: int) -> None:
    """Sends a signal while the first use of gemlet imports ``module``. The exception of the signal handler
    must reach the caller, and the next use of gemlet must work."""
    finder = Interrupting(module, number)
    sys.meta_path.insert(0, finder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        gemlet.load()
    except KeyboardInterrupt:
        assert signal.getsignal(number) is signal.default_int_handler
        assert finder.module == ""
        with gemlet.load() as model:
            assert model.generate("The door", max_tokens=3, ignore_eos=True).completion_tokens == 3
    else:
        raise AssertionError("the exception of the signal handler did not reach the caller")
