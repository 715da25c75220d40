"""Makes a grammar for replies that have to call a function. :func:`native_grammar` uses the notation of
Gemma 4 and FunctionGemma, and :func:`python_grammar` uses the notation of Python.

The grammar is written in llguidance's Lark syntax, and is made from the JSON schemas of the functions. The
grammar enforces types, properties, required properties, enumerations and items. It ignores all other keys of
a schema, so the arguments have to be checked after the call. The properties have the same order as in the
tool declarations of the chat formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.chat.base import CallGrammar
from gemlet.chat.gemma4_tools import sorted_items, tool_name
from gemlet.chat.local_refs import inlined
from gemlet.chat.messages import checked_tools, json_value, mapping_at
from gemlet.chat.prompted_tools import parameters_of
from gemlet.errors import InvalidRequestError

__all__ = ["native_grammar", "python_grammar"]

_MOST_CALLS = 8
_MOST_NESTED = 20
_MOST_RULES = 5000
_IDENTIFIER = late_pattern(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMON = r"""
integer: /-?(0|[1-9][0-9]{0,14})/
number: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,12})?([eE][-+]?[0-9]{1,2})?/
name: /[A-Za-z_][A-Za-z0-9_]{0,60}/
value: text | number | boolean | null | array | object
"""


def named_tools(tools: Any, names: Any) -> tuple[list[Any], list[str]]:
    """``tools`` in OpenAI's form, and ``names`` as a list. If ``names`` is None, the list has the names of
    all tools.

    >>> named_tools([{"name": "now"}], None)[1]
    ['now']
    """
    read = checked_tools(tools)
    known = list(parameters_of(read))
    if names is None:
        return read, known
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(name in known for name in names):
        raise InvalidRequestError(f"names: got {show(names)}, expected some of {show(known)}")
    return read, list(names)


def native_grammar(tools: Sequence[Any], names: Sequence[str], tokens: Mapping[str, str]) -> CallGrammar:
    """A grammar of replies with calls in Gemma 4's notation.

    Args:
        tools: the tools in OpenAI's form.
        names: the functions that may be called. The reply has at least one call. If ``names`` has only one
            function, the reply has exactly one call.
        tokens: a mapping from a token of Gemma 4 to the token that the chat format uses instead. A token that
            is missing here stays the same.

    >>> print(native_grammar([{"function": {"name": "now"}}], ["now"], {}).lark.splitlines()[1])
    start: call
    """
    quote, begin, end = (tokens.get(name, name) for name in ('<|"|>', "<|tool_call>", "<tool_call|>"))
    common = f"""
text: {quote} /(.|\\n)*/ {quote}
boolean: "true" | "false"
null: "null"
array: "[" (value ("," value)*)? "]"
object: "{{" (member ("," member)*)? "}}"
member: name ":" value
"""
    writer = _Writer(comma=",", colon=":", words=("true", "false", "null"), text=f"{quote} {{}} {quote}")
    bodies = [f'"call:{name}{{" {writer.members(schema)} "}}"' for name, schema in _chosen(tools, names)]
    call = f"call: {begin} ({' | '.join(bodies)}) {end}"
    return CallGrammar(_whole(_start("call", "call", names), call, writer, common), (quote, begin, end))


def python_grammar(tools: Sequence[Any], names: Sequence[str]) -> CallGrammar:
    """A grammar of replies with calls in Python's form, ``[weather(city="Oslo")]``. The arguments are those
    of :func:`native_grammar`.

    >>> print(python_grammar([{"function": {"name": "now"}}], ["now"]).lark.splitlines()[1])
    start: "[" call "]"
    """
    common = r"""
