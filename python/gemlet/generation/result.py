"""The results of a generation: :class:`Generation` at the end, and a :class:`Chunk` with each step."""

from __future__ import annotations

import json
from typing import Any, Literal

from gemlet.base.records import field, record
from gemlet.chat.reply import MalformedToolCall, ReplyEvent, ToolCall, ToolCallPiece

__all__ = ["Chunk", "FinishReason", "Generation", "TokenLogprob"]

FinishReason = Literal["stop", "length", "context", "cancelled", "timeout"]


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@record(frozen=True)
class TokenLogprob:
    """The probability that the model gave a token, before temperature, penalties and filters change it.

    Attributes:
        token_id: the token.
        logprob: the natural logarithm of its probability.
        top: the most likely tokens at its place, as many as were asked for, as pairs (token id, log
            probability).

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     result = model.generate("The door", max_tokens=4, temperature=0, logprobs=2)
    >>> [one.top[0] == (one.token_id, one.logprob) for one in result.logprobs]
    [True, True, True, True]
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@record(frozen=True, repr=False)
class Generation:
    """A finished generation; ``print`` shows its text.

    Attributes:
        text: the continuation (without the prompt and without the stop string); empty without a tokenizer.
            In a chat it is the answer, without reasoning and tool calls; calls that cannot be read stay in
            it.
        token_ids: every generated token except the end token. A stop string's tokens are included.
        finish_reason: "stop" (end token or stop string), "length" (``max_tokens``), "context" (the context
            is full), "timeout" or "cancelled".
        prompt_tokens: tokens of the prompt, BOS included.
        completion_tokens: ``len(token_ids)``.
        prefill_seconds: time of the forward passes up to the first token.
        decode_seconds: time of the later forward passes, including sampling, but not the time in which the
            text waited for the reader of its stream.
        decode_steps: forward passes in ``decode_seconds`` (the first token needs none). There are fewer
            passes than tokens if guessed tokens were accepted.
        decode_tokens: tokens that were chosen in ``decode_seconds``, including an end token.
        seed: the seed that was used, so that a run without one can be repeated.
        reasoning: the thoughts of the model before its answer (a chat with ``thinking``).
        tool_calls: the calls of tools in a chat, in order.
        malformed_calls: tool calls that cannot be read, or were cut off by ``max_tokens``.
        earlier_messages: if gemlet ran tools, the messages before this reply: replies with calls, and the
            results. The other attributes are those of the last reply.
        drafted_tokens: guessed tokens that were checked, from a drafter or from the text itself.
        accepted_tokens: the guessed tokens that were right.
        cached_tokens: tokens at the beginning of the prompt that were not computed, because an earlier text
            began with them too.
        audio_tokens: the number of tokens of the prompt that stand for sound.
        image_tokens: the number of tokens of the prompt that stand for images and for the frames of videos.
        logprobs: the log probabilities of ``token_ids``; None unless they were asked for.
        prompt_logprobs: how probable the model found each token of the prompt; None for the first token. None
            as a whole unless it was asked for.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     result = model.generate("The door opened", max_tokens=8, seed=1)
    ...     again = model.generate("The door opened", max_tokens=8, seed=result.seed)
    >>> result.prompt_tokens, result.completion_tokens, len(result.token_ids), result.decode_tokens
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
    tool_calls: list[ToolCall] = field(default_factory=list)
    malformed_calls: list[MalformedToolCall] = field(default_factory=list)
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    earlier_messages: list[dict[str, Any]] = field(default_factory=list)
    decode_tokens: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        calls = f", {len(self.tool_calls)} calls of tools" if self.tool_calls else ""
        return (
            f"<gemlet.Generation {text!r}: {self.completion_tokens} tokens{calls}, "
            f"finish_reason {self.finish_reason!r}>"
        )

    @property
    def message(self) -> dict[str, Any]:
        """The reply as the message to append to the conversation, in OpenAI's form.

        ``arguments`` of its calls are a string of JSON, their ids are random. The results of its calls follow
        as messages ``{"role": "tool", "tool_call_id": ..., "content": ...}``.

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
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.arguments, ensure_ascii=False),
                    },
                }
                for call in self.tool_calls
            ]
        return message

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages to append to the conversation: those that gemlet added when it ran tools, then
        :attr:`message`.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     reply = model.chat("Who is there?", max_tokens=6)
        >>> reply.messages == [reply.message]
        True
        """
        return [*self.earlier_messages, self.message]

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens that were computed, per second of prefill (0.0 when no prompt was run)."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second of decoding (0.0 when there was none)."""
        return _rate(self.decode_tokens, self.decode_seconds)


@record(frozen=True)
class Chunk:
    """One step of a stream; ``print`` shows its text.

    Attributes:
        text: text that became certain with this step; empty while half a character or the possible beginning
            of a stop string is held back. The texts of a stream's chunks add up to :attr:`Generation.text`.
        token_ids: the tokens of this step (none in a last chunk that only ends the stream).
        finish_reason: None except in the last chunk; see :class:`Generation`.
        events: the ``text`` and, in a chat, everything else, in order: Content, Reasoning, ToolCall and
            MalformedToolCall of :mod:`gemlet.chat`.
        index: the prompt that the step continues, if the stream has several.
        logprobs: the log probabilities of ``token_ids``; None unless they were asked for.
        call_pieces: in a chat, pieces of tool calls that are being written (:class:`ToolCallPiece`). A
            complete call is among the events.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     chunks = list(model.stream("The door opened", max_tokens=3, seed=1))
    >>> [(len(chunk.token_ids), chunk.finish_reason) for chunk in chunks]
    [(1, None), (1, None), (1, 'length')]
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    events: list[ReplyEvent] = field(default_factory=list, compare=False, repr=False)
    index: int = 0
    logprobs: list[TokenLogprob] | None = None
    call_pieces: list[ToolCallPiece] = field(default_factory=list, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text
