"""The one internal request: what every dialect is translated into, and how it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.to_thread

from gemlet.chat.reply import Reasoning, Reply, ReplyEvent, ToolCall, collect
from gemlet.generation.async_stream import AsyncTextStream
from gemlet.generation.result import Chunk, Generation, TokenLogprob
from gemlet.server.call import Call
from gemlet.server.content_filter import ContentFilter, NoReply, ReplyGate, Said, as_block
from gemlet.server.models import Served
from gemlet.server.problems import Problem, problem_of
from gemlet.server.sent_media import check_sent_media, has_media, is_media

_LONG = 20_000  # characters
_FORMS = {"json_schema", "regex", "choice", "grammar"}

__all__ = ["Ask", "Choice", "Running", "finish_reason"]


@dataclass(frozen=True)
class Ask:
    """One reply that is asked of a model.

    Attributes:
        prompt: a text, in which control tokens are plain text, or token ids; not of a chat.
        messages: the conversation, in OpenAI's form; None for a continuation.
        options: of :class:`gemlet.GenerationConfig`.
        salt: what was computed is shared only with asks of the same salt.
        one_call: the reply ends behind its first call of a tool.
        seconds: how long it may take.
        priority: where replies wait for a place, those of higher priority begin first.
        own_media: the server made the images and sounds itself, and no client named them.
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
    own_media: bool = False

    def times(self, count: int) -> list[Ask]:
        """The ask ``count`` times; a seed that is given counts up."""
        seed = self.options.get("seed")
        if count == 1 or seed is None:
            return [self] * count
        return [replace(self, options={**self.options, "seed": (seed + i) % 2**64}) for i in range(count)]

    @property
    def is_long(self) -> bool:
        """Whether its text is so long that encoding it takes more than a moment."""
        if not _FORMS.isdisjoint(self.options):
            return True  # and a grammar takes a while to compile
        if self.messages is None:
            return isinstance(self.prompt, str) and len(self.prompt) > _LONG
        if has_media(self.messages):
            return True  # a small file may be a large picture
        return sum(map(_length, self.messages)) + _length(self.tools or ()) > _LONG

    def said(self) -> Said:
        """What the content filter is to judge; raises :class:`Problem` for what is far too long."""
        model = self.served.model
        if self.messages is not None:
            parts = [list(_texts(message)) for message in self.messages]
            of_user = [
                "\n".join(p) for m, p in zip(self.messages, parts, strict=True) if m.get("role") == "user"
            ]
            texts = [text for part in (*parts, _texts(self.tools or ())) for text in part]
            last = of_user[-1] if of_user else ""
        else:
            prompt = self.prompt
            if not isinstance(prompt, str):
                prompt = "" if model.tokenizer is None else model.tokenizer.decode(list(prompt))
            texts, last = [prompt], prompt
        if model.tokenizer is not None:
            try:
                model.tokenizer.check_length(sum(map(len, texts)), model.context_length, "prompt")
            except Exception as error:
                raise self.problem_of(error) from error
        return Said(texts, last, self.salt)

    def begin(self) -> AsyncTextStream:
        """The stream that answers; raises :class:`Problem`."""
        model = self.served.model
        common: Any = {"adapter": self.served.adapter, "timeout": self.seconds, **self.options}
        common |= {"cache_salt": self.salt, "priority": self.priority}
        try:
            if self.messages is None:
                return model.astream(self.prompt, allow_control=False, **common)
            self._check_media(self.messages)
            return model.astream_chat(
                self.messages,
                tools=self.tools,
                tool_choice=self.tool_choice,
                thinking=self.thinking,
                continue_final_message=self.continue_final,
                **common,
            )
        except Exception as error:
            raise self.problem_of(error) from error

    def count_prompt(self, most: int | None = None) -> int:
        """The tokens of the prompt. Raises :class:`Problem` for a wrong one, and for one that is sure to
        have more than ``most``."""
        model = self.served.model
        try:
            if self.messages is not None and model.chat_format is not None and model.tokenizer is not None:
                self._check_media(self.messages)
                return model.count_tokens(
                    self.messages,
                    tools=None if self.tool_choice == "none" else self.tools,
                    thinking=self.thinking,
                    continue_final_message=self.continue_final,
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
            check_sent_media(messages)

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
        return problem_of(error, hidden=self.served.model.source, shown=self.served.name)


def _texts(value: Any, depth: int = 64) -> Iterator[str]:
    """All texts in a message, but for names of roles and kinds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and not is_media(value):
        for name, inner in value.items():
            if name not in ("role", "type", "id", "tool_call_id"):
                yield from _texts(inner, depth - 1)
    elif isinstance(value, list | tuple) and depth > 0:
        for inner in value:
            yield from _texts(inner, depth - 1)


def _length(value: Any) -> int:
    """Characters of text in JSON."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_length, inner))


@dataclass
class Choice:
    """One of the replies that run."""

    ask: Ask
    stream: AsyncTextStream | NoReply
    gate: ReplyGate | None = None
    is_blocked: bool = False  # the content filter ended it
    events: list[ReplyEvent] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""
    has_called: bool = False  # its only call is complete
    reasoning_tokens: int = 0
    is_over: bool = False

    @property
    def result(self) -> Generation:
        """The whole generation; it has ended."""
        return self.stream.result

    def stop_string(self) -> str | None:
        """Which stop string ended the reply; its tokens are in the result, its text is not."""
        tokenizer, stops = self.ask.served.model.tokenizer, self.ask.options.get("stop", ())
        if self.finish != "stop" or not stops or tokenizer is None:
            return None
        written, text = tokenizer.decode(self.result.token_ids), self.reply.content
        return next((s for s in ([stops] if isinstance(stops, str) else stops) if text + s in written), None)

    def take_logprobs(self) -> list[TokenLogprob]:
        """What came since the last call: for streams."""
        found, self.logprobs = self.logprobs, []
        return found

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
        """What has arrived so far, put together."""
        return collect(self.events)


@dataclass
class Running:
    """The replies to one request, which run together.

    Iterate it for ``(index, chunk)``, call :meth:`end` when it has ended, and :meth:`aclose` in any case.
    """

    asks: Sequence[Ask]
    call: Call
    filter: ContentFilter
    choices: list[Choice] = field(default_factory=list)
    _pumps: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, threads: anyio.CapacityLimiter) -> Running:
        """Begins all; raises :class:`Problem` for one that is wrong, and the call then ends the others."""
        self.call.closers.append(self.aclose)
        said: dict[int, tuple[Said, bool]] = {}  # of each prompt, and whether it is to have no answer
        for ask in self.asks:
            place, gate = id(ask.prompt if ask.messages is None else ask.messages), None
            if self.filter.is_on("prompt") or self.filter.is_on("reply"):
                if place not in said:
                    found = ask.said()
                    said[place] = found, await self.filter.blocks(self.call, found)
                if said[place][1]:
                    self.choices.append(Choice(ask, NoReply()))
                    continue
                gate = self.filter.gate(self.call, said[place][0])
            # A long text takes a while to encode, in which the event loop is to go on.
            stream = (
                await anyio.to_thread.run_sync(ask.begin, limiter=threads) if ask.is_long else ask.begin()
            )
            self.choices.append(Choice(ask, stream, gate))
        return self

    def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        return self._one() if len(self.choices) == 1 else self._all()

    async def _one(self) -> AsyncIterator[tuple[int, Chunk]]:
        async for chunk in self._chunks(self.choices[0]):
            yield 0, chunk

    async def _all(self) -> AsyncIterator[tuple[int, Chunk]]:
        arrived: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue(64)

        async def pump(index: int, choice: Choice) -> None:
            try:
                async for chunk in self._chunks(choice):
                    await arrived.put((index, chunk))
                await arrived.put((index, None))
            except Exception as error:
                await arrived.put((index, error))

        self._pumps = [asyncio.create_task(pump(i, choice)) for i, choice in enumerate(self.choices)]
        left = len(self.choices)
        while left:
            index, item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item

    async def _chunks(self, choice: Choice) -> AsyncIterator[Chunk]:
        call = self.call
        try:
            async for chunk in choice.stream:
                if call.first_token is None:
                    call.first_token = call.seconds()
                if choice.has_called or choice.is_blocked:
                    continue  # what was computed before the cancelling was noticed
                call.completion_tokens += len(chunk.token_ids)
                if any(isinstance(event, Reasoning) for event in chunk.events):
                    choice.reasoning_tokens += len(chunk.token_ids)
                if choice.ask.one_call and (kept := _to_first_call(chunk)) is not None:
                    choice.has_called = True
                    choice.stream.cancel()
                    chunk = kept
                if chunk.finish_reason == "timeout":
                    raise Problem(
                        504,
                        "the reply took longer than the server allows",
                        kind="timeout_error",
                        code="timeout",
                    )
                if chunk.finish_reason == "cancelled":
                    raise Problem(503, "the server is stopping", kind="unavailable_error")
                if choice.gate is not None:
                    shown = await choice.gate.through(chunk)
                    if shown is None:
                        choice.is_blocked = True
                        choice.stream.cancel()
                    chunk = shown or as_block()
                choice.events += chunk.events
                choice.logprobs += chunk.logprobs or ()
                choice.finish = chunk.finish_reason or choice.finish
                yield chunk
        except Exception as error:
            raise choice.ask.problem_of(error) from error
        choice.is_over = True

    def end(self) -> None:
        """All have come to their end: what there was is counted, and the call is settled."""
        call = self.call
        results = [choice.result for choice in self.choices]
        call.prompt_tokens = self.prompt_tokens
        call.audio_tokens = sum(choice.stream.result.audio_tokens for choice in self._prompts())
        call.image_tokens = sum(choice.stream.result.image_tokens for choice in self._prompts())
        call.cached_tokens = results[0].cached_tokens
        call.completion_tokens = sum(result.completion_tokens for result in results)
        call.finish = self.choices[0].finish
        call.settle()

    @property
    def prompt_tokens(self) -> int:
        """Those of each prompt once, however many replies it has."""
        return sum(choice.stream.result.prompt_tokens for choice in self._prompts())

    def _prompts(self) -> Iterable[Choice]:
        """One reply to each prompt."""
        counts = {id(c.ask.prompt if c.ask.messages is None else c.ask.messages): c for c in self.choices}
        return counts.values()

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reasoning_tokens for choice in self.choices)

    async def aclose(self) -> None:
        """Ends what still runs, and gives its memory back."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for choice in self.choices:
            if not choice.is_over:
                choice.stream.cancel()
        for choice in self.choices:
            await choice.stream.aclose()
        if any(not choice.is_over for choice in self.choices):
            self._count_what_there_was()

    def _count_what_there_was(self) -> None:
        try:
            self.call.prompt_tokens = self.prompt_tokens
        except Exception:  # a stream that an error ended has no result
            return


def _to_first_call(chunk: Chunk) -> Chunk | None:
    """The chunk up to its first call of a tool, as the last one; None where it has no call."""
    for place, event in enumerate(chunk.events):
        if isinstance(event, ToolCall):
            events = chunk.events[: place + 1]
            text = "".join(getattr(e, "text", "") for e in events if not isinstance(e, Reasoning))
            return replace(chunk, text=text, events=events, finish_reason="stop")
    return None


def finish_reason(reason: str, *, has_calls: bool) -> str:
    """OpenAI's name for the library's finish reason."""
    if has_calls and reason == "stop":
        return "tool_calls"
    return {"context": "length", "cancelled": "stop"}.get(reason, reason)
