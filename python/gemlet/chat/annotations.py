"""Turns a type annotation into a JSON schema (:func:`schema_of`), and converts a JSON value to an annotated
type (:func:`python_value`).

If transformers' ``get_json_schema`` can make a schema for an annotation, gemlet's schema is the same. gemlet
also supports ``Annotated`` with a description, TypedDicts, dataclasses, sets, ``tuple[T, ...]`` and the
abstract collections.
"""

from __future__ import annotations

import collections.abc
import enum
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from gemlet.base.late import dataclasses, inspect
from gemlet.base.text import show
from gemlet.chat.arguments import problem_of
from gemlet.chat.docstrings import read_docstring
from gemlet.errors import InvalidRequestError

__all__ = ["hints_of", "python_value", "schema_of"]

_SCALARS: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}
_LISTS = (list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection)
_ITERABLES = (collections.abc.Iterable,)
_SETS = (set, frozenset, collections.abc.Set, collections.abc.MutableSet)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_MOST_NESTED = 20
_QUALIFIERS = ("Required", "NotRequired", "ReadOnly")  # wrappers of types in a TypedDict


def hints_of(owner: Any, where: str) -> dict[str, Any]:
    """The annotations of a function or class. Annotations in quotes are evaluated."""
    if sys.version_info < (3, 11) and isinstance(owner, types.FunctionType):
        # In Python 3.10, get_type_hints() makes an argument of a function Optional if its default is None. It
        # does not do so for other objects.
        named = {"__annotations__": owner.__annotations__, "__globals__": inspect.unwrap(owner).__globals__}
        owner = types.SimpleNamespace(**named)
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception as problem:  # evaluating annotations runs code of the caller
        raise InvalidRequestError(f"{where}: its annotations cannot be read: {problem}") from None


