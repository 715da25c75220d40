"""Splits a reply into its answer, reasoning and tool calls while its text and markers arrive.

In a reply of Gemma 4, control tokens separate the parts::

    <|channel>thought
    {reasoning}
    <channel|>{text}<|tool_call>call:NAME{...}<tool_call|>

:class:`ReplyParser` is a state machine that takes ordinary text and markers. The classes in
:mod:`gemlet.chat.reply_readers` use it to read token ids or text.

The events always add up to the same reply (:func:`collect`), no matter how the reply is cut into pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from gemlet.base.front_door import public
from gemlet.base.records import field, record
from gemlet.chat.call_pieces import PieceWriter
from gemlet.chat.loose_calls import repair_call
from gemlet.chat.tool_calls import QUOTE_SIGN, MalformedCallError, parse_call

__all__ = [
    "GEMMA4_MARKERS",
    "THOUGHT_HEADER",
    "Content",
    "MalformedToolCall",
    "Reasoning",
    "Reply",
    "ReplyEvent",
    "ReplyParser",
    "ToolCall",
    "ToolCallPiece",
    "collect",
    "new_call_id",
]


def new_call_id() -> str:
    """A random id for a call.

    >>> new_call_id().startswith("call_")
    True
    """
    return f"call_{os.urandom(12).hex()}"


@record(frozen=True)
class Content:
    """A piece of the text of the answer.

    >>> from gemlet.chat import TextReplyParser
    >>> TextReplyParser().push("Yes.")
    [Content(text='Yes.')]
    """

    text: str


@record(frozen=True)
class Reasoning:
    """A piece of the thought that the model writes before its answer.

    >>> from gemlet.chat import TextReplyParser
    >>> TextReplyParser().push("<|channel>thought\\nHm.")
    [Reasoning(text='Hm.')]
    """

    text: str


@record(frozen=True)
class ToolCall:
    """A complete call of a tool.

    Attributes:
        name: the name of the function.
        arguments: the arguments, a JSON object.
        id: a random id, by which the result of the call refers to the call. Two calls that differ only in the
            id are equal.

    >>> from gemlet.chat import TextReplyParser
    >>> TextReplyParser().push("<|tool_call>call:now{zone:2}<tool_call|>")
    [ToolCall(name='now', arguments={'zone': 2})]
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=new_call_id, compare=False, repr=False)


@record(frozen=True)
class ToolCallPiece:
    """A piece of a call that the model is writing. The first piece of a call has the name and no arguments.
    After the last piece, the whole call follows as a :class:`ToolCall` with the same id, or as a
    :class:`MalformedToolCall` if it cannot be read.

    Attributes:
        name: the name of the function.
        arguments: a piece of the arguments. The pieces of a call add up to the arguments as JSON.
        id: the id of the call.

    >>> from gemlet.chat import TextReplyParser
    >>> parser = TextReplyParser(pieces=True)
    >>> parser.push("<|tool_call>call:now{zone:2")
    [ToolCallPiece(name='now', arguments=''), ToolCallPiece(name='now', arguments='{"zone": ')]
    """

    name: str
    arguments: str
    id: str = field(default="", compare=False, repr=False)


@record(frozen=True)
class MalformedToolCall:
    """A tool call that cannot be read, or that was cut off. The text and the markers of the call follow
    unchanged as :class:`Content`.

    Attributes:
        raw: the text that the model wrote between the markers of the call.
        problem: the reason why the call cannot be read.
        id: the id in the pieces of the call, if there were pieces.

    >>> from gemlet.chat import TextReplyParser
    >>> TextReplyParser().push("<|tool_call>call:now{zone:<tool_call|>")[0].raw
    'call:now{zone:'
    """

    raw: str
    problem: str
    id: str = field(default="", compare=False, repr=False)


ReplyEvent = Content | Reasoning | ToolCallPiece | ToolCall | MalformedToolCall


@record(frozen=True)
class Reply:
    """A whole reply, made by :func:`collect`.

    >>> Reply("Yes.", reasoning="Hm.").content
    'Yes.'
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    malformed: list[MalformedToolCall] = field(default_factory=list)


@public
def collect(events: Iterable[ReplyEvent]) -> Reply:
    """Combines the events of a reply into a :class:`Reply`.

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

# The name of a control token -> its meaning in a reply. A token that is missing here has no meaning.
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
    "header",  # after <|turn>: the role, up to the end of the line
    "content",
    "channel",  # after <|channel>: the channel's name, up to the end of the line
    "thought",
    "call",
    "result",  # inside the result of a tool, which the program writes and not the model; it gives no events
    "between",  # the prompt has closed the last turn, and the reply has not begun yet
    "over",  # the model's turn has ended, or another has begun; the rest is not part of the reply
]
_CHANNEL = "thought"
THOUGHT_HEADER = _CHANNEL + "\n"  # this comes before the text of a thought
_OWN_ROLES = ("model", "assistant")
_ROLES = (*_OWN_ROLES, "user", "system", "developer", "tool", "function")
AsideKind = Literal["thought", "call"]


