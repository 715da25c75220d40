"""Tests of TextStream with a scripted engine: the text of a stream, its end, and its cancellation."""

from __future__ import annotations

import threading
from typing import Any, cast

import numpy as np
import pytest

from gemlet import GenerationConfig
from gemlet.errors import InvalidRequestError
from gemlet.generation import Chunk, TextStream
from gemlet.generation.answer import Answer, Prepared
from support.scripted import ScriptedEngine, ScriptedRequest
from support.waiting import PATIENCE

pytestmark = pytest.mark.tier


class ByteDecoder:
    """A decoder for which each token id is a byte. It holds incomplete characters back."""

    def __init__(self) -> None:
        self.pending = b""

    def next_text(self, token_id: int, /) -> str:
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
    engine: Any = None,
    **options: Any,
) -> TextStream:
    answer = Answer(
        prompt_tokens=prompt,
        config=GenerationConfig(**options),
        seed=0,
        end_ids=frozenset({END}),
        decoder=ByteDecoder() if decoder is None else None if decoder == "none" else decoder,
    )
    return TextStream(
        [Prepared(np.ones(prompt, dtype=np.int32), answer, cast(Any, None), None)],
        engine=lambda: engine or ScriptedEngine(list(script)),
        context_length=context_length,
    )


def request_of(stream: TextStream) -> Any:
    return cast(Any, stream._engine).requests[0]


def test_an_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    stream = scripted(b"ok" + bytes([END]) + b"no")
    assert list(stream) == [Chunk("o", [111], None), Chunk("k", [107], None), Chunk("", [], "stop")]
    result = stream.result
    assert (result.text, result.token_ids, result.finish_reason) == ("ok", [111, 107], "stop")
    assert (result.prompt_tokens, result.completion_tokens) == (3, 2)
    assert request_of(stream).cancelled.is_set()
    assert list(stream) == []


def test_with_ignore_eos_a_text_continues_to_max_tokens() -> None:
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


def test_a_full_context_has_its_own_finish_reason() -> None:
    stream = scripted(b"abcdefgh", prompt=6, context_length=8)
    assert len(list(stream)) == 3
    assert (stream.result.text, stream.result.finish_reason) == ("abc", "context")
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


def test_held_text_is_shown_if_it_is_no_stop_string() -> None:
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


def test_a_stop_string_in_the_last_held_text_counts() -> None:
    stream = scripted("x€".encode(), max_tokens=3, stop="\ufffd")
    list(stream)
    assert (stream.result.text, stream.result.finish_reason) == ("x", "stop")


def test_nothing_runs_before_the_first_chunk_is_read() -> None:
    engine = ScriptedEngine(b"abc")
    stream = scripted(b"", engine=engine)
    with pytest.raises(InvalidRequestError, match="no result"):
        _ = stream.result
    stream.close()
    assert engine.requests == []
    assert (stream.result.finish_reason, stream.result.text) == ("cancelled", "")


def test_cancel_between_steps() -> None:
    stream = scripted(b"abcdef", stop="abd")
    assert next(stream) == Chunk("", [97], None)
    stream.cancel()
    stream.cancel()
    assert list(stream) == [Chunk("a", [], "cancelled")]
    assert stream.result.text == "a"
    stream.cancel()  # cancelling after the end does nothing


class Waiting(ScriptedEngine):
    """An engine that gives one token, and then none until the request is cancelled."""

    class kind(ScriptedRequest):  # noqa: N801
        def take(self) -> tuple[list[int], str | None, Any]:
            if self.given and not self.cancelled.is_set():
                return [], None, []
            return super().take()

    def __init__(self) -> None:
        super().__init__(b"ab")
        self.waiting = threading.Event()

    def wait(self, news: Any, seen: int, patience: float | None = None) -> None:
        self.waiting.set()
        assert self.requests[0].cancelled.wait(PATIENCE)


def test_cancel_from_another_thread_interrupts_a_running_step() -> None:
    engine = Waiting()
    stream = scripted(b"", engine=engine)
    seen: list[Chunk] = []
    thread = threading.Thread(target=lambda: seen.extend(stream))
    thread.start()
    assert engine.waiting.wait(PATIENCE)
    stream.cancel()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert seen == [Chunk("a", [97], None), Chunk("", [], "cancelled")]
    assert stream.result.finish_reason == "cancelled"


def test_close_from_another_thread_waits_for_the_step() -> None:
    engine = Waiting()
    stream = scripted(b"", engine=engine)

    def close() -> None:
        assert engine.waiting.wait(PATIENCE)
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    chunks = list(stream)
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert request_of(stream).cancelled.is_set()
    assert stream.result.finish_reason == "cancelled"
    assert len(chunks) <= 2


def test_ctrl_c_propagates_and_leaves_a_result() -> None:
    class Interrupted(Waiting):
        def wait(self, news: Any, seen: int, patience: float | None = None) -> None:
            if not self.waiting.is_set():
                self.waiting.set()
                raise KeyboardInterrupt

    stream = scripted(b"", engine=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert request_of(stream).cancelled.is_set()
    assert (stream.result.text, stream.result.finish_reason) == ("a", "cancelled")
    assert list(stream) == []


def test_an_error_in_a_step_comes_after_the_earlier_chunks() -> None:
    class Broken(ScriptedEngine):
        class kind(ScriptedRequest):  # noqa: N801
            def next_token(self) -> int:
                if self.given:
                    raise InvalidRequestError("the logits are not finite")
                return super().next_token()

    stream = scripted(b"", engine=Broken(b"ab"))
    assert next(stream).text == "a"
    with pytest.raises(InvalidRequestError, match="not finite"):
        next(stream)
    assert (stream.result.finish_reason, stream.result.text) == ("cancelled", "a")


def test_chunks_of_several_texts_alternate_and_have_an_index() -> None:
    prepared = [scripted(script) for script in (b"abc", b"xy" + bytes([END]))]
    stream = TextStream(
        [one._texts[0]._prepared for one in prepared],
        engine=lambda: ScriptedEngine(b"abcd", b"xy" + bytes([END])),
        context_length=5,
    )
    chunks = [(chunk.index, chunk.text, chunk.finish_reason) for chunk in stream]
    assert [chunk[1:] for chunk in chunks if chunk[0] == 0] == [("a", None), ("b", None), ("c", "context")]
    assert [chunk[1:] for chunk in chunks if chunk[0] == 1] == [("x", None), ("y", None), ("", "stop")]
    assert [result.text for result in stream.results] == ["abc", "xy"]
    with pytest.raises(InvalidRequestError, match="2 texts"):
        _ = stream.result


def test_one_of_several_texts_is_cancelled() -> None:
    stream = TextStream(
        [scripted(b"abcd")._texts[0]._prepared for _ in range(3)],
        engine=lambda: ScriptedEngine(b"abcd", b"abcd", b"abcd"),
        context_length=5,
    )
    stream.cancel(2)  # this text has not begun yet
    chunks = [next(stream)]
    stream.cancel(chunks[0].index)
    stream.cancel(chunks[0].index)
    chunks += stream
    reasons = [result.finish_reason for result in stream.results]
    assert reasons == ["cancelled", "context", "cancelled"]
    assert [result.text for result in stream.results] == ["a", "abcd"[: len(stream.results[1].text)], ""]
    assert len(stream.results[1].text) > 1
    for wrong in (3, -1, True, "0", 1.0):
        with pytest.raises(InvalidRequestError, match="index: got"):
            stream.cancel(cast(Any, wrong))