def schema_of(annotation: Any, where: str, depth: int = 0) -> dict[str, Any]:
    """The JSON schema of the values of ``annotation``. ``where`` names the annotated place in errors.

    Raises:
        InvalidRequestError: no JSON value can have this type, or gemlet does not know it.

    >>> schema_of(list[int] | None, "f")
    {'type': 'array', 'items': {'type': 'integer'}, 'nullable': True}
    """
    if depth > _MOST_NESTED:
        raise InvalidRequestError(f"{where}: types are nested more than {_MOST_NESTED} levels deep")
    if annotation is Any or annotation is object:
        return {}
    if annotation is None or annotation in (type(None),):
        return {"type": "null"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        schema = schema_of(arguments[0], where, depth)
        described = [text for text in map(_description, arguments[1:]) if text]
        return {**schema, "description": described[0]} if described else schema
    if _is_qualifier(origin):
        return schema_of(arguments[0], where, depth)
    if origin is Literal:
        return _enumerated(list(arguments), where)
    if origin in (Union, types.UnionType):
        return _union(arguments, where, depth)
    if origin is None and isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _enumerated([member.value for member in annotation], where)
        if annotation in _SCALARS:
            return {"type": _SCALARS[annotation]}
        if _is_typeddict(annotation) or dataclasses.is_dataclass(annotation):
            return _record(annotation, where, depth)
    if supertype := getattr(annotation, "__supertype__", None):  # NewType
        return schema_of(supertype, where, depth)
    return _collection(origin or annotation, arguments, annotation, where, depth)


def _collection(
    kind: Any, arguments: tuple[Any, ...], annotation: Any, where: str, depth: int
) -> dict[str, Any]:
    if kind is tuple:
        if arguments and arguments[-1] is not Ellipsis:
            items = [schema_of(item, where, depth + 1) for item in arguments if item != ()]
            return {"type": "array", "prefixItems": items}
        kind, arguments = list, arguments[:1]
    if kind in (*_LISTS, *_ITERABLES, *_SETS):
        schema: dict[str, Any] = {"type": "array"}
        if arguments and not isinstance(arguments[0], typing.TypeVar):
            schema["items"] = schema_of(arguments[0], where, depth + 1)
        return {**schema, "uniqueItems": True} if kind in _SETS else schema
    if kind in _DICTS:
        if len(arguments) == 2 and not isinstance(arguments[1], typing.TypeVar):
            return {"type": "object", "additionalProperties": schema_of(arguments[1], where, depth + 1)}
        return {"type": "object"}
    raise InvalidRequestError(
        f"{where} is annotated as {show(annotation)}, which JSON has no type for; expected str, int, float, "
        "bool, list, dict, tuple, set, Literal, an Enum, a TypedDict, a dataclass, or a Union of these. "
        "Or give the tool as a JSON schema"
    )


def _is_typeddict(annotation: Any) -> bool:
    """Whether ``annotation`` is a TypedDict of typing or of typing_extensions."""
    is_dict = isinstance(annotation, type) and issubclass(annotation, dict)
    return is_dict and hasattr(annotation, "__required_keys__")


def _is_qualifier(origin: Any) -> bool:
    return str(origin).rpartition(".")[2] in _QUALIFIERS


def _description(extra: Any) -> str:
    """The description that ``extra``, an argument of ``Annotated``, holds: a text, pydantic's Field, or
    typing's Doc."""
    for text in (extra, getattr(extra, "description", None), getattr(extra, "documentation", None)):
        if isinstance(text, str):
            return text
    return ""


def _enumerated(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise InvalidRequestError(
            f"{where} has the values {show(values)}; expected only values of str, int, float, bool or None"
        )
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _union(arguments: tuple[Any, ...], where: str, depth: int) -> dict[str, Any]:
    found = [schema_of(each, where, depth + 1) for each in arguments if each is not type(None)]
    if len(found) == 1:
        schema = found[0]
    elif all(each.keys() == {"type"} and isinstance(each["type"], str) for each in found):
        names = sorted({each["type"] for each in found})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": found}
    return {**schema, "nullable": True} if type(None) in arguments else schema


def _record(owner: Any, where: str, depth: int) -> dict[str, Any]:
    """The schema of a TypedDict or a dataclass."""
    hints = hints_of(owner, where)
    if _is_typeddict(owner):
        names = list(hints)
        required = [name for name in names if name in owner.__required_keys__]
    else:
        fields = [field for field in dataclasses.fields(owner) if field.init]
        names = [field.name for field in fields]
        missing = dataclasses.MISSING
        required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    described = read_docstring(_own_doc(owner)).arguments
    properties: dict[str, Any] = {}
    for name in names:
        properties[name] = schema_of(hints[name], f"{where}.{name}", depth + 1)
        if name in described:
            properties[name].setdefault("description", described[name])
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _own_doc(owner: Any) -> str:
    """The docstring of a class without its indentation; "" if a dataclass generated the docstring."""
    doc = owner.__doc__ or ""
    if doc.startswith(f"{owner.__name__}("):
        return ""
    lines = doc.expandtabs().split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    return "\n".join([lines[0].strip(), *(line[min(indents, default=0) :] for line in lines[1:])])


# --- values -------------------------------------------------------------------------------------------------


def python_value(annotation: Any, value: Any) -> Any:
    """Converts ``value`` to the type ``annotation``, such as an Enum, a dataclass, a tuple, a set or a float.
    ``value`` has to fit the schema of ``annotation``.

    Raises:
        ValueError: ``value`` fits the schema but not the type, such as a tuple of another length.

    >>> python_value(tuple[int, str], [1, "a"])
    (1, 'a')
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated or _is_qualifier(origin):
        return python_value(arguments[0], value)
    if origin in (Union, types.UnionType):
        return _union_value(arguments, value)
    if origin is None and isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return annotation(value)
        if dataclasses.is_dataclass(annotation) or _is_typeddict(annotation):
            return _record_value(annotation, value)
        if annotation is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if annotation is float and type(value) is int:
            return float(value)
    if supertype := getattr(annotation, "__supertype__", None):
        return python_value(supertype, value)
    return _collection_value(origin or annotation, arguments, value)


def _collection_value(kind: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if kind is tuple and isinstance(value, list):
        if not arguments or arguments[-1] is Ellipsis:
            return tuple(python_value(arguments[0] if arguments else Any, item) for item in value)
        kinds = [each for each in arguments if each != ()]
        if len(kinds) != len(value):
            raise ValueError(f"has {len(value)} items; expected {len(kinds)}")
        return tuple(map(python_value, kinds, value))
    if isinstance(value, list) and kind in (*_LISTS, *_ITERABLES, *_SETS):
        items = [python_value(arguments[0], item) for item in value] if arguments else value
        if kind in _SETS:
            make: Callable[[Any], Any] = frozenset if kind is frozenset else set
            return make(items)
        return items
    if isinstance(value, dict) and kind in _DICTS and len(arguments) == 2:
        return {key: python_value(arguments[1], item) for key, item in value.items()}
    return value


def _record_value(owner: Any, value: Mapping[str, Any]) -> Any:
    hints = hints_of(owner, owner.__name__)
    members = {name: python_value(hints.get(name, Any), item) for name, item in value.items()}
    return members if _is_typeddict(owner) else owner(**members)


def _union_value(arguments: tuple[Any, ...], value: Any) -> Any:
    """Converts ``value`` to the first type of the union whose schema it fits."""
    from_json = {type(None), str, bool, int, float}
    if value is None or type(value) in (from_json & set(arguments)):
        return value
    for each in arguments:
        if _fits(each, value):
            return python_value(each, value)
    return value


def _fits(annotation: Any, value: Any) -> bool:
    """Whether ``value`` is one of the JSON values of ``annotation``."""
    return not problem_of(schema_of(annotation, "value"), value)
