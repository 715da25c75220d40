"""The content filter: it judges what clients write, and what the model replies.

A :class:`Filter` judges prompts, and makes a :class:`ReplyCheck` for every reply. There are two built-in
filters: lists of words and patterns, and ShieldGemma. If the filter may block replies, it holds their text
back until the text has been judged.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import anyio
import anyio.to_thread

from gemlet.base.records import record, replace
from gemlet.chat.reply import Content, Reasoning, ReplyEvent, ToolCall
from gemlet.chat.shieldgemma import POLICIES, ShieldGemmaFormat
from gemlet.chat.shieldgemma2 import IMAGE_POLICIES, ShieldGemma2Format
from gemlet.errors import ConfigError, ContextLengthError, GemletError, InvalidRequestError
from gemlet.generation.result import Chunk, Generation, TokenLogprob
from gemlet.media.images import read_image
from gemlet.model.model import Model
from gemlet.server.call import Call
from gemlet.server.problems import Problem
from gemlet.server.settings import Settings
from gemlet.server.word_lists import WordList, read_lines, tail

__all__ = ["ContentFilter", "Filter", "NoReply", "ReplyCheck", "ReplyGate", "Said", "as_block"]

_log = logging.getLogger("gemlet.server")
_LONG = 20_000  # characters; longer texts are searched in a thread
_PIECE = 400  # characters of a reply between two judgements of ShieldGemma

Action = Literal["off", "report", "block"]


@record(frozen=True)
class Said:
    """The text that a client sent.

    Attributes:
        texts: all texts of the request.
        last: the text of the user's last message.
        images: the images in that message, as data URLs.
    """

    texts: Sequence[str]
    last: str = ""
    salt: str | None = None
    images: Sequence[str] = ()


class ReplyCheck(ABC):
    """Judges a reply while it is written.

    Attributes:
        cleared: how many characters of the reply, from its beginning, may be shown.
    """

    cleared = 0

    @abstractmethod
    async def add(self, text: str, *, is_over: bool) -> str | None:
        """Takes more text of the reply, or its end. Returns the rule that the reply breaks, or None."""


class Filter(ABC):
    """A hook that judges prompts and replies."""

    @abstractmethod
    async def judge(self, said: Said) -> str | None:
        """Returns the rule that a prompt breaks, or None."""

    @abstractmethod
    def reply(self, said: Said) -> ReplyCheck:
        """Makes the check that judges one reply to the prompt."""


# --- lists --------------------------------------------------------------------------------------------------


class ListFilter(Filter):
    """Searches texts for lists of words and patterns. The last ``window`` visible characters of a reply are
    held back until more text comes. So a match up to this length is never shown in part."""

    def __init__(self, words: WordList, window: int) -> None:
        self._words = words
        self._window = window

    async def judge(self, said: Said) -> str | None:
        for text in said.texts:
            if len(text) > _LONG:
                found = await anyio.to_thread.run_sync(self._words.search, text)
            else:
                found = self._words.search(text)
            if found is not None:
                return found
        return None

    def reply(self, said: Said) -> ReplyCheck:
        return _ListCheck(self._words, self._window)


class _ListCheck(ReplyCheck):
    def __init__(self, words: WordList, window: int) -> None:
        self._words = words
        self._window = window
        self._text = ""  # the last part of the reply
        self._cut = 0  # characters of the reply before that part

    async def add(self, text: str, *, is_over: bool) -> str | None:
        self._text += text
        found, is_open = self._words.search_part(self._text, is_cut=self._cut > 0, is_over=is_over)
        if is_over:
            self.cleared = self._cut + len(self._text)
        elif found is None and not is_open:
            self.cleared = max(self.cleared, self._cut + tail(self._text, self._window))
            kept = tail(self._text, 2 * self._window)
            self._text, self._cut = self._text[kept:], self._cut + kept
        return found


# --- ShieldGemma --------------------------------------------------------------------------------------------


class ShieldFilter(Filter):
    """Asks ShieldGemma for the probability that a text breaks one of its policies. ShieldGemma 2 judges
    images instead, and no texts. ``policies`` are names of policies; an empty list means all policies of the
    model."""

    def __init__(self, model: Callable[[], Model], policies: Sequence[str], threshold: float) -> None:
        self._model = model
        self._policies = policies
        self._threshold = threshold
        self._threads = anyio.CapacityLimiter(2)

    async def judge(self, said: Said) -> str | None:
        for image in said.images if self._sees else ():
            try:
                levels = await anyio.to_thread.run_sync(read_image, image, limiter=self._threads)
            except InvalidRequestError as error:
                raise Problem(400, str(error), param="messages") from error
            for policy in self._chosen(IMAGE_POLICIES):
                judge = partial(self._model().judge_image, levels, [policy], cache_salt=said.salt)
                chances = await anyio.to_thread.run_sync(judge, limiter=self._threads)
                if chances[policy] >= self._threshold:
                    return policy
        return await self.judge_messages([{"role": "user", "content": said.last}], said.salt)

    def reply(self, said: Said) -> ReplyCheck:
        return _ShieldCheck(self, said)

    @property
    def _sees(self) -> bool:
        return isinstance(self._model().chat_format, ShieldGemma2Format)

    def _chosen(self, known: Collection[str]) -> Sequence[str]:
        chosen = [policy for policy in self._policies or known if policy in known]
        if not chosen:
            raise ConfigError(
                f"filter_policies: got {', '.join(self._policies)}, but the model has {', '.join(known)}; "
                "name some of these"
            )
        return chosen

    async def judge_messages(self, messages: Sequence[Mapping[str, Any]], salt: str | None) -> str | None:
        """The policy that the last message breaks, or None."""
        if self._sees or not messages[-1]["content"].strip():
            return None
        for policy in self._chosen(POLICIES):
            judge = partial(self._chance, policy, messages, salt)
            if await anyio.to_thread.run_sync(judge, limiter=self._threads) >= self._threshold:
                return policy
        return None

    def _chance(self, policy: str, messages: Sequence[Mapping[str, Any]], salt: str | None) -> float:
        model = self._model()
        form = cast(ShieldGemmaFormat, model.chat_format).with_values(policy=policy)
        assert model.tokenizer is not None
        # The end of a long question is enough to understand the reply.
        before = [{**one, "content": one["content"][-model.context_length // 4 :]} for one in messages[:-1]]
        try:
            asked = [*before, messages[-1]]
            ids = form.encode_chat(model.tokenizer, asked, most_tokens=model.context_length - 1)
            return model.choose(ids, ["Yes", "No"], cache_salt=salt)["Yes"]
        except ContextLengthError:  # the text is too long, so each half of it is judged
            text = messages[-1]["content"]
            middle = len(text) // 2
            if middle < 16:
                raise
            halves = [{**messages[-1], "content": half} for half in (text[:middle], text[middle:])]
            return max(self._chance(policy, [*messages[:-1], half], salt) for half in halves)


class _ShieldCheck(ReplyCheck):
    def __init__(self, filter: ShieldFilter, said: Said) -> None:
        self._filter = filter
        self._said = said
        self._text = ""

    async def add(self, text: str, *, is_over: bool) -> str | None:
        self._text += text
        if not is_over and len(self._text) - self.cleared < _PIECE:
            return None
        messages = [{"role": "user", "content": self._said.last}]
        messages.append({"role": "assistant", "content": self._text})
        found = await self._filter.judge_messages(messages, self._said.salt)
        self.cleared = len(self._text)
        return found


# --- all of them --------------------------------------------------------------------------------------------


class ContentFilter:
    """The filters that the settings ask for, and the hooks ``filters``.

    Raises:
        ConfigError, ModelFileError: a list cannot be used.
        UnsupportedError: the extra is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        shield: Callable[[], Model] | None = None,
        filters: Sequence[Filter] = (),
        count: Callable[[str, str, str, str], None] = lambda *_: None,
    ) -> None:
        self._filters = list(filters)
        self._actions: dict[str, Action] = {
            "prompt": cast(Action, settings.filter_prompts),
            "reply": cast(Action, settings.filter_replies),
        }
        self._count = count
        lists = [
            read_lines(path, what) if path is not None else []
            for path, what in ((settings.filter_words, "words"), (settings.filter_patterns, "patterns"))
        ]
        if any(lists):
            self._filters.append(ListFilter(WordList(*lists), settings.filter_window))
        policies = settings.filter_policies or ()
        for policy in policies:
            if policy not in (known := list(POLICIES | IMAGE_POLICIES)):
                raise ConfigError(f"filter_policies: got {policy!r}, expected some of {', '.join(known)}")
        if shield is not None:
            self._filters.append(ShieldFilter(shield, policies, settings.filter_threshold))

    def is_on(self, place: str) -> bool:
        return bool(self._filters) and self._actions[place] != "off"

    async def blocks(self, call: Call, said: Said) -> bool:
        """Judges a prompt. Returns whether the filter blocks it."""
        if self.is_on("prompt"):
            for one in self._filters:
                found = await _asked(one.judge(said), self._actions["prompt"])
                if found is not None:
                    return self._note(call, "prompt", found)
        return False

    def gate(
        self, call: Call, said: Said, decode: Callable[[Sequence[int]], str] | None = None
    ) -> ReplyGate | None:
        """Makes the gate through which a reply goes; None if replies are not judged. ``decode`` is given if
        the client gets tokens that are not in the text, such as the tokens of a stop string. The gate
        judges their text, too."""
        if not self.is_on("reply"):
            return None
        checks = [one.reply(said) for one in self._filters]
        return ReplyGate(checks, partial(self._note, call, "reply"), self._actions["reply"], decode)

    def _note(self, call: Call, place: str, rule: str) -> bool:
        """Counts a verdict. Returns whether it blocks."""
        action = self._actions[place]
        self._count(call.model, place, rule, action)
        call.verdicts.append(f"{place}:{rule}:{action}")
        return action == "block"


