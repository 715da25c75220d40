"""Draft tokens together with every other feature of a request: the reply is the same as without drafts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.errors import GemletError
from support.core_models import sampler
from support.engine_reader import Reader
from support.inside import always_guess, core_of, drafter_of
from support.paths import TESTS

DEMO = Path(gemlet.__file__).parent / "demo"
GOLDEN = TESTS / "golden"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
}
TOOL = {"type": "function", "function": {"name": "now", "parameters": SCHEMA}}
PROMPTS = ["The door", "Once upon a time", "It was"]


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[gemlet.Model, gemlet.Model]]:
    """One model without drafts, and one with drafts in every step, most of which are accepted."""
    with gemlet.load(threads=1) as plain, gemlet.load(threads=1, drafter=DEMO, draft_tokens=3) as guessing:
        always_guess(guessing)
        yield plain, guessing


def generations(found: Any) -> list[tuple[str, list[int], str | None, Any]]:
    every = found if isinstance(found, list) else [found]
    return [(one.text, one.token_ids, one.finish_reason, one.logprobs) for one in every]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"seed": 3},
        {"seed": 3, "n": 3},
        {"seed": 3, "best_of": 3},
        {"seed": 4, "stop": ["the", "and"]},
        {"temperature": 0.0, "logprobs": 2},
        {"seed": 5, "repetition_penalty": 1.3, "min_p": 0.05, "no_repeat_ngram_size": 3},
        {"seed": 6, "prompt_logprobs": 1},
        pytest.param({"seed": 7, "json_schema": SCHEMA}, marks=pytest.mark.extra("grammar")),
        pytest.param({"seed": 8, "regex": "[a-z ]{30}"}, marks=pytest.mark.extra("grammar")),
        pytest.param({"seed": 9, "choice": ["yes", "no"], "n": 2}, marks=pytest.mark.extra("grammar")),
    ],
    ids=lambda options: "-".join(options),
)
def test_texts_are_the_same(models: tuple[gemlet.Model, gemlet.Model], options: dict[str, Any]) -> None:
    plain, guessing = models
    before = guessing.stats()
    for prompt in (PROMPTS[0], PROMPTS[1:]):
        asked: dict[str, Any] = {"max_tokens": 20, **options}
        assert generations(guessing.generate(prompt, **asked)) == generations(plain.generate(prompt, **asked))
    stats = guessing.stats()
    assert stats["drafts"] > before["drafts"]
    # The drafter does not know the few words that may be chosen.
    assert "choice" in options or stats["accepted_tokens"] > before["accepted_tokens"]
    assert stats["drafted_tokens"] - before["drafted_tokens"] >= stats["drafts"] - before["drafts"]


@pytest.mark.extra("grammar")
def test_masked_texts_beside_each_other_take_fewer_steps(models: tuple[gemlet.Model, gemlet.Model]) -> None:
    plain, guessing = models
    asked: dict[str, Any] = {"max_tokens": 30, "regex": "[a-z ]{60}", "seed": 1}
    expected, found = plain.generate(PROMPTS, **asked), guessing.generate(PROMPTS, **asked)
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.token_ids == ours.token_ids
        assert theirs.accepted_tokens > 0
        assert theirs.decode_steps < ours.decode_steps


@pytest.mark.extra("grammar")
def test_calls_of_tools(models: tuple[gemlet.Model, gemlet.Model]) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 90, "seed": 2}
    ours, theirs = (model.chat("What time is it?", **asked) for model in models)
    assert theirs.token_ids == ours.token_ids
    assert theirs.tool_calls == ours.tool_calls
    assert theirs.accepted_tokens > 0


def test_texts_that_end_early(models: tuple[gemlet.Model, gemlet.Model]) -> None:
    plain, guessing = models
    late = guessing.generate("The door", max_tokens=10, timeout=0.0)
    assert late.finish_reason == "timeout"
    whole = plain.generate("The door", max_tokens=60, seed=1)
    stream = guessing.stream("The door", max_tokens=60, seed=1)
    begun = [next(stream).token_ids[0] for _ in range(5)]
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert begun == whole.token_ids[:5]
    assert guessing.memory()["kv_cache"] == 0


def test_a_text_with_an_image() -> None:
    """An MTP drafter reads keys and values of the image's tokens. A smaller model does not draft for such a
    prompt."""
    with gemlet.load(
        GOLDEN / "vision" / "gemma4-small", weights="f32", threads=1, drafter=GOLDEN / "drafters" / "e2b"
    ) as model:
        core = core_of(model)
        random = np.random.default_rng(3)
        ids = random.integers(5, 140, 40).astype(np.int32)
        rows = random.standard_normal((8, core.config.hidden_size)).astype(np.float32)
        media = _core.Media(rows, digest=b"a" * 32, sees_itself=False)
        texts = []
        for drafts in ({"drafts": "never"}, {"drafts": "always", "drafter": drafter_of(model)}):
            reader = Reader(_core.Engine(core, **drafts))
            request = reader.submit(
                ids, sampler=sampler(temperature=0.0), max_tokens=40, most_unread=50, media=[(10, media)]
            )
            texts.append(reader.read(request)[0])
            guesses = request.guesses
            reader.engine.close()
        assert texts[0] == texts[1]
        assert guesses[0] > 0


def test_without_memory_for_a_drafter() -> None:
    needed = gemlet.inspect(drafter=DEMO).plan
    with pytest.raises(GemletError, match="no drafter"):
        gemlet.load(drafter=DEMO, max_memory=needed.total - needed.drafter // 2)
