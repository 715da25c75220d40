"""From the tokens of a reply to its text, its reasoning and its tool calls, while they arrive.

A reply of Gemma 4 is text with structure in control tokens::

    <|channel>thought
    {reasoning}
    <channel|>{text}<|tool_call>call:NAME{...}<tool_call|>

:class:`ReplyParser` is the state machine; it is fed ordinary text and markers. In front of it stand
:class:`TokenReplyParser` for token ids and :class:`TextReplyParser` for text in which the control tokens
are written out. Both begin where the prompt ends, by reading the prompt's last turn first: a prompt may end
inside a thought it has opened, behind an empty thought, behind the result of a tool, or inside a call.

However a reply is cut into pieces, the events add up to the same (:func:`collect`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gemlet.tool_calls import QUOTE_SIGN, MalformedCallError, parse_call

if TYPE_CHECKING:
    from gemlet.tokenizer import Tokenizer

__all__ = [
    "GEMMA4_MARKERS",
    "Content",
    "MalformedToolCall",
    "Reasoning",
    "Reply",
    "ReplyEvent",
    "ReplyParser",
    "TextReplyParser",
    "TokenReplyParser",
    "ToolCall",
    "collect",
]


@dataclass(frozen=True)
class Content:
    """A piece of the answer's text.

    >>> TextReplyParser().push("Yes.")
    [Content(text='Yes.')]
    """

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thought before it answered.

    >>> TextReplyParser().push("<|channel>thought\\nHm.")
    [Reasoning(text='Hm.')]
    """

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, complete.

    Attributes:
        name: the function.
        arguments: a JSON object.

    >>> TextReplyParser().push("<|tool_call>call:now{zone:2}<tool_call|>")
    [ToolCall(name='now', arguments={'zone': 2})]
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class MalformedToolCall:
    """A call of a tool that cannot be read, or was cut off.

    Attributes:
        raw: what the model wrote between the markers of the call.
        problem: what is wrong with it.

    >>> TextReplyParser().push("<|tool_call>call:now{zone:<tool_call|>")[0].raw
    'call:now{zone:'
    """

    raw: str
    problem: str


ReplyEvent = Content | Reasoning | ToolCall | MalformedToolCall


