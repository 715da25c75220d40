"""The one internal request, into which every dialect is translated, and how it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from gemlet.base.records import field, record, replace
from gemlet.chat.reply import Content, Reasoning, Reply, ReplyEvent, ToolCall, collect
from gemlet.generation.async_stream import AsyncTextStream
from gemlet.generation.result import Chunk, Generation, TokenLogprob
from gemlet.generation.stream import AHEAD
from gemlet.model.off_loop import takes_long
from gemlet.server.call import Call
from gemlet.server.content_filter import ContentFilter, NoReply, ReplyGate, Said, as_block
from gemlet.server.models import Served
from gemlet.server.problems import NO_RETRY, Problem, problem_of, stopping
from gemlet.server.said import content_of, strings_in, texts_of
from gemlet.server.sent_media import check_sent_media, images_of

__all__ = ["Ask", "Choice", "Running", "finish_reason", "is_plain_text"]

_Result = TypeVar("_Result")


@record(frozen=True)
class Ask:
    """The work that a request asks of a model: one reply to a prompt, or several replies.

    Attributes:
        prompt: a text, in which control tokens are plain text, or token ids. It is not used in a chat.
        messages: the conversation, in OpenAI's form; None for a continuation.
        options: the options of :class:`gemlet.GenerationConfig`.
        salt: what is computed for an ask is shared only with asks that have the same salt.
        one_call: whether the reply ends after its first call of a tool.
        seconds: how long the reply may take.
        priority: if replies wait for a place, those of higher priority begin first.
        count: how many replies are wanted. If a seed is given, each reply has the next one.
        load_audio_from_video: whether the model also hears the videos in the messages.
        names: maps arguments of the library to fields of the request, as for :func:`problem_of`.
        own_media: whether the server made the images and sounds itself, so that no client named them.
        shows_ids: whether the client gets the tokens of the reply.
        token_by_token: whether tokens come one by one, however fast they are written.
    """

    served: Served
    options: Mapping[str, Any]
    prompt: str | Sequence[int] = ()
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    thinking: bool = False
    continue_final: bool = False
    one_call: bool = False
    salt: str | None = None
    seconds: float | None = None
    priority: int = 0
    count: int = 1
    load_audio_from_video: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    own_media: bool = False
    shows_ids: bool = False
    token_by_token: bool = False

    @property
    def is_long(self) -> bool:
        """Whether it may take long to begin."""
        asked = self.prompt if self.messages is None else self.messages
        return takes_long(asked, {**self.options, "tools": self.tools, "tool_choice": self.tool_choice})

    def said(self) -> Said:
        """The text that the content filter judges. Raises :class:`Problem` if it is far too long."""
        model = self.served.model
        if self.messages is not None:
            texts = [text for message in self.messages for text in texts_of(message)]
            texts += strings_in(self.tools or ())
            asked = [message for message in self.messages if message.get("role") == "user"][-1:]
            last = "\n".join(text for message in asked for text in content_of(message))
            images = [image for message in asked for image in images_of(message)]
        else:
            prompt = self.prompt
            if not isinstance(prompt, str):
                prompt = "" if model.tokenizer is None else model.tokenizer.decode(list(prompt))
            texts, last, images = [prompt], prompt, []
        if model.tokenizer is not None:
            try:
                model.tokenizer.check_length(sum(map(len, texts)), model.context_length, "prompt")
            except Exception as error:
                raise self.problem_of(error) from error
        return Said(texts, last, self.salt, images)

    @property
    def decode(self) -> Callable[[Sequence[int]], str] | None:
        """The function that decodes tokens, if the client gets tokens that are not in its text; else None."""
        tokenizer = self.served.model.tokenizer
        shows = (self.shows_ids or "logprobs" in self.options) and self.options.get("stop")
        return tokenizer.decode if shows and tokenizer is not None else None

    def begin(self) -> AsyncTextStream:
        """Begins the stream that answers. It has :attr:`count` texts, and reads the prompt once. Raises
        :class:`Problem`."""
        model = self.served.model
        common: Any = {"adapter": self.served.adapter, "timeout": self.seconds, **self.options}
        common |= {"cache_salt": self.salt, "priority": self.priority}
        if self.count > 1:
            common["n"] = self.count
        try:
            if self.messages is None:
                return self._joining(model.astream(self.prompt, allow_control=False, **common))
            self._check_media(self.messages)
            stream = model.astream_chat(
                self.messages,
                tools=self.tools,
                tool_choice=self.tool_choice,
                thinking=self.thinking,
                continue_final_message=self.continue_final,
                load_audio_from_video=self.load_audio_from_video,
                **common,
            )
            return self._joining(stream)
        except Exception as error:
            raise self.problem_of(error) from error

    def _joining(self, stream: AsyncTextStream) -> AsyncTextStream:
        stream.joins_tokens = not self.token_by_token  # a chunk costs more than a token
        return stream

    def count_prompt(self, most: int | None = None) -> int:
        """The number of tokens of the prompt. Raises :class:`Problem` if the prompt is wrong, or if it
        certainly has more than ``most`` tokens."""
        model = self.served.model
        try:
            if self.messages is not None and model.chat_format is not None and model.tokenizer is not None:
                self._check_media(self.messages)
                return model.count_tokens(
                    self.messages,
                    tools=None if self.tool_choice == "none" else self.tools,
                    thinking=self.thinking,
                    continue_final_message=self.continue_final,
                    load_audio_from_video=self.load_audio_from_video,
                )
            if self.messages is not None:
                raise Problem(400, f"{self.served.name} has no chat format", code="unsupported")
            if isinstance(self.prompt, str) and model.tokenizer is not None:
                if most is not None:
                    model.tokenizer.check_length(len(self.prompt), most, "prompt")
                return len(model.tokenizer.encode(self.prompt, allow_control=False))
        except Exception as error:
            raise self.problem_of(error) from error
        return len(self.prompt)

    def _check_media(self, messages: Sequence[Mapping[str, Any]]) -> None:
        if not self.own_media:
            check_sent_media(messages, load_audio_from_video=self.load_audio_from_video)

    def check_prompt(self, most: int) -> None:
        """Raises :class:`Problem` if the prompt has more than ``most`` tokens."""
        count = self.count_prompt(most)
        if count > most:
            raise Problem(
                400,
                f"the prompt has {count} tokens; this key may send {most}",
                code="context_length_exceeded",
            )

    def problem_of(self, error: BaseException) -> Problem:
        model = self.served.model
        return problem_of(error, hidden=model.source, shown=self.served.name, names=self.names)


@record
class Choice:
    """One of the replies that are being written."""

    ask: Ask
    stream: AsyncTextStream | NoReply
    place: int = 0  # the index among the texts of the stream
    gate: ReplyGate | None = None
    is_blocked: bool = False  # the content filter ended it
    events: list[ReplyEvent] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # this and logprobs have only what may be shown
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""
    has_called: bool = False  # the first call is complete, and there may be only one
    reasoning_tokens: int = 0
    arrived: float = 0.0  # time of its last chunk
    together: int = 0  # tokens that came in the same chunk as the first one
    is_over: bool = False

    @property
    def result(self) -> Generation:
        """The whole generation. It must have ended."""
        return self.stream.results[self.place]

    @property
    def mean_gap(self) -> float:
        """The mean time in seconds between two tokens of the reply, as the engine measured it. It stands for
        the tokens of the first chunk, whose own times are not known."""
        return self.result.decode_seconds / max(self.result.decode_tokens, 1)

    def cancel(self) -> None:
        """Ends this reply and no other one. The tokens that the engine has written by then still come."""
        self.stream.cancel(self.place)

    def stop_string(self) -> str | None:
        """The stop string that ended the reply, or None. The result has its tokens, but not its text."""
        tokenizer, stops = self.ask.served.model.tokenizer, self.ask.options.get("stop", ())
        if self.finish != "stop" or not stops or tokenizer is None:
            return None
        written, text = tokenizer.decode(self.result.token_ids), self.reply.content
        return next((s for s in ([stops] if isinstance(stops, str) else stops) if text + s in written), None)

    def take_logprobs(self) -> list[TokenLogprob]:
        """The log probabilities that came since the last call. Streams use it."""
        found, self.logprobs = self.logprobs, []
        return found

    def take_token_ids(self) -> list[int]:
        """The token ids that came since the last call."""
        found, self.token_ids = self.token_ids, []
        return found

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of its prompt; empty if the content filter blocked the prompt."""
        return self.stream.prompt_ids[self.place]

    def result_message(self) -> dict[str, Any]:
        """The reply as the message to append to the conversation, in OpenAI's form."""
        reply = self.reply
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if reply.reasoning:
            message["reasoning"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in reply.tool_calls
            ]
        return message

    @property
    def reply(self) -> Reply:
        """The reply as far as it has arrived."""
        return collect(self.events)


