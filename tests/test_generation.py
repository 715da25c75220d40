"""The request's checks, stop strings, the token loop, and generation with the demo model."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemlet
from gemlet import GenerationConfig
from gemlet.errors import (
    CancelledError,
    ContextLengthError,
    InvalidRequestError,
    ModelClosedError,
)
from gemlet.generation import PREFILL_CHUNK, Chunk, TextStream
from gemlet.generation_config import token_id_array
from gemlet.stopping import StopScanner

PROMPT = "The door opened"


# --- GenerationConfig


def test_defaults_are_gemmas() -> None:
    config = GenerationConfig()
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 64, 0.95)
    assert (config.min_p, config.repetition_penalty, config.max_tokens) == (0.0, 1.0, 256)
    assert config.seed is None
    assert config.stop == ()
    assert config.do_sample
    assert not config.ignore_eos


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", v) for v in (0, -1, 2**31, 1.0, True, None, "5", math.nan, 10**5000)),
        *(("temperature", v) for v in (-0.1, math.nan, math.inf, -math.inf, 100.1, True, None, "1", 10**400)),
        *(("top_k", v) for v in (-1, 2**31, 1.5, False, None, "5")),
        *(("top_p", v) for v in (0.0, -0.5, 1.0001, math.nan, math.inf, True, None, [0.5])),
        *(("min_p", v) for v in (-0.001, 1.001, math.nan, math.inf, False, None, 1j)),
        *(("repetition_penalty", v) for v in (0.0, -1.0, math.nan, math.inf, 1000.0, True, None)),
        *(("seed", v) for v in (-1, 2**64, 1.0, True, "7", math.nan)),
        *(("stop", v) for v in ("", [""], ["a", ""], [1], None, 5, b"x", {"a": 1}, ["a"] * 17, "a" * 257)),
        *(("ignore_eos", v) for v in (0, 1, None, "yes")),
        *(("do_sample", v) for v in (0, 1, None, "no")),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 10**20 else "huge",
)
def test_invalid_values_name_the_argument(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name}: got .*, expected .*") as caught:
        GenerationConfig(**{name: value})
    assert len(str(caught.value)) < 400
    with pytest.raises(InvalidRequestError, match=name):
        GenerationConfig().replace(**{name: value})


def test_numbers_of_other_libraries_are_taken_as_plain_ones() -> None:
    config = GenerationConfig(
        max_tokens=np.int64(5),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        do_sample=np.bool_(False),  # type: ignore[arg-type]
    )
    assert [type(value) for value in (config.max_tokens, config.temperature, config.top_p)] == [
        int,
        float,
        float,
    ]
    assert config.seed == 2**64 - 1
    assert config.do_sample is False


def test_stop_is_a_tuple_whatever_was_given() -> None:
    assert GenerationConfig(stop="END").stop == ("END",)
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationConfig(stop=("a",)).stop == ("a",)


def test_config_is_frozen_and_replaceable() -> None:
    config = GenerationConfig(seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]
    assert config.replace(seed=2) == GenerationConfig(seed=2)
    assert hash(config) == hash(GenerationConfig(seed=1))
    with pytest.raises(InvalidRequestError, match=r"'temprature'.*temperature"):
        config.replace(temprature=1)


def test_greedy() -> None:
    assert GenerationConfig(temperature=0).greedy
    assert GenerationConfig(do_sample=False).greedy
    assert not GenerationConfig(temperature=0.1).greedy


# --- token ids


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2], np.uint16), [np.int64(1), np.int32(2)]])
def test_token_ids_become_int32(ids: Any) -> None:
    array = token_id_array(ids, vocab_size=3, name="prompt")
    assert array.dtype == np.int32
    assert array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        (np.array([], np.int64), "empty"),
        ([0, 3], "token id 3 at position 1, expected integers from 0 to 2"),
        ([-1], "token id -1 at position 0"),
        ([True], "token id True at position 0"),
        ([1.0], "token id 1.0 at position 0"),
        (["a"], "token id 'a' at position 0"),
        ([2**70], "at position 0"),
        (np.array([1, 3]), "token id 3 at position 1"),
        (np.array([2**40]), "at position 0"),
        (np.array([1.0]), "float64"),
        (np.array([True]), "bool"),
        (np.array([[1]]), r"int64\[1, 1\]"),
        (np.array(1), r"int64\[\]"),
        (5, "got 5"),
        (None, "got None"),
        (b"abc", "got b'abc'"),
        ({1, 2}, "expected a list"),
    ],
)
def test_bad_token_ids(ids: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^prompt: .*{message}"):
        token_id_array(ids, vocab_size=3, name="prompt")


# --- stop strings


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: the stop string completed first ends the text; of two completed together, the longer."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


few_letters = st.text(alphabet="ab ", max_size=12)


@given(
    pieces=st.lists(few_letters, max_size=12),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=5), max_size=4),
)
def test_stop_scanner_matches_the_definition_at_every_split(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    scanner = StopScanner(stops)
    shown = ""
    for i, piece in enumerate(pieces):
        shown += scanner.push(piece)
        so_far = "".join(pieces[: i + 1])
        if not scanner.stopped:
            # Held back is exactly what may still turn out to be the beginning of a stop string.
            held = max(
                (k for stop in stops for k in range(len(stop)) if so_far.endswith(stop[:k])), default=0
            )
            assert shown == so_far[: len(so_far) - held]
    shown += scanner.flush()
    assert (shown, scanner.stopped) == reference_stop(whole, stops)


# --- the token loop, over a scripted core


class ScriptedSequence:
    """A context whose "model" answers the next tokens of a script."""

    def __init__(self, script: list[int]) -> None:
        self.script = iter(script)
        self.token_ids: list[int] = []
        self.calls: list[tuple[int, str]] = []
        self.closed = False
        self.cancelled = threading.Event()

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def extend(self, ids: Any, *, logits: str = "last") -> None:
        assert not self.closed
        assert ids.dtype == np.int32
        self.calls.append((len(ids), logits))
        self.token_ids += ids.tolist()

    def sample(self, sampler: object) -> int:
        return next(self.script)

    def cancel(self) -> None:
        assert not self.closed
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True


class ByteDecoder:
    """Token id = byte; incomplete characters are held back."""

    def __init__(self) -> None:
        self.pending = b""

    def push(self, token_id: int, /) -> str:
        self.pending += bytes([token_id])
        try:
            text = self.pending.decode()
        except UnicodeDecodeError:
            return ""
        self.pending = b""
        return text

    def finish(self) -> str:
        return self.pending.decode(errors="replace")


END = 255


def scripted(
    script: bytes | list[int],
    *,
    prompt: int = 3,
    context_length: int = 10_000,
    decoder: Any = None,
    sequence: Any = None,
    **options: Any,
) -> TextStream:
    return TextStream(
        sequence=cast(Any, sequence or ScriptedSequence(list(script))),
        sampler=cast(Any, None),
        prompt_ids=np.ones(prompt, dtype=np.int32),
        config=GenerationConfig(**options),
        seed=0,
        end_ids=frozenset({END}),
        context_length=context_length,
        decoder=ByteDecoder() if decoder is None else None if decoder == "none" else decoder,
    )


def sequence_of(stream: TextStream) -> Any:
    return stream._sequence


def test_an_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    stream = scripted(b"ok" + bytes([END]) + b"no")
    assert list(stream) == [Chunk("o", [111], None), Chunk("k", [107], None), Chunk("", [], "stop")]
    result = stream.result
    assert (result.text, result.token_ids, result.finish_reason) == ("ok", [111, 107], "stop")
    assert (result.prompt_tokens, result.completion_tokens, result.decode_steps) == (3, 2, 2)
    assert sequence_of(stream).closed
    assert list(stream) == []


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    stream = scripted(b"a" + bytes([END]) + b"bcd", ignore_eos=True, max_tokens=4, decoder="none")
    assert [chunk.finish_reason for chunk in stream] == [None, None, None, "length"]
    assert stream.result.token_ids == [97, END, 98, 99]
    assert stream.result.text == ""


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_max_tokens(max_tokens: int) -> None:
    stream = scripted(b"abcdefgh", max_tokens=max_tokens)
    assert len(list(stream)) == max_tokens
    assert stream.result.text == "abcdefgh"[:max_tokens]
    assert stream.result.finish_reason == "length"
    # The last token is never fed back: nobody would look at its logits.
    assert stream.result.decode_steps == max_tokens - 1


def test_a_full_context_ends_with_length() -> None:
    stream = scripted(b"abcdefgh", prompt=6, context_length=8)
    assert len(list(stream)) == 3
    assert (stream.result.text, stream.result.finish_reason) == ("abc", "length")
    assert sequence_of(stream).length == 8
    full = scripted(b"abc", prompt=8, context_length=8)
    assert len(list(full)) == 1
    assert full.result.finish_reason == "length"


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    stream = scripted(b"one E EN END two", stop=["END"])
    texts = [chunk.text for chunk in stream]
    assert "".join(texts) == stream.result.text == "one E EN "
    assert stream.result.finish_reason == "stop"
    assert stream.result.token_ids == list(b"one E EN END")
    # "E" alone is held back until the next character shows that it was harmless.
    assert texts[4:6] == ["", "E "]


def test_held_back_text_comes_out_when_the_stop_string_does_not_come() -> None:
    stream = scripted(b"so EN" + bytes([END]), stop="END")
    chunks = list(stream)
    assert chunks[-1] == Chunk("EN", [], "stop")
    assert stream.result.text == "so EN"
    cut = scripted(b"so EN", stop="END", max_tokens=5)
    assert list(cut)[-1] == Chunk("EN", [ord("N")], "length")


def test_a_character_over_several_tokens_comes_out_whole() -> None:
    stream = scripted("aé€😀".encode() + bytes([END]))
    assert [chunk.text for chunk in stream] == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
    cut = scripted("€".encode(), max_tokens=2)
    assert [chunk.text for chunk in cut] == ["", "\ufffd"]


def test_a_stop_string_completed_by_the_last_flush_counts() -> None:
    stream = scripted("x€".encode(), max_tokens=3, stop="\ufffd")
    list(stream)
    assert (stream.result.text, stream.result.finish_reason) == ("x", "stop")


@pytest.mark.parametrize(
    "tokens",
    [1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK, 2 * PREFILL_CHUNK + 7],
)
def test_prefill_in_chunks_wants_logits_of_the_last_alone(tokens: int) -> None:
    stream = scripted(b"a", prompt=tokens, max_tokens=1)
    list(stream)
    calls = sequence_of(stream).calls
    assert sum(count for count, _ in calls) == tokens
    assert max(count for count, _ in calls) <= PREFILL_CHUNK
    assert [logits for _, logits in calls] == ["none"] * (len(calls) - 1) + ["last"]


def test_nothing_runs_before_the_first_chunk_is_asked_for() -> None:
    stream = scripted(b"abc")
    assert sequence_of(stream).calls == []
    with pytest.raises(InvalidRequestError, match="no result"):
        _ = stream.result
    stream.close()
    assert sequence_of(stream).calls == []
    assert (stream.result.finish_reason, stream.result.text) == ("cancelled", "")


def test_cancel_between_steps() -> None:
    stream = scripted(b"abcdef", stop="abd")
    assert next(stream) == Chunk("", [97], None)
    stream.cancel()
    stream.cancel()
    assert list(stream) == [Chunk("a", [], "cancelled")]
    assert stream.result.text == "a"
    stream.cancel()  # after the end: harmless, and the closed sequence is not touched


def test_cancel_from_another_thread_interrupts_a_running_step() -> None:
    class Endless(ScriptedSequence):
        def extend(self, ids: Any, *, logits: str = "last") -> None:
            super().extend(ids, logits=logits)
            if len(ids) == 1:
                running.set()
                assert self.cancelled.wait(10)
                raise CancelledError("cancelled")

    running = threading.Event()
    stream = scripted(b"", sequence=Endless([97, 98]))
    seen: list[Chunk] = []
    thread = threading.Thread(target=lambda: seen.extend(stream))
    thread.start()
    assert running.wait(10)
    stream.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [Chunk("a", [97], None), Chunk("", [], "cancelled")]
    assert stream.result.finish_reason == "cancelled"


def test_close_from_another_thread_waits_for_the_step() -> None:
    class Slow(ScriptedSequence):
        def extend(self, ids: Any, *, logits: str = "last") -> None:
            running.set()
            assert self.cancelled.wait(10)
            super().extend(ids, logits=logits)  # asserts that the sequence is not closed yet

    running = threading.Event()
    stream = scripted(b"", sequence=Slow([97, 98]))

    def close() -> None:
        assert running.wait(10)
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    chunks = list(stream)
    closer.join(10)
    assert not closer.is_alive()
    assert sequence_of(stream).closed
    assert stream.result.finish_reason == "cancelled"
    assert len(chunks) <= 2


def test_cancel_stops_between_two_chunks_of_a_prefill() -> None:
    class CancelledMidway(ScriptedSequence):
        def extend(self, ids: Any, *, logits: str = "last") -> None:
            super().extend(ids, logits=logits)
            stream.cancel()

    stream = scripted(b"", sequence=CancelledMidway([97]), prompt=3 * PREFILL_CHUNK)
    assert list(stream) == [Chunk("", [], "cancelled")]
    assert len(sequence_of(stream).calls) == 1


def test_ctrl_c_propagates_and_leaves_a_result() -> None:
    class Interrupted(ScriptedSequence):
        def extend(self, ids: Any, *, logits: str = "last") -> None:
            super().extend(ids, logits=logits)
            if len(self.calls) == 3:
                raise KeyboardInterrupt

    stream = scripted(b"", sequence=Interrupted([97, 98, 99]))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert sequence_of(stream).closed
    assert (stream.result.text, stream.result.finish_reason) == ("ab", "cancelled")
    assert list(stream) == []


def test_an_error_in_a_step_propagates_and_gives_the_context_back() -> None:
    class Broken(ScriptedSequence):
        def sample(self, sampler: object) -> int:
            raise InvalidRequestError("the logits are not finite")

    stream = scripted(b"", sequence=Broken([]))
    with pytest.raises(InvalidRequestError, match="not finite"):
        next(stream)
    assert sequence_of(stream).closed
    with pytest.raises(InvalidRequestError, match="no result"):
        _ = stream.result


def test_time_spent_by_the_caller_is_not_decode_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("gemlet.generation.time.perf_counter", lambda: clock[0])

    class Timed(ScriptedSequence):
        def extend(self, ids: Any, *, logits: str = "last") -> None:
            super().extend(ids, logits=logits)
            clock[0] += 3.0 if len(ids) > 1 else 0.5

    stream = scripted(b"", sequence=Timed(list(b"abcde")), prompt=6, max_tokens=5)
    for _ in stream:
        clock[0] += 100.0
    assert (stream.result.prefill_seconds, stream.result.decode_seconds) == (3.0, 2.0)
    assert stream.result.prefill_tokens_per_second == 2.0
    assert stream.result.decode_tokens_per_second == 2.0


# --- the demo model


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load() as loaded:
        yield loaded


def test_stream_and_generate_say_the_same(model: gemlet.Model) -> None:
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


def test_without_a_seed_the_one_used_is_reported(model: gemlet.Model) -> None:
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


def test_a_stop_string_cuts_the_text_where_it_first_appears(model: gemlet.Model) -> None:
    free = model.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True)
    stop = free.text[len(free.text) // 2 :][:4]
    cut = model.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True, stop=[stop, "\x00never\x00"])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert free.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_generation_ends_where_the_context_is_full() -> None:
    with gemlet.load(max_context=32) as small:
        assert small.context_length == 32
        result = small.generate(PROMPT, max_tokens=1000, seed=1, ignore_eos=True)
        assert result.finish_reason == "length"
        assert result.prompt_tokens + result.completion_tokens == 33  # the last token needs no room
        with pytest.raises(ContextLengthError, match=r"33 tokens.*holds 32"):
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
        (None, "got None"),
        (b"bytes", "got b'bytes'"),
        (3.5, "got 3.5"),
        ("half \ud800", "surrogate"),
    ],
)
def test_bad_prompts(model: gemlet.Model, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        model.stream(prompt)


def test_bad_options_are_refused_before_anything_runs(model: gemlet.Model) -> None:
    with pytest.raises(InvalidRequestError, match="temperature: got nan"):
        model.stream(PROMPT, temperature=math.nan)
    with pytest.raises(InvalidRequestError, match="'max_new_tokens' is not a generation option"):
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
    """Sends the process SIGINT while a token is being decoded, as a user's Ctrl-C would arrive."""

    def __init__(self, tokenizer: Any, after: int) -> None:
        self._tokenizer = tokenizer
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def stream_decoder(self) -> Any:
        decoder = self._tokenizer.stream_decoder()

        class Interrupting:
            @staticmethod
            def push(token_id: int) -> str:
                self._left -= 1
                if self._left == 0:
                    signal.raise_signal(signal.SIGINT)
                return str(decoder.push(token_id))

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


