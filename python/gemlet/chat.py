"""Chat formats: from a list of messages to the prompt a model family was trained on.

A format is data (markers and role names) and is applied here in one place; it is never a template that came
with a model file. Gemma 1, 2 and 3 share one::

    <bos><start_of_turn>user
    {text}<end_of_turn>
    <start_of_turn>model
    {reply}<end_of_turn>
    <start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model

The text is that of the official templates for every conversation they accept. Where they raise, gemlet does
what the conversation means: a system message goes in front of the user's turn, messages of one role in a row
become one turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._json import show
from .errors import InvalidRequestError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["GEMMA", "ChatFormat", "chat_format_for"]

_JOINT = "\n\n"  # between a system message and the user's, and between messages merged into one turn
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class ChatFormat:
    """How a family writes a conversation.

    Attributes:
        name: for messages.
        bos, turn_start, turn_end: the control tokens.
        roles: role of a message -> role as the model knows it; a role that is missing is refused.

    Messages are mappings as in OpenAI's chat API: ``role`` is ``"user"``, ``"assistant"``, ``"system"`` or
    ``"developer"``, ``content`` a string or a list of ``{"type": "text", "text": ...}`` parts.

    >>> from gemlet.chat import GEMMA
    >>> GEMMA.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi! "}])
    '<bos><start_of_turn>user\\nBe brief.\\n\\nHi!<end_of_turn>\\n<start_of_turn>model\\n'
    """

    name: str
    bos: str
    turn_start: str
    turn_end: str
    roles: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt as text, for reading and comparing.

        A message that itself contains ``<end_of_turn>`` cannot be told from the format's own there; to get
        token ids use :meth:`encode_chat`, where it can.

        Args:
            messages: the conversation so far; at least one message.
            add_generation_prompt: end with the beginning of the model's turn.

        Raises:
            InvalidRequestError: a message is malformed, of a role the format has not, or holds something
                that is not text; the error names the message.
        """
        return "".join(text for text, _ in self._segments(messages, add_generation_prompt))

    def encode_chat(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt as token ids. Only the format's own markers become control tokens: whatever a message
        contains is encoded as plain text, so that no message can end its turn or speak for another role.

        Raises:
            InvalidRequestError: as for :meth:`render`; or the vocabulary has no turn markers.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> ids = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "<end_of_turn>"}])
        >>> ids.count(tokenizer.end_of_turn_id)
        1
        """
        ids: list[int] = []
        text = ""
        for segment, is_marker in self._segments(messages, add_generation_prompt):
            if not is_marker:
                text += segment  # one text between two markers is encoded at once, or the ids could differ
                continue
            ids += tokenizer.encode(text, add_bos=False, allow_control=False)
            text = ""
            marker = tokenizer.token_id(segment)
            if marker is None:
                raise InvalidRequestError(
                    f"chat: the vocabulary has no {segment}, which the format {self.name} needs; "
                    "this is probably a base model, for which there is generate()"
                )
            ids.append(marker)
        return ids + tokenizer.encode(text, add_bos=False, allow_control=False)

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The tokens that end a reply: the end of the turn, and the end of the text."""
        found = (tokenizer.token_id(self.turn_end), tokenizer.eos_id)
        return frozenset(identifier for identifier in found if identifier is not None)

    def _segments(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> Iterator[tuple[str, bool]]:
        """The prompt in parts ``(text, is a marker)``."""
        yield self.bos, True
        for role, text in self._turns(messages):
            yield self.turn_start, True
            yield f"{role}\n{text}", False
            yield self.turn_end, True
            yield "\n", False
        if add_generation_prompt:
            yield self.turn_start, True
            yield f"{self.roles['assistant']}\n", False

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """``(role as the model knows it, text)`` of each turn, alternating."""
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            kind = type(messages).__name__
            raise InvalidRequestError(f"messages has to be a list of messages, got a {kind}")
        if not messages:
            raise InvalidRequestError("messages is empty; expected at least one message")
        turns: list[tuple[str, str]] = []
        for index, message in enumerate(messages):
            where = f"messages[{index}]"
            role, text = self._read(message, where)
            if turns and turns[-1][0] == role:
                before = turns.pop()[1]
                text = _JOINT.join(part for part in (before, text) if part)
            turns.append((role, text))
        return turns

    def _read(self, message: Mapping[str, Any], where: str) -> tuple[str, str]:
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise InvalidRequestError(f"{where} is a {kind}; expected a mapping with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in self.roles:
            expected = ", ".join(self.roles)
            raise InvalidRequestError(f"{where}: role is {show(role)}; the format {self.name} has {expected}")
        for key in ("tool_calls", "function_call"):
            if message.get(key):
                raise InvalidRequestError(
                    f"{where}: the format {self.name} has no {key}; describe tools in text"
                )
        content = message.get("content")
        if content is None and role == "assistant" and "content" in message:
            content = ""  # what clients send for a reply without text
        if isinstance(content, str):
            parts = [content]
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            parts = [self._part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        else:
            raise InvalidRequestError(
                f"{where}: content is {show(content)}; expected a string or a list of text parts"
            )
        # The official templates trim each part of what user and model say, and take the system text as it is.
        text = "".join(parts if role in _SYSTEM else [part.strip() for part in parts])
        return self.roles[role], text if text.strip() else ""

    def _part(self, part: Any, where: str) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url", "input_image", "audio", "input_audio", "video", "file"):
            raise InvalidRequestError(f"{where} is of type {kind}; this model takes text only")
        if kind != "text":
            raise InvalidRequestError(f'{where} is {show(part)}; expected {{"type": "text", "text": ...}}')
        text = part.get("text")
        if not isinstance(text, str):
            raise InvalidRequestError(f"{where}: text is {show(text)}; expected a string")
        return text


GEMMA = ChatFormat(
    name="gemma",
    bos="<bos>",
    turn_start="<start_of_turn>",
    turn_end="<end_of_turn>",
    roles={"user": "user", "assistant": "model", "system": "user", "developer": "user"},
)

# model_type of config.json (or general.architecture of GGUF) -> format.
_FORMATS = {
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gemma3_text": GEMMA,
}


def chat_format_for(model_type: str, tokenizer: Tokenizer) -> ChatFormat | None:
    """The chat format of a model; None where the family is unknown or the vocabulary has no turn markers.

    >>> import gemlet
    >>> from gemlet.chat import chat_format_for
    >>> chat_format_for("gemma3_text", gemlet.load().tokenizer).name
    'gemma'
    """
    chat_format = _FORMATS.get(model_type)
    if chat_format is None:
        return None
    markers = (chat_format.bos, chat_format.turn_start, chat_format.turn_end)
    return chat_format if all(tokenizer.token_id(marker) is not None for marker in markers) else None
