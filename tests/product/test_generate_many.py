"""Tests of generate() with a list of prompts, and of several replies to one prompt."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.errors import InvalidRequestError
from support.waiting import PATIENCE

PROMPTS = ["The door opened", "Once upon a time", "She said that"]


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load() as model:
        yield model


@pytest.mark.tier
def test_other_prompts_do_not_change_a_result(model: gemlet.Model) -> None:
    options: Any = {"max_tokens": 25, "stop": ["the"]}
    together = model.generate(PROMPTS * 12, seed=3, **options)
    assert len(together) == 36
    for prompt, one in zip(PROMPTS * 12, together, strict=True):
        lone = model.generate(prompt, seed=3, **options)
        assert (one.text, one.token_ids, one.finish_reason) == (lone.text, lone.token_ids, lone.finish_reason)
        assert (one.seed, one.prompt_tokens) == (3, lone.prompt_tokens)


def test_seeds(model: gemlet.Model) -> None:
    same = [result.seed for result in model.generate(PROMPTS, max_tokens=2, seed=[5, 6, 7])]
    assert same == [5, 6, 7]
    assert len({result.seed for result in model.generate(PROMPTS, max_tokens=2)}) == 3
    with pytest.raises(
        gemlet.InvalidRequestError, match=r"seed: got a list of 2 seeds, expected .* of 3 seeds, one"
    ):
        model.generate(PROMPTS, seed=[1, 2])


def test_several_replies_to_a_conversation(model: gemlet.Model) -> None:
    """Each reply equals the single reply with the same seed, and the conversation needs only one prefill."""
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0}
    replies = model.chat("Who is there?", n=3, seed=5, **options)
    assert [reply.seed for reply in replies] == [5, 6, 7]
    for reply in replies:
        assert reply.token_ids == model.chat("Who is there?", seed=reply.seed, **options).token_ids
    assert len(model.chat("Who is there?", n=1, **options)) == 1
    best = model.chat("Who is there?", n=2, best_of=3, seed=5, **options)
    assert {tuple(reply.token_ids) for reply in best} <= {tuple(reply.token_ids) for reply in replies}
    with model.stream_chat("Who is there?", n=3, seed=5, **options) as stream:
        texts = ["", "", ""]
        for chunk in stream:
            texts[chunk.index] += chunk.text
    assert texts == [reply.text for reply in replies]
    several = asyncio.run(model.achat("Who is there?", n=3, seed=5, **options))
    assert [reply.token_ids for reply in several] == [reply.token_ids for reply in replies]
    with pytest.raises(InvalidRequestError, match="n: got 0"):
        model.chat("Who is there?", n=0)
    with pytest.raises(InvalidRequestError, match="has no argument 'n'"):
        model.session().chat("Who is there?", n=2)  # type: ignore[call-arg]


def test_lists_of_prompts_and_lists_of_ids_are_distinguished(model: gemlet.Model) -> None:
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("The door")
    assert isinstance(model.generate(ids, max_tokens=2), gemlet.Generation)
    assert isinstance(model.generate(np.array(ids), max_tokens=2), gemlet.Generation)
    for many in (["The door"], [ids], ("The door", "A cat"), [np.array(ids)]):
        result: Any = model.generate(many, max_tokens=2)  # type: ignore[call-overload]
        assert isinstance(result, list)
        assert len(result) == len(many)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompt: it is empty"),
        (["", "a"], r"prompt\[0\]: it is empty"),
        (["a", 1], r"prompt\[1\]: got 1, expected a text or a list of token ids"),
        (["a", []], r"prompt\[1\]: it is empty"),
        (["a", [99999]], r"prompt\[1\]: token id 99999"),
        (["a", "b" * 100_000], r"prompt\[1\]: "),
    ],
)
def test_all_prompts_are_checked_before_the_first_runs(
    model: gemlet.Model, prompts: Any, message: str
) -> None:
    with pytest.raises(gemlet.InvalidRequestError) as caught:
        model.generate(prompts, max_tokens=2)
    assert re.match(message, str(caught.value))


def test_threads_share_the_engine(model: gemlet.Model) -> None:
    results: list[list[gemlet.Generation]] = []
    threads = [
        threading.Thread(target=lambda: results.append(model.generate(PROMPTS, max_tokens=20, temperature=0)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [[result.text for result in one] for one in results]
    assert len(texts) == 4
    assert texts == [texts[0]] * 4


def test_closing_the_model_ends_all_requests() -> None:
    """The call returns texts that are cut off, or raises an error."""
    with gemlet.load() as model:
        ended: list[Any] = []

        def run() -> None:
            try:
                ended.append(model.generate(PROMPTS, max_tokens=900, ignore_eos=True))
            except gemlet.ModelClosedError as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not model.memory()["kv_cache"]:
            time.sleep(0.001)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if isinstance(ended[0], list):
        assert {result.finish_reason for result in ended[0]} <= {"cancelled", "length"}
    with pytest.raises(gemlet.ModelClosedError):
        model.generate(PROMPTS)
