"""Gemma 4's notation for tools: declarations of functions, calls and their results.

The notation is JSON with two changes: keys are sorted and have no quotes, and strings stand between two
tokens ``<|"|>`` instead of quotes. A declaration is a shortened JSON schema: types are in upper case, and it
has only the keys that the official templates read. The order of the keys and the commas between them differ
between the revisions of the template; :class:`SchemaStyle` describes the differences.

If a text of a client spells ``<|"|>``, it stays text. Only the ``<|"|>`` of the notation becomes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.chat.base import Segments
from gemlet.chat.messages import json_object, json_value, mapping_at, plain
from gemlet.errors import InvalidRequestError

__all__ = [
    "QUOTE",
    "SchemaStyle",
    "ToolResult",
    "WrittenCall",
    "read_calls",
    "read_list",
    "tool_name",
    "write_call",
    "write_result",
    "write_tool",
]

QUOTE = '<|"|>'
_STANDARD_KEYS = frozenset(("description", "type", "properties", "required", "nullable"))
_NAME = late_pattern(r"[^\s{}](?:[^\n{}]*[^\s{}])?")
# A key that a reader can separate from the colon after it. U+2581 is a space to the tokenizer.
_PLAIN_KEY = late_pattern(r'[^\s\u2581:,{}\[\]"](?:[^:,{}\[\]"]*[^\s\u2581:,{}\[\]"])?')


@record(frozen=True)
class SchemaStyle:
    """The form in which a revision of the template writes a property of a schema.

    Attributes:
        nullable_first: whether ``nullable`` is written before ``enum`` and ``items``, not after them.
        bare_commas: whether a comma comes before ``properties`` and ``items`` even if they are the first key.
        drops_names: whether properties named like a key of a schema ("description", "type") are left out.
        null: the text for the value null.
        described: whether every property has a description, even an empty one, and neither ``nullable`` nor
            ``response`` is written, as in FunctionGemma.
    """

    nullable_first: bool
    bare_commas: bool
    drops_names: bool = True
    null: str = "None"
    described: bool = False


@record(frozen=True)
class WrittenCall:
    """A call in the history of a conversation; ``arguments`` are checked JSON values."""

    name: str
    arguments: dict[str, Any]


@record(frozen=True)
class ToolResult:
    """The answer of a tool; ``value`` is a checked JSON value."""

    name: str
    value: Any


def tool_name(value: Any, where: str) -> str:
    """Checks that ``value`` is the name of a function, and returns it."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequestError(f"{where}: name is {show(value)}; expected a name without braces")
    return plain(value)


def read_list(value: Any, where: str) -> list[Any]:
    """``value`` as a list, empty for None."""
    if not value:
        return []
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise InvalidRequestError(f"{where} is {show(value)}; expected a list")
    return list(value)


def read_calls(value: Any, where: str) -> tuple[list[WrittenCall], list[Any]]:
    """The calls in ``value``, the ``tool_calls`` of a message, and the ids of the calls."""
    calls: list[WrittenCall] = []
    ids: list[Any] = []
    for index, call in enumerate(read_list(value, f"{where}.tool_calls")):
        here = f"{where}.tool_calls[{index}]"
        call = mapping_at(call, here)
        function = mapping_at(call.get("function"), f"{here}.function")
        name = tool_name(function.get("name"), f"{here}.function")
        calls.append(WrittenCall(name, json_object(function.get("arguments"), f"{here}.function.arguments")))
        ids.append(call.get("id"))
    return calls, ids


