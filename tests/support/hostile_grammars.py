"""Grammars that could take endless time, much memory, or the whole stack of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "true" + "}" * depth


def deep_mapping(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def objects(count: int, key: str) -> dict[str, Any]:
    one = [
        {"type": "object", "properties": {f"k{i}": {"type": "integer"}}, "required": [f"k{i}"]}
        for i in range(count)
    ]
    return {key: one}


def chain(count: int, rule: str) -> str:
    rules = "".join(f"{rule}{i}: {rule}{i + 1}\n" for i in range(count))
    return f'start: {rule}0\n{rules}{rule}{count}: "a"'


def doubling(count: int, rule: str) -> str:
    rules = "".join(f"{rule}{i}: {rule}{i + 1} {rule}{i + 1}\n" for i in range(count))
    return f'start: {rule}0\n{rules}{rule}{count}: "a"'


HOSTILE: dict[str, Callable[[], dict[str, Any]]] = {
    "deep schema": lambda: {"json_schema": nested(9000)},
    "deep schema as a mapping": lambda: {"json_schema": deep_mapping(100_000)},
    "circle of references": lambda: {
        "json_schema": {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        }
    },
    "doubling references": lambda: {
        "json_schema": {
            "$defs": {
                **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)},
                "d40": {"type": "integer"},
            },
            "$ref": "#/$defs/d0",
        }
    },
    "alternatives": lambda: {"json_schema": objects(2500, "anyOf")},
    "all of alternatives": lambda: {"json_schema": {"allOf": [objects(50, "anyOf")] * 8}},
    "properties": lambda: {
        "json_schema": {"type": "object", "properties": {f"k{i}": {} for i in range(8000)}}
    },
    "enumeration": lambda: {"json_schema": {"enum": [f"x{i}" for i in range(20_000)]}},
    "multiple": lambda: {"json_schema": {"type": "integer", "multipleOf": 99_999_989}},
    "digits": lambda: {"json_schema": '{"type":"integer","minimum":1' + "0" * 4000 + "}"},
    "lengths": lambda: {"json_schema": {"type": "string", "minLength": 10**8, "maxLength": 10**9}},
    "items": lambda: {"json_schema": {"type": "array", "items": {}, "minItems": 10**6}},
    "repetitions": lambda: {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "backtracking": lambda: {"regex": "(a+)+(a|aa)*(a|a)*b"},
    "states": lambda: {"regex": "(a|b)*a(a|b){2000}c"},
    "deep regex": lambda: {"regex": "(" * 100_000 + "a" + ")" * 100_000},
    "long regex": lambda: {"regex": "(a|b?)" * 40_000},
    "words": lambda: {"regex": "\\w{1,500}\\W{1,500}\\w{1,500}"},
    "choices": lambda: {"choice": [f"w{i}" for i in range(10_000)]},
    "long choice": lambda: {"choice": ["x" * 200_000]},
    "deep rules": lambda: {"grammar": chain(15_000, "r")},
    "deep terminals": lambda: {"grammar": chain(15_000, "T")},
    "doubling rules": lambda: {"grammar": doubling(60, "r")},
    "doubling terminals": lambda: {"grammar": doubling(60, "T")},
    "deep brackets": lambda: {"grammar": "start: " + "(" * 100_000 + '"a"' + ")" * 100_000},
    "ambiguous": lambda: {"grammar": 'start: start start start | start start | "a" | "b" | /c+/'},
    "empty loops": lambda: {"grammar": 'start: a a a a\na: a a | "x"? | '},
    "many times": lambda: {"grammar": 'start: ("a" "b"){1,1000000000}'},
    "intersections": lambda: {"grammar": "start: T\nT: /(a|b)*a(a|b){18}/ & /(a|b)*b(a|b){17}/ & ~/.*aba.*/"},
}
