"""The loop that generates text: :class:`TextStream`.

One loop serves every interface: prefill the prompt in chunks, then sample a token, show it, feed it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.progress import Progress, in_notebook, reporting
from gemlet.chat.reply import Content, ReplyEvent
from gemlet.errors import CancelledError, InvalidRequestError, ModelClosedError
from gemlet.generation.answer import Answer, Timing
from gemlet.generation.result import Chunk, FinishReason, Generation

__all__ = ["Context", "TextStream"]


class Context(Protocol):
    """What a stream computes with: a :class:`_core.TokenSequence`, or what stands for one."""

    @property
    def length(self) -> int: ...
    def extend(self, ids: NDArray[np.int32], *, logits: str = "last") -> None: ...
    def sample(self, sampler: _core.Sampler, /) -> int: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def prefill(
    sequence: Context,
    ids: NDArray[np.int32],
    is_cancelled: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Runs ``ids`` int32 ``[n]`` through the model in chunks and leaves the logits of the last one."""
    chunk = _core.PASS_TOKENS  # between two chunks Python runs: Ctrl-C and cancel() take effect there
    for start in range(0, len(ids), chunk):
        if is_cancelled():
            raise CancelledError("cancelled during prefill")
        is_last = start + chunk >= len(ids)
        sequence.extend(ids[start : start + chunk], logits="last" if is_last else "none")
        advance(min(chunk, len(ids) - start))


class TextStream:
    """The token loop as an iterator of :class:`Chunk`; made by :meth:`gemlet.Model.stream`.

    Nothing is computed before the first chunk is asked for. Each stream has a context (KV cache) of its own,
    given back when the stream ends, is closed or is left as a context manager. What a signal handler raises
    (Ctrl-C: KeyboardInterrupt) comes out of the iteration and ends the stream; the model stays usable, and
    :attr:`result` is what there was by then. A handler may also close the stream, or the model. Whoever asks
    for the next chunk of a stream whose model was closed before its end gets a
    :class:`~gemlet.errors.ModelClosedError`.

    Attributes:
        prompt_progress: whether to show how much of a long prompt has been read: None for a line on terminals
            and in notebooks, and so on as for :func:`gemlet.load`. By default it shows in notebooks only.

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
        sequence: Context,
        sampler: _core.Sampler,
        prompt_ids: NDArray[np.int32],
        answer: Answer,
        context_length: int,
        why_closed: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.prompt_progress: Progress = None if in_notebook() else False
        self._sequence = sequence
        self._sampler = sampler
        self._prompt_ids = prompt_ids
        self._answer = answer
        self._context_length = context_length
        self._timing = Timing()
        self._result: Generation | None = None
        self._why_closed = why_closed  # what to say of a stream that its model closed
        self._closed_early: str | None = None  # that, where the model closed this one
        self._open = True
        self._is_cancelled = False
        self._close_is_due = False  # asked for by what interrupted a step, such as a signal handler
        self._turn = _core.Turn()  # one step at a time, whoever asks for it

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._turn as first:
            if not first:
                raise InvalidRequestError(
                    "the stream is in the middle of a step that this code (a signal handler or finalizer) "
                    "interrupted; ask for the next chunk after it, or close() the stream"
                )
            if not self._open:
                if self._closed_early is not None:
                    raise ModelClosedError(self._closed_early)
                raise StopIteration
            try:
                chunk = self._step()
            except BaseException as error:  # also what a signal handler raised: the text so far is kept
                chunk = self._end("cancelled")
                asked_for = (CancelledError, ModelClosedError) if self._is_cancelled else CancelledError
                if not isinstance(error, asked_for):
                    raise
        if self._close_is_due:
            self.close()
        return chunk

    def __repr__(self) -> str:
        count = len(self._answer.token_ids)
        state = f"{count} token{'s' * (count != 1)} so far" if count else "not begun"
        if not self._open:
            state = "ended with an error" if self._result is None else f"ended: {self._result!r}"
        return f"<gemlet.TextStream {state}>"

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
        self._is_cancelled = True
        if self._open:
            self._sequence.cancel()

    def close(self) -> None:
        """Cancels the stream if it has not ended, waits for a running step, and gives its context back.

        A signal handler that interrupted a step need not wait: the step ends the stream when it goes on.

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
        with self._turn as first:
            if not first:
                self._close_is_due = True
            elif self._open:
                self._closed_early = self._why_closed()
                self._end("cancelled")

    @property
    def result(self) -> Generation:
        """The whole :class:`Generation`, once the stream has ended.

        Raises:
            InvalidRequestError: the stream has not ended yet. (One that an error ended has what came before.)
        """
        if self._result is None:
            raise InvalidRequestError("the stream has no result: iterate it to its end, or close() it, first")
        return self._result

    def _step(self) -> Chunk:
        """One forward pass (the whole prompt at first, then the last token) and the token sampled from it."""
        if self._is_cancelled:
            return self._end("cancelled")
        answer, timing = self._answer, self._timing
        started = time.perf_counter()
        if not answer.token_ids:
            timing.cached_tokens = self._sequence.length
            ids = self._prompt_ids[timing.cached_tokens :]
            with reporting(self.prompt_progress, "reading the prompt", len(ids), "tokens") as advance:
                prefill(self._sequence, ids, lambda: self._is_cancelled, advance)
            timing.prefill_seconds = time.perf_counter() - started
            started = time.perf_counter()
        else:
            self._sequence.extend(np.array(answer.token_ids[-1:], dtype=np.int32))
            timing.decode_steps += 1
        token_id = self._sequence.sample(self._sampler)
        events, reason = answer.push(token_id)
        if reason is None and self._sequence.length >= self._context_length:
            reason = "context"
        token_ids = [] if answer.ended else [token_id]
        timing.decode_seconds += time.perf_counter() - started
        return _chunk(events, token_ids, None) if reason is None else self._end(reason, events, token_ids)

    def _end(
        self, reason: FinishReason, events: Sequence[ReplyEvent] = (), token_ids: Sequence[int] = ()
    ) -> Chunk:
        """Ends the stream: its last chunk is ``events`` (already recorded) and what was held back."""
        held_back, self._result = self._answer.end(reason, self._timing)
        self._release()
        return _chunk([*events, *held_back], token_ids, self._result.finish_reason)

    def _release(self) -> None:
        self._open = False
        self._sequence.close()


def run_to_end(stream: TextStream) -> Generation:
    """What the stream gives in all."""
    with stream:
        for _ in stream:
            pass
    return stream.result


def _chunk(events: list[ReplyEvent], token_ids: Sequence[int], reason: FinishReason | None) -> Chunk:
    text = "".join(event.text for event in events if isinstance(event, Content))
    return Chunk(text, list(token_ids), reason, events)