class ReplyParser:
    """The state machine that reads a reply. Pass each text to :meth:`text` and each control token to
    :meth:`marker`, in order, and call :meth:`finish` at the end. Everything before :meth:`begin` is the
    prompt.

    Args:
        markers: the meaning of each control token, as in :data:`GEMMA4_MARKERS`.
        thought_end: the text that the format writes between a thought and the token that ends the thought.
            This text is not part of the reasoning.
        pieces: also give parts of a call while the model is writing the call (:class:`ToolCallPiece`).

    >>> parser = ReplyParser(GEMMA4_MARKERS)
    >>> parser.begin()
    >>> parser.text("Let me see.")
    [Content(text='Let me see.')]
    >>> parser.marker("<|tool_call>"), parser.text("call:now{zone:2}"), parser.marker("<tool_call|>")
    ([], [], [ToolCall(name='now', arguments={'zone': 2})])
    """

    @public
    def __init__(self, markers: Mapping[str, str], *, thought_end: str = "\n", pieces: bool = False) -> None:
        self._markers = markers
        self._pieces = pieces
        self._thought_end = thought_end
        self._state: _State = "content"
        self._after_turn: _State = "between"  # the state after a turn ends; "over" in the reply
        self._line = ""  # text of a header or the name of a channel
        self._prompted_line: str | None = None  # the part of a header that the prompt has
        self._held = ""  # text that may be thought_end
        self._has_thought = False  # whether the reply has had any text of a thought
        self._between_thoughts = ""  # the text to write between the last thought and the next
        self._call: list[str] = []
        self._call_id = ""
        self._piece_writer: PieceWriter | None = None

    def begin(self) -> None:
        """Ends the prompt and begins the reply. Drops the events of the prompt and keeps the state."""
        self._held = self._between_thoughts = ""
        self._has_thought = False
        self._after_turn = "over"
        if self._state == "over":
            self._state = "between"
        elif self._state == "header":  # the reply begins within the line of a turn that the prompt opened
            self._prompted_line, self._line = self._line, ""

    @property
    def aside(self) -> AsideKind | None:
        """The kind of the part that is being read; None for the answer."""
        kinds: dict[str, AsideKind] = {"channel": "thought", "thought": "thought", "call": "call"}
        return kinds.get(self._state)

    @public
    def text(self, text: str) -> list[ReplyEvent]:
        """Takes ordinary text and returns its events. If the text spells a marker, it stays text."""
        if not text:
            return []
        if self._state == "content":
            return [Content(text)]
        if self._state == "thought":
            return self._think(text)
        if self._state == "call":
            return self._add_to_call(text.replace(QUOTE_SIGN, "\ufffd"))
        if self._state in ("header", "channel"):
            return self._read_line(text)
        elif self._state == "between" and (text := text.lstrip()):
            self._state = "content"
            return [Content(text)]
        return []

    @public
    def marker(self, name: str) -> list[ReplyEvent]:
        """Takes the control token ``name`` and returns the events of this token."""
        kind = self._markers.get(name)
        if self._state == "over":
            if kind == "turn_end":
                self._state = self._after_turn
            return []
        if self._state == "call":
            if kind == "quote":
                return self._add_to_call(QUOTE_SIGN)
            if kind in (None, "nothing", "thought_end", "result_end"):
                return self._add_to_call(name)  # probably the text of an argument
            if kind == "call_end":
                return self._end_call(complete=True, end=name)
            return self._end_call(complete=True) + self.marker(name)
        if kind in (None, "nothing", "quote", "call_end"):
            return []
        if kind == "thought_end":
            return self._end_thought() if self._state != "header" else []
        if kind == "result_end":
            self._state = "content" if self._state == "result" else self._state
            return []
        events = self._end_part()
        starts: dict[str, _State] = {
            "turn_start": "header",
            "turn_end": self._after_turn,
            "thought_start": "channel",
            "call_start": "call",
            "result_start": "result",
        }
        self._state = starts[str(kind)]
        self._line = ""
        if kind == "thought_start" and self._has_thought:
            self._between_thoughts = "\n\n"
        if kind == "call_start":
            self._call_id = new_call_id()
            self._piece_writer = PieceWriter() if self._pieces else None
        return events

    @public
    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        """Ends the reply. Gives the text that was held back, and a call that was cut off.

        Args:
            ended: whether the model ended its reply itself, with an end token that was not pushed. Then an
                open call has ended too, and its missing end may be added.

        >>> parser = ReplyParser(GEMMA4_MARKERS)
        >>> parser.marker("<|tool_call>"), parser.text("call:now{zone:")
        ([], [])
        >>> parser.finish()[0].raw
        'call:now{zone:'
        """
        if self._state == "call":
            return self._end_call(complete=ended)
        if ended:
            return self._end_part()
        if self._state == "header":
            may_be_role = any(role.startswith(self._header()) for role in _ROLES)
            return [] if may_be_role else self._end_header()
        held = self._held
        if self._state == "channel" and not _CHANNEL.startswith(self._line):
            held = self._line
        return self._reason(held)

    def _think(self, text: str) -> list[ReplyEvent]:
        text, self._held = self._held + text, ""
        if self._thought_end and text.endswith(self._thought_end):
            self._held = self._thought_end
            text = text[: -len(self._thought_end)]
        return self._reason(text)

    def _reason(self, text: str) -> list[ReplyEvent]:
        if not text:
            return []
        text, self._between_thoughts = self._between_thoughts + text, ""
        self._has_thought = True
        return [Reasoning(text)]

    def _end_thought(self) -> list[ReplyEvent]:
        """Leaves the thought, if the reply is in one. The text that is held back ends the thought in this
        format and is dropped."""
        events: list[ReplyEvent] = []
        if self._state == "channel" and self._line not in ("", _CHANNEL):
            events = self._reason(self._line)
        if self._state in ("channel", "thought", "between"):
            self._state = "content"
        self._held = self._line = ""
        return events

    def _read_line(self, text: str) -> list[ReplyEvent]:
        """Reads the line after ``<|turn>`` or ``<|channel>``."""
        if self._state == "channel":
            self._line += text
            if self._line.startswith(THOUGHT_HEADER):
                line, self._line = self._line[len(THOUGHT_HEADER) :], ""
            elif THOUGHT_HEADER.startswith(self._line):
                return []
            else:  # a thought without the channel's name
                line, self._line = self._line, ""
            self._state = "thought"
            return self._think(line) if line else []
        self._line += text
        role, newline, _ = self._header().partition("\n")
        if not newline and len(role) < 50 and any(known.startswith(role.strip()) for known in _ROLES):
            return []
        if newline and role.strip() in ("", *_ROLES):
            # A turn that the model opens for another role is not part of the reply.
            is_own = self._prompted_line is not None or role.strip() in ("", *_OWN_ROLES)
            text = self._line.partition("\n")[2]
        else:  # a turn without a role
            is_own, text = True, self._line
        self._state = "content" if is_own else "over"
        self._line, self._prompted_line = "", None
        return self.text(text)

    def _end_header(self) -> list[ReplyEvent]:
        """Leaves the unfinished line of a role. If the line is not a role, it is text of the reply."""
        line, role = self._line, self._header().strip()
        self._line, self._prompted_line = "", None
        return [Content(line)] if line and role not in ("", *_ROLES) else []

    def _header(self) -> str:
        return (self._prompted_line or "") + self._line

    def _end_part(self) -> list[ReplyEvent]:
        """Leaves a header or a thought."""
        return self._end_header() if self._state == "header" else self._end_thought()

    def _add_to_call(self, text: str) -> list[ReplyEvent]:
        self._call.append(text)
        writer = self._piece_writer
        if writer is None:
            return []
        was_known = writer.name is not None
        arguments = writer.push(text)
        if writer.name is None:
            return []
        first = [] if was_known else [ToolCallPiece(writer.name, "", self._call_id)]
        return [*first, *([ToolCallPiece(writer.name, arguments, self._call_id)] if arguments else [])]

    def _end_call(self, *, complete: bool, end: str = "") -> list[ReplyEvent]:
        raw = "".join(self._call)
        self._call.clear()
        self._state = "content"
        try:
            return self._whole_call(*parse_call(raw))
        except MalformedCallError as problem:
            reason = str(problem) if complete else f"the reply ended within the call: {problem}"
        try:
            return self._whole_call(*repair_call(raw, complete=complete))
        except MalformedCallError:
            raw = raw.replace(QUOTE_SIGN, self._name_of("quote"))
            # The text of the call stays visible in the answer. Otherwise a reply of only this call would be
            # empty.
            return [
                MalformedToolCall(raw, reason, self._call_id),
                Content(self._name_of("call_start") + raw + end),
            ]

    def _whole_call(self, name: str, arguments: dict[str, Any]) -> list[ReplyEvent]:
        """The events of a complete call: the pieces that have not been given yet, and the call."""
        events: list[ReplyEvent] = []
        if self._piece_writer is not None:
            if self._piece_writer.name is None:
                events.append(ToolCallPiece(name, "", self._call_id))
            if missing := self._piece_writer.finish(arguments):
                events.append(ToolCallPiece(name, missing, self._call_id))
        return [*events, ToolCall(name, arguments, self._call_id)]

    def _name_of(self, kind: str) -> str:
        return next((name for name, its_kind in self._markers.items() if its_kind == kind), "")
