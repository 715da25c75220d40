"""Tests of hostile grammars: each one gives an error or a text, with little time and memory."""

from __future__ import annotations

from typing import Any

import pytest

import gemlet
from support.hostile_grammars import HOSTILE
from support.pace import assert_quick
from support.processes import run_program
from support.programs import grammar as programs

pytestmark = pytest.mark.extra("grammar")

SECONDS = 20.0  # the limit of processor time for compiling a grammar and generating 60 tokens


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load() as loaded:
        yield loaded


def outcome(model: gemlet.Model, options: dict[str, Any]) -> str:
    """The finish reason of the text, or the error."""
    try:
        return model.generate("It was", max_tokens=60, temperature=5.0, seed=1, **options).finish_reason
    except gemlet.InvalidRequestError as error:
        return str(error)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_soon(model: gemlet.Model, name: str) -> None:
    options = HOSTILE[name]()

    def work() -> None:
        said = outcome(model, options)
        assert said in ("stop", "length") or said.startswith(f"{next(iter(options))}: ")
        assert len(said) < 700

    assert_quick(work, SECONDS)
    assert model.generate("It was", choice=["fine"], max_tokens=9).text == "fine"


@pytest.mark.slow
def test_hostile_grammars_need_little_memory() -> None:
    """All hostile grammars run one after the other in the same process."""
    assert run_program(programs.peak_of_hostile, timeout=200) < 400


def test_an_error_of_a_grammar_ends_only_its_own_request(model: gemlet.Model) -> None:
    hard = {"grammar": 'start: start start | "a" | "b"', "max_tokens": 1000, "seed": 1, "min_tokens": 999}
    other = model.stream("The door", max_tokens=60, seed=3)
    first = next(other).text
    stream = model.stream("It was", **hard)
    with pytest.raises(gemlet.InvalidRequestError, match="grammar: "):
        for _ in stream:
            pass
    assert stream.result.completion_tokens > 10
    assert set(stream.result.text) <= {"a", "b"}
    assert (
        first + "".join(chunk.text for chunk in other)
        == model.generate("The door", max_tokens=60, seed=3).text
    )