@record
class Running:
    """The replies to one request, which run together.

    Iterate over it for pairs ``(index, chunk)``. Call :meth:`end` after the last pair, and :meth:`aclose` in
    any case.

    Attributes:
        before_waiting: is called with this object when no chunk is there, before the next one is waited for.
            The chunks that came before can be sent together then.
    """

    asks: Sequence[Ask]
    call: Call
    filter: ContentFilter
    choices: list[Choice] = field(default_factory=list)
    before_waiting: Callable[[Running], Awaitable[None]] | None = None
    _firsts: list[int] = field(default_factory=list)  # the first choice of each prompt
    _pumps: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, threads: anyio.CapacityLimiter) -> Running:
        """Begins all replies. Raises :class:`Problem` if an ask is wrong; the call then ends the others."""
        self.call.closers.append(self.aclose)
        for ask in self.asks:
            said: Said | None = None
            stream: AsyncTextStream | NoReply | None = None
            if self.filter.is_on("prompt") or self.filter.is_on("reply"):
                said = await _beside_loop(ask, ask.said, threads)
                if await self.filter.blocks(self.call, said):
                    said, stream = None, NoReply(ask.count)
            if stream is None:
                stream = await _beside_loop(ask, ask.begin, threads)
            self.call.cancels.append(stream.cancel)
            self._firsts.append(len(self.choices))
            for place in range(ask.count):
                gate = None if said is None else self.filter.gate(self.call, said, ask.decode)
                self.choices.append(Choice(ask, stream, place, gate))
        return self

    def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        return self._chunks(0, self.before_waiting) if len(self._firsts) == 1 else self._all()

    def longest_rest(self) -> float:
        """The number of seconds that the reader may pause; 0 before the first token. If the engine keeps its
        pace, by then either the replies are complete, or half of the engine's room for tokens that nobody has
        read is full.
        """
        call = self.call
        if call.first_token is None:
            return 0.0
        count = sum(ask.count for ask in self.asks)
        most = sum(ask.count * int(ask.options["max_tokens"]) for ask in self.asks)
        pace = (call.seconds() - call.first_token) / max(1, call.completion_tokens)
        return pace * min(most - call.completion_tokens, count * AHEAD // 2)

    async def _all(self) -> AsyncIterator[tuple[int, Chunk]]:
        arrived: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue(64)

        async def pump(first: int) -> None:
            try:
                async for found in self._chunks(first):
                    await arrived.put(found)
                await arrived.put(None)
            except Exception as error:
                await arrived.put(error)

        self._pumps = [asyncio.create_task(pump(first)) for first in self._firsts]
        left = len(self._pumps)
        while left:
            if self.before_waiting is not None and arrived.empty():
                await self.before_waiting(self)
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item

    async def _chunks(
        self, first: int, before_waiting: Callable[[Running], Awaitable[None]] | None = None
    ) -> AsyncIterator[tuple[int, Chunk]]:
        """The chunks of one prompt's stream. Its first text is the choice ``first``."""
        ask, stream = self.choices[first].ask, self.choices[first].stream
        is_judged = self.choices[first].gate is not None  # judging may take long
        try:
            if before_waiting is not None:
                await before_waiting(self)
            left = ask.count
            async for chunk in stream:
                index = first + chunk.index
                left -= chunk.finish_reason is not None
                shown = await self._taken(self.choices[index], chunk)
                if shown is not None:
                    yield index, shown
                if before_waiting is not None and left and (is_judged or not stream.has_chunk):
                    await before_waiting(self)
        except Exception as error:
            raise ask.problem_of(error) from error
        for choice in self.choices[first : first + ask.count]:
            choice.is_over = True

    async def _taken(self, choice: Choice, chunk: Chunk) -> Chunk | None:
        """Counts a chunk, and returns what the client gets of it; None if it gets nothing."""
        call = self.call
        now = time.monotonic()
        if call.first_token is None:
            call.first_token = now - call.started
        count = len(chunk.token_ids)
        if choice.arrived and count:
            call.gaps.extend([(now - choice.arrived) / count] * count)
        elif count:
            choice.together = count - 1
        choice.arrived = now
        if choice.has_called or choice.is_blocked:
            return None  # the engine wrote this before it noticed the cancellation
        call.completion_tokens += count
        for event in chunk.events:
            if isinstance(event, Reasoning):
                choice.reasoning_tokens += count
                break
        if choice.ask.one_call and (kept := _to_first_call(chunk)) is not None:
            choice.has_called = True
            choice.cancel()
            chunk = kept
        if chunk.finish_reason == "timeout":
            raise Problem(
                504,
                "the reply took longer than the server allows; ask for fewer tokens",
                kind="timeout_error",
                code="timeout",
                headers=NO_RETRY,
            )
        if chunk.finish_reason == "cancelled":
            raise call.ending or stopping()
        if choice.gate is not None:
            shown = await choice.gate.through(chunk)
            if shown is None:
                choice.is_blocked = True
                choice.cancel()
            chunk = shown or as_block()
        choice.events += chunk.events
        choice.token_ids += chunk.token_ids
        choice.logprobs += chunk.logprobs or ()
        choice.finish = chunk.finish_reason or choice.finish
        return chunk

    def end(self) -> None:
        """Counts the tokens and settles the call. All replies must have ended."""
        call, prompts = self.call, self._prompts()
        call.prompt_tokens = sum(result.prompt_tokens for result in prompts)
        call.audio_tokens = sum(result.audio_tokens for result in prompts)
        call.image_tokens = sum(result.image_tokens for result in prompts)
        call.cached_tokens = sum(result.cached_tokens for result in prompts)
        call.completion_tokens = sum(choice.result.completion_tokens for choice in self.choices)
        for choice in self.choices:
            call.gaps.extend([choice.mean_gap] * choice.together)
        call.prefill_seconds = prompts[0].prefill_seconds
        call.finish = self.choices[0].finish
        call.settle()

    def _prompts(self) -> list[Generation]:
        """One result for each prompt, because a prompt is read once, however many replies it has."""
        return [self.choices[first].result for first in self._firsts]

    def texts(self) -> list[dict[str, Any]]:
        """The texts of each prompt and the replies so far, for the log of texts. Images and sounds are left
        out."""
        found = []
        for first, ask in zip(self._firsts, self.asks, strict=False):
            asked: Any = ask.prompt
            if ask.messages is not None:
                asked = [text for message in ask.messages for text in texts_of(message, joined=False)]
            replies = self.choices[first : first + ask.count]
            found.append({"prompt": asked, "replies": [choice.result_message() for choice in replies]})
        return found

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reasoning_tokens for choice in self.choices)

    async def aclose(self) -> None:
        """Ends the replies that still run, and frees their memory."""
        pumps, self._pumps = self._pumps, []  # a cancelled task keeps its frames, and these keep this object
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        streams = [self.choices[first].stream for first in self._firsts]
        is_over = all(choice.is_over for choice in self.choices)
        if not is_over:
            for stream in streams:
                stream.cancel()
        for stream in streams:
            await stream.aclose()
        if not is_over:
            self._count_what_there_was()

    def _count_what_there_was(self) -> None:
        try:
            self.call.prompt_tokens = sum(result.prompt_tokens for result in self._prompts())
        except Exception:  # a stream has no result if an error ended it
            return


