"""Turns the tokens of a generation into its text and the reason why it ends: :class:`Answer`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gemlet import _core
from gemlet.base.records import record
from gemlet.chat.reply import Content, ReplyEvent, collect
from gemlet.generation.masked import MaskPlan
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import FinishReason, Generation, TokenLogprob
from gemlet.generation.stopping import ReplyEmitter, ReplyReader, TextReader
from gemlet.tokenizer.decoding import StreamDecoder

__all__ = ["Answer", "Prepared", "Timing", "ends_of"]


@record
class Timing:
    """The times of a generation; the attributes are those of :class:`Generation`."""

    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0


def ends_of(config: GenerationConfig, end_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end a generation: the stop tokens of ``config``, and the model's ``end_ids`` unless
    they are ignored."""
    return frozenset(config.stop_token_ids) | (frozenset() if config.ignore_eos else end_ids)


class Answer:
    """Takes the tokens of one generation.

    Attributes:
        end_ids: the tokens that end the answer.
        token_ids: the tokens that belong to the text.
        logprobs: the log probabilities of ``token_ids``, if the request asks for them.
        prompt_logprobs: the log probabilities of the prompt's tokens, if the request asks for them and
            they are known.
        ended: whether an end token came.
        result: the whole generation, after :meth:`end`.
        echo: the text that the result's text begins with.
    """

    def __init__(
        self,
        *,
        prompt_tokens: int,
        config: GenerationConfig,
        seed: int,
        end_ids: frozenset[int],
        decoder: StreamDecoder | None,
        reply_parser: ReplyReader | None = None,
        echo: str = "",
        audio_tokens: int = 0,
        image_tokens: int = 0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.audio_tokens = audio_tokens
        self.image_tokens = image_tokens
        self.config = config
        self.seed = seed
        self.end_ids = ends_of(config, end_ids)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if config.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.ended = False
        self.result: Generation | None = None
        self.echo = echo
        self._echo: list[ReplyEvent] = [Content(echo)] if echo else []  # comes first
        # Reads the tokens: for a chat the format's parser, otherwise only the decoder.
        self._emitter = ReplyEmitter(reply_parser or TextReader(decoder), config.stop)
        self._events: list[ReplyEvent] = []

    @property
    def met_stop_string(self) -> bool:
        """Whether a stop string ended the answer. Then ``token_ids`` hold more than the text."""
        return self._emitter.stopped

    def push(
        self, token_id: int, logprob: TokenLogprob | None = None
    ) -> tuple[list[ReplyEvent], FinishReason | None]:
        """The text that the token makes certain, and the reason for the end if it is the last token."""
        if token_id in self.end_ids:
            self.ended = True
            return [], "stop"
        self.token_ids.append(token_id)
        if self.logprobs is not None and logprob is not None:
            self.logprobs.append(logprob)
        events = self._take_echo() + self._emitter.push(
            token_id, may_stop=len(self.token_ids) > self.config.min_tokens
        )
        self._events += events  # kept at once: an interrupt may come before they are handed out
        if self._emitter.stopped:
            return events, "stop"
        return events, "length" if len(self.token_ids) >= self.config.max_tokens else None

    def end(self, reason: FinishReason, timing: Timing) -> tuple[list[ReplyEvent], Generation]:
        """The text that was held back, and the whole generation."""
        held_back = self._take_echo() + self._emitter.finish(ended=self.ended)
        self._events += held_back
        if self._emitter.stopped and reason in ("length", "context"):
            reason = "stop"  # the very last characters completed a stop string
        reply = collect(self._events)
        self.result = Generation(
            text=reply.content,
            token_ids=list(self.token_ids),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            audio_tokens=self.audio_tokens,
            image_tokens=self.image_tokens,
            cached_tokens=timing.cached_tokens,
            completion_tokens=len(self.token_ids),
            prefill_seconds=timing.prefill_seconds,
            decode_seconds=timing.decode_seconds,
            decode_steps=timing.decode_steps,
            decode_tokens=timing.decode_tokens,
            drafted_tokens=timing.drafted_tokens,
            accepted_tokens=timing.accepted_tokens,
            seed=self.seed,
            reasoning=reply.reasoning,
            tool_calls=reply.tool_calls,
            malformed_calls=reply.malformed,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )
        return held_back, self.result

    def _take_echo(self) -> list[ReplyEvent]:
        echo, self._echo = self._echo, []
        return echo


@record(frozen=True)
class Prepared:
    """A checked request: the ids of its prompt, and the object that takes its tokens. ``media`` are pairs
    (first token, :class:`_core.Media`), whose rows replace tokens of the prompt. The request ends after
    ``timeout`` seconds. It waits until the request ``follows`` has read the same prompt, and shares computed
    prefixes only with requests of the same ``cache_salt``. The generated text follows ``plan``."""

    ids: array[int]
    answer: Answer
    sampler: _core.Sampler
    adapter: _core.Adapter | None
    timeout: float | None = None
    follows: Prepared | None = None
    cache_salt: int = 0
    priority: int = 0
    plan: MaskPlan | None = None
    media: Sequence[tuple[int, _core.Media]] = ()
