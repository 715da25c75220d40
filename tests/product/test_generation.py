"""Tests of generation with the demo model: every way to call it gives the same text, and wrong requests are
refused."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.errors import ContextLengthError, InvalidRequestError, ModelClosedError

pytestmark = pytest.mark.tier

PROMPT = "The door opened"


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load() as loaded:
        yield loaded


def test_stream_and_generate_give_the_same(model: gemlet.Model) -> None:
    whole = model.generate(PROMPT, max_tokens=40, seed=5)
    with model.stream(PROMPT, max_tokens=40, seed=5) as stream:
        chunks = list(stream)
    assert whole.text == "".join(chunk.text for chunk in chunks) == stream.result.text
    assert whole.token_ids == [i for chunk in chunks for i in chunk.token_ids] == stream.result.token_ids
    assert whole.completion_tokens == len(whole.token_ids) > 0
    assert whole.prompt_tokens == len(model.tokenizer.encode(PROMPT))  # type: ignore[union-attr]
    assert whole.prefill_seconds > 0
    assert whole.decode_seconds > 0
    assert whole.seed == 5


def test_the_same_seed_gives_the_same_text_on_any_number_of_threads(model: gemlet.Model) -> None:
    texts = []
    for threads in (1, 2):
        with gemlet.load(threads=threads) as other:
            assert other.threads == threads
            texts.append(other.generate(PROMPT, max_tokens=48, seed=11).token_ids)
    assert texts[0] == texts[1]
    assert model.generate(PROMPT, max_tokens=48, seed=12).token_ids != texts[0]


def test_without_a_seed_the_result_has_the_random_seed(model: gemlet.Model) -> None:
    first = model.generate(PROMPT, max_tokens=30)
    again = model.generate(PROMPT, max_tokens=30, seed=first.seed)
    assert again.token_ids == first.token_ids
    assert len({model.generate(PROMPT, max_tokens=1).seed for _ in range(4)}) > 1


def test_greedy_takes_the_likeliest_token(model: gemlet.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)  # type: ignore[union-attr]
    result = model.generate(ids, max_tokens=6, temperature=0, ignore_eos=True)
    logits = model.logits(ids + result.token_ids)
    assert logits.shape == (len(ids) + 6, model.vocab_size)
    assert logits.dtype == np.float32
    assert logits[len(ids) - 1 : -1].argmax(axis=1).tolist() == result.token_ids
    assert (
        model.generate(PROMPT, max_tokens=6, do_sample=False, ignore_eos=True).token_ids == result.token_ids
    )


def test_text_and_its_token_ids_are_the_same_prompt(model: gemlet.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)  # type: ignore[union-attr]
    by_text = model.generate(PROMPT, max_tokens=10, seed=1)
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.int32)):
        assert model.generate(prompt, max_tokens=10, seed=1).token_ids == by_text.token_ids


def test_a_stop_string_ends_the_text_where_it_first_appears(model: gemlet.Model) -> None:
    free = model.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True)
    stop = free.text[len(free.text) // 2 :][:4]
    cut = model.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True, stop=[stop, "\x00never\x00"])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert free.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_generation_ends_when_the_context_is_full() -> None:
    with gemlet.load(max_context=32) as small:
        assert small.context_length == 32
        result = small.generate(PROMPT, max_tokens=1000, seed=1, ignore_eos=True)
        assert result.finish_reason == "context"
        # The last token needs no place in the context.
        assert result.prompt_tokens + result.completion_tokens == 33
        with pytest.raises(ContextLengthError, match=r"33 tokens.*holds 32; .*larger max_context"):
            small.generate([3] * 33)
        with pytest.raises(ContextLengthError, match=r"ids: 33 tokens"):
            small.logits([3] * 33)
        assert small.generate([3] * 32, max_tokens=5).completion_tokens <= 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ([10**9], "token id 1000000000 at position 0"),
        ([-1], "token id -1"),
        (None, "got None, expected text, or a list of integers"),
        (b"bytes", "got b'bytes'"),
        (3.5, "got 3.5"),
        ("half \ud800", "surrogate"),
    ],
)
def test_bad_prompts(model: gemlet.Model, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        model.stream(prompt)


def test_a_context_beyond_the_model_is_refused(model: gemlet.Model) -> None:
    with pytest.raises(ContextLengthError, match=r"holds 1024; shorten it$"):
        model.generate([3] * 1025)


def test_bad_options_are_refused_before_anything_runs(model: gemlet.Model) -> None:
    with pytest.raises(InvalidRequestError, match="temperature: got nan"):
        model.stream(PROMPT, temperature=math.nan)
    with pytest.raises(InvalidRequestError, match=r"stream\(\) has no argument 'max_new_tokens'"):
        model.stream(PROMPT, max_new_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match=re.escape("config: got {'seed': 1}")):
        model.stream(PROMPT, {"seed": 1})  # type: ignore[arg-type]


def test_chat_replies(model: gemlet.Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]
    reply = model.chat(messages, max_tokens=12, seed=2)
    with model.stream_chat(messages, max_tokens=12, seed=2) as stream:
        assert "".join(chunk.text for chunk in stream) == reply.text
    assert reply.prompt_tokens == stream.result.prompt_tokens
    with pytest.raises(InvalidRequestError):
        model.chat([])


class InterruptingTokenizer:
    """A tokenizer that sends SIGINT to the process while it decodes a token, like a user's Ctrl-C."""

    def __init__(self, tokenizer: Any, after: int) -> None:
        self._tokenizer = tokenizer
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def stream_decoder(self) -> Any:
        decoder = self._tokenizer.stream_decoder()

        class Interrupting:
            @staticmethod
            def next_text(token_id: int) -> str:
                self._left -= 1
                if self._left == 0:
                    signal.raise_signal(signal.SIGINT)
                return str(decoder.next_text(token_id))

            @staticmethod
            def finish() -> str:
                return str(decoder.finish())

        return Interrupting()


