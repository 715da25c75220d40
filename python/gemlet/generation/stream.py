"""Generating text: the answer (:class:`Generation`, :class:`Chunk`) and its loop (:class:`TextStream`).

One loop serves every interface: prefill the prompt in chunks, then sample a token, show it, feed it back.

>>> import gemlet
>>> with gemlet.load() as model:
...     answer = model.generate("The door opened", max_tokens=8, seed=1)
>>> answer.completion_tokens, answer.finish_reason
(8, 'length')
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemlet.errors import CancelledError, InvalidRequestError
from gemlet.generation_config import GenerationConfig
from gemlet.reply import Content, MalformedToolCall, ReplyEvent, ToolCall, collect
from gemlet.stopping import ReplyEmitter, ReplyReader, StreamDecoder, TextReader

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["Chunk", "FinishReason", "Generation", "GenerationConfig", "TextStream"]

FinishReason = Literal["stop", "length", "cancelled"]

# Between two chunks of a prefill Python runs: Ctrl-C and cancel() take effect there.
PREFILL_CHUNK = 512


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Generation:
    """A finished generation.

    Attributes:
        text: the continuation (without the prompt and without the stop string); empty without a tokenizer.
            Of a chat it is the answer: without reasoning and without calls of tools.
        token_ids: every token generated, the end token excepted. A stop string's tokens are in it.
        finish_reason: "stop" (end token or stop string), "length" (``max_tokens`` or a full context) or
            "cancelled".
        prompt_tokens: tokens of the prompt, BOS included.
        completion_tokens: ``len(token_ids)``.
        prefill_seconds: time to run the prompt through the model.
        decode_seconds: time spent after that on sampling, decoding and feeding tokens back; the time in which
            the caller of a stream did something else is not in it.
        decode_steps: single-token forward passes in ``decode_seconds`` (the first token needs none).
        seed: the seed that was used, so that a run without one can be repeated.
        reasoning: what the model thought before it answered (a chat with ``thinking``).
        tool_calls: the calls of tools in a chat, in order.
        malformed_calls: those that cannot be read, or were cut off by ``max_tokens``.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     result = model.generate("The door opened", max_tokens=8, seed=1)
    ...     again = model.generate("The door opened", max_tokens=8, seed=result.seed)
    >>> result.prompt_tokens, result.completion_tokens, len(result.token_ids), result.decode_steps
    (4, 8, 8, 7)
    >>> again.text == result.text
    True
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    seed: int
    reasoning: str = ""
    tool_calls: list[ToolCall] = dataclasses.field(default_factory=list)
    malformed_calls: list[MalformedToolCall] = dataclasses.field(default_factory=list)

    @property
    def message(self) -> dict[str, Any]:
        """The reply as the message to append to the conversation, in OpenAI's form.

        The results of its calls follow as messages ``{"role": "tool", "tool_call_id": ..., "content": ...}``.

        >>> import gemlet
        >>> messages = [{"role": "user", "content": "Who is there?"}]
        >>> with gemlet.load() as model:
        ...     messages.append(model.chat(messages, max_tokens=6).message)
        >>> messages[-1]["role"]
        'assistant'
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{index}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for index, call in enumerate(self.tool_calls)
            ]
        return message

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second of prefill (0.0 when no prompt was run)."""
        return _rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Single-token forward passes per second of decoding (0.0 when there was none)."""
        return _rate(self.decode_steps, self.decode_seconds)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One step of a stream.

    Attributes:
        text: text that became certain with this step; empty while half a character or the possible beginning
            of a stop string is held back. The texts of a stream's chunks add up to :attr:`Generation.text`.
        token_ids: the tokens of this step (none in a last chunk that only ends the stream).
        finish_reason: None, but in the last chunk: see :class:`Generation`.
        events: ``text`` and, of a chat, what is none of it, in order: Content, Reasoning, ToolCall and
            MalformedToolCall of :mod:`gemlet.reply`.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     chunks = list(model.stream("The door opened", max_tokens=3, seed=1))
    >>> [(len(chunk.token_ids), chunk.finish_reason) for chunk in chunks]
    [(1, None), (1, None), (1, 'length')]
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    events: list[ReplyEvent] = dataclasses.field(default_factory=list, compare=False)


def prefill(
    sequence: _core.TokenSequence, ids: NDArray[np.int32], cancelled: threading.Event | None = None
) -> None:
    """Runs ``ids`` int32 ``[n]`` through the model in chunks and leaves the logits of the last one."""
    for start in range(0, len(ids), PREFILL_CHUNK):
        if cancelled is not None and cancelled.is_set():
            raise CancelledError("cancelled during prefill")
        is_last = start + PREFILL_CHUNK >= len(ids)
        sequence.extend(ids[start : start + PREFILL_CHUNK], logits="last" if is_last else "none")


class TextStream:
    """The token loop as an iterator of :class:`Chunk`; made by :meth:`gemlet.Model.stream`.

    Nothing is computed before the first chunk is asked for. Each stream has a context (KV cache) of its own,
    given back when the stream ends, is closed or is left as a context manager. Ctrl-C raises
    KeyboardInterrupt out of the iteration, ends the stream and leaves the model usable.

    >>> import gemlet
    >>> with gemlet.load() as model, model.stream("The door opened", max_tokens=3, temperature=0) as stream:
    ...     chunks = list(stream)
    >>> [chunk.finish_reason for chunk in chunks]
    [None, None, 'length']
    >>> stream.result.text == "".join(chunk.text for chunk in chunks)
    True
    """

    def __init__(
        self,
        *,
        sequence: _core.TokenSequence,
        sampler: _core.Sampler,
        prompt_ids: NDArray[np.int32],
        config: GenerationConfig,
        seed: int,
        end_ids: frozenset[int],
        context_length: int,
        decoder: StreamDecoder | None,
        reply_parser: ReplyReader | None = None,
    ) -> None:
        self._sequence = sequence
        self._sampler = sampler
        self._prompt_ids = prompt_ids
        self._config = config
        self._seed = seed
        self._end_ids = frozenset() if config.ignore_eos else end_ids
        self._context_length = context_length
        # What reads the tokens: of a chat its format's parser, else the decoder alone.
        self._emitter = ReplyEmitter(reply_parser or TextReader(decoder), config.stop)
        self._events: list[ReplyEvent] = []
        self._token_ids: list[int] = []
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0
        self._decode_steps = 0
        self._result: Generation | None = None
        self._open = True
        self._cancelled = threading.Event()
        self._step_lock = threading.Lock()  # one step at a time, whoever asks for it
        self._open_lock = threading.RLock()  # so that cancel() never meets a sequence that is being closed

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._step_lock:
            if not self._open:
                raise StopIteration
            try:
                return self._step()
            except CancelledError:
                return self._end("cancelled")
            except KeyboardInterrupt:
                self._end("cancelled")
                raise
            except BaseException:
                self._release()
                raise

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def cancel(self) -> None:
        """Asks the stream to end; returns at once. Any thread may call it, any number of times.

        A step that is running stops at its next opportunity; the stream's last chunk then says "cancelled".

        >>> import gemlet
        >>> with gemlet.load() as model, model.stream("The door opened", max_tokens=50) as stream:
        ...     for chunk in stream:
        ...         stream.cancel()  # or from another thread
        >>> chunk.finish_reason, stream.result.completion_tokens
        ('cancelled', 1)
        """
        self._cancelled.set()
        with self._open_lock:
            if self._open:
                self._sequence.cancel()

    def close(self) -> None:
        """Cancels the stream if it has not ended, waits for a running step, and gives its context back.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream("The door opened")
        ...     first = next(stream)
        ...     stream.close()
        >>> list(stream), stream.result.finish_reason, stream.result.text == first.text
        ([], 'cancelled', True)
        """
        if self._open:
            self.cancel()
        with self._step_lock:
            if self._open:
                self._end("cancelled")

    @property
    def result(self) -> Generation:
        """The whole :class:`Generation`, once the stream has ended.

        Raises:
            InvalidRequestError: the stream has not ended yet, or ended with an error.
        """
        if self._result is None:
            raise InvalidRequestError("the stream has no result: iterate it to its end, or close() it, first")
        return self._result

    def _step(self) -> Chunk:
        """One forward pass (the whole prompt at first, then the last token) and the token sampled from it."""
        if self._cancelled.is_set():
            return self._end("cancelled")
        started = time.perf_counter()
        if not self._token_ids:
            prefill(self._sequence, self._prompt_ids, self._cancelled)
            self._prefill_seconds = time.perf_counter() - started
            started = time.perf_counter()
        else:
            self._sequence.extend(np.array(self._token_ids[-1:], dtype=np.int32))
            self._decode_steps += 1
        reason: FinishReason | None = None
        token_ids: list[int] = []
        events: list[ReplyEvent] = []
        token_id = self._sequence.sample(self._sampler)
        if token_id in self._end_ids:
            reason = "stop"
        else:
            token_ids.append(token_id)
            self._token_ids.append(token_id)
            events = self._emitter.push(token_id)
            self._events += events  # at once: an interrupt may come before the chunk is handed out
            if self._emitter.stopped:
                reason = "stop"
            elif (
                len(self._token_ids) >= self._config.max_tokens
                or self._sequence.length >= self._context_length
            ):
                reason = "length"
        self._decode_seconds += time.perf_counter() - started
        if reason is not None:
            return self._end(reason, events, token_ids)
        return _chunk(events, token_ids, None)

    def _end(
        self, reason: FinishReason, events: Sequence[ReplyEvent] = (), token_ids: Sequence[int] = ()
    ) -> Chunk:
        """Ends the stream: its last chunk is ``events`` (already recorded) and what was held back."""
        held_back = self._emitter.finish()
        self._events += held_back
        if self._emitter.stopped and reason == "length":
            reason = "stop"  # the very last characters completed a stop string
        reply = collect(self._events)
        self._result = Generation(
            text=reply.content,
            token_ids=list(self._token_ids),
            finish_reason=reason,
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=len(self._token_ids),
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            decode_steps=self._decode_steps,
            seed=self._seed,
            reasoning=reply.reasoning,
            tool_calls=reply.tool_calls,
            malformed_calls=reply.malformed,
        )
        self._release()
        return _chunk([*events, *held_back], token_ids, reason)

    def _release(self) -> None:
        with self._open_lock:
            self._open = False
            self._sequence.close()


def _chunk(events: list[ReplyEvent], token_ids: Sequence[int], reason: FinishReason | None) -> Chunk:
    text = "".join(event.text for event in events if isinstance(event, Content))
    return Chunk(text, list(token_ids), reason, events)
