"""The chat format of Gemma 1, 2, 3 and 3n::

    <bos><start_of_turn>user
    {text}<end_of_turn>
    <start_of_turn>model
    {reply}<end_of_turn>
    <start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model

The text is that of the official templates for user and assistant in turn, and of those of Gemma 3 and 3n with
a system message in front as well: it, two line breaks and the text of the user, even where either is blank.
Where the templates raise, drop a text or write a role that no model knows, gemlet does what the conversation
means: a system message goes in front of the user's turn, messages of one role in a row become one turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.chat.base import ChatFormat, Messages, Segments, Tools
from gemlet.chat.conversation import read_conversation
from gemlet.chat.messages import role_of, text_parts
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["GEMMA", "GemmaFormat"]

_JOINT = "\n\n"  # between a system message and the user's, and between messages merged into one turn
_SYSTEM = ("system", "developer")
_ROLES = {"user": "user", "assistant": "model", "system": "user", "developer": "user"}


class GemmaFormat(ChatFormat):
    """See :mod:`gemlet.chat.gemma`; there are no tools and there is no thinking.

    >>> GEMMA.render([{"role": "user", "content": "Hi"}])
    '<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n'
    """

    name = "gemma"
    markers = ("<bos>", "<start_of_turn>", "<end_of_turn>")
    ends = ("<end_of_turn>",)

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        if tools:
            raise UnsupportedError(
                f"tools: the chat format {self.name} has none, that of Gemma 4 does; describe tools in text"
            )
        if thinking:
            raise UnsupportedError(f"thinking: the chat format {self.name} has none, that of Gemma 4 does")
        bos, turn_start, turn_end = self.markers
        out = Segments()
        out.marker(bos)
        for role, text in self._turns(messages):
            out.marker(turn_start)
            out.text(f"{role}\n{text}")
            out.marker(turn_end)
            out.text("\n")
        if add_generation_prompt:
            out.marker(turn_start)
            out.text("model\n")
        return out

    @public
    def reply_parser(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> TokenReplyParser:
        kinds = {"<start_of_turn>": "turn_start", "<end_of_turn>": "turn_end", "<eos>": "turn_end"}
        return TokenReplyParser(tokenizer, kinds, prompt_ids)

    def _turns(self, messages: Messages) -> list[tuple[str, str]]:
        """``(role as the model knows it, text)`` of each turn, alternating."""
        turns: list[tuple[str, str]] = []
        conversation = read_conversation(messages)
        first = conversation[0][1]
        for index, (where, message) in enumerate(conversation):
            role, text = self._read(message, where)
            if turns and turns[-1][0] == role:
                parts = [turns.pop()[1], text]
                if not (index == 1 and first["role"] in _SYSTEM and message["role"] == "user"):
                    parts = [part for part in parts if part.strip()]
                text = _JOINT.join(parts)
            turns.append((role, text))
        return turns

    def _read(self, message: Mapping[str, Any], where: str) -> tuple[str, str]:
        role = role_of(message, where, tuple(_ROLES), self.name)
        for key in ("tool_calls", "function_call"):
            if message.get(key):
                raise InvalidRequestError(
                    f"{where}: the format {self.name} has no {key}; describe tools in text"
                )
        parts = text_parts(message.get("content"), where)
        # The official templates trim each part of what user and model say, and take the system text as it is.
        return _ROLES[role], "".join(parts if role in _SYSTEM else [part.strip() for part in parts])


GEMMA = GemmaFormat()