text: /"([^"\\\x00-\x1f]|\\["\\nrt])*"/
boolean: "True" | "False"
null: "None"
array: "[" (value (", " value)*)? "]"
object: "{" (member (", " member)*)? "}"
member: text ": " value
"""
    writer = _Writer(comma=", ", colon=": ", words=("True", "False", "None"), text="")
    bodies = []
    for name, schema in _chosen(tools, names):
        plain = all(map(_IDENTIFIER.fullmatch, schema.get("properties") or ()))
        arguments = (
            writer.members(schema, keywords=True) if plain else f'"**{{" {writer.members(schema)} "}}"'
        )
        bodies.append(f'"{name}(" {arguments} ")"')
    calls = _start("call", '", " call', names)
    start = f'"[" {calls} "]"'
    return CallGrammar(_whole(start, f"call: {' | '.join(bodies)}", writer, common), ())


def _start(first: str, more: str, names: Sequence[str]) -> str:
    return first if len(names) == 1 else f"{first} ({more}){{0,{_MOST_CALLS - 1}}}"


def _whole(start: str, call: str, writer: _Writer, common: str) -> str:
    return "\n".join(["", f"start: {start}", call, *writer.rules]) + _COMMON + common


def _chosen(tools: Sequence[Any], names: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The name and the schema of the parameters of each function in ``names``. The name is escaped for
    Lark."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        function = json_value(mapping_at(mapping_at(tool, f"tools[{index}]").get("function"), where), where)
        name = tool_name(function.get("name"), where)
        if name in names:
            schema = mapping_at(function.get("parameters") or {}, f"{where}.parameters")
            found.append((json.dumps(name, ensure_ascii=False)[1:-1], inlined(schema)))
    if not found:
        raise InvalidRequestError(
            f"tools: got no tool with a name in {show(list(names))}; expected at least one"
        )
    return found


class _Writer:
    """Writes grammar rules that match the values of JSON schemas.

    Args:
        comma: the text between two members.
        colon: the text between a key and its value.
        words: the words for true, false and null.
        text: the Lark expression of a string, with ``{}`` in the place of the string's text. Empty if strings
            are written as in JSON.
    """

    def __init__(self, *, comma: str, colon: str, words: tuple[str, str, str], text: str) -> None:
        self.rules: list[str] = []
        self._comma, self._colon, self._words, self._text = comma, colon, words, text

    def members(self, schema: Mapping[str, Any], *, keywords: bool = False, depth: int = 0) -> str:
        """The rule for the text between the braces of an object that fits ``schema``. With ``keywords``,
        members are written ``key=value``."""
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            # A function (depth 0) without properties takes no arguments. Any other object without properties
            # may have any members.
            others = schema.get("additionalProperties", depth > 0)
            if keywords or others is False:
                return '""'
            free = self._value(schema.get("additionalProperties"), depth + 1)
            key = "name" if self._text else "text"
            member = f"{key} {self._lark(self._colon)} {free}"
            return f"({member} ({self._lark(self._comma)} {member})*)?"
        required = schema.get("required") or ()
        rest_first = rest = '""'
        # The loop goes from the last property to the first. ``rest`` is the rule for the later properties if
        # a property has been written before them, and ``rest_first`` is the rule if none has.
        for key, each in reversed(sorted_items(properties)):
            written = f"{self._key(key, keywords)} {self._value(each, depth + 1)}"
            needed = key in required
            first = f"{written} {rest}" if needed else f"{written} {rest} | {rest_first}"
            more = f"{self._lark(self._comma)} {written} {rest}"
            rest_first, rest = self._rule(first), self._rule(more if needed else f"{more} | {rest}")
        return rest_first

    def _key(self, key: str, keywords: bool) -> str:
        if keywords:
            return self._lark(f"{key}=")
        if self._text and _IDENTIFIER.fullmatch(key):
            return self._lark(key + self._colon)
        return f"{self._given(key)} {self._lark(self._colon)}"

    def _value(self, schema: Any, depth: int) -> str:
        """A rule, or the name of a rule, for the values of ``schema``."""
        if not isinstance(schema, Mapping) or depth > _MOST_NESTED:
            return "value"
        options = [self._given(value) for value in self._enumerated(schema)]
        if not options:
            for key in ("anyOf", "oneOf"):
                if isinstance(schema.get(key), list):
                    options += [self._value(each, depth + 1) for each in schema[key]]
        if not options:
            kinds = schema.get("type")
            kinds = kinds if isinstance(kinds, list) else [kinds]
            options = [self._of_kind(str(kind).lower(), schema, depth) for kind in kinds]
        if schema.get("nullable") is True and "null" not in options:
            options.append("null")
        options = list(dict.fromkeys(options))
        return options[0] if len(options) == 1 else self._rule(" | ".join(options))

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object":
            return self._rule(f'"{{" {self.members(schema, depth=depth)} "}}"')
        if kind == "array":
            comma = self._lark(self._comma)
            first = schema.get("prefixItems")
            if isinstance(first, list):
                items = f" {comma} ".join(self._value(each, depth + 1) for each in first)
                return self._rule(f'"[" {items} "]"')
            item = self._value(schema.get("items"), depth + 1)
            return self._rule(f'"[" ({item} ({comma} {item})*)? "]"')
        plain = {
            "string": "text",
            "integer": "integer",
            "number": "number",
            "boolean": "boolean",
            "null": "null",
        }
        return plain.get(kind, "value")

    def _enumerated(self, schema: Mapping[str, Any]) -> list[Any]:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        return list(values) if isinstance(values, list) else []

    def _given(self, value: Any) -> str:
        """The rule for one given value."""
        comma = f" {self._lark(self._comma)} "
        if isinstance(value, str):
            as_json = self._lark(json.dumps(value, ensure_ascii=False))
            return self._text.format(self._lark(value)) if self._text else as_json
        if isinstance(value, Mapping):
            members = (f"{self._key(key, False)} {self._given(each)}" for key, each in sorted_items(value))
            return '"{" ' + comma.join(members) + ' "}"'
        if isinstance(value, list):
            return '"[" ' + comma.join(map(self._given, value)) + ' "]"'
        if value is None or isinstance(value, bool):
            return self._lark(self._words[2] if value is None else self._words[0 if value else 1])
        return self._lark(json.dumps(value))

    def _lark(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def _rule(self, body: str) -> str:
        if len(self.rules) >= _MOST_RULES:
            raise InvalidRequestError(
                f"tools: the schemas have more than {_MOST_RULES} parts; give fewer or smaller tools"
            )
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name
