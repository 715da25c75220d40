"""Makes methods of the public :class:`gemlet.Model` from the methods of its parts: :func:`method_of`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

__all__ = ["method_of"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def method_of(
    part: str, method: Callable[Concatenate[Any, _Arguments], _Result]
) -> Callable[Concatenate[Any, _Arguments], _Result]:
    """Makes a method that calls ``method`` of the attribute ``part``. The made method has the signature and
    docstring of ``method``. Python's errors about missing arguments name it as a method of the model.

    >>> class Model:
    ...     name = "gemma"
    ...     shout = method_of("name", str.upper)
    >>> Model().shout()
    'GEMMA'
    """

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> _Result:
        if not arguments:  # called without a model: Python's error names the missing argument
            return method(**options)  # type: ignore[call-arg]
        model, *others = arguments
        return method(getattr(model, part), *others, **options)

    function: Any = call
    while function is not None:  # Python's errors contain the name of the innermost function
        if isinstance(function, FunctionType):
            function.__qualname__ = f"Model.{function.__name__}"
        function = getattr(function, "__wrapped__", None)
    return cast("Callable[Concatenate[Any, _Arguments], _Result]", call)
