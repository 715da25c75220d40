"""Dataclasses that cost nothing until they are used: :func:`record`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import undisturbed

__all__ = ["record"]

# One class at a time. A process that is forked meanwhile would have half a class, so a fork waits.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

# What asks for the methods or the fields of a class: a new object, `dataclasses`, `inspect` and `pickle`.
_QUESTIONS = ("__init__", "__dataclass_fields__", "__signature__", "__setstate__")


class _Unmade:
    """An attribute that makes ``cls`` a dataclass when somebody asks for it."""

    def __init__(self, cls: type, name: str, make: Callable[[], None]) -> None:
        self.cls = cls
        self.name = name
        self.make = make

    def __get__(self, instance: object, owner: type) -> Any:
        self.make()
        if self.name not in vars(self.cls):  # dataclass() makes no such attribute
            return getattr(super(self.cls, owner if instance is None else instance), self.name)
        found = vars(self.cls)[self.name]
        return found.__get__(instance, owner) if hasattr(found, "__get__") else found


def _record(cls: type | None = None, /, *, frozen: bool = False, repr: bool = True) -> Any:
    """:func:`dataclasses.dataclass`, which compiles five methods of a class, at the first use of the class.

    Most of the classes that a start imports are not used for a text. They would take a quarter of the time.

    >>> @_record(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1) == Point(1, 0)
    (Point(x=1, y=0), True)
    """

    def later(cls: type) -> type:
        def make() -> None:
            with undisturbed(), _lock:
                if isinstance(vars(cls).get("__init__"), _Unmade):
                    _make(cls, frozen=frozen, repr=repr)

        for name in _QUESTIONS:
            setattr(cls, name, _Unmade(cls, name, make))
        return cls

    return later if cls is None else later(cls)


def _make(cls: type, *, frozen: bool, repr: bool) -> None:
    """``__init__`` comes last: until then, a thread that makes an object waits for the lock. It is compiled
    for a twin of the class, as dataclass() leaves one alone that is there."""
    own = {name: value for name, value in vars(cls).items() if not isinstance(value, _Unmade)}
    for name in ("__dict__", "__weakref__"):
        own.pop(name, None)
    twin: type = dataclass(frozen=frozen, repr=False, eq=False)(type(cls)(cls.__name__, cls.__bases__, own))
    for name in _QUESTIONS[1:]:
        delattr(cls, name)
    cls.__doc__ = twin.__doc__
    dataclass(frozen=frozen, repr=repr, init=False)(cls)
    init = vars(twin)["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    setattr(cls, "__init__", init)  # noqa: B010


if TYPE_CHECKING:  # a type checker sees dataclass itself
    from dataclasses import dataclass as record
else:
    record = _record
