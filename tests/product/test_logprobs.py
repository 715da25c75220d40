"""Tests of the log probabilities of generated tokens and of prompts, of several continuations of a prompt,
and of ``echo``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet.generation import TokenLogprob
from golden.folders import ALL_NAMES, HERE, read_golden

pytestmark = pytest.mark.tier

PROMPT = "It was a dark night, and the door of the house"

# With tiles, the last bits of a result depend on the size of the forward pass.
tiles = "amx" in _core.cpu_info()["tier"]


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(threads=1, weights="f32") as loaded:
        yield loaded


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True)))


def check(found: TokenLogprob, expected: NDArray[np.float64], top: int, within: float = 1e-4) -> None:
    assert found.logprob == pytest.approx(expected[found.token_id], abs=within)
    assert len(found.top) == top
    assert [one for _, one in found.top] == pytest.approx(np.sort(expected)[::-1][:top], abs=within)
    assert [expected[i] for i, _ in found.top] == pytest.approx([one for _, one in found.top], abs=within)


@pytest.mark.parametrize("name", [name for name in ALL_NAMES if not name.endswith("-far")])
def test_log_probabilities_equal_those_of_transformers(name: str) -> None:
    """The golden files have the logits of transformers in float32 for a prompt and the greedy text after
    it."""
    golden = read_golden(name)
    ids, count = golden["ids"].tolist(), 3
    expected = log_softmax(golden["logits"])
    with gemlet.load(HERE / name, weights="f32", threads=1) as model:
        result = model.generate(
            ids, max_tokens=count, temperature=0, ignore_eos=True, logprobs=5, prompt_logprobs=3
        )
        assert result.prompt_logprobs is not None
        assert result.logprobs is not None
        assert result.prompt_logprobs[0] is None
        assert len(result.prompt_logprobs) == len(ids)
        for i, found in enumerate(result.prompt_logprobs[1:]):
            assert found is not None
            assert found.token_id == ids[i + 1]
            check(found, expected[i], 3, within=1e-3)
        check(result.logprobs[0], expected[-1], 5, within=1e-3)
        own = log_softmax(model.logits(ids + result.token_ids))[len(ids) - 1 :]
        for found, row in zip(result.logprobs, own, strict=False):
            check(found, row, 5)


def test_sampling_options_do_not_change_log_probabilities(model: gemlet.Model) -> None:
    """The log probabilities come from the unchanged logits of the model, even if options change the choice of
    tokens."""
    options: dict[str, Any] = {
        "temperature": 3.0,
        "top_k": 5,
        "repetition_penalty": 2.0,
        "logit_bias": {9: 50},
    }
    result = model.generate(PROMPT, max_tokens=6, seed=1, logprobs=1, **options)
    assert result.logprobs is not None
    assert result.token_ids == [9] * 6
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPT)
    rows = log_softmax(model.logits(ids + result.token_ids))[len(ids) - 1 :]
    for found, row in zip(result.logprobs, rows, strict=False):
        check(found, row, 1)
    assert [one.token_id for one in result.logprobs] == result.token_ids


def test_log_probabilities_are_given_only_if_asked_for(model: gemlet.Model) -> None:
    result = model.generate(PROMPT, max_tokens=3)
    assert result.logprobs is None
    assert result.prompt_logprobs is None
    assert all(chunk.logprobs is None for chunk in model.stream(PROMPT, max_tokens=3))
    result = model.generate(PROMPT, max_tokens=3, logprobs=0)
    assert result.logprobs is not None
    assert [one.top for one in result.logprobs] == [()] * 3


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_wrong_counts(model: gemlet.Model, name: str) -> None:
    for value in (-1, 21, True, 1.5, "5"):
        with pytest.raises(gemlet.InvalidRequestError, match=f"^{name}: got .*expected None or an integer"):
            model.generate(PROMPT, **{name: value})  # type: ignore[arg-type]


def test_a_stream_gives_the_log_probabilities_of_its_tokens(model: gemlet.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "seed": 4, "logprobs": 2}
    with model.stream(PROMPT, stop="e", min_tokens=3, **options) as stream:
        chunks = list(stream)
    for chunk in chunks:
        assert chunk.logprobs is not None
        assert [one.token_id for one in chunk.logprobs] == chunk.token_ids
    result = stream.result
    assert [one for chunk in chunks for one in chunk.logprobs or []] == result.logprobs
    assert [one.token_id for one in result.logprobs or []] == result.token_ids
    whole = model.generate(PROMPT, **options).logprobs
    assert whole is not None
    assert whole[: len(result.token_ids)] == result.logprobs


def test_end_tokens_have_no_log_probabilities(model: gemlet.Model) -> None:
    free = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=0)
    ended = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=0, stop_token_ids=free.token_ids[4])
    assert ended.finish_reason == "stop"
    assert ended.logprobs == (free.logprobs or [])[: len(ended.token_ids)]


def test_a_prompt_has_log_probabilities(model: gemlet.Model) -> None:
    one = model.generate([2], max_tokens=2, prompt_logprobs=3)
    assert one.prompt_logprobs == [None]
    long = list(range(50, 650))
    result = model.generate(long, max_tokens=2, prompt_logprobs=1, logprobs=1, seed=1)
    assert result.token_ids == model.generate(long, max_tokens=2, seed=1).token_ids
    assert len(result.prompt_logprobs or []) == len(long)
    assert result.prompt_tokens == 600
    assert result.prefill_seconds > 0
    with model.stream(long, max_tokens=2, prompt_logprobs=0) as stream:
        assert len(list(stream)) == 2
    assert len(stream.result.prompt_logprobs or []) == 600


def test_chats_and_async_calls_give_log_probabilities(model: gemlet.Model) -> None:
    result = model.chat("Who is there?", max_tokens=4, logprobs=1, prompt_logprobs=0)
    assert len(result.logprobs or []) == len(result.token_ids)
    assert len(result.prompt_logprobs or []) == result.prompt_tokens
    again = asyncio.run(
        model.achat("Who is there?", max_tokens=4, logprobs=1, prompt_logprobs=0, seed=result.seed)
    )
    assert again.logprobs == result.logprobs or tiles


def test_a_prefill_can_be_cancelled(model: gemlet.Model) -> None:
    long = list(range(50, 1050))

    async def cancelled(n: int) -> list[gemlet.Generation]:
        stream = model.astream(long, max_tokens=2, prompt_logprobs=1, n=n)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        stream.cancel()
        assert (await first).finish_reason == "cancelled"
        await stream.aclose()
        return stream.results

    for n in (1, 3):
        results = asyncio.run(cancelled(n))
        assert [one.finish_reason for one in results] == ["cancelled"] * n
        assert all(len(one.prompt_logprobs or []) < 1000 for one in results)
    timed = model.generate(long, max_tokens=2, prompt_logprobs=1, timeout=0.0)
    assert (timed.finish_reason, timed.token_ids) == ("timeout", [])


# --- several continuations of a prompt


def test_each_continuation_has_its_own_seed(model: gemlet.Model) -> None:
    results = model.generate(PROMPT, n=3, max_tokens=12, seed=7)
    assert [result.seed for result in results] == [7, 8, 9]
    for result in results:
        assert result.token_ids == model.generate(PROMPT, max_tokens=12, seed=result.seed).token_ids
    assert model.generate(PROMPT, n=1, max_tokens=4, seed=7)[0].token_ids == results[0].token_ids[:4]
    random = model.generate(PROMPT, n=2, max_tokens=2)
    assert random[1].seed == random[0].seed + 1
    assert [one.seed for one in model.generate(PROMPT, n=2, max_tokens=2, seed=2**64 - 1)] == [2**64 - 1, 0]


def test_several_continuations_of_several_prompts(model: gemlet.Model) -> None:
    results = model.generate([PROMPT, "She"], n=2, max_tokens=5, seed=[1, 10])
    assert [result.seed for result in results] == [1, 2, 10, 11]
    assert results[3].token_ids == model.generate("She", max_tokens=5, seed=11).token_ids
    with model.stream([PROMPT, "She"], n=2, max_tokens=3) as stream:
        assert sorted(chunk.index for chunk in stream) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_several_continuations_need_one_prefill() -> None:
    ids = [2, *range(300, 560)]
    with gemlet.load(threads=1) as model:
        results = model.generate(ids, n=4, max_tokens=3, prompt_logprobs=0)
        assert results[0].cached_tokens == 0
        assert all(256 <= result.cached_tokens <= 260 for result in results[1:])
        assert all(result.prompt_logprobs == results[0].prompt_logprobs for result in results)


def test_best_of_returns_the_likeliest_continuations(model: gemlet.Model) -> None:
    def mean(result: gemlet.Generation) -> float:
        return sum(one.logprob for one in result.logprobs or []) / len(result.token_ids)

    written = model.generate(PROMPT, n=6, max_tokens=8, seed=3, logprobs=0)
    ranked = sorted(written, key=mean, reverse=True)
    best = model.generate(PROMPT, best_of=6, max_tokens=8, seed=3)
    assert best.token_ids == ranked[0].token_ids
    two = model.generate(PROMPT, n=2, best_of=6, max_tokens=8, seed=3)
    assert [one.token_ids for one in two] == [one.token_ids for one in ranked[:2]]
    many = model.generate([PROMPT, PROMPT], best_of=6, max_tokens=8, seed=3)
    assert [one.token_ids for one in many] == [ranked[0].token_ids] * 2


def test_wrong_numbers_of_continuations(model: gemlet.Model) -> None:
    for name in ("n", "best_of"):
        for value in (0, 17, True, 1.5, "2"):
            with pytest.raises(
                gemlet.InvalidRequestError, match=f"^{name}: got .*expected an integer from 1"
            ):
                model.generate(PROMPT, **{name: value})  # type: ignore[call-overload]
    with pytest.raises(gemlet.InvalidRequestError, match="best_of: got 2, expected at least 3"):
        model.generate(PROMPT, n=3, best_of=2)
    with pytest.raises(gemlet.InvalidRequestError, match="'best_of'; generate"):
        model.stream(PROMPT, best_of=2)  # type: ignore[call-arg]


# --- echo


def test_echo_puts_the_prompt_in_front(model: gemlet.Model) -> None:
    plain = model.generate(PROMPT, max_tokens=6, seed=2)
    echoed = model.generate(PROMPT, max_tokens=6, seed=2, echo=True)
    assert echoed.text == PROMPT + plain.text
    assert echoed.token_ids == plain.token_ids
    tokenizer = model.tokenizer
    assert tokenizer is not None
    assert model.generate(tokenizer.encode(PROMPT), max_tokens=6, seed=2, echo=True).text == echoed.text
    with model.stream(PROMPT, max_tokens=6, seed=2, echo=True) as stream:
        chunks = list(stream)
    assert chunks[0].text.startswith(PROMPT)
    assert "".join(chunk.text for chunk in chunks) == stream.result.text == echoed.text


def test_stop_strings_in_an_echoed_prompt_are_ignored(model: gemlet.Model) -> None:
    result = model.generate(PROMPT, max_tokens=3, echo=True, stop="dark", seed=2)
    assert result.text.startswith(PROMPT)
    assert result.completion_tokens == 3
    ended = model.generate(PROMPT, max_tokens=3, echo=True, timeout=0.0)
    assert (ended.text, ended.finish_reason) == (PROMPT, "timeout")


def test_echo_needs_a_text(model: gemlet.Model) -> None:
    with (
        gemlet.load(HERE / "gemma3-270m", threads=1) as bare,
        pytest.raises(gemlet.InvalidRequestError, match=r"echo: .* has no tokenizer"),
    ):
        bare.generate([2, 5], echo=True)
    with pytest.raises(gemlet.InvalidRequestError, match="echo: got 5, expected True or False"):
        model.generate(PROMPT, echo=5)  # type: ignore[call-overload]
    with pytest.raises(gemlet.InvalidRequestError, match="'echo'; generate"):
        model.chat(PROMPT, echo=True)  # type: ignore[call-arg]
