"""The token loop with a scripted core: the text of a stream, how it ends, and who may end it."""

from __future__ import annotations

import threading
from typing import Any, cast

import numpy as np
import pytest

from gemlet import GenerationConfig
from gemlet._core import PASS_TOKENS
from gemlet.errors import CancelledError, InvalidRequestError
from gemlet.generation import Chunk, TextStream
from gemlet.generation.answer import Answer
from support.scripted import ScriptedSequence

pytestmark = pytest.mark.tier


class ByteDecoder:
    """Each token id is a byte. Incomplete characters are held back."""

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
        answer=Answer(
            prompt_tokens=prompt,
            config=GenerationConfig(**options),
            seed=0,
            end_ids=frozenset({END}),
            decoder=ByteDecoder() if decoder is None else None if decoder == "none" else decoder,
        ),
        context_length=context_length,
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
    # The last token is not fed back, because nobody needs its logits.
    assert stream.result.decode_steps == max_tokens - 1


def test_a_full_context_has_a_reason_of_its_own() -> None:
    stream = scripted(b"abcdefgh", prompt=6, context_length=8)
    assert len(list(stream)) == 3
    assert (stream.result.text, stream.result.finish_reason) == ("abc", "context")
    assert sequence_of(stream).length == 8
    full = scripted(b"abc", prompt=8, context_length=8)
    assert len(list(full)) == 1
    assert full.result.finish_reason == "context"
    both = scripted(b"abcdefgh", prompt=6, context_length=8, max_tokens=3)
    assert [chunk.finish_reason for chunk in both] == [None, None, "length"]
    stopped = scripted("x€".encode(), prompt=6, context_length=8, stop="\ufffd")
    list(stopped)
    assert stopped.result.finish_reason == "stop"


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    stream = scripted(b"one E EN END two", stop=["END"])
    texts = [chunk.text for chunk in stream]
    assert "".join(texts) == stream.result.text == "one E EN "
    assert stream.result.finish_reason == "stop"
    assert stream.result.token_ids == list(b"one E EN END")
    # "E" is held back until the next character shows that it does not begin a stop string.
    assert texts[4:6] == ["", "E "]


def test_text_held_back_is_shown_when_no_stop_string_follows() -> None:
    stream = scripted(b"so EN" + bytes([END]), stop="END")
    chunks = list(stream)
    assert chunks[-1] == Chunk("EN", [], "stop")
    assert stream.result.text == "so EN"
    cut = scripted(b"so EN", stop="END", max_tokens=5)
    assert list(cut)[-1] == Chunk("EN", [ord("N")], "length")


def test_a_character_of_several_tokens_is_shown_whole() -> None:
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
    [1, PASS_TOKENS - 1, PASS_TOKENS, PASS_TOKENS + 1, 2 * PASS_TOKENS, 2 * PASS_TOKENS + 7],
)
def test_prefill_in_chunks_wants_only_the_last_logits(tokens: int) -> None:
    stream = scripted(b"a", prompt=tokens, max_tokens=1)
    list(stream)
    calls = sequence_of(stream).calls
    assert sum(count for count, _ in calls) == tokens
    assert max(count for count, _ in calls) <= PASS_TOKENS
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
    stream.cancel()  # after the end it does nothing, and does not touch the closed sequence


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

    stream = scripted(b"", sequence=CancelledMidway([97]), prompt=3 * PASS_TOKENS)
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


def test_an_error_in_a_step_propagates_and_frees_the_context() -> None:
    class Broken(ScriptedSequence):
        def sample(self, sampler: object) -> int:
            raise InvalidRequestError("the logits are not finite")

    stream = scripted(b"", sequence=Broken([]))
    with pytest.raises(InvalidRequestError, match="not finite"):
        next(stream)
    assert sequence_of(stream).closed
    assert (stream.result.finish_reason, stream.result.text) == ("cancelled", "")


def test_decode_time_does_not_count_the_time_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("gemlet.generation.stream.time.perf_counter", lambda: clock[0])

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