def test_streams_that_take_turns_do_not_disturb_each_other(model: gemlet.Model) -> None:
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


def test_logits_do_not_depend_on_how_the_ids_are_cut(model: gemlet.Model) -> None:
    ids = model.tokenizer.encode("It was a dark night, and the wind was loud. " * 16)  # type: ignore[union-attr]
    ids = ids[:150]
    assert len(ids) == 150  # more than one chunk of logits
    whole = model.logits(ids)
    np.testing.assert_allclose(model.logits(ids[:70]), whole[:70], rtol=0, atol=1e-3 * np.abs(whole).max())


def test_after_close_everything_says_so() -> None:
    model = gemlet.load()
    stream = model.stream(PROMPT, max_tokens=100, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    assert stream.result.finish_reason == "cancelled"
    assert list(stream) == []
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


def test_a_model_without_tokenizer_takes_ids(model: gemlet.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "tokenizer", None)
    result = model.generate([2, 5, 6], max_tokens=4, seed=1, ignore_eos=True)
    assert (result.text, result.completion_tokens) == ("", 4)
    with pytest.raises(InvalidRequestError, match="no tokenizer; pass token ids"):
        model.generate(PROMPT)
    with pytest.raises(InvalidRequestError, match=r"stop: .* no tokenizer"):
        model.generate([2], stop="x")
    with pytest.raises(gemlet.UnsupportedError, match="no tokenizer"):
        model.chat([{"role": "user", "content": "Hello"}])
