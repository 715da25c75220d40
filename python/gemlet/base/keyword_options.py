"""Options that a function takes as ``**options``, shown as if each stood in its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["shows_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def shows_options(function: _Function, types: Mapping[str, Any], defaults: Mapping[str, Any]) -> _Function:
    """Makes help(), completion, :func:`inspect.signature` and :func:`typing.get_type_hints` show the options
    of ``function``, which are its last parameter, in the order of ``defaults``.

    >>> def f(a, **options): ...
    >>> inspect.signature(shows_options(f, {"b": int}, {"b": 5}))
    <Signature (a, *, b: int = 5)>
    """
    signature = inspect.signature(function)
    *others, rest = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(name, keyword, default=default, annotation=types[name])
        for name, default in defaults.items()
    ]
    function.__signature__ = signature.replace(parameters=[*others, *own])  # type: ignore[attr-defined]
    hints = {name: hint for name, hint in function.__annotations__.items() if name != rest.name}
    function.__annotations__ = {**hints, **types}
    return function