async def _beside_loop(ask: Ask, work: Callable[[], _Result], threads: anyio.CapacityLimiter) -> _Result:
    """Returns what ``work`` returns. If it may take long, it runs in a thread, and the event loop goes on."""
    return await anyio.to_thread.run_sync(work, limiter=threads) if ask.is_long else work()


def _to_first_call(chunk: Chunk) -> Chunk | None:
    """The chunk up to its first call of a tool, as the last chunk of the reply; None if it has no call."""
    for place, event in enumerate(chunk.events):
        if isinstance(event, ToolCall):
            events = chunk.events[: place + 1]
            text = "".join(getattr(e, "text", "") for e in events if not isinstance(e, Reasoning))
            pieces = [piece for piece in chunk.call_pieces if piece.id == event.id]
            return replace(chunk, text=text, events=events, call_pieces=pieces, finish_reason="stop")
    return None


def is_plain_text(chunk: Chunk) -> bool:
    """Whether a chunk has a text and nothing else, as most chunks do."""
    events = chunk.events
    return (
        len(events) == 1
        and type(events[0]) is Content
        and not chunk.call_pieces
        and chunk.finish_reason is None
        and chunk.logprobs is None
    )


def finish_reason(reason: str, *, has_calls: bool) -> str:
    """OpenAI's name for the library's finish reason."""
    if has_calls and reason == "stop":
        return "tool_calls"
    return {"context": "length", "cancelled": "stop"}.get(reason, reason)
