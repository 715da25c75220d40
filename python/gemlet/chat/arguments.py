"""Checks whether the arguments of a call fit the JSON schema of the function: :func:`problem_of`.

The check covers the keys of JSON Schema that :mod:`.annotations` writes, and other common keys. It ignores
all other keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.text import show

__all__ = ["problem_of"]

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_SHOWN = {"integer": "an integer", "array": "an array", "object": "an object", "null": "null"}
_MOST_NESTED = 100


def problem_of(schema: Mapping[str, Any], value: Any, where: str = "", depth: int = 0) -> str:
    """The reason why ``value`` does not fit ``schema``, in words for the model; "" if ``value`` fits.

    >>> schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    >>> problem_of(schema, {"days": "two"})
    'days: got a string, expected an integer'
    >>> problem_of(schema, {})
    'days is missing'
    """
    place = where or "arguments"
    if depth > _MOST_NESTED:
        return f"{where[:80]}: nested too deeply"
    if value is None and schema.get("nullable") is True:
        return ""
    kinds = _kinds(schema.get("type"))
    if kinds and not any(_is_of(kind, value) for kind in kinds):
        expected = " or ".join(_SHOWN.get(kind, f"a {kind}") for kind in kinds)
        got = _kind_of(value)
        return f"{place}: got {_SHOWN.get(got, f'a {got}')}, expected {expected}"
    if "enum" in schema and not any(_equal(value, each) for each in schema["enum"]):
        return f"{place}: got {show(value)}, expected one of {json.dumps(schema['enum'], ensure_ascii=False)}"
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{place}: got {show(value)}, expected {json.dumps(schema['const'], ensure_ascii=False)}"
    for key in ("anyOf", "oneOf"):
        if options := schema.get(key):
            problems = [problem_of(each, value, where, depth + 1) for each in options]
            if all(problems):
                return problems[0] if len(problems) == 1 else f"{place}: fits none of {len(problems)} forms"
    for each in schema.get("allOf") or ():
        if problem := problem_of(each, value, where, depth + 1):
            return problem
    return (
        _problem_of_object(schema, value, where, depth)
        or _problem_of_array(schema, value, where, depth)
        or _problem_of_scalar(schema, value, where)
    )


def _problem_of_object(schema: Mapping[str, Any], value: Any, where: str, depth: int) -> str:
    if not isinstance(value, Mapping):
        return ""
    inside = f"{where}." if where else ""
    known = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            return f"{inside}{name} is missing"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in known:
            problem = problem_of(known[name], item, f"{inside}{name}", depth + 1)
        elif others is False:
            problem = f"{inside}{name} is unknown; expected some of {', '.join(known) or 'nothing'}"
        elif isinstance(others, Mapping):
            problem = problem_of(others, item, f"{inside}{name}", depth + 1)
        else:
            continue
        if problem:
            return problem
    return ""


def _problem_of_array(schema: Mapping[str, Any], value: Any, where: str, depth: int) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return ""
    first = schema.get("prefixItems") or ()
    for index, item in enumerate(value):
        each = first[index] if index < len(first) else schema.get("items")
        if isinstance(each, Mapping) and (problem := problem_of(each, item, f"{where}[{index}]", depth + 1)):
            return problem
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not least <= len(value) <= most:
        return f"{where}: got {len(value)} items, expected {_range(least, most)}"
    if schema.get("uniqueItems") and any(_equal(a, b) for i, a in enumerate(value) for b in value[:i]):
        return f"{where}: an item appears twice"
    return ""


def _problem_of_scalar(schema: Mapping[str, Any], value: Any, where: str) -> str:
    if isinstance(value, str):
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if not least <= len(value) <= most:
            return f"{where}: got {len(value)} characters, expected {_range(least, most)}"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not least <= value <= most:
            return f"{where}: got {show(value)}, expected {_range(least, most)}"
        if value <= schema.get("exclusiveMinimum", -math.inf):
            return f"{where}: got {show(value)}, expected more than {schema['exclusiveMinimum']}"
        if value >= schema.get("exclusiveMaximum", math.inf):
            return f"{where}: got {show(value)}, expected less than {schema['exclusiveMaximum']}"
    return ""


def _range(least: float, most: float) -> str:
    if most == math.inf:
        return f"at least {least}"
    return f"at most {most}" if least in (0, -math.inf) else f"{least} to {most}"


def _kinds(kind: Any) -> list[str]:
    """The types that a schema names. The list is empty if JSON does not have one of these types."""
    kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, Sequence) else []
    found = [str(each).lower() for each in kinds]
    return found if all(each in _TYPES for each in found) else []


def _kind_of(value: Any) -> str:
    return next((kind for kind in _TYPES if _is_of(kind, value)), type(value).__name__)


def _is_of(kind: str, value: Any) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return kind == "number" or isinstance(value, int) or value.is_integer()
    expected: dict[str, Any] = {
        "string": str,
        "boolean": bool,
        "null": type(None),
        "array": list,
        "object": dict,
    }
    return isinstance(value, expected[kind])


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON. Unlike in Python, true and 1 differ, also inside lists and
    objects."""
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(one == other)
