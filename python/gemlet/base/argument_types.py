"""Finds the argument of a call whose type differs from the function's annotation: :func:`wrong_argument`."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any

from gemlet.base.late import inspect
from gemlet.base.text import show_argument

__all__ = ["wrong_argument"]

_MOST_ITEMS = 10_000  # items of a collection that are checked


def wrong_argument(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> str | None:
    """Returns the error message about the first argument of a wrong type, or None if all types fit
    ``function``.

    gemlet calls this only after a call has failed, so a call that works costs nothing.

    >>> def encode(text: str, limits: list[int] | None = None) -> None: ...
    >>> wrong_argument(encode, (3,), {})
    'text: got 3, expected str'
    >>> wrong_argument(encode, ("a", [1, "2"]), {})
    "limits: got [1, '2'], expected list[int] | None"
    >>> wrong_argument(encode, ("a",), {"limits": [1]}) is None
    True
    """
    try:
        bound = inspect.signature(function).bind(*arguments, **options)
        hints = typing.get_type_hints(function)
    except (TypeError, NameError):  # an argument is missing, or a type is imported only for type checkers
        return None
    for name, value in bound.arguments.items():
        if name in hints and not _fits(value, hints[name]):
            written = inspect.get_annotations(function).get(name)
            written = getattr(written, "__forward_arg__", written)  # a TypedDict has a ForwardRef
            expected = written if isinstance(written, str) else getattr(written, "__name__", str(written))
            return f"{name}: got {show_argument(value)}, expected {expected}"
    return None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has the type; also True for a type that this function does not know."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is None:
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is not None:
        return _is(value, origin) and _items_fit(value, origin, inner)
    if hint is float:
        return isinstance(value, (float, int))
    return _is(value, hint)


def _is(value: object, kind: Any) -> bool:
    try:
        fits = isinstance(value, kind)
    except TypeError:  # a type that isinstance() does not accept, so it cannot be checked
        return True
    if fits and isinstance(value, Iterable) and issubclass(kind, Iterable):
        try:
            iter(value)
        except TypeError:  # an array without dimensions
            return False
    return fits


def _items_fit(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    """Whether the items of a collection have the types in its brackets."""
    # An iterator is not a Collection. It can be read only once, so its items are not checked.
    if not inner or not isinstance(value, Collection):
        return True
    if isinstance(value, Mapping):
        pairs = islice(value.items(), _MOST_ITEMS)
        return all(_fits(item, hint) for pair in pairs for item, hint in zip(pair, inner, strict=False))
    if isinstance(value, str):  # a string is a sequence of strings
        return _fits("", inner[0])
    if origin is tuple or not issubclass(origin, Iterable):
        return True
    return all(_fits(item, inner[0]) for item in islice(value, _MOST_ITEMS))
