"""Lists all public functions, classes and methods of the package, for tests that check each one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MODULES = ("gemlet", "gemlet.chat", "gemlet.config", "gemlet.errors", "gemlet.generation", "gemlet.tokenizer")


def functions() -> Iterator[tuple[str, Any]]:
    """The name and the object of every public class, function, method and property."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
            bases = reversed(inspect.getmro(thing)) if inspect.isclass(thing) else ()
            own = {}
            for base in bases:
                own |= vars(base) if base.__module__.startswith("gemlet") else {}
            for key, member in own.items():
                member = getattr(member, "fget", getattr(member, "__func__", member))
                if inspect.isfunction(member):
                    yield f"{module.__name__}.{name}.{key}", member
