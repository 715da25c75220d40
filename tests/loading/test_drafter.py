"""A smaller model as the draft model of a larger one: gemlet.load(..., drafter=...)."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemlet
from gemlet.errors import (
    GemletError,
    InvalidRequestError,
    MemoryLimitError,
    ModelFileError,
    UnsupportedError,
)
from gemlet.loading.inspect import inspect
from support.paths import TESTS

GOLDEN = TESTS / "golden"

DEMO = Path(gemlet.__file__).parent / "demo"


@pytest.mark.tier
def test_texts_are_the_same_and_draft_tokens_are_counted() -> None:
    with gemlet.load(threads=1) as plain, gemlet.load(threads=1, drafter=DEMO, draft_tokens=4) as model:
        for options in ({"temperature": 0.0}, {"seed": 3}):
            for prompt in ("The door opened", ["Once", "She said: Once upon a time"]):
                expected = plain.generate(prompt, max_tokens=80, **options)
                found = model.generate(prompt, max_tokens=80, **options)
                pairs = zip(expected, found, strict=True) if isinstance(found, list) else [(expected, found)]
                for ours, theirs in pairs:
                    assert theirs.token_ids == ours.token_ids
                    assert 0 <= theirs.accepted_tokens <= theirs.drafted_tokens
        stats = model.stats()
        assert stats["accepted_tokens"] <= stats["drafted_tokens"]
        sizes = model.memory()
        assert sizes["drafter"] >= sizes["weights"] + sizes["embedding"]
        assert "drafter" not in plain.memory()
        model.close()
        with pytest.raises(GemletError):
            model.generate("x")


@pytest.mark.tier
@pytest.mark.extra("grammar")
def test_texts_with_a_form_are_drafted_too() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}}
    with gemlet.load(threads=1) as plain, gemlet.load(threads=1, drafter=DEMO) as model:
        for options in ({"json_schema": schema}, {"regex": "[a-z ]{30}"}):
            for seed in range(3):
                asked = {"max_tokens": 60, "seed": seed, **options}
                assert model.generate("It was", **asked).text == plain.generate("It was", **asked).text
            both = model.generate(["It was", "The door"], **asked)
            assert both[0].text == plain.generate("It was", **asked).text


@pytest.mark.tier
def test_several_texts_and_streams_that_are_closed() -> None:
    with gemlet.load(threads=1) as plain, gemlet.load(threads=1, drafter=DEMO) as model:
        options = {"max_tokens": 40, "seed": 2, "n": 3}
        expected = [one.text for one in plain.generate("The door", **options)]
        assert [one.text for one in model.generate("The door", **options)] == expected
        stream = model.stream("The door", max_tokens=60)
        next(stream)
        stream.close()
        assert stream.result.finish_reason == "cancelled"
        assert model.memory()["kv_cache"] == 0


@pytest.mark.tier
def test_the_memory_plan_counts_the_drafter() -> None:
    alone, both = inspect(weights="q8"), inspect(weights="q8", drafter=DEMO)
    assert alone.plan.drafter == 0
    kept = alone.plan.weights + alone.plan.embedding + alone.plan.kv_cache + alone.plan.activations
    assert both.plan.drafter == kept
    assert both.plan.total - both.plan.process == 2 * kept
    assert f"drafter {kept / 1e6:.0f} MB" in str(both)
    with pytest.raises(MemoryLimitError, match="no drafter"):
        gemlet.load(weights="q8", drafter=DEMO, max_memory=alone.plan.total + kept // 2)


@pytest.mark.parametrize("embeds", ["embeddinggemma"])
def test_a_model_that_cannot_draft_is_refused(embeds: str) -> None:
    with pytest.raises(InvalidRequestError, match="another vocabulary"):
        gemlet.load(GOLDEN / "gemma3-1b", drafter=DEMO)
    with pytest.raises(UnsupportedError, match="makes embeddings"):
        gemlet.load(drafter=GOLDEN / embeds)
    with pytest.raises(UnsupportedError, match="makes embeddings"):
        gemlet.load(GOLDEN / embeds, drafter=GOLDEN / "gemma3-1b")
    with pytest.raises(ModelFileError):
        gemlet.load(drafter=GOLDEN / "no such folder")
    for wrong in (0, 15, True, 1.5, "4"):
        with pytest.raises(InvalidRequestError, match="draft_tokens"):
            gemlet.load(drafter=DEMO, draft_tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="draft_tokens needs a drafter"):
        gemlet.load(draft_tokens=3)
    for wrong in (3, "", b"\xff"):
        with pytest.raises(GemletError, match="drafter"):
            gemlet.load(drafter=wrong)  # type: ignore[arg-type]