@dataclass(frozen=True)
class Reply:
    """A whole reply; see :func:`collect`.

    >>> Reply("Yes.", reasoning="Hm.").content
    'Yes.'
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    malformed: list[MalformedToolCall] = field(default_factory=list)


def collect(events: Iterable[ReplyEvent]) -> Reply:
    """The events of a reply put together.

    >>> collect([Reasoning("Hm"), Reasoning("m."), Content("Yes.")])
    Reply(content='Yes.', reasoning='Hmm.', tool_calls=[], malformed=[])
    """
    events = list(events)
    return Reply(
        "".join(event.text for event in events if isinstance(event, Content)),
        "".join(event.text for event in events if isinstance(event, Reasoning)),
        [event for event in events if isinstance(event, ToolCall)],
        [event for event in events if isinstance(event, MalformedToolCall)],
    )


# --- the state machine --------------------------------------------------------------------------------------

# What a control token does, by its name. One that is not listed does nothing.
GEMMA4_MARKERS: Mapping[str, str] = {
    "<|turn>": "turn_start",
    "<turn|>": "turn_end",
    "<eos>": "turn_end",
    "<|channel>": "thought_start",
    "<channel|>": "thought_end",
    "<|tool_call>": "call_start",
    "<tool_call|>": "call_end",
    "<|tool_response>": "result_start",
    "<tool_response|>": "result_end",
    '<|"|>': "quote",
    **dict.fromkeys(("<pad>", "<bos>", "<|think|>", "<|tool>", "<tool|>"), "nothing"),
}

_State = Literal[
    "header",  # behind <|turn>: the role, up to the end of the line
    "content",
    "channel",  # behind <|channel>: the channel's name, up to the end of the line
    "thought",
    "call",
    "result",  # a tool's result, which is the host's to write; not shown
    "between",  # the prompt has closed the last turn
    "over",  # the model's turn has ended, or another's begun; whatever follows is not part of the reply
]
_CHANNEL = "thought"


class ReplyParser:
    """The state machine: :meth:`text` and :meth:`marker` as they come, :meth:`finish` at the end.

    What comes before :meth:`begin` is the prompt.

    Args:
        markers: what the control tokens do, as :data:`GEMMA4_MARKERS`.
        thought_end: what the format puts between a thought and its end; not part of the reasoning.

    >>> parser = ReplyParser(GEMMA4_MARKERS)
    >>> parser.begin()
    >>> parser.text("Let me see.")
    [Content(text='Let me see.')]
    >>> parser.marker("<|tool_call>"), parser.text("call:now{zone:2}"), parser.marker("<tool_call|>")
    ([], [], [ToolCall(name='now', arguments={'zone': 2})])
    """

    def __init__(self, markers: Mapping[str, str], *, thought_end: str = "\n") -> None:
        self._markers = markers
        self._thought_end = thought_end
        self._state: _State = "content"
        self._after_turn: _State = "between"  # as long as the prompt is read, and "over" in the reply
        self._line = ""  # of a header or the name of a channel
        self._held = ""  # may turn out to be thought_end
        self._call: list[str] = []

    def begin(self) -> None:
        """What came so far was the prompt: its events are forgotten, its state is kept."""
        self._held = ""
        self._after_turn = "over"
        if self._state == "over":
            self._state = "between"
        elif self._state == "header":
            self._line = ""

    def text(self, text: str) -> list[ReplyEvent]:
        """Ordinary text; markers written in it are text."""
        if not text:
            return []
        if self._state == "content":
            return [Content(text)]
        if self._state == "thought":
            return self._think(text)
        if self._state == "call":
            self._call.append(text.replace(QUOTE_SIGN, "\ufffd"))
        elif self._state in ("header", "channel"):
            return self._read_line(text)
        elif self._state == "between" and (text := text.lstrip()):
            self._state = "content"
            return [Content(text)]
        return []

    def marker(self, name: str) -> list[ReplyEvent]:
        """A control token."""
        kind = self._markers.get(name)
        if self._state == "over":
            if kind == "turn_end":
                self._state = self._after_turn
            return []
        if self._state == "call":
            if kind == "quote":
                self._call.append(QUOTE_SIGN)
                return []
            if kind in (None, "nothing", "thought_end", "result_end"):
                self._call.append(name)  # text of an argument, most likely
                return []
            events = self._end_call(complete=True)
            return events if kind == "call_end" else events + self.marker(name)
        if kind in (None, "nothing", "quote", "call_end"):
            return []
        if kind == "thought_end":
            return self._end_thought()
        if kind == "result_end":
            self._state = "content" if self._state == "result" else self._state
            return []
        events = self._end_thought()
        starts: dict[str, _State] = {
            "turn_start": "header",
            "turn_end": self._after_turn,
            "thought_start": "channel",
            "call_start": "call",
            "result_start": "result",
        }
        self._state = starts[str(kind)]
        self._line = ""
        return events

    def finish(self) -> list[ReplyEvent]:
        """The end of the stream: what was held back, and a call that was cut off.

        >>> parser = ReplyParser(GEMMA4_MARKERS)
        >>> parser.marker("<|tool_call>"), parser.text("call:now{zone:")
        ([], [])
        >>> parser.finish()[0].raw
        'call:now{zone:'
        """
        if self._state == "call":
            return self._end_call(complete=False)
        held = self._held
        if self._state == "channel" and not _CHANNEL.startswith(self._line):
            held = self._line
        return [Reasoning(held)] if held else []

    def _think(self, text: str) -> list[ReplyEvent]:
        text, self._held = self._held + text, ""
        if self._thought_end and text.endswith(self._thought_end):
            self._held = self._thought_end
            text = text[: -len(self._thought_end)]
        return [Reasoning(text)] if text else []

    def _end_thought(self) -> list[ReplyEvent]:
        """Leaves a thought, if there is one; its last line break is the format's."""
        events: list[ReplyEvent] = []
        if self._state == "channel" and self._line not in ("", _CHANNEL):
            events = [Reasoning(self._line)]
        if self._state in ("channel", "thought", "between"):
            self._state = "content"
        self._held = self._line = ""
        return events

    def _read_line(self, text: str) -> list[ReplyEvent]:
        """The line behind ``<|turn>`` or ``<|channel>``."""
        if self._state == "channel":
            self._line += text
            start = _CHANNEL + "\n"
            if self._line.startswith(start):
                line, self._line = self._line[len(start) :], ""
            elif start.startswith(self._line):
                return []
            else:  # a thought without the channel's name
                line, self._line = self._line, ""
            self._state = "thought"
            return self._think(line) if line else []
        role, newline, rest = text.partition("\n")
        self._line += role
        if not newline:
            return []
        # A turn the model opens for somebody else is none of its reply.
        self._state = "content" if self._line.strip() in ("", "model") else "over"
        self._line = ""
        return self.text(rest)

    def _end_call(self, *, complete: bool) -> list[ReplyEvent]:
        raw = "".join(self._call)
        self._call.clear()
        self._state = "content"
        try:
            name, arguments = parse_call(raw)
        except MalformedCallError as problem:
            reason = str(problem) if complete else f"the reply ended within the call: {problem}"
            quote = next((name for name, kind in self._markers.items() if kind == "quote"), "")
            return [MalformedToolCall(raw.replace(QUOTE_SIGN, quote), reason)]
        return [ToolCall(name, arguments)]