async def _asked(judging: Coroutine[Any, Any, str | None], action: Action) -> str | None:
    """The verdict. If a filter that may block fails, this raises :class:`Problem`, so nothing passes."""
    try:
        return await judging
    except GemletError as error:
        _log.error("filter failed", extra={"fields": {"error": type(error).__name__}})
        if action == "block":
            raise Problem(
                503, "the content filter failed", kind="server_error", code="content_filter_failed"
            ) from error
        return None


class ReplyGate:
    """Lets the events of a reply through as soon as they are judged. If verdicts are only reported, nothing
    is held back, and the reply is judged at its end."""

    def __init__(
        self,
        checks: Sequence[ReplyCheck],
        note: Callable[[str], bool],
        action: Action,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._checks = checks
        self._note = note
        self._action = action
        self._decode = decode
        self._length = 0  # characters that came so far
        self._kind: type | None = None  # type of the last event
        self._held: deque[tuple[int, ReplyEvent]] = deque()  # held events, and the offset at which each ends
        self._token_ids: list[int] = []  # ids and log probabilities show held text, so they come at the end
        self._logprobs: list[TokenLogprob] = []
        self._unjudged: list[str] = []

    async def through(self, chunk: Chunk) -> Chunk | None:
        """The chunk that may be shown now instead of the given one. None means that the reply broke a rule
        and has to end."""
        text = "".join(self._take(event) for event in chunk.events)
        is_over = chunk.finish_reason is not None
        if self._action != "block":
            self._unjudged.append(text)
            if is_over:
                await self._judge("".join(self._unjudged), is_over=True)
            return chunk
        self._token_ids += chunk.token_ids
        self._logprobs += chunk.logprobs or ()
        if is_over and self._decode is not None:
            text += "\n" + self._decode(self._token_ids)
        if (text or is_over) and await self._judge(text, is_over=is_over):
            return None
        cleared = self._length if is_over else min(check.cleared for check in self._checks)
        return self._released(chunk, cleared)

    async def _judge(self, text: str, *, is_over: bool) -> bool:
        for check in self._checks:
            found = await _asked(check.add(text, is_over=is_over), self._action)
            if found is not None and self._note(found):
                return True
        return False

    def _take(self, event: ReplyEvent) -> str:
        """The text to judge. An event of another kind than the one before begins a new line."""
        text = _text_of(event)
        if self._kind not in (None, type(event)) or isinstance(event, ToolCall):
            text = f"\n{text}"
        self._kind = type(event)
        self._length += len(text)
        self._held.append((self._length, event))
        return text

    def _released(self, chunk: Chunk, cleared: int) -> Chunk:
        events: list[ReplyEvent] = []
        while self._held and self._held[0][0] <= cleared:
            events.append(self._held.popleft()[1])
        if self._held:
            end, event = self._held[0]
            if isinstance(event, Content | Reasoning) and (count := len(event.text) - (end - cleared)) > 0:
                events.append(replace(event, text=event.text[:count]))
                self._held[0] = end, replace(event, text=event.text[count:])
        text = "".join(event.text for event in events if isinstance(event, Content))
        shown = replace(chunk, text=text, events=events, token_ids=[], logprobs=None, call_pieces=[])
        if chunk.finish_reason is None:
            return shown
        return replace(shown, token_ids=self._token_ids, logprobs=self._logprobs or None)


def _text_of(event: ReplyEvent) -> str:
    if isinstance(event, Content | Reasoning):
        return event.text
    if isinstance(event, ToolCall):
        return f"{event.name} {json.dumps(event.arguments, ensure_ascii=False)}"
    return ""


def as_block() -> Chunk:
    """The last chunk of a reply that broke a rule."""
    return Chunk("", [], cast(Any, "content_filter"), [])


class NoReply:
    """The stream of a blocked prompt, to which ``count`` replies were asked for."""

    has_chunk = False

    def __init__(self, count: int) -> None:
        self.results = [Generation("", [], cast(Any, "content_filter"), 0, 0, 0.0, 0.0, 0, 0)] * count
        self.prompt_ids: list[list[int]] = [[]] * count
        self._left = iter(range(count))

    def __aiter__(self) -> NoReply:
        return self

    async def __anext__(self) -> Chunk:
        for index in self._left:
            return replace(as_block(), index=index)
        raise StopAsyncIteration

    def cancel(self, index: int | None = None) -> None:
        """Does nothing, because nothing runs."""

    async def aclose(self) -> None:
        """Does nothing, because there is nothing to free."""
