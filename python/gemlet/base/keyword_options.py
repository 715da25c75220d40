"""Shows options that a function takes as ``**options`` as if each were in its signature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, TypeVar, get_type_hints

from gemlet.base.late import inspect

__all__ = ["shows_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def shows_options(function: _Function, types: type, defaults: Mapping[str, Any]) -> _Function:
    """Makes help(), completion, :func:`inspect.signature` and :func:`typing.get_type_hints` show the single
    options that ``function`` takes as ``**options``. ``types`` is a TypedDict of the options, and
    ``defaults`` has their defaults in the order to show. The function must be decorated with
    :func:`gemlet.base.front_door.public`.

    >>> from typing import TypedDict
    >>> from gemlet.base.front_door import public
    >>> Options = TypedDict("Options", {"b": int})
    >>> @public
    ... def f(a, **options: Options): ...
    >>> inspect.signature(shows_options(f, Options, {"b": 5}))
    <Signature (a, *, b: int = 5)>
    """
    hints = [*function.__annotations__.items()]
    rest = [name for name, _ in hints if name != "return"][-1]
    function.__annotations__ = {name: hint for name, hint in hints if name != rest} | types.__annotations__
    function.__wrapped__ = _Shown(function.__wrapped__, types, defaults)  # type: ignore[attr-defined]
    return function


class _Shown:
    """Wraps a function so that :func:`inspect.signature` finds the signature with all options. The signature
    is computed only when it is asked for, because this is slow."""

    def __init__(self, function: Callable[..., Any], types: type, defaults: Mapping[str, Any]) -> None:
        self.__wrapped__ = function
        self._types = types
        self.shown_defaults = defaults

    # For the signature of a class, Python takes __init__ without its wrappers. It expects an object that can
    # be called and bound like a function.
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.__wrapped__)
        types = _hints(self._types)
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [
            inspect.Parameter(name, keyword, default=default, annotation=types[name])
            for name, default in self.shown_defaults.items()
        ]
        return signature.replace(parameters=[*[*signature.parameters.values()][:-1], *own])


@functools.cache
def _hints(types: type) -> dict[str, Any]:
    return get_type_hints(types)
