"""Dataclasses for a quick start: :func:`record`, and :func:`field` and :func:`replace` for it.

They are those of :mod:`dataclasses`, which takes long to import and compiles methods for each class, and a
start would wait for both. A record has an ``__init__`` that is not compiled. Its dataclass is made when
somebody asks for anything else that a dataclass has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemlet.base.late import dataclasses, inspect

__all__ = ["field", "record", "replace"]

_ASKED = ("__eq__", "__replace__", "__match_args__", "__dataclass_fields__", "__dataclass_params__")
_TAKEN = {"default", "default_factory", "repr", "compare", "metadata"}


class _Field:
    """What :func:`dataclasses.field` is given."""

    def __init__(self, **given: Any) -> None:
        if not given.keys() <= _TAKEN:
            raise TypeError(f"field(): got {sorted(given)}, a record takes {sorted(_TAKEN)}")
        self.given = given


class _Once:
    """A property that is kept. functools.cached_property has a lock before Python 3.12, for which a process
    would wait that is forked meanwhile."""

    def __init__(self, find: Callable[[Any], Any]) -> None:
        self.find = find

    def __get__(self, instance: object, owner: type) -> Any:
        return vars(instance).setdefault(self.find.__name__, self.find(instance))


class _Made:
    """What is made of a class that is a record. ``own`` is what field() was given."""

    def __init__(self, cls: type, frozen: bool, own: dict[str, dict[str, Any]]) -> None:
        self.cls, self.frozen, self.own = cls, frozen, own

    @_Once
    def fields(self) -> dict[str, tuple[Any, dict[str, Any]]]:
        """The type of each field and what field() was given, those of the bases first."""
        found: dict[str, tuple[Any, dict[str, Any]]] = {}
        for base in self.cls.__mro__[:0:-1]:
            if "__record__" in vars(base):
                found |= vars(base)["__record__"].fields
        for name, kind in self.cls.__annotations__.items():
            if not str(kind).startswith("ClassVar"):
                default = {"default": vars(self.cls)[name]} if name in vars(self.cls) else {}
                found[name] = (kind, default | self.own.get(name, {}))
        return found

    @_Once
    def dataclass(self) -> Any:
        """A class of the same name with the same fields."""
        fields = [(name, kind, dataclasses.field(**given)) for name, (kind, given) in self.fields.items()]
        names = {"__module__": self.cls.__module__, "__qualname__": self.cls.__qualname__}
        return dataclasses.make_dataclass(self.cls.__name__, fields, frozen=self.frozen, namespace=names)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.dataclass.__init__)


class _Asked:
    """An attribute that the dataclass has. The record has it too once somebody has asked."""

    def __init__(self, made: _Made, name: str) -> None:
        self.made, self.name = made, name

    def __get__(self, instance: object, owner: type) -> Any:
        if self.name not in vars(self.made.dataclass):  # __replace__ before Python 3.13
            raise AttributeError(self.name)
        found = vars(self.made.dataclass)[self.name]
        setattr(self.made.cls, self.name, found)
        return found.__get__(instance, owner) if callable(found) else found


def _init(made: _Made) -> Callable[..., None]:
    def init(self: Any, /, *values: Any, **named: Any) -> None:
        given = dict(zip(made.fields, values, strict=False)) | named
        state = {}
        for name, (_, how) in made.fields.items():
            if name in given:
                state[name] = given[name]
            elif "default" in how:
                state[name] = how["default"]
            elif "default_factory" in how:
                state[name] = how["default_factory"]()
        once = len(given) == len(values) + len(named)
        if not (once and state.keys() == made.fields.keys() >= given.keys()):
            made.dataclass.__init__(self, *values, **named)  # raises TypeError
        vars(self).update(state)
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    init.__name__, init.__qualname__ = "__init__", f"{made.cls.__qualname__}.__init__"
    init.__wrapped__ = made  # type: ignore[attr-defined]  # for inspect.signature()
    return init


def _refuse(made: _Made, what: str, method: str) -> Callable[..., None]:
    def refuse(self: Any, name: str, *value: Any) -> None:
        if type(self) is made.cls or name in made.fields:  # a subclass may have other attributes
            raise dataclasses.FrozenInstanceError(f"cannot {what} field {name!r}")
        getattr(super(made.cls, self), method)(name, *value)

    return refuse


def _record(cls: type | None = None, /, *, frozen: bool = False, repr: bool = True) -> Any:
    """:func:`dataclasses.dataclass`.

    >>> @_record(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1), _replace(Point(1), y=2), Point(1) == Point(1, 0)
    (Point(x=1, y=0), Point(x=1, y=2), True)
    """

    def make(cls: type) -> type:
        own = {name: value.given for name, value in vars(cls).items() if isinstance(value, _Field)}
        for name, given in own.items():
            if "default" in given:
                setattr(cls, name, given["default"])
            else:
                delattr(cls, name)
        made = _Made(cls, frozen, own)
        methods: dict[str, Any] = {name: _Asked(made, name) for name in _ASKED}
        methods |= {"__init__": _init(made), "__hash__": None}
        if repr:
            methods["__repr__"] = _Asked(made, "__repr__")
        if frozen:
            methods["__hash__"] = _Asked(made, "__hash__")
            methods["__setattr__"] = _refuse(made, "assign to", "__setattr__")
            methods["__delattr__"] = _refuse(made, "delete", "__delattr__")
        for name in methods.keys() - vars(cls).keys():
            setattr(cls, name, methods[name])
        setattr(cls, "__record__", made)  # noqa: B010
        return cls

    return make if cls is None else make(cls)


def _replace(given: Any, /, **changes: Any) -> Any:
    return type(given)(**{name: getattr(given, name) for name in given.__record__.fields} | changes)


if TYPE_CHECKING:  # a type checker sees those of dataclasses
    from dataclasses import dataclass as record
    from dataclasses import field, replace
else:
    record, replace, field = _record, _replace, _Field