def test_interrupted_generation_leaves_the_model_usable(
    model: gemlet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(PROMPT, max_tokens=20, seed=9)
    with monkeypatch.context() as patched:
        patched.setattr(model, "tokenizer", InterruptingTokenizer(model.tokenizer, after=5))
        with pytest.raises(KeyboardInterrupt):
            model.generate(PROMPT, max_tokens=20, seed=9, ignore_eos=True)
    again = model.generate(PROMPT, max_tokens=20, seed=9)
    assert (again.text, again.finish_reason) == (expected.text, expected.finish_reason)


def test_cancel_ends_a_stream_and_leaves_the_model_usable(model: gemlet.Model) -> None:
    with model.stream(PROMPT, max_tokens=10_000, seed=1, ignore_eos=True) as stream:
        first = next(stream)
        timer = threading.Timer(0.01, stream.cancel)
        timer.start()
        rest = list(stream)
        timer.join()
    assert rest[-1].finish_reason == "cancelled"
    assert first.token_ids[0] == stream.result.token_ids[0]
    assert model.generate(PROMPT, max_tokens=3).completion_tokens <= 3


def test_interleaved_streams_do_not_change_each_other(model: gemlet.Model) -> None:
    alone = [model.generate(PROMPT, max_tokens=16, seed=seed, ignore_eos=True).token_ids for seed in (1, 2)]
    streams = [model.stream(PROMPT, max_tokens=16, seed=seed, ignore_eos=True) for seed in (1, 2)]
    together: list[list[int]] = [[], []]
    for chunks in zip(*streams, strict=True):
        for ids, chunk in zip(together, chunks, strict=True):
            ids += chunk.token_ids
    assert together == alone


def test_several_threads_may_share_a_model(model: gemlet.Model) -> None:
    alone = [model.generate(PROMPT, max_tokens=12, seed=seed).token_ids for seed in range(4)]
    together: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        together[seed] = model.generate(PROMPT, max_tokens=12, seed=seed).token_ids

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


def test_logits_do_not_depend_on_how_the_ids_are_split(model: gemlet.Model) -> None:
    ids = model.tokenizer.encode("It was a dark night, and the wind was loud. " * 16)  # type: ignore[union-attr]
    ids = ids[:150]
    assert len(ids) == 150  # logits() computes so many ids in more than one part
    whole = model.logits(ids)
    np.testing.assert_allclose(model.logits(ids[:70]), whole[:70], rtol=0, atol=1e-3 * np.abs(whole).max())


def test_the_error_of_an_unread_stream_whose_model_is_closed() -> None:
    with gemlet.load(threads=1) as model:
        late, whole = model.stream(PROMPT, max_tokens=3), model.stream(PROMPT, max_tokens=3)
        cut = model.stream_chat("Hello", max_tokens=3)
        assert len(list(whole)) == 3
        next(cut)
        cut.close()
        assert list(cut) == []
    with pytest.raises(ModelClosedError, match="before the end of this stream"):
        list(late)
    assert list(whole) == list(cut) == []  # both streams had ended before


def test_every_call_after_close_is_an_error() -> None:
    model = gemlet.load()
    stream = model.stream(PROMPT, max_tokens=100, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    assert stream.result.finish_reason == "cancelled"
    for _ in range(2):
        with pytest.raises(ModelClosedError, match="demo was closed before the end of this stream; read the"):
            next(stream)
    assert "closed" in repr(model)
    for use in (
        lambda: model.generate(PROMPT),
        lambda: model.stream(PROMPT),
        lambda: model.chat([{"role": "user", "content": "Hello"}]),
        lambda: model.logits([2]),
        model.memory,
        model.__enter__,
    ):
        with pytest.raises(ModelClosedError, match="closed"):
            use()


def test_a_model_without_tokenizer_accepts_token_ids(
    model: gemlet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "tokenizer", None)
    result = model.generate([2, 5, 6], max_tokens=4, seed=1, ignore_eos=True)
    assert (result.text, result.completion_tokens) == ("", 4)
    with pytest.raises(InvalidRequestError, match="no tokenizer; pass token ids"):
        model.generate(PROMPT)
    with pytest.raises(InvalidRequestError, match=r"stop: .* no tokenizer"):
        model.generate([2], stop="x")
    with pytest.raises(gemlet.UnsupportedError, match="no tokenizer"):
        model.chat([{"role": "user", "content": "Hello"}])


def test_a_string_becomes_the_only_message_of_a_chat(model: gemlet.Model) -> None:
    asked = {"max_tokens": 8, "seed": 3}
    whole = model.chat([{"role": "user", "content": "Hello"}], **asked)
    assert model.chat("Hello", **asked).token_ids == whole.token_ids
    with pytest.raises(InvalidRequestError, match="messages: got an empty text"):
        model.chat("")