# --- in front of it -----------------------------------------------------------------------------------------


class TokenReplyParser:
    """Reads a reply's token ids. Only control tokens have a meaning: a reply that spells one is text.

    Args:
        tokenizer: the model's.
        markers: what the control tokens do, as :data:`GEMMA4_MARKERS`.
        prompt_ids: the prompt; from its last turn on it is read to find the state in which the reply begins.
        thought_end: see :class:`ReplyParser`.

    >>> import gemlet
    >>> from gemlet.chat import GEMMA
    >>> tokenizer = gemlet.load().tokenizer
    >>> prompt = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "Who is there?"}])
    >>> parser = GEMMA.reply_parser(tokenizer, prompt)
    >>> reply = tokenizer.encode("Nobody.<end_of_turn>", add_bos=False)
    >>> collect(parser.push(reply) + parser.finish()).content
    'Nobody.'
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        markers: Mapping[str, str],
        prompt_ids: Sequence[int] = (),
        *,
        thought_end: str = "\n",
    ) -> None:
        self._parser = ReplyParser(markers, thought_end=thought_end)
        self._control = tokenizer.control_ids
        self._name = tokenizer.id_to_piece
        self._decoder = tokenizer.stream_decoder()
        turns = [tokenizer.token_id(name) for name, kind in markers.items() if kind == "turn_start"]
        start = next((i for i in range(len(prompt_ids) - 1, -1, -1) if prompt_ids[i] in turns), 0)
        self.push(prompt_ids[start:])
        self._decoder.finish()
        self._parser.begin()

    def push(self, ids: Iterable[int]) -> list[ReplyEvent]:
        """The events that ``ids``, the next tokens of the reply, make certain.

        Raises:
            InvalidRequestError: an id is not an integer from 0 to ``vocab_size - 1``.
        """
        events: list[ReplyEvent] = []
        for token_id in ids:
            if token_id in self._control:
                events += self._parser.text(self._decoder.finish())
                events += self._parser.marker(self._name(token_id))
            else:
                events += self._parser.text(self._decoder.push(token_id))
        return events

    def finish(self) -> list[ReplyEvent]:
        """The end of the reply: the events that were held back."""
        return self._parser.text(self._decoder.finish()) + self._parser.finish()


class TextReplyParser:
    """Reads a reply's text with the control tokens written out, as ``decode(ids, skip_control=False)`` has
    it. A reply that spells a control token in ordinary text cannot be told from one that has it; token ids
    can.

    Args:
        markers: what the control tokens do, as :data:`GEMMA4_MARKERS`.
        prompt: the prompt's text in the same form.
        thought_end: see :class:`ReplyParser`.

    >>> parser = TextReplyParser(GEMMA4_MARKERS, "<|turn>model\\n<|channel>thought\\n")
    >>> parser.push("Easy.\\n<chan") + parser.push("nel|>4") + parser.finish()
    [Reasoning(text='Easy.'), Content(text='4')]
    """

    def __init__(
        self, markers: Mapping[str, str] = GEMMA4_MARKERS, prompt: str = "", *, thought_end: str = "\n"
    ) -> None:
        self._parser = ReplyParser(markers, thought_end=thought_end)
        self._pattern = re.compile("|".join(re.escape(name) for name in markers))
        self._beginnings = {name[:n] for name in markers for n in range(1, len(name))}
        self._longest = max(map(len, markers))
        self._pending = ""
        starts = [prompt.rfind(name) for name, kind in markers.items() if kind == "turn_start"]
        self.push(prompt[max(0, *starts) :])
        self._parser.text(self._take_pending())
        self._parser.begin()

    def push(self, text: str) -> list[ReplyEvent]:
        """The events that ``text`` makes certain; the possible beginning of a marker is held back."""
        text = self._pending + text
        events: list[ReplyEvent] = []
        start = 0
        for match in self._pattern.finditer(text):
            events += self._parser.text(text[start : match.start()])
            events += self._parser.marker(match[0])
            start = match.end()
        keep = max(start, len(text) - self._longest + 1)
        while keep < len(text) and text[keep:] not in self._beginnings:
            keep += 1
        self._pending = text[keep:]
        return events + self._parser.text(text[start:keep])

    def finish(self) -> list[ReplyEvent]:
        """The end of the reply: the events that were held back."""
        return self._parser.text(self._take_pending()) + self._parser.finish()

    def _take_pending(self) -> str:
        pending, self._pending = self._pending, ""
        return pending
