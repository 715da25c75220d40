"""Replaces the references in a JSON schema with the schemas that they point to: :func:`inlined`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["inlined"]

_MOST_NESTED = 40
_MOST_PARTS = 5000
_VALUES = ("enum", "const", "default", "examples")  # these keys have values, not schemas


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with its local references replaced by the schemas that they point to. pydantic's schemas
    have local references. A broken or endless reference becomes ``{}``, which allows any value.

    >>> inlined({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "null"}}})["items"]
    {'type': 'null'}
    """
    left = _MOST_PARTS  # parts that references may still add

    def walk(value: Any, depth: int, followed: bool = False) -> Any:
        nonlocal left
        if not isinstance(value, Mapping | list):
            return value
        left -= len(value) * followed
        if left < 0 or depth > _MOST_NESTED:
            return {}
        if isinstance(value, list):
            return [walk(each, depth + 1, followed) for each in value]
        place, parts = value.get("$ref"), value.get("allOf")
        if isinstance(place, str):
            found = _at(schema, place)
            return {} if found is None else walk({**found, **_without(value, "$ref")}, depth + 1, True)
        if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping):
            return walk({**parts[0], **_without(value, "allOf")}, depth + 1, followed)
        return {k: each if k in _VALUES else walk(each, depth + 1, followed) for k, each in value.items()}

    own = {key: each for key, each in schema.items() if key not in ("$defs", "definitions")}
    found: dict[str, Any] = walk(own, 0)
    return found


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _at(schema: Any, place: str) -> Mapping[str, Any] | None:
    """The schema that a reference such as ``#/$defs/name`` points to."""
    start, *steps = place.split("/")
    if start != "#":
        return None
    for step in steps:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and key in schema:
            schema = schema[key]
        elif isinstance(schema, Sequence) and key.isdecimal() and int(key[:9]) < len(schema):
            schema = schema[int(key[:9])]
        else:
            return None
    return schema if isinstance(schema, Mapping) else None
