"""Converts the request fields for structured output, such as ``response_format``, to options of the
library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.server.problems import Problem
from gemlet.server.schema import Either, Flag, Ignored, Kind, ListOf, Object, OneOf, Schema, Text

__all__ = ["FORMS", "SCHEMA_FORMAT", "form_names", "form_of", "of_format"]

_LONGEST = 256_000  # the most characters of a grammar, a regex or a schema in a string
_NAMED = Object(
    {"name": Text(64), "description": Text(1 << 16), "schema": Schema(), "strict": Ignored()},
    ["schema"],
)
# In /v1/responses and in the Anthropic API, the format object has the schema as a field, without another
# object around the schema.
SCHEMA_FORMAT = Object(
    {
        "type": OneOf("text", "json_object", "json_schema"),
        "name": Text(64),
        "description": Text(1 << 16),
        "schema": Schema(),
        "strict": Ignored(),
    },
    ["type"],
)
FORMS: Mapping[str, Kind] = {
    "response_format": Object(
        {"type": OneOf("text", "json_object", "json_schema"), "json_schema": _NAMED}, ["type"]
    ),
    "structured_outputs": Object(
        {
            "json": Either("a JSON schema of at most 256 KB", Text(_LONGEST, 2), Schema()),
            "regex": Text(_LONGEST, 1),
            "choice": ListOf(Text(1000, 1), 1000, 1),
            "grammar": Text(_LONGEST, 1),
            "json_object": Flag(),
        }
    ),
    "json_schema": Schema(),  # the field of llama.cpp
}
_ANY_OBJECT = {"type": "object"}


def form_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the structured output option of the library for the checked ``fields`` of an OpenAI request.

    >>> form_of({"response_format": {"type": "json_object"}})
    {'json_schema': {'type': 'object'}}
    >>> form_of({"structured_outputs": {"choice": ["yes", "no"]}})
    {'choice': ['yes', 'no']}
    """
    format = fields.get("response_format", {"type": "text"})
    found = [of_format({**format, **format.get("json_schema", {})}, "response_format")]
    if "json_schema" in fields:
        found.append({"json_schema": fields["json_schema"]})
    names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
    asked = fields.get("structured_outputs", {})
    found += [{names[name]: value} for name, value in asked.items() if name in names]
    if asked.get("json_object"):
        found.append({"json_schema": _ANY_OBJECT})
    forms = [one for one in found if one]
    if len(forms) > 1 or ("structured_outputs" in fields and all(one is False for one in asked.values())):
        raise Problem(
            400,
            "structured_outputs: expected exactly one of json, regex, choice, grammar and json_object, and "
            "no response_format or json_schema beside it",
            param="structured_outputs",
        )
    return forms[0] if forms else {}


def form_names(fields: Mapping[str, Any]) -> dict[str, str]:
    """Maps each structured output option of the library to the request field that sets it.

    >>> form_names({"structured_outputs": {"regex": "("}})
    {'regex': 'structured_outputs.regex'}
    """
    asked = {name: f"structured_outputs.{name}" for name in fields.get("structured_outputs", ())}
    if "json" in asked:
        asked["json_schema"] = asked.pop("json")
    if "response_format" in fields:
        asked["json_schema"] = "response_format.json_schema.schema"
    return asked


def of_format(format: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the option of the library for a format with a ``type`` and perhaps a ``schema``."""
    if format["type"] == "json_schema":
        if "schema" not in format:
            raise Problem(400, f"{where}: got json_schema without a schema, expected a schema", param=where)
        return {"json_schema": format["schema"]}
    return {"json_schema": _ANY_OBJECT} if format["type"] == "json_object" else {}
