"""Tests of the effects that the options for sampling have on generated text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import gemlet
from support import sampling_reference as reference

PROMPT = "the sea and the sea and the sea and the sea and"

pytestmark = pytest.mark.tier


ALL: dict[str, Any] = {
    "typical_p": 0.97,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "no_repeat_ngram_size": 4,
    "dry_multiplier": 0.8,
    "logit_bias": {20: 1.5},
    "min_tokens": 5,
}


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(threads=1, weights="f32") as loaded:
        yield loaded


def greedy(model: gemlet.Model, prompt: Any = PROMPT, **options: Any) -> gemlet.Generation:
    return model.generate(prompt, **{"max_tokens": 24, "temperature": 0, "ignore_eos": True, **options})


def reference_text(model: gemlet.Model, count: int, **options: Any) -> list[int]:
    """Greedy text: in each step, support/sampling_reference.py changes the logits, and the largest one is
    chosen."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPT)
    prompt_tokens = len(ids)
    for _ in range(count):
        logits = model.logits(ids)[-1][: tokenizer.vocab_size]
        ids.append(int(reference.processed(logits, ids, prompt_tokens, **options).argmax()))
    return ids[prompt_tokens:]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 1.0},
        {"presence_penalty": 1.0},
        {"no_repeat_ngram": 2},
        {"dry_multiplier": 2.0, "breakers": ()},
        {"dry_multiplier": 2.0, "breakers": ("sea",)},
        {"logit_bias": ((5, 30.0),)},
    ],
    ids=str,
)
def test_greedy_text_equals_the_reference(model: gemlet.Model, options: dict[str, Any]) -> None:
    given: dict[str, Any] = dict(options)
    if "no_repeat_ngram" in given:
        given["no_repeat_ngram_size"] = given.pop("no_repeat_ngram")
    if "breakers" in given:
        given["dry_sequence_breakers"] = breakers = given.pop("breakers")
        tokenizer = model.tokenizer
        assert tokenizer is not None
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        options["breakers"] = [i for i, text in enumerate(texts) if any(b in text for b in breakers)]
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    text = greedy(model, max_tokens=16, **given).token_ids
    assert text == reference_text(model, 16, **options)
    if "breakers" not in options or not options["breakers"]:
        assert text != greedy(model, max_tokens=16).token_ids


def test_a_sequence_breaker_may_be_several_tokens(model: gemlet.Model) -> None:
    """The prompt ends with the sequence breaker, so DRY finds no repetition for the first token."""
    free = greedy(model, max_tokens=1).token_ids
    dry: dict[str, Any] = {"max_tokens": 1, "dry_multiplier": 50, "dry_allowed_length": 1}
    assert greedy(model, **dry, dry_sequence_breakers=[]).token_ids != free
    for breaker in (" and", "a and", "e sea and", "the sea and the sea and"):
        assert greedy(model, **dry, dry_sequence_breakers=[breaker]).token_ids == free, breaker
    for other in ("sea", "x and", "sea andes"):
        assert greedy(model, **dry, dry_sequence_breakers=[other]).token_ids != free, other


def test_a_strong_bias_decides(model: gemlet.Model) -> None:
    assert greedy(model, logit_bias={77: 100}).token_ids == [77] * 24
    assert greedy(model, logit_bias={"77": 100}).token_ids == [77] * 24
    free = greedy(model).token_ids
    assert free[0] not in greedy(model, logit_bias={free[0]: -100}).token_ids


def test_other_prompts_of_a_list_do_not_change_a_result(model: gemlet.Model) -> None:
    prompts = [PROMPT, "It was", "The door opened. " * 8]
    together = model.generate(prompts, max_tokens=30, seed=[1, 2, 3], **ALL)
    for prompt, seed, result in zip(prompts, (1, 2, 3), together, strict=True):
        alone = model.generate(prompt, max_tokens=30, seed=seed, **ALL)
        assert result.token_ids == alone.token_ids
        assert list(model.stream(prompt, max_tokens=30, seed=seed, **ALL))[-1].finish_reason


def test_stop_token_ids_end_the_text(model: gemlet.Model) -> None:
    free = greedy(model).token_ids
    end = next(i for i, token_id in enumerate(free) if token_id not in free[:i] and i > 3)
    for given in (free[end], [free[end]], (0, free[end])):
        result = greedy(model, stop_token_ids=given)
        assert (result.token_ids, result.finish_reason) == (free[:end], "stop")
    together = model.generate([PROMPT], max_tokens=24, temperature=0, stop_token_ids=free[end])
    assert together[0].token_ids == free[:end]
    assert (
        list(model.stream(PROMPT, max_tokens=24, temperature=0, stop_token_ids=free[end]))[-1].token_ids == []
    )


def test_texts_do_not_end_before_min_tokens(model: gemlet.Model) -> None:
    free = greedy(model).token_ids
    ends = sorted(set(free))
    result = greedy(model, stop_token_ids=ends, min_tokens=10, max_tokens=24)
    assert len(result.token_ids) >= 10
    assert not set(result.token_ids[:10]) & set(ends)
    many = model.generate([PROMPT], temperature=0, stop_token_ids=ends, min_tokens=10, max_tokens=24)
    assert many[0].token_ids == result.token_ids
    # A stop string before min_tokens is text.
    text = greedy(model).text
    first, later = text[1:3], text[-4:]
    assert greedy(model, stop=first).completion_tokens < 5
    kept = greedy(model, stop=[first, later], min_tokens=12)
    assert kept.completion_tokens > 12
    assert first in kept.text


def test_ids_beyond_the_vocabulary(model: gemlet.Model) -> None:
    for name, value in (
        ("logit_bias", {4096: 1}),
        ("suppress_tokens", [1, 4096]),
        ("stop_token_ids", 4096),
    ):
        with pytest.raises(
            gemlet.InvalidRequestError, match=f"^{name}: got the token id 4096, expected integers"
        ):
            greedy(model, **{name: value})


def test_an_error_says_why_no_token_is_left(model: gemlet.Model) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="no logit is finite: the suppressed ids"):
        greedy(model, suppress_tokens=range(4096))
