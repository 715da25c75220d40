"""What is far too long is refused before the work that it would make; what is only long can be cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.generation.token_ids import token_id_array
from support.commands import failed, run
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


def refuse(call: Callable[[], object], match: str) -> None:
    started = time.process_time()
    with pytest.raises(gemlet.ContextLengthError, match=match):
        call()
    assert time.process_time() - started < 1


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
    refuse(lambda: model.chat([{"role": "user", "content": "Hi"}] * 1_000_000), "messages: 1000000 of them")


@pytest.mark.parametrize("kind", IDS)
def test_ids(model: gemlet.Model, kind: str) -> None:
    ids = IDS[kind]()
    for call in (model.generate, model.stream, model.logits):
        refuse(lambda call=call: call(ids), f"{MANY} tokens, but the context holds 1024")


@pytest.mark.parametrize("name", TEXTS)
def test_texts_to_embed(embedder: gemlet.Model, name: str) -> None:
    text, room = TEXTS[name].strip(), embedder.context_length
    refuse(lambda: embedder.embed([text, "short"]), f"texts.0.: {len(text)} characters, but .* {room} tokens")
    started = time.process_time()
    cut = embedder.embed([text], truncate=True)
    assert time.process_time() - started < 2
    np.testing.assert_array_equal(cut, embedder.embed([text[:10_000]], truncate=True))


def test_ids_to_embed(embedder: gemlet.Model) -> None:
    for make in IDS.values():
        refuse(lambda make=make: embedder.embed([make()]), f"texts.0.: {MANY} tokens")
    np.testing.assert_array_equal(
        embedder.embed([IDS["list"]()], truncate=True), embedder.embed([[5] * embedder.context_length])
    )


def test_ids_within_a_large_context() -> None:
    started = time.process_time()
    token_id_array([5] * 1_000_000, vocab_size=6, name="ids")
    assert time.process_time() - started < 1
    for wrong in (6, -1, 2**70, True, None, "5"):
        with pytest.raises(gemlet.InvalidRequestError, match="at position 999999, expected integers from 0"):
            token_id_array([5] * 999_999 + [wrong], vocab_size=6, name="ids")


def test_text_on_standard_input() -> None:
    error = failed(run("generate", "-", stdin=b"the door " * 1_000_000))
    assert "prompt: 9000000 characters, but the context holds 1024 tokens" in error
    assert len(error) < 300


@pytest.mark.parametrize(("text", "times"), [("the door ", 1_000_000), ("<", 20_000_000), UNCUT])
def test_ctrl_c_while_a_text_is_encoded(text: str, times: int) -> None:
    assert run_program(interrupt_encoding, text, times) < 1


def test_exit_in_the_longest_call_of_sentencepiece() -> None:
    run_program(exit_in_a_long_call)
