"""Text as it is written: :class:`TextStream`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from gemlet import _core
from gemlet.base.progress import Progress, in_notebook, reporting
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, ModelClosedError
from gemlet.generation.answer import Prepared
from gemlet.generation.result import Chunk, Generation
from gemlet.generation.running import Engine, RunningText

__all__ = ["AHEAD", "TextStream", "run_to_end"]

AHEAD = 64  # tokens that are written before the reader asks for them


class TextStream:
    """An iterator of :class:`Chunk`; made by :meth:`gemlet.Model.stream`.

    Computing starts when the first chunk is asked for. From then on, the model's engine writes at most 64
    tokens more than were asked for. The stream frees its part of the KV cache when it ends, is closed, or is
    left as a context manager. If a signal handler raises an exception (Ctrl-C: KeyboardInterrupt), the
    iteration raises it and the stream ends. The model stays usable, and :attr:`result` has the text so far. A
    handler may also close the stream or the model. If the model is closed before the stream ends, asking for
    the next chunk raises :class:`~gemlet.errors.ModelClosedError`.

    The stream of several prompts gives the chunks of all of them as they come; :attr:`Chunk.index` names the
    prompt of a chunk.

    Attributes:
        prompt_progress: whether to show how much of a long prompt has been read: None for a line on terminals
            and in notebooks, and the other values of :func:`gemlet.load`. By default, only notebooks show it.
        joins_tokens: whether a chunk has all available tokens of the same text or thought. Programs that pass
            chunks on set it, because a chunk costs them more than a token.

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
        prepared: Sequence[Prepared],
        *,
        engine: Callable[[], Engine],
        context_length: int,
        ahead: int = AHEAD,
        readable: bool = False,
        why_closed: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.prompt_progress: Progress = None if in_notebook() else False
        self.joins_tokens = False
        self._texts: list[RunningText] = []
        for i, one in enumerate(prepared):
            followed = next((j for j, other in enumerate(prepared[:i]) if other is one.follows), None)
            after = None if followed is None else self._texts[followed]
            self._texts.append(RunningText(one, i, context_length, after))
        self._live = deque(self._texts)  # the texts that have not ended, in the order of the next checks
        self._find_engine = engine
        self._engine: Engine | None = None
        self._news = _core.News(readable=readable)
        self._ahead = ahead
        self._why_closed = why_closed  # the message for a stream whose model was closed
        self._closed_early: str | None = None  # that message, if the model of this stream was closed
        self._failed = False
        self._is_cancelled = False
        self._cancelled: set[int] = set()  # the texts that were cancelled one by one
        self._close_is_due = False  # asked for while a step was interrupted, for example by a signal handler
        self._turn = _core.Turn()  # allows one step at a time, from any thread

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._turn as first:
            self._check_turn(first)
            try:
                self._begin()
                chunk = self._ready()
                if chunk is None:
                    chunk = self._wait_for_chunk()
                if not self._live:
                    self._release()
            except BaseException:  # this includes errors of signal handlers; the text so far is kept
                self._fail()
                raise
        if self._close_is_due:
            self.close()
        return chunk

    def _poll(self) -> tuple[Chunk | None, int]:
        """The next chunk if there is one, and the value of the news before the check. Does not wait. The
        first call starts the work. Raises the same errors as ``next``."""
        with self._turn as first:
            self._check_turn(first)
            seen = self._news.value
            try:
                self._begin()
                return self._ready(), seen
            except BaseException:
                self._fail(wait=False)
                raise

    @property
    def _has_chunk(self) -> bool:
        """Whether a token has been taken from the engine but not yet been returned."""
        live = self._live
        return live[0].has_tokens if len(live) == 1 else any(text.has_tokens for text in live)

    def _resume(self, seen: int) -> None:
        """Is called in a forked process. The engine starts to compute again when something waits for it."""
        if self._engine is not None:
            self._engine.wait(self._news, seen, 1e-6)

    def _poll_closed(self) -> int | None:
        """Ends the texts, without waiting. Returns None if the engine has freed their memory, otherwise the
        value of the news before the check."""
        with self._turn:
            seen = self._news.value
            self._end_all(wait=False)
            for text in self._texts:
                text.read()
            return None if all(text.is_over for text in self._texts) else seen

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of the prompt, or of all prompts. It is known before anything is computed."""
        return sum(text.prompt_tokens for text in self._texts)

    def __repr__(self) -> str:
        count = sum(len(text.answer.token_ids) for text in self._texts)
        state = f"{count} token{'s' * (count != 1)} so far" if count else "not begun"
        if not self._live:
            ended = repr(self._texts[0].result) if len(self._texts) == 1 else f"{len(self._texts)} texts"
            state = "ended with an error" if self._failed else f"ended: {ended}"
        return f"<gemlet.TextStream {state}>"

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def cancel(self, index: int | None = None) -> None:
        """Asks the stream to end, or only the text with this :attr:`Chunk.index`. Returns at once. Any thread
        may call it, any number of times.

        A step that is running stops at its next opportunity; the stream's last chunk, or that of the text,
        then says "cancelled".

        Raises:
            InvalidRequestError: the stream has no such text.

        >>> import gemlet
        >>> with gemlet.load() as model, model.stream("The door opened", max_tokens=50) as stream:
        ...     for chunk in stream:
        ...         stream.cancel()  # or from another thread
        >>> chunk.finish_reason, stream.result.completion_tokens
        ('cancelled', 1)
        """
        if index is None:
            self._is_cancelled = True
            for text in self._texts:
                text.cancel()
            return
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self._texts):
            raise InvalidRequestError(
                f"index: got {show_argument(index)}; the stream has texts 0 to {len(self._texts) - 1}"
            )
        self._cancelled.add(index)
        self._texts[index].cancel()

    def close(self) -> None:
        """Cancels the stream if it has not ended, and waits until its resources are free.

        A signal handler that interrupted a step need not wait: the step ends the stream when it goes on.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream("The door opened")
        ...     first = next(stream)
        ...     stream.close()
        >>> list(stream), stream.result.finish_reason, stream.result.text == first.text
        ([], 'cancelled', True)
        """
        if self._live:
            self.cancel()
        with self._turn as first:
            if not first:
                self._close_is_due = True
                return
            if self._live:
                self._closed_early = self._why_closed()
                self._end_all()
            self._release()

    @property
    def prompt_ids(self) -> list[list[int]]:
        """The tokens of the prompt of each text, including those that stand for images and sounds.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream([5, 6, 7])
        ...     stream.close()
        >>> stream.prompt_ids
        [[5, 6, 7]]
        """
        return [text.prompt_ids for text in self._texts]

    @property
    def result(self) -> Generation:
        """The whole :class:`Generation`, once the stream has ended.

        Raises:
            InvalidRequestError: the stream has not ended yet, or has several texts. (After an error, the
                result is the text before it.)
        """
        if len(self._texts) != 1:
            raise InvalidRequestError(
                f"the stream has {len(self._texts)} texts; use results instead of result"
            )
        return self.results[0]

    @property
    def results(self) -> list[Generation]:
        """The whole :class:`Generation` of each prompt, once the stream has ended.

        Raises:
            InvalidRequestError: the stream has not ended yet.

        >>> import gemlet
        >>> with gemlet.load() as model, model.stream(["The door", "A star"], max_tokens=3) as stream:
        ...     indices = sorted(chunk.index for chunk in stream)
        >>> indices, [result.completion_tokens for result in stream.results]
        ([0, 0, 0, 1, 1, 1], [3, 3])
        """
        results = [text.result for text in self._texts if text.result is not None]
        if len(results) < len(self._texts):
            raise InvalidRequestError("the stream has no result: iterate it to its end, or close() it, first")
        return results

    def _check_turn(self, first: bool) -> None:
        if not first:
            raise InvalidRequestError(
                "the stream is in the middle of a step that this code (a signal handler or finalizer) "
                "interrupted; ask for the next chunk after it, or close() the stream"
            )
        if self._live:
            return
        if self._closed_early is not None:
            raise ModelClosedError(self._closed_early)
        raise StopIteration

    def _begin(self) -> Engine:
        if self._engine is None:
            engine = self._engine = self._find_engine()
            if not self._is_cancelled:
                for text in self._texts:
                    if text.index not in self._cancelled:
                        text.begin(engine, self._news, self._ahead)
        return self._engine

    def _ready(self) -> Chunk | None:
        """A chunk that is ready; the texts take turns."""
        for _ in range(len(self._live)):
            text = self._live[0]
            if self._is_cancelled or text.index in self._cancelled:
                chunk: Chunk | None = text.end("cancelled")
            else:
                text.read()
                chunk = text.next_chunk(joined=self.joins_tokens)
            self._live.rotate(-1)
            if text.result is not None:
                self._live.remove(text)
            if chunk is not None:
                return chunk
        return None

    def _wait_for_chunk(self) -> Chunk:
        engine, is_new = self._begin(), not any(text.answer.token_ids for text in self._texts)
        total, known = self.prompt_tokens, 0
        progress = self.prompt_progress if is_new else False
        with reporting(progress, "reading the prompt", total, "tokens") as advance:
            while True:
                seen = self._news.value
                chunk = self._ready()
                read = sum(text.read_tokens for text in self._texts)
                advance(read - known)
                known = read
                if chunk is not None:
                    return chunk
                engine.wait(self._news, seen)

    def _fail(self, *, wait: bool = True) -> None:
        """Ends all texts after an error. They keep the tokens that they have."""
        self._failed = True
        self._end_all(wait=wait)

    def _end_all(self, *, wait: bool = True) -> None:
        while self._live:
            self._live.popleft().end("cancelled")
        if wait:
            self._release()

    def _release(self) -> None:
        """Waits until the engine has freed the memory of the texts."""
        for text in self._texts:
            while not text.is_over and self._engine is not None:
                seen = self._news.value
                text.read()
                if not text.is_over:
                    self._engine.wait(self._news, seen)


def run_to_end(stream: TextStream, ended: Callable[[int], None] = lambda count: None) -> list[Generation]:
    """Reads the whole stream and returns its results. Calls ``ended(1)`` for each text that ends."""
    with stream:
        for chunk in stream:
            if chunk.finish_reason is not None:
                ended(1)
    return stream.results
