"""The grammar of calls: llguidance's matcher for it accepts the calls that fit the schemas, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from gemlet.chat import (
    FUNCTION_GEMMA,
    GEMMA,
    GEMMA4_MARKERS,
    SHIELD_GEMMA,
    CallGrammar,
    TextReplyParser,
    ToolCall,
    gemma4_format,
)
from gemlet.chat.arguments import problem_of
from gemlet.chat.python_calls import parse_calls
from gemlet.errors import InvalidRequestError, UnsupportedError
from support.extras import optional

llguidance = optional("llguidance")
pytestmark = pytest.mark.extra("grammar")

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "unit": {"enum": ["c", 'f"', 3, None, True]},
    "more": {
        "type": "object",
        "properties": {"x": {"type": "number"}, "a b": {"type": ["string", "null"]}},
        "required": ["x"],
    },
    "flags": {"type": "array", "items": {"type": "boolean"}, "nullable": True},
    "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    "either": {
        "anyOf": [{"type": "integer"}, {"type": "object", "additionalProperties": {"type": "string"}}]
    },
    "anything": {},
}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
TOOLS = [{"name": "weather", "parameters": SCHEMA}, {"name": "now"}]
Q = '<|"|>'
NATIVE = {
    "call:now{}": {},
    f"call:weather{{city:{Q}Os{{}}'lo\n{Q}}}": {"city": "Os{}'lo\n"},
    f"call:weather{{anything:[1,{{a:null}}],city:{Q}{Q},days:-3,either:{{k:{Q}v{Q}}},flags:[true,false],"
    f'more:{{{Q}a b{Q}:null,x:1.5e3}},pair:[1,{Q}z{Q}],unit:{Q}f"{Q}}}': None,
    f"call:weather{{city:{Q}x{Q},either:7,flags:null,unit:null}}": None,
}
WRONG_NATIVE = (
    "call:weather{}",  # without a required key
    f"call:weather{{city:{Q}x{Q},days:1.5}}",
    f"call:weather{{city:{Q}x{Q},unit:{Q}k{Q}}}",
    f"call:weather{{city:{Q}x{Q},other:1}}",
    f"call:weather{{days:1,city:{Q}x{Q}}}",  # the arguments are in another order
    f"call:weather{{city:{Q}x{Q},more:{{}}}}",
    "call:then{}",
    "call:now{a:1}",
)
PYTHON = (
    "[now()]",
    '[weather(city="a\\"b\\n"), now()]',
    '[weather(anything={"q": [True]}, city="", days=-3, either={"k": "v"}, flags=None, '
    'more={"a b": None, "x": 1.5}, pair=[1, "z"], unit="f\\"")]',
)
WRONG_PYTHON = (
    "[]",
    "[weather()]",
    '[weather(city="x", unit="k")]',
    "[now(a=1)]",
    "[now(), ]",
    "now()",
    "Hello",
)


class Vocabulary:
    """Bytes, and control tokens by name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.eos_token_id = 256 + len(names)
        self.bos_token_id = None
        self.tokens = [*(bytes([i]) for i in range(256)), *(name.encode() for name in names), b"<end>"]
        self.special_token_ids = list(range(256, 257 + len(names)))

    def __call__(self, data: bytes) -> list[int]:
        return list(data)

    def ids(self, text: str) -> list[int]:
        """The bytes of ``text``, with the control tokens that are written in it."""
        ids: list[int] = []
        while text:
            name = next((name for name in self.names if text.startswith(name)), None)
            ids += [256 + self.names.index(name)] if name else list(text[0].encode())
            text = text[len(name or text[0]) :]
        return ids


def takes(grammar: CallGrammar, *texts: str) -> list[bool]:
    vocabulary = Vocabulary(grammar.control)
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))
    found = []
    for text in texts:
        matcher = llguidance.LLMatcher(tokenizer, grammar.lark, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = vocabulary.ids(text)
        found.append(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())
    return found


def test_calls_of_gemma4() -> None:
    grammar = gemma4_format().call_grammar(TOOLS)
    calls = [f"<|tool_call>{call}<tool_call|>" for call in NATIVE]
    assert takes(grammar, *calls, calls[0] + calls[1], "".join(calls * 2)) == [True] * (len(calls) + 2)
    wrong = [f"<|tool_call>{call}<tool_call|>" for call in WRONG_NATIVE]
    assert not any(takes(grammar, *wrong, "", "Hello", calls[0] + "Hello", calls[0] * 9))
    for call, text in zip(NATIVE.values(), calls, strict=True):
        (read,) = TextReplyParser(GEMMA4_MARKERS).push(text)
        assert isinstance(read, ToolCall)
        assert call is None or read.arguments == call
        assert read.name == "now" or problem_of(SCHEMA, read.arguments) == ""


REFERRED = {
    "properties": {
        "one": {"$ref": "#/$defs/Part", "description": "as classes of pydantic have it"},
        "many": {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/Part"}], "default": {}}},
        "like": {"$ref": "#/properties/plain~1er"},
        "plain/er": {"type": "boolean"},
    },
    "$defs": {
        "Part": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "in": {"$ref": "#/$defs/Part"}},
            "required": ["n"],
        }
    },
}


