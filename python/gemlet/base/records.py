"""Dataclasses for a quick start: :func:`record`, with :func:`field` and :func:`replace`.

They replace :mod:`dataclasses`, which takes long to import and compiles methods for each class. Both would
slow gemlet's start. The ``__init__`` of a record is an ordinary function, so nothing is compiled. A record
gets the methods of a real dataclass when a program makes many objects of the class or uses other features of
dataclasses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import undisturbed
from gemlet.base.late import dataclasses, inspect

__all__ = ["field", "metadata_of", "record", "replace"]

_ASKED = ("__replace__", "__match_args__", "__dataclass_fields__", "__dataclass_params__")
# A class gets the compiled __init__ of its dataclass after _MANY objects of the class and _LONG objects of
# all classes. A process that has made _LONG objects runs for long, and making _MANY objects takes longer than
# compiling.
_LONG = 1000
_MANY = 20
_TAKEN = {"default", "default_factory", "repr", "compare", "metadata"}  # the arguments of field()


class _Field:
    """The arguments for :func:`dataclasses.field`."""

    def __init__(self, **given: Any) -> None:
        if not given.keys() <= _TAKEN:
            raise TypeError(f"field(): got {sorted(given)}, a record takes {sorted(_TAKEN)}")
        self.given = given


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """For each field of a record, its type and the arguments of field(); fields of base classes come
    first."""
    _, _, own = cls.__record__
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for base in cls.__mro__[:0:-1]:
        if "__record__" in vars(base):
            found |= _fields(base)
    for name, kind in cls.__annotations__.items():
        if not str(kind).startswith("ClassVar"):
            default = {"default": vars(cls)[name]} if name in vars(cls) else {}
            found[name] = (kind, default | own.get(name, {}))
    return found


def metadata_of(cls: type) -> dict[str, Any]:
    """field -> its ``metadata``, for each field that has metadata."""
    return {name: given["metadata"] for name, (_, given) in _fields(cls).items() if "metadata" in given}


@cache
def _dataclass(cls: Any) -> Any:
    """A dataclass of the same name with the same fields."""
    fields = [(name, kind, dataclasses.field(**given)) for name, (kind, given) in _fields(cls).items()]
    kept = ("__module__", "__qualname__", "__post_init__")
    names = {name: getattr(cls, name) for name in kept if hasattr(cls, name)}
    _, frozen, _ = cls.__record__
    # The types are names of this module. Since Python 3.12, make_dataclass() takes the caller's module by
    # default.
    where = {"module": cls.__module__} if sys.version_info >= (3, 12) else {}
    # Python 3.10 and 3.11 turn the exception of a signal handler that runs in __set_name__, such as
    # KeyboardInterrupt, into RuntimeError.
    with undisturbed():
        return dataclasses.make_dataclass(cls.__name__, fields, frozen=frozen, namespace=names, **where)


class _Asked:
    """An attribute of the dataclass. The record gets it at its first use."""

    def __init__(self, cls: type, name: str) -> None:
        self.cls, self.name = cls, name

    def __get__(self, instance: object, owner: type) -> Any:
        if self.name not in vars(_dataclass(self.cls)):  # __replace__ before Python 3.13
            raise AttributeError(self.name)
        found = vars(_dataclass(self.cls))[self.name]
        setattr(self.cls, self.name, found)
        return found.__get__(instance, owner) if callable(found) else found

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(vars(_dataclass(self.cls))[self.name])


def _method(cls: type, name: str) -> Callable[..., Any]:
    """A method that replaces itself with the dataclass's method at its first call. It is a function and not
    an :class:`_Asked`: when Python looks up ``__eq__``, ``__hash__`` or ``__repr__``, it drops exceptions
    such as KeyboardInterrupt that are raised during the lookup."""

    def method(self: Any, *arguments: Any) -> Any:
        found = vars(_dataclass(cls))[name]
        setattr(cls, name, found)
        return found(self, *arguments)

    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return method


_made = 0  # objects that were made by the functions of _init(), of all classes


def _init(cls: type) -> Callable[..., None]:
    objects = 0

    def init(self: Any, /, *values: Any, **named: Any) -> None:
        global _made
        nonlocal objects
        objects, _made = objects + 1, _made + 1
        fields = _fields(cls)
        given = dict(zip(fields, values, strict=False)) | named
        state = {}
        for name, (_, how) in fields.items():
            if name in given:
                state[name] = given[name]
            elif "default" in how:
                state[name] = how["default"]
            elif "default_factory" in how:
                state[name] = how["default_factory"]()
        once = len(given) == len(values) + len(named)
        if (objects < _MANY or _made < _LONG) and once and state.keys() == fields.keys() >= given.keys():
            vars(self).update(state)
            if hasattr(self, "__post_init__"):
                self.__post_init__()
        else:
            setattr(cls, "__init__", _dataclass(cls).__init__)  # noqa: B010
            _dataclass(cls).__init__(self, *values, **named)  # for a wrong call, it raises TypeError

    init.__name__, init.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
    init.__annotations__ = {}  # the annotations written above are not those of the fields
    init.__wrapped__ = _Asked(cls, "__init__")  # type: ignore[attr-defined]  # for inspect.signature()
    return init


def _refuse(cls: type, what: str, method: str) -> Callable[..., None]:
    def refuse(self: Any, name: str, *value: Any) -> None:
        if type(self) is cls or name in _fields(cls):  # a subclass may have other attributes
            raise dataclasses.FrozenInstanceError(f"cannot {what} field {name!r}")
        getattr(super(cls, self), method)(name, *value)

    return refuse


def _record(cls: type | None = None, /, *, frozen: bool = False, repr: bool = True) -> Any:
    """Does the same as :func:`dataclasses.dataclass`."""

    def make(cls: type) -> type:
        own = {name: value.given for name, value in vars(cls).items() if isinstance(value, _Field)}
        for name, given in own.items():
            if "default" in given:
                setattr(cls, name, given["default"])
            else:
                delattr(cls, name)
        methods: dict[str, Any] = {name: _Asked(cls, name) for name in _ASKED}
        methods |= {"__init__": _init(cls), "__eq__": _method(cls, "__eq__"), "__hash__": None}
        if repr:
            methods["__repr__"] = _method(cls, "__repr__")
        if frozen:
            methods["__hash__"] = _method(cls, "__hash__")
            methods["__setattr__"] = _refuse(cls, "assign to", "__setattr__")
            methods["__delattr__"] = _refuse(cls, "delete", "__delattr__")
        for name in methods.keys() - vars(cls).keys():
            setattr(cls, name, methods[name])
        setattr(cls, "__record__", (cls, frozen, own))  # noqa: B010
        return cls

    return make if cls is None else make(cls)


def _replace(given: Any, /, **changes: Any) -> Any:
    cls, _, _ = given.__record__
    return type(given)(**{name: getattr(given, name) for name in _fields(cls)} | changes)


if TYPE_CHECKING:  # a type checker sees the functions of dataclasses
    from dataclasses import dataclass as record
    from dataclasses import field, replace
else:
    record, replace, field = _record, _replace, _Field