def sorted_items(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The items of ``mapping`` in the order of Jinja's ``dictsort``: by key, without regard to case."""
    return sorted(mapping.items(), key=lambda item: item[0].lower())


# --- values -------------------------------------------------------------------------------------------------


def _write_text(out: Segments, text: str) -> None:
    out.marker(QUOTE)
    out.text(text)
    out.marker(QUOTE)


def _write_value(out: Segments, value: Any, null: str, keys: str) -> None:
    """Writes a value. ``keys`` is the form of the keys: "quoted" as in a schema, "bare" as in a result, or
    "safe" as in a call. "safe" puts a key in quotes only if the end of the key would be unclear."""
    if isinstance(value, str):
        _write_text(out, value)
    elif isinstance(value, bool):
        out.text("true" if value else "false")
    elif isinstance(value, dict):
        out.text("{")
        _write_members(out, value, null, keys)
        out.text("}")
    elif isinstance(value, list):
        out.text("[")
        for index, item in enumerate(value):
            out.text("," if index else "")
            _write_value(out, item, null, keys)
        out.text("]")
    else:
        out.text(null if value is None else str(value))


def _write_members(out: Segments, members: Mapping[str, Any], null: str, keys: str) -> None:
    for index, (key, value) in enumerate(sorted_items(members)):
        out.text("," if index else "")
        if keys == "quoted" or (keys == "safe" and not _PLAIN_KEY.fullmatch(key)):
            _write_text(out, key)
        else:
            out.text(key)
        out.text(":")
        _write_value(out, value, null, keys)


def write_call(out: Segments, call: WrittenCall, null: str) -> None:
    """Writes ``<|tool_call>call:NAME{key:value,...}<tool_call|>``.

    A key whose end would be unclear (``a:b``) is written as a string. Otherwise the key could not be told
    from the value. The templates write every key without quotes.
    """
    out.marker("<|tool_call>")
    out.text(f"call:{call.name}{{")
    _write_members(out, call.arguments, null, "safe")
    out.text("}")
    out.marker("<tool_call|>")


def write_result(out: Segments, result: ToolResult, null: str) -> None:
    """Writes ``<|tool_response>response:NAME{key:value,...}<tool_response|>``. A value that is not an object
    becomes an object with the key ``value``."""
    members = result.value if isinstance(result.value, dict) else {"value": result.value}
    out.marker("<|tool_response>")
    out.text(f"response:{result.name}{{")
    _write_members(out, members, null, "bare")
    out.text("}")
    out.marker("<tool_response|>")


# --- declarations -------------------------------------------------------------------------------------------


def write_tool(out: Segments, tool: Any, where: str, style: SchemaStyle) -> None:
    """Writes ``<|tool>declaration:NAME{...}<tool|>``."""
    tool = mapping_at(tool, where)
    where = f"{where}.function"
    function = json_value(mapping_at(tool.get("function"), where), where)
    name = tool_name(function.get("name"), where)
    out.marker("<|tool>")
    out.text(f"declaration:{name}{{description:")
    description = function.get("description", "")
    # For a description of null, the templates print None.
    _write_text(out, "None" if description is None else _text(description))
    parameters = function.get("parameters")
    if parameters:
        out.text(",parameters:{")
        _Schema(out, style).write_root(mapping_at(parameters, f"{where}.parameters"), f"{where}.parameters")
    if "response" in function and not style.described:
        response = mapping_at(function["response"], f"{where}.response")
        out.text(",response:{")
        if response.get("description"):
            out.text("description:")
            _write_text(out, _text(response["description"]))
            out.text(",")
        if _type(response) == "OBJECT":
            out.text("type:")
            _write_text(out, "OBJECT")
            out.text("}")
    out.text("}")
    out.marker("<tool|>")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _get(schema: Any, key: str) -> Any:
    """The value of ``key`` in ``schema``; ``""``, which is false and not a mapping, if the key is absent."""
    return schema.get(key, "") if isinstance(schema, dict) else ""


def _type(schema: Any) -> str:
    return str(_get(schema, "type")).upper()


class _Schema:
    """Writes JSON schemas, with a comma before every key but the first. For a schema without a type, the
    official templates leave out the closing brace; this class does the same."""

    def __init__(self, out: Segments, style: SchemaStyle) -> None:
        self._out = out
        self._style = style
        self._comma = False

    def write_root(self, schema: Mapping[str, Any], where: str) -> None:
        out = self._out
        if schema.get("properties"):
            out.text("properties:{")
            self._write_properties(mapping_at(schema["properties"], f"{where}.properties"), where)
            out.text("},")
        if schema.get("required"):
            out.text("required:")
            self._write_names(schema["required"], where)
            out.text(",")
        if schema.get("type"):
            out.text("type:")
            _write_text(out, _type(schema))
            out.text("}")

    def _write_properties(self, properties: Mapping[str, Any], where: str, drops: bool | None = None) -> None:
        drops = self._style.drops_names if drops is None else drops
        first = True
        for name, schema in sorted_items(properties):
            if drops and name in _STANDARD_KEYS:
                continue
            self._out.text("" if first else ",")
            first = False
            self._out.text(f"{name}:{{")
            self._write_property(schema, f"{where}.{name}"[:200])

    def _write_property(self, schema: Any, where: str) -> None:
        self._comma = False
        kind = _type(schema)
        if self._style.described or _get(schema, "description"):
            self._write_key("description:")
            _write_text(self._out, str(_get(schema, "description")))
        if self._style.nullable_first:
            self._write_nullable(schema)
        if kind == "STRING" and _get(schema, "enum"):
            self._write_key("enum:")
            _write_value(self._out, schema["enum"], self._style.null, "quoted")
        elif kind == "ARRAY":
            items = _get(schema, "items")
            if isinstance(items, dict) and items:
                self._write_block("items:{", self._write_items, items, f"{where}.items")
        if not self._style.nullable_first:
            self._write_nullable(schema)
        if kind == "OBJECT":
            found = _get(schema, "properties")
            if isinstance(found, dict):
                self._write_block("properties:{", self._write_properties, found, where)
            else:  # the templates then take the other keys of the schema for properties
                self._write_block("properties:{", self._write_other_keys, schema, where)
            if schema.get("required"):
                self._write_block("required:", self._write_names, schema["required"], where, end="")
        self._write_key("type:")
        _write_text(self._out, kind)
        self._out.text("}")

    def _write_other_keys(self, schema: Mapping[str, Any], where: str) -> None:
        self._write_properties(schema, where, drops=True)

    def _write_nullable(self, schema: Any) -> None:
        if _get(schema, "nullable") and not self._style.described:
            self._write_key("nullable:true")

    def _write_items(self, items: Mapping[str, Any], where: str) -> None:
        first = True
        for key, value in sorted_items(items):
            if value is None:
                continue
            self._out.text("" if first else ",")
            first = False
            if key == "properties":
                self._out.text("properties:{")
                if isinstance(value, dict):
                    self._write_properties(value, where)
                self._out.text("}")
            elif key == "required":
                self._out.text("required:")
                self._write_names(value, where)
            elif key == "type":
                if not isinstance(value, str | list):
                    raise InvalidRequestError(f"{where}.type is {show(value)}; expected a string or a list")
                upper = value.upper() if isinstance(value, str) else [str(item).upper() for item in value]
                self._out.text("type:")
                _write_value(self._out, upper, self._style.null, "quoted")
            else:
                self._out.text(f"{key}:")
                _write_value(self._out, value, self._style.null, "quoted")

    def _write_names(self, names: Any, where: str) -> None:
        if not isinstance(names, list):
            raise InvalidRequestError(f"{where}.required is {show(names)}; expected a list of names")
        self._out.text("[")
        for index, name in enumerate(names):
            self._out.text("," if index else "")
            _write_text(self._out, _text(name))
        self._out.text("]")

    def _write_key(self, text: str) -> None:
        self._out.text("," if self._comma else "")
        self._out.text(text)
        self._comma = True

    def _write_block(
        self, start: str, write: Callable[[Any, str], None], value: Any, where: str, end: str = "}"
    ) -> None:
        """Writes a key whose value has parts. Commas inside the value do not affect the commas around it."""
        comma = self._comma
        if self._style.bare_commas:
            self._out.text("," + start)
        else:
            self._write_key(start)
            comma = True
        write(value, where)
        self._out.text(end)
        self._comma = comma
