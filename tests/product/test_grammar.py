"""Tests of structured output: each result matches its schema, regular expression, grammar or list of choices,
even if the model prefers other tokens."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import weakref
from typing import Any

import pytest

import gemlet
from gemlet.generation.closed_schema import closed
from support.processes import run_program
from support.programs import grammar as programs

pytestmark = pytest.mark.extra("grammar")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 15},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"', "☂", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SHORT = {"max_tokens": 150, "seed": 1}


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load() as loaded:
        yield loaded


def check_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) == ["name", "age", "tags"]
    assert isinstance(person["name"], str)
    assert 0 <= person["age"] <= 150
    assert all(tag in ["a", 'b"', "☂", None] for tag in person["tags"])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0, 100.0])
def test_json_parses_at_any_temperature(model: gemlet.Model, temperature: float) -> None:
    """At temperature 100, all tokens that the grammar allows are about equally likely."""
    for result in model.generate(
        ["The door"] * 8, json_schema=PERSON, temperature=temperature, max_tokens=200, seed=list(range(8))
    ):
        assert result.finish_reason == "stop"
        check_person(result.text)


def test_texts_of_a_loose_schema_end(model: gemlet.Model) -> None:
    """Even if the schema does not limit them, the object has no further keys, and numbers have few digits."""
    inner = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "required": ["n"]}
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "d": {"type": "integer", "minimum": 0},
            "e": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "f": {"type": "number", "minimum": -1, "maximum": 1},
            "b": {"allOf": [{"$ref": "#/$defs/inner"}], "title": "B"},
            "c": {"anyOf": [inner]},
        },
        "required": ["a", "b", "c", "d", "e", "f"],
        "$defs": {"inner": inner},
    }
    before = json.dumps(schema)
    options: Any = {"temperature": 3.0, "max_tokens": 200, "seed": list(range(6))}
    for result in model.generate(["The door"] * 6, json_schema=schema, **options):
        assert result.finish_reason == "stop"
        found = json.loads(result.text)
        assert [*found] == ["a", "d", "e", "f", "b", "c"]
        assert max(abs(found["a"]), found["d"]) < 2**53
        assert found["e"] is None or found["e"] > 0
        assert -1 <= found["f"] <= 1
        assert [*found["b"]] == [*found["c"]] == ["n"]
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {}}, "additionalProperties": True},
        {"properties": {"a": {}}, "patternProperties": {"^x": {}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "minProperties": 2},
        {"type": "object"},
        {"type": "integer", "minimum": 10**20},
        {"type": "integer", "maximum": -(10**20)},
        {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
        {"type": "integer", "multipleOf": 7},
        {"type": "number"},
        {"type": "number", "minimum": 0, "maximum": 1e-9},
        {"type": ["integer", "number"]},
        {"enum": [{"properties": {"a": {}}}]},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"allOf": [{"properties": {"a": {}}}], "properties": {"b": {}}},
        {"$ref": "#/$defs/x", "required": ["b"], "$defs": {"x": {"properties": {"a": {}}}}},
        {"anyOf": [{"properties": {"a": {}}}], "properties": {"b": {}}},
        {"anyOf": 3, "properties": 4, "type": 5, "$defs": [], "items": [7]},
    ],
)
def test_closing_a_schema_does_not_change_it(schema: dict[str, Any]) -> None:
    """gemlet forbids further keys ("closes" a schema). If a schema joins several parts, each part must still
    allow the keys of the other parts."""
    before = json.dumps(schema)
    assert json.dumps(closed(schema)) == before


def test_schemas_may_be_text_or_classes(model: gemlet.Model) -> None:
    class Person:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return PERSON

    texts = {
        model.generate("It was", json_schema=schema, **SHORT).text
        for schema in (PERSON, json.dumps(PERSON), Person)
    }
    assert len(texts) == 1
    check_person(texts.pop())


@pytest.mark.parametrize(
    "pattern", ["[0-9]{3}/[a-z]{2}\\n\\\\?", "^(a|b)+c$", "(?i)yes|no", '"[^"]*☂"', "\\x{1F600}{2}"]
)
def test_the_whole_text_matches_a_regex(model: gemlet.Model, pattern: str) -> None:
    for seed in range(5):
        result = model.generate("It was", regex=pattern, temperature=2.0, max_tokens=300, seed=seed)
        if result.finish_reason == "stop":
            assert re.fullmatch(pattern.replace("\\x{1F600}", "\U0001f600"), result.text), result.text
    assert result.finish_reason == "stop" or "*" in pattern


def test_a_choice_is_one_of_the_texts(model: gemlet.Model) -> None:
    texts = ["yes", "yes, but", 'a"b\\c/\n', "\x00\u2028\x7f", "😀 é", "(.*)"]
    found = {
        model.generate("It was", choice=texts, temperature=50.0, max_tokens=40, seed=seed).text
        for seed in range(40)
    }
    assert found <= set(texts)
    assert len(found) > 3
    assert model.generate("It was", choice=["nothing else"], max_tokens=40).text == "nothing else"


def test_a_grammar_of_rules(model: gemlet.Model) -> None:
    sums = 'start: sum "="\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    for seed in range(5):
        text = model.generate("It was", grammar=sums, max_tokens=40, temperature=2.0, seed=seed).text
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*[+=]?", text)


def test_the_finish_reason_of_a_text_that_max_tokens_cuts_off(model: gemlet.Model) -> None:
    result = model.generate("It was", json_schema=PERSON, max_tokens=4, seed=1)
    assert (result.finish_reason, result.completion_tokens) == ("length", 4)
    assert '{"name": "A long name'.startswith(result.text[:8])
    whole = model.generate("It was", json_schema=PERSON, **SHORT)
    exact = model.generate("It was", json_schema=PERSON, **{**SHORT, "max_tokens": whole.completion_tokens})
    assert (exact.text, exact.finish_reason) == (whole.text, "stop")


def test_streams_and_batches_do_not_change_a_text(model: gemlet.Model) -> None:
    prompts = ["The door", "A star", "It was a dark night, and nobody " * 5]
    options: dict[str, Any] = {"json_schema": PERSON, "max_tokens": 150, "seed": 5, "temperature": 1.5}
    together = model.generate(prompts, **options)
    for prompt, result in zip(prompts, together, strict=True):
        assert model.generate(prompt, **options).token_ids == result.token_ids
    with model.stream(prompts, **options) as stream:
        texts = ["", "", ""]
        for chunk in stream:
            texts[chunk.index] += chunk.text
    assert texts == [result.text for result in together]

    async def write() -> list[str]:
        results = await asyncio.gather(*(model.agenerate(prompt, **options) for prompt in prompts))
        return [result.text for result in results]

    assert asyncio.run(write()) == texts


def test_requests_with_and_without_grammars_run_together(model: gemlet.Model) -> None:
    free = model.generate("The door", max_tokens=60, seed=3).text
    streams = [
        model.stream("The door", max_tokens=60, seed=3),
        model.stream("The door", choice=["one two three four five six seven"], max_tokens=60, seed=3),
        model.stream("The door", json_schema=PERSON, max_tokens=150, seed=3),
    ]
    texts = ["", "", ""]
    left = list(range(3))
    while left:
        for i in list(left):
            chunk = next(streams[i], None)
            if chunk is None:
                left.remove(i)
            else:
                texts[i] += chunk.text
    assert texts[:2] == [free, "one two three four five six seven"]
    check_person(texts[2])


def test_grammars_work_with_stop_strings_penalties_and_biases(model: gemlet.Model) -> None:
    result = model.generate("It was", json_schema=PERSON, stop=["age"], **SHORT)
    assert result.finish_reason == "stop"
    assert result.text.startswith('{"name"')
    assert "age" not in result.text
    options = {"repetition_penalty": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "min_tokens": 30}
    check_person(model.generate("It was", json_schema=PERSON, **SHORT, **options).text)
    letter = model.tokenizer.encode("b", add_bos=False)[-1]
    assert model.generate("It was", regex="[ab]", logit_bias={letter: 100.0}, max_tokens=5).text == "b"


def test_structured_output_of_chats(model: gemlet.Model) -> None:
    result = model.chat("Who is there?", json_schema=PERSON, **SHORT)
    assert result.finish_reason == "stop"
    check_person(result.text)
    with model.stream_chat("Who is there?", choice=["Nobody."], max_tokens=20) as stream:
        assert "".join(chunk.text for chunk in stream) == "Nobody."


def test_end_tokens_come_only_where_the_text_is_complete(model: gemlet.Model) -> None:
    end = model.tokenizer.eos_id
    result = model.generate(
        "It was", regex="[a-z]{30}", max_tokens=60, logit_bias={end: 100.0}, temperature=1.0, seed=1
    )
    assert re.fullmatch("[a-z]{30}", result.text)
    assert model.generate("It was", regex="[a-z]+", max_tokens=60, logit_bias={end: 100.0}).text.isalpha()


def test_a_deleted_model_frees_its_tokenizer() -> None:
    with gemlet.load() as own:
        own.generate("It was", choice=["yes"], max_tokens=5)
        tokenizer = weakref.ref(own.tokenizer)
    del own
    gc.collect()
    assert tokenizer() is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regex": "a", "choice": ["b"]}, "regex and choice are given"),
    ({"json_schema": 5}, "json_schema: got 5"),
    ({"json_schema": "{"}, "json_schema: not valid JSON"),
    ({"json_schema": '{"a": 1, "a": 2}'}, "twice"),
    ({"json_schema": {"type": "person"}}, "Invalid type: person"),
    ({"json_schema": {"a": {1, 2}}}, "it is not JSON"),
    ({"json_schema": {"maximum": float("nan")}}, "it is not JSON"),
    ({"json_schema": {"$ref": "#"}}, "json_schema: no text has this form: .* never ends"),
    ({"grammar": "start: start"}, "grammar: no text has this form: .* never ends"),
    ({"regex": r"[^\s\S]"}, "regex: no text has this form: it allows no character"),
    ({"json_schema": {"type": "string", "x-guidance": 3}}, "x-guidance"),
    ({"json_schema": False}, "json_schema: got False"),
    ({"regex": ""}, "regex: it is empty"),
    ({"regex": "("}, "unclosed group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": "a\\"}, "backslash"),
    ({"regex": "\ud800"}, "lone surrogate"),
    ({"regex": b"a"}, "expected a text"),
    ({"regex": "a" * 300_000}, "300000 bytes"),
    ({"choice": "yes"}, "expected a list of texts"),
    ({"choice": []}, "0 texts"),
    ({"choice": ["yes", ""]}, r"choice\[1\]: it is empty"),
    ({"choice": ["yes", 1]}, r"choice\[1\]: got 1"),
    ({"grammar": "start: word"}, "unknown name"),
    ({"grammar": "start: <eos>"}, "special token"),
    ({"grammar": "start: @other"}, "unknown grammar"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_schemas_and_grammars_that_are_refused(
    model: gemlet.Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        model.generate("It was", max_tokens=5, **options)


def test_structured_output_needs_a_tokenizer() -> None:
    with (
        gemlet.load("tests/golden/gemma3-270m") as own,
        pytest.raises(gemlet.InvalidRequestError, match="no tokenizer"),
    ):
        own.generate([2, 5], regex="a", max_tokens=5)


def test_forks_and_threads() -> None:
    assert run_program(programs.in_forks_and_threads)


def test_an_absent_extra_is_named() -> None:
    kind, message = run_program(programs.without_llguidance)
    assert kind == "UnsupportedError"
    for word in ("llguidance", "pip install", '"grammar"'):
        assert word in message
