"""What a model may write of JSON whose schema leaves much open: :func:`closed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["closed"]

_EXACT = 2**53 - 1  # the largest integer that every reader of JSON keeps
# Where schemas stand inside a schema: as the value, in a list, in a mapping.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# Several schemas describe one value with these, so that none of them knows all of its keys.
_JOIN = ("allOf", "not", "if", "dependentSchemas", "$dynamicRef", "unevaluatedProperties")
_REFER = ("$ref", "anyOf", "oneOf")
# What may stand beside those without saying anything of a value.
_SILENT = {
    *_REFER,
    *("$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly", "nullable", "discriminator", "type", "x-guidance"),
}
_OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"}
_OF_OBJECTS = {"additionalProperties", "patternProperties", "propertyNames", "minProperties", *_REFER}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with an end to what it leaves open; it is changed in place.

    An object with properties has no others, and an integer without a range is one that every reader of JSON
    keeps exactly. What fits the result fits the schema. Else a model may go on for ever with keys and digits
    that nobody asked for. A schema that says ``additionalProperties`` keeps it, and one whose parts join
    several schemas for a value stays as it is.

    >>> closed({"type": "object", "properties": {"a": {"type": "boolean"}}})["additionalProperties"]
    False
    """
    found = list(_schemas(schema))
    if any(map(_joins, found)):
        return schema
    for one in found:
        if _is_of(one, "integer") and not _is_of(one, "number") and not one.keys() & _OF_NUMBERS:
            one.update(minimum=-_EXACT, maximum=_EXACT)
        properties, required = one.get("properties"), one.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            continue
        if not one.keys() & _OF_OBJECTS and {*map(str, required)} <= properties.keys():
            one["additionalProperties"] = False
    return schema


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all inside it."""
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
    return not schema.keys().isdisjoint(_JOIN) or (
        not schema.keys().isdisjoint(_REFER) and not schema.keys() <= _SILENT
    )


def _is_of(schema: dict[str, Any], kind: str) -> bool:
    given = schema.get("type")
    return kind in given if isinstance(given, list) else given == kind
