"""A function that server/test_hostile.py runs in a separate process."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import pkgutil
import string

import gemlet
from gemlet.base.patterns import _Pattern


def pump_all() -> int:
    """Matches every regular expression of the package with long texts of repeated characters. Returns the
    number of expressions. An expression that backtracks too much would exceed the time limit of the
    process."""
    for info in pkgutil.walk_packages(gemlet.__path__, "gemlet."):
        if not info.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # the module needs an extra that is not installed
                importlib.import_module(info.name)
    found = [one for one in gc.get_objects() if isinstance(one, _Pattern)]
    units = list(map("".join, itertools.chain(string.printable, itertools.product("a1_-.: /[(", repeat=2))))
    for pattern, unit in itertools.product(found, units):
        for text in (unit * 40 + "!", unit * 3000):
            given = text.encode() if isinstance(pattern.pattern, bytes) else text
            pattern.match(given)
            pattern.fullmatch(given)
    return len(found)
