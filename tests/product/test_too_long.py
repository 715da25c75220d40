"""Tests that far too long input is refused before any work, and that the encoding of long input can be
interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import SHIELD_GEMMA
from gemlet.chat.messages import least_characters
from gemlet.generation.token_ids import token_id_array
from support.commands import failed, run
from support.pace import assert_quick, in_time
from support.processes import run_program
from support.programs.long_texts import UNCUT, exit_in_a_long_call, interrupt_encoding
from support.tiny_models import write_text_embedder

MANY = 10_000_000
TEXTS = {"words": "the door " * (MANY // 9), "a": "a" * MANY, "markers": "<" * MANY, "umbrellas": "☂" * MANY}
IDS: dict[str, Callable[[], Any]] = {
    "list": lambda: [5] * MANY,
    "tuple": lambda: (5,) * MANY,
    "array": lambda: np.full(MANY, 5),
    "wrong": lambda: [None] * MANY,
}


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load() as model:
        yield model


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    with gemlet.load(write_text_embedder(tmp_path_factory.mktemp("embedder"))) as model:
        yield model


def refuse(call: Callable[[], object], match: str, seconds: float = 1) -> None:
    def work() -> None:
        with pytest.raises(gemlet.ContextLengthError, match=match):
            call()

    assert_quick(work, seconds)


@pytest.mark.parametrize("name", TEXTS)
def test_texts(model: gemlet.Model, name: str) -> None:
    text, why = TEXTS[name], "characters, but the context holds 1024 tokens, which are at most 16384"
    message = {"role": "user", "content": text}
    parts = {"role": "user", "content": [{"type": "text", "text": text}] * 2}
    refuse(lambda: model.generate(text), "prompt: .*" + why)
    refuse(lambda: model.stream(text), "prompt: .*" + why)
    for messages in ([message], [message, {"role": "assistant", "content": "Yes."}, message], [parts]):
        refuse(lambda messages=messages: model.chat(messages), "messages: .*" + why)
        refuse(lambda messages=messages: model.stream_chat(messages), "messages: .*" + why)


def test_many_messages(model: gemlet.Model) -> None:
    refuse(
        lambda: model.chat([{"role": "user", "content": "Hi"}] * 1_000_000), "messages: got 1000000 messages"
    )


def test_messages_are_refused_before_the_prompt_is_rendered(model: gemlet.Model) -> None:
    text = TEXTS["words"]
    several = [{"role": "user", "content": text}] * 20
    parts = [{"role": "user", "content": [{"type": "text", "text": text}] * 10}]
    for messages in (several, parts):
        refuse(lambda messages=messages: model.chat(messages), "messages: [0-9]{8,9} characters", 0.3)


def test_text_that_the_prompt_omits_does_not_count(model: gemlet.Model) -> None:
    blank = {"role": "user", "content": " " * 1_000_000 + "Hello" + "\n" * 1_000_000}
    assert model.chat([blank], max_tokens=1).completion_tokens == 1
    thought = {"role": "assistant", "content": "<|channel>thought\n" + "a" * 1_000_000 + "<channel|>Yes."}
    assert least_characters([blank, thought, {"role": "tool", "content": "[" + " " * 1000 + "]"}]) == 5
    many = {"role": "user", "content": "a" * 1_000_000}
    judged = SHIELD_GEMMA.with_values(policy="hate")
    assert model.tokenizer is not None
    assert judged.encode_chat(model.tokenizer, [many, {"role": "user", "content": "Hello"}], most_tokens=1000)


def refuse_request(call: Callable[[], object], match: str) -> None:
    def work() -> None:
        with pytest.raises(gemlet.InvalidRequestError, match=match):
            call()

    assert_quick(work, 0.2)


def test_many_prompts(model: gemlet.Model) -> None:
    many = ["x"] * 1_000_000
    match = (
        "prompt: got 1000000 prompts, expected at most 65536 texts in one call; split them over several calls"
    )
    for call in (model.generate, model.stream, model.astream):
        refuse_request(lambda call=call: call(many), match)
        refuse_request(lambda call=call: call(many, seed=[1], echo=5), match)  # before the other errors
    refuse_request(lambda: model.generate(many[:65536], n=2), "65536 prompts with 2 continuations of each")


def test_many_biases(model: gemlet.Model) -> None:
    biases = dict.fromkeys(range(1_000_000), 1.0)
    refuse_request(lambda: model.generate("x", logit_bias=biases), "logit_bias: .* up to 1024 pairs")


@pytest.mark.parametrize("kind", IDS)
def test_too_many_ids_are_refused_quickly(model: gemlet.Model, kind: str) -> None:
    ids = IDS[kind]()
    for call in (model.generate, model.stream, model.score, model.logits):
        refuse(lambda call=call: call(ids), f"{MANY} tokens, but the context holds 1024", 0.1)
    refuse(lambda: model.choose(ids, ["a", "b"]), f"{MANY} tokens, but the context holds 1024", 0.1)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_to_embed(embedder: gemlet.Model, name: str) -> None:
    text, room = TEXTS[name].strip(), embedder.context_length
    refuse(lambda: embedder.embed([text, "short"]), f"texts.0.: {len(text)} characters, but .* {room} tokens")
    assert_quick(lambda: embedder.embed([text], truncate=True), 2)
    cut = embedder.embed([text], truncate=True)
    np.testing.assert_array_equal(cut, embedder.embed([text[:10_000]], truncate=True))


def test_ids_to_embed(embedder: gemlet.Model) -> None:
    for make in IDS.values():
        refuse(lambda make=make: embedder.embed([make()]), f"texts.0.: {MANY} tokens")
    np.testing.assert_array_equal(
        embedder.embed([IDS["list"]()], truncate=True), embedder.embed([[5] * embedder.context_length])
    )


def test_ids_within_a_large_context() -> None:
    assert_quick(lambda: token_id_array([5] * 1_000_000, vocab_size=6, name="ids"), 1)
    for wrong in (6, -1, 2**70, True, None, "5"):
        with pytest.raises(gemlet.InvalidRequestError, match="at position 999999, expected integers from 0"):
            token_id_array([5] * 999_999 + [wrong], vocab_size=6, name="ids")


def test_text_on_standard_input() -> None:
    error = failed(run("generate", "-", stdin=b"the door " * 1_000_000))
    assert "prompt: 9000000 characters, but the context holds 1024 tokens" in error
    assert len(error) < 300


@pytest.mark.parametrize(("text", "times"), [("the door ", 1_000_000), ("<", 20_000_000), UNCUT])
def test_ctrl_c_while_a_text_is_encoded(text: str, times: int) -> None:
    taken = run_program(interrupt_encoding, text, times)
    assert in_time(taken, 1)


def test_a_process_can_exit_in_the_longest_call_of_sentencepiece() -> None:
    run_program(exit_in_a_long_call)
