"""Makes a JSON schema stricter, so that a model that follows it comes to an end: :func:`closed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["closed"]

_EXACT = 2**53 - 1  # the largest integer that every reader of JSON keeps
# The keys of a schema that contain schemas: as the value, in a list, in a mapping.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# With these, several schemas describe one value, so none of them lists all of its keys.
_JOIN = ("allOf", "not", "if", "dependentSchemas", "$dynamicRef", "unevaluatedProperties")
_REFER = ("$ref", "anyOf", "oneOf")
# Keys that may stand beside the keys of _REFER, because they put no limit on a value.
_SILENT = {
    *_REFER,
    *("$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly", "nullable", "discriminator", "type", "x-guidance"),
}
_LOWEST = ("minimum", "exclusiveMinimum")
_HIGHEST = ("maximum", "exclusiveMaximum")
_STEP = 1e-9  # the step of numbers with a range; llguidance accepts no smaller one
_OF_OBJECTS = {"additionalProperties", "patternProperties", "propertyNames", "minProperties", *_REFER}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Makes the schema stricter, in place, and returns it.

    An object with properties may have no others. Integers must be small enough that every reader of JSON
    keeps them exactly. Numbers with a range have at most nine digits after the point. A value that fits the
    result also fits the schema. Without this, a model may write keys and digits forever. A schema that says
    ``additionalProperties`` keeps it, and one whose parts join several schemas for a value stays as it is.

    >>> closed({"type": "object", "properties": {"a": {"type": "boolean"}}})["additionalProperties"]
    False
    """
    found = list(_schemas(schema))
    if any(map(_joins, found)):
        return schema
    for one in found:
        _end_numbers(one)
        properties, required = one.get("properties"), one.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            continue
        if not one.keys() & _OF_OBJECTS and {*map(str, required)} <= properties.keys():
            one["additionalProperties"] = False
    return schema


def _end_numbers(schema: dict[str, Any]) -> None:
    """Limits the number of digits in the schema's numbers."""
    low, high = ([schema[key] for key in keys if key in schema] for keys in (_LOWEST, _HIGHEST))
    has_others = not schema.keys().isdisjoint(("multipleOf", "enum", "const"))
    if has_others or not all(type(bound) in (int, float) for bound in (*low, *high)):
        return
    if _is_of(schema, "number"):
        # Without a range, llguidance allows exponents; with multipleOf it does not.
        if (low or high) and not (low and high and min(high) - max(low) < 1000 * _STEP):
            schema["multipleOf"] = _STEP
    elif _is_of(schema, "integer"):
        if not low and all(bound > -_EXACT for bound in high):
            schema["minimum"] = -_EXACT
        if not high and all(bound < _EXACT for bound in low):
            schema["maximum"] = _EXACT


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside it."""
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        yield one
        waiting += [one[key] for key in _ONE if key in one]
        waiting += [item for key in _LISTED if isinstance(one.get(key), list) for item in one[key]]
        waiting += [item for key in _NAMED if isinstance(one.get(key), dict) for item in one[key].values()]


def _joins(schema: dict[str, Any]) -> bool:
    keys, parts = {*schema}, schema.get("allOf")
    if isinstance(parts, list) and len(parts) == 1:  # some write a reference with a description in this way
        keys = keys - {"allOf"} | {"$ref"}
    return not keys.isdisjoint(_JOIN) or (not keys.isdisjoint(_REFER) and not keys <= _SILENT)


def _is_of(schema: dict[str, Any], kind: str) -> bool:
    given = schema.get("type")
    return kind in given if isinstance(given, list) else given == kind
