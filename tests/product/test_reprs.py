"""Tests of str() and repr(): results, models and configurations need only a line or two."""

from __future__ import annotations

from typing import Any

import gemlet
from gemlet import GenerationConfig
from gemlet.chat import GEMMA, ToolCall, gemma4_format
from gemlet.config import SHAPES, shape_config
from gemlet.generation import Generation
from golden.folders import HERE

TWO_LINES = 220


def test_print_shows_the_text() -> None:
    with gemlet.load(threads=1) as model:
        result = model.generate("The door opened", max_tokens=40, seed=1)
        chunks = list(model.stream("The door opened", max_tokens=40, seed=1))
    assert str(result) == result.text != ""
    assert "".join(map(str, chunks)) == result.text
    assert repr(result).startswith("<gemlet.Generation '")
    assert repr(result).endswith(": 40 tokens, finish_reason 'length'>")
    assert result.text[:40] in repr(result)


def test_a_repr_fits_two_lines() -> None:
    folder = HERE / "gemma3-270m"
    with gemlet.load(folder, threads=1) as model:
        adapter = model.load_adapter(HERE / "adapters" / "gemma3-patterns")
        stream = model.stream([2, 7], max_tokens=30)
        things: list[Any] = [model, model.config, adapter, repr(stream), gemlet.inspect(folder)]
        chunk = next(stream)
        things += [repr(stream), chunk, model.generation_config]
    things += [stream, model, stream.result, gemlet.load().tokenizer, GEMMA, gemma4_format()]
    things += [shape_config(name) for name in SHAPES]
    things += [layer for name in SHAPES for layer in shape_config(name).layers]
    for thing in things:
        text = thing if isinstance(thing, str) else repr(thing)
        text = text.replace(str(HERE), "golden")  # the length of the folder's path does not count
        assert len(text) <= (2 * TWO_LINES if "LayerSpec" in text else TWO_LINES), text
        assert "\n" not in text
        assert " object at 0x" not in text


def test_a_repr_of_a_long_result_is_short() -> None:
    calls = [ToolCall("f", {"x": "y" * 1000})] * 3
    result = Generation("a\nb" * 1000, [1] * 9, "stop", 1, 9, 0.0, 0.0, 8, 5, tool_calls=calls)
    assert repr(result) == (
        f"<gemlet.Generation {('a' + chr(10) + 'b') * 19 + '...'!r}: 9 tokens, 3 calls of tools, "
        "finish_reason 'stop'>"
    )


def test_the_states_of_a_stream() -> None:
    with gemlet.load(threads=1) as model:
        stream = model.stream("The door", max_tokens=2)
        assert repr(stream) == "<gemlet.TextStream not begun>"
        next(stream)
        assert repr(stream) == "<gemlet.TextStream 1 token so far>"
        next(stream)
        assert repr(stream) == f"<gemlet.TextStream ended: {stream.result!r}>"


def test_the_repr_of_a_config_shows_only_changed_values() -> None:
    assert repr(GenerationConfig()) == "GenerationConfig()"
    config = GenerationConfig(temperature=0.5, stop="END", max_tokens=256)
    assert repr(config) == "GenerationConfig(temperature=0.5, stop=('END',))"
    assert len(repr(GenerationConfig(suppress_tokens=range(50_000)))) < 100
    problem = gemlet.inspect(max_memory="1MB")
    assert "does not run here: " in repr(problem)
    assert len(repr(problem)) < 400
