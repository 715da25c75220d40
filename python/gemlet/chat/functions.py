"""Python functions as tools. :func:`describe_function` makes the description that the model gets.
:class:`PythonTool` also converts the arguments of a model's call to the types of the function's parameters.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.late import inspect
from gemlet.base.patterns import late_pattern
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.chat.annotations import hints_of, python_value, schema_of
from gemlet.chat.arguments import problem_of
from gemlet.chat.docstrings import read_docstring
from gemlet.errors import InvalidRequestError

__all__ = ["PythonTool", "describe_function"]

_CHOICES = late_pattern(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)
_NAME = late_pattern(r"\w+")


@public
def describe_function(function: Callable[..., Any]) -> dict[str, Any]:
    """Describes a Python function to a model: ``{"type": "function", "function": {"name": ...,
    "description": ..., "parameters": JSON schema}}``.

    The schema comes from the annotations, and the texts from the docstring, in the style of Google, NumPy or
    Sphinx. If transformers' ``get_json_schema`` can describe a function, the result is the same. Unlike
    there, the docstring may be missing, ``Annotated[int, "The day"]`` describes an argument too, and
    arguments may also be TypedDicts, dataclasses and sets.

    Raises:
        InvalidRequestError: an argument has no annotation, or JSON has no values for its annotation. Or
            ``function`` is not a function with a name.

    >>> def weather(city: str, days: int = 1) -> str:
    ...     '''The weather of a place.
    ...
    ...     Args:
    ...         city: Its name.
    ...         days: How many days to look ahead.
    ...     '''
    >>> described = describe_function(weather)["function"]
    >>> described["name"], described["parameters"]["required"]
    ('weather', ['city'])
    >>> described["parameters"]["properties"]["days"]
    {'type': 'integer', 'description': 'How many days to look ahead.'}
    """
    return PythonTool.of(function, "function").description


@record(frozen=True)
class PythonTool:
    """A Python function that a model may call.

    Attributes:
        name: the name of the function, by which the model calls it.
        description: the description that :func:`describe_function` returns.
        function: the function.
        hints: the annotations of the function's arguments.

    >>> PythonTool.of(len, "tools[0]").name
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: tools[0]: the argument obj of len has no annotation, such as obj: str
    """

    name: str
    description: dict[str, Any]
    function: Callable[..., Any]
    hints: dict[str, Any]

    @classmethod
    def of(cls, function: Any, where: str) -> PythonTool:
        """Makes a tool of ``function``. ``where`` names the place of the function in errors."""
        inner = _inner(function, where)
        name = getattr(inner, "__name__", None) or type(inner).__name__
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{where}: {show(name)} is not the name of a function; define the function with def"
            )
        parameters = _parameters(function, where)
        annotated = inner if hasattr(inner, "__name__") else type(inner).__call__
        hints = hints_of(annotated, f"{where}: {name}")
        doc = read_docstring(inspect.getdoc(inner) or inspect.getdoc(annotated) or "")
        properties: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.name not in hints:
                raise InvalidRequestError(
                    f"{where}: the argument {parameter.name} of {name} has no annotation, such as "
                    f"{parameter.name}: str"
                )
            schema = schema_of(hints[parameter.name], f"{where}: the argument {parameter.name} of {name}")
            properties[parameter.name] = _described(schema, doc.arguments.get(parameter.name))
        schema = {"type": "object", "properties": properties}
        required = [each.name for each in parameters if each.default is inspect.Parameter.empty]
        description: dict[str, Any] = {"name": name, "description": doc.description, "parameters": schema}
        if required:
            schema["required"] = required
        if (returned := _returned(hints, doc.returns)) is not None:
            description["return"] = returned
        return cls(name, {"type": "function", "function": description}, function, hints)

    def read(self, arguments: dict[str, Any]) -> inspect.BoundArguments:
        """Converts the JSON values ``arguments`` to the types of the function's parameters.

        Raises:
            InvalidRequestError: ``arguments`` do not fit the description.

        >>> def double(x: float) -> float:
        ...     return 2 * x
        >>> PythonTool.of(double, "tools[0]").read({"x": 4}).args
        (4.0,)
        """
        schema = {**self.description["function"]["parameters"], "additionalProperties": False}
        if problem := problem_of(schema, arguments):
            raise InvalidRequestError(problem)
        bound = inspect.BoundArguments(inspect.signature(self.function), {})
        # The order of the signature matters, because some arguments are passed by position.
        for name in bound.signature.parameters:
            if name in arguments:
                try:
                    bound.arguments[name] = python_value(self.hints[name], arguments[name])
                except Exception as problem:  # a class of the caller may raise any exception
                    raise InvalidRequestError(f"{name}: {problem}") from None
        bound.apply_defaults()
        return bound


def _inner(function: Any, where: str) -> Any:
    """The function inside :func:`functools.partial`. The arguments that a partial adds show in the
    signature."""
    if not callable(function) or isinstance(function, type):
        raise InvalidRequestError(
            f"{where} is {show(function)}; expected a function, or a mapping with its name and parameters"
        )
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _parameters(function: Any, where: str) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as problem:
        raise InvalidRequestError(f"{where}: {show(function)} has no signature: {problem}") from None
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in signature.parameters.values() if parameter.kind not in many]


def _described(schema: dict[str, Any], text: str | None) -> dict[str, Any]:
    """``schema`` with the docstring's text about the argument. If ``(choices: ["a", "b"])`` ends the text,
    the choices become the ``enum`` of the schema."""
    if text is None:
        return schema
    choices = _CHOICES.search(text)
    if choices:
        try:
            values = json.loads(choices[1])
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list) and values:
            values = [value.strip() if isinstance(value, str) else value for value in values]
            schema, text = {**schema, "enum": values}, text[: choices.start()].strip()
    return {**schema, "description": text}


def _returned(hints: dict[str, Any], text: str) -> dict[str, Any] | None:
    """The schema of the result, or None if the annotation is missing or has no schema. This is no error,
    because the model does not write results."""
    if "return" not in hints:
        return None
    try:
        schema = schema_of(hints["return"], "return")
    except InvalidRequestError:
        return None
    return {**schema, "description": text} if text else schema