def test_references_are_followed() -> None:
    grammar = GEMMA.call_grammar([{"name": "f", "parameters": REFERRED}])
    fits = ('"one": {"n": 1}', '"many": [{"in": {"n": 2}, "n": 1}]', '"like": True', '"plain/er": False')
    assert all(takes(grammar, *(f"[f(**{{{argument}}})]" for argument in fits)))
    whole = {"$ref": "#/$defs/Part", "$defs": REFERRED["$defs"]}
    grammar_of_whole = GEMMA.call_grammar([{"name": "f", "parameters": whole}])
    assert takes(grammar_of_whole, "[f(n=1)]", "[f()]") == [True, False]
    wrong = ('"one": 1', '"one": {"n": "1"}', '"many": [{}]', '"many": [{"in": {}, "n": 1}]', '"like": 1')
    assert not any(takes(grammar, *(f"[f(**{{{argument}}})]" for argument in wrong)))


def test_references_that_lead_nowhere_allow_anything() -> None:
    for place in ("#", "#/$defs/none", "https://example.org/x", "#/properties/a", "#/$defs/list/7"):
        schema = {"properties": {"a": {"$ref": place}}, "$defs": {"list": []}}
        assert takes(GEMMA.call_grammar([{"name": "f", "parameters": schema}]), "[f()]") == [True]
    many = {"anyOf": [{"$ref": "#/$defs/a"}] * 9}  # stands for 9 ** 20 schemas
    schema = {"properties": {"a": many}, "$defs": {"a": {"type": "array", "items": many}}}
    assert takes(GEMMA.call_grammar([{"name": "f", "parameters": schema}]), "[f(a=[])]") == [True]


def test_calls_of_functiongemma() -> None:
    grammar = FUNCTION_GEMMA.call_grammar(TOOLS, ["now", "weather"])
    text = "<start_function_call>call:weather{city:<escape>Oslo<escape>}<end_function_call>"
    assert takes(grammar, text, text.replace("<escape>", "")) == [True, False]


def test_calls_in_pythons_form() -> None:
    grammar = GEMMA.call_grammar(TOOLS)
    assert all(takes(grammar, *PYTHON))
    assert not any(takes(grammar, *WRONG_PYTHON))
    for text in PYTHON:
        for name, arguments in parse_calls(text, {}):
            assert name == "now" or problem_of(SCHEMA, arguments) == ""


def test_a_single_function_is_called_once() -> None:
    for chat_format, text, joint in (
        (gemma4_format(), "<|tool_call>call:now{}<tool_call|>", ""),
        (GEMMA, "now()", ", "),
    ):
        grammar = chat_format.call_grammar(TOOLS, ["now"])
        frame = "{}" if chat_format is not GEMMA else "[{}]"
        assert takes(grammar, frame.format(text), frame.format(text + joint + text)) == [True, False]


def test_grammars_take_names_of_every_kind() -> None:
    properties: dict[str, Any] = {"a b": {"type": "integer"}, 'q"': {"enum": ["\\\n"]}}
    tools: list[dict[str, Any]] = [{"name": 'odd"name', "parameters": {"properties": properties}}]
    call = f'<|tool_call>call:odd"name{{{Q}a b{Q}:1}}<tool_call|>'
    assert takes(gemma4_format().call_grammar(tools), call) == [True]
    tools[0]["name"] = "odd"
    text = r"""[odd(**{"a b": 1, "q\"": "\\\n"})]"""
    assert takes(GEMMA.call_grammar(tools), text) == [True]
    assert parse_calls(text, {}) == [("odd", {"a b": 1, 'q"': "\\\n"})]


def test_schemas_of_every_size() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    tools = [{"name": "f", "parameters": {"properties": {"a": deep}}}]
    assert takes(GEMMA.call_grammar(tools), "[f()]") == [True]
    wide = {"properties": {f"a{i}": {"enum": [1, 2]} for i in range(5000)}}
    with pytest.raises(InvalidRequestError, match="more than 5000 parts"):
        GEMMA.call_grammar([{"name": "f", "parameters": wide}])


def test_wrong_use() -> None:
    for tools, names in (([], None), (TOOLS, []), (TOOLS, ["then"]), (TOOLS, "now"), ([{}], None)):
        with pytest.raises(InvalidRequestError):
            GEMMA.call_grammar(tools, names)
    with pytest.raises(UnsupportedError, match="no notation for calls"):
        SHIELD_GEMMA.call_grammar(TOOLS)
