"""Dataclasses that compile nothing before they are used much, for a quick start: :func:`record`, and
:func:`field`, :func:`replace` and :func:`asdict` beside it, without the import of :mod:`dataclasses`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import undisturbed

__all__ = ["asdict", "field", "record", "replace"]

# One class at a time. A process that is forked meanwhile would have half a class, so a fork waits.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

# What asks for the fields of a class: `dataclasses`, `inspect`, `copy` and `match`.
_QUESTIONS = (
    *("__dataclass_fields__", "__dataclass_params__"),
    *("__signature__", "__replace__", "__match_args__"),
)
_MANY = 2000  # so many objects take longer than compiling, with the import of dataclasses
_NONE: Any = object()
_OWN, _ALL = "__record_fields__", "__record_all__"  # a record's fields, without and with those of its bases
_GIVEN = (
    "default",
    "default_factory",
    "repr",
    "compare",
    "kw_only",
)  # what field() may be given, and metadata


class _Field:
    """What :func:`dataclasses.field` is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.default = given.get("default", _NONE)
        self.factory: Callable[[], Any] | None = given.get("default_factory")
        self.repr: bool = given.get("repr", True)
        self.compare: bool = given.get("compare", True)
        self.by_name: bool = given.get("kw_only", False)


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


def _record(cls: type | None = None, /, *, frozen: bool = False, repr: bool = True, init: bool = True) -> Any:
    """:func:`dataclasses.dataclass`, which compiles five methods of a class, for classes with few objects.

    The methods here look at the fields each time; a class with many objects gets a compiled ``__init__``.
    Most classes of a start are used once or not at all. Compiling them would take a quarter of the time.

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
                if isinstance(vars(cls).get(_QUESTIONS[0]), _Unmade):
                    _make(cls, frozen=frozen, repr=repr, init=init)

        has_eq = "__eq__" in vars(cls)
        fields = {name: value for name, value in vars(cls).items() if isinstance(value, _Field)}
        known = getattr(sys.modules.get("dataclasses"), "Field", ())
        if any(isinstance(value, known) for value in vars(cls).values()):
            raise TypeError(f"{cls.__qualname__}: takes fields of gemlet.base.records, not of dataclasses")
        for name, value in fields.items():
            if value.default is _NONE:
                delattr(cls, name)
            else:
                setattr(cls, name, value.default)
        setattr(cls, _OWN, fields)
        methods: dict[str, Any] = {"__eq__": _eq, **({"__repr__": _repr} if repr else {})}
        if frozen:
            methods |= _refusing(cls)
        if init:
            methods["__init__"] = _init(cls, make)
        for name in _QUESTIONS:
            methods[name] = _Unmade(cls, name, make)
        for name, method in methods.items():
            if name not in vars(cls):
                setattr(cls, name, method)
        if vars(cls).get("__hash__") is None and (has_eq or "__hash__" not in vars(cls)):
            setattr(cls, "__hash__", _hash if frozen else None)  # noqa: B010
        return cls

    return later if cls is None else later(cls)


def _init(cls: type, make: Callable[[], None]) -> Callable[..., None]:
    """``__init__`` without compiling. For a wrong call, the compiled one raises."""
    made = 0
    names: tuple[str, ...] | None = None
    by_place: list[str] = []
    defaults: dict[str, Any] = {}
    factories: dict[str, Callable[[], Any]] = {}

    def init(self: Any, /, *values: Any, **named: Any) -> None:
        nonlocal made, names, by_place, defaults, factories
        if names is None:
            fields = _fields(cls)
            by_place = [name for name, one in fields.items() if not one.by_name]
            defaults = {name: one.default for name, one in fields.items() if one.default is not _NONE}
            factories = {name: one.factory for name, one in fields.items() if one.factory is not None}
            names = (*fields,)
        made += 1
        found = defaults | dict(zip(by_place, values, strict=False)) | named
        for name, factory in factories.items():
            if name not in found:
                found[name] = factory()
        twice = len(values) > len(by_place) or not named.keys().isdisjoint(by_place[: len(values)])
        if made > _MANY or twice or found.keys() != set(names):
            make()
            vars(cls)["__init__"](self, *values, **named)
            return
        vars(self).update(found)
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    init.__name__, init.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
    return init


def _fields(cls: type) -> dict[str, _Field]:
    """The fields of a class and those of its bases, in the order of arguments."""
    kept: dict[str, _Field] | None = vars(cls).get(_ALL)
    if kept is None:
        found: dict[str, _Field] = {}
        for base in cls.__mro__[:0:-1]:
            if "__dataclass_fields__" in vars(base):
                found |= _fields(base)
        own = vars(cls).get(_OWN)
        if own is not None:
            for name, kind in cls.__annotations__.items():
                if not str(kind).startswith("ClassVar"):
                    found[name] = own.get(name) or _Field(default=vars(cls).get(name, _NONE))
        elif "__dataclass_fields__" in vars(cls):  # a class that dataclass() made
            missing = sys.modules["dataclasses"].MISSING
            for name, one in vars(cls)["__dataclass_fields__"].items():
                if one._field_type.name == "_FIELD":
                    given = {key: getattr(one, key) for key in _GIVEN if getattr(one, key) is not missing}
                    found[name] = _Field(**given)
        kept = dict(sorted(found.items(), key=lambda entry: entry[1].by_name))
        setattr(cls, _ALL, kept)
    return kept


def _repr(self: Any) -> str:
    place = id(self), threading.get_ident()
    if place in _shown:
        return "..."
    _shown.add(place)
    try:
        shown = [f"{name}={getattr(self, name)!r}" for name, one in _fields(type(self)).items() if one.repr]
    finally:
        _shown.discard(place)
    return f"{type(self).__qualname__}({', '.join(shown)})"


_shown: set[tuple[int, int]] = set()  # an object may hold itself


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name, one in _fields(type(self)).items() if one.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _refusing(cls: type) -> dict[str, Callable[..., None]]:
    """What refuses to change objects of ``cls``. A subclass may have attributes of its own."""

    own: Any = cls  # for super()

    def check(self: Any, name: str, what: str) -> None:
        if type(self) is cls or name in _fields(cls):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot {what} field {name!r}")

    def set_attribute(self: Any, name: str, value: Any) -> None:
        check(self, name, "assign to")
        super(own, self).__setattr__(name, value)

    def delete_attribute(self: Any, name: str) -> None:
        check(self, name, "delete")
        super(own, self).__delattr__(name)

    return {"__setattr__": set_attribute, "__delattr__": delete_attribute}


def _make(cls: type, *, frozen: bool, repr: bool, init: bool) -> None:
    """Makes ``cls`` what dataclass() makes, with the methods that it has. The rest is compiled for a twin."""
    import dataclasses

    left_out = {"__dict__", "__weakref__", "__eq__", "__repr__", "__hash__", _OWN, _ALL}
    left_out |= {"__init__"} if init else set()
    left_out |= {"__setattr__", "__delattr__"} if frozen else set()
    own = {name: value for name, value in vars(cls).items() if name not in left_out}
    own = {name: value for name, value in own.items() if not isinstance(value, _Unmade)}
    own |= {name: dataclasses.field(**one.given) for name, one in vars(cls)[_OWN].items()}
    make_twin = dataclasses.dataclass(frozen=frozen, repr=False, eq=False, init=init)
    twin: Any = make_twin(type(cls)(cls.__name__, cls.__bases__, own))
    twin.__dataclass_params__.repr, twin.__dataclass_params__.eq = repr, True
    if cls.__doc__ is None:
        cls.__doc__ = twin.__doc__
    if init:
        made = vars(twin)["__init__"]
        made.__qualname__ = f"{cls.__qualname__}.__init__"
        setattr(cls, "__init__", made)  # noqa: B010
    for name in reversed(_QUESTIONS):  # the first one last, which says that the class is made
        if name in vars(twin):
            setattr(cls, name, vars(twin)[name])
        else:
            delattr(cls, name)


def _replace(given: Any, /, **changes: Any) -> Any:
    """:func:`dataclasses.replace`.

    >>> @_record(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> _replace(Point(1), y=2)
    Point(x=1, y=2)
    """
    return type(given)(**{name: getattr(given, name) for name in _fields(type(given))} | changes)


def asdict(given: Any, /) -> dict[str, Any]:
    """:func:`dataclasses.asdict`, without copies of other objects.

    >>> @_record(frozen=True)
    ... class Point:
    ...     x: object
    >>> asdict(Point([Point(1)]))
    {'x': [{'x': 1}]}
    """
    found: dict[str, Any] = _plain(given)
    return found


def _plain(value: Any) -> Any:
    if hasattr(type(value), "_fields") and isinstance(value, tuple):  # a named tuple
        return type(value)(*map(_plain, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return type(value)((_plain(key), _plain(own)) for key, own in value.items())
    if any("__dataclass_fields__" in vars(kind) for kind in type(value).__mro__):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    return value


if TYPE_CHECKING:  # a type checker sees dataclasses itself
    from dataclasses import dataclass as record
    from dataclasses import field, replace
else:
    record, replace, field = _record, _replace, _Field
