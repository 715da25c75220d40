"""The chat format of Gemma 1, 2, 3 and 3n::

    <bos><start_of_turn>user
    {text}<end_of_turn>
    <start_of_turn>model
    {reply}<end_of_turn>
    <start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model

If user and assistant take turns, gemlet writes the same text as the official templates. For Gemma 3 and 3n,
this also holds for a system message at the beginning: the user's turn is then the system message, two line
breaks and the user's text, even if one of the two is blank. For other conversations, the templates raise an
error, drop a text or write a role that no model knows. There gemlet writes a system message in front of the
user's text, and combines successive messages of one role into one turn.

The templates have no tools. gemlet describes tools in front of the first text of the user. Calls are text in
the model's turn, and results are text in a turn of the user (:mod:`.prompted_tools`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.chat.base import CallGrammar, ChatFormat, Messages, Segments, Tools
from gemlet.chat.call_grammar import named_tools, python_grammar
from gemlet.chat.conversation import read_conversation
from gemlet.chat.gemma4_tools import ToolResult, read_calls, tool_name
from gemlet.chat.messages import checked_tools, json_value, role_of, text_parts
from gemlet.chat.prompted_tools import PromptedReplyParser, instruction, parameters_of, write_results
from gemlet.chat.python_calls import write_calls
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["GEMMA", "GemmaFormat"]

_JOINT = "\n\n"  # stands between two messages that become one turn
_SYSTEM = ("system", "developer")
_ROLES = {"user": "user", "assistant": "model", "system": "user", "developer": "user", "tool": "user"}
_MARKERS = {"<start_of_turn>": "turn_start", "<end_of_turn>": "turn_end", "<eos>": "turn_end"}


class GemmaFormat(ChatFormat):
    """The format that :mod:`gemlet.chat.gemma` describes. It has no thinking.

    Attributes:
        prompts_tools: whether the format describes tools in the prompt and looks for calls in the reply. If
            False, tools and calls are refused, because the templates have none.

    >>> GEMMA.render([{"role": "user", "content": "Hi"}])
    '<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n'
    """

    name = "gemma"
    markers = ("<bos>", "<start_of_turn>", "<end_of_turn>")
    ends = ("<end_of_turn>",)

    prompts_tools = True

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        declared = checked_tools(tools)
        if declared and not self.prompts_tools:
            raise UnsupportedError(f"tools: this chat format {self.name} does not have them")
        if thinking:
            raise UnsupportedError(
                f"thinking: the chat format {self.name} does not have it; the chat format of Gemma 4 does"
            )
        bos, turn_start, turn_end = self.markers
        out = Segments()
        out.marker(bos)
        for role, text in self._turns(messages, declared):
            out.marker(turn_start)
            out.text(f"{role}\n{text}")
            out.marker(turn_end)
            out.text("\n")
        if add_generation_prompt:
            out.marker(turn_start)
            out.text("model\n")
        return out

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        return python_grammar(*named_tools(tools, names))

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        declared = checked_tools(tools)
        if not declared:
            return TokenReplyParser(tokenizer, _MARKERS, prompt_ids)
        parameters = parameters_of(declared)
        return PromptedReplyParser(tokenizer, _MARKERS, prompt_ids, parameters=parameters, pieces=pieces)

    def _turns(self, messages: Messages, tools: Sequence[Any]) -> list[tuple[str, str]]:
        """The turns as pairs ``(role, text)``. ``role`` is "user" or "model", in alternation."""
        turns: list[tuple[str, str]] = []
        conversation = read_conversation(messages)
        first = conversation[0][1]
        asks = instruction(tools) if tools else ""
        called: set[str] = set()
        for index, (where, message) in enumerate(conversation):
            role, text = self._read(message, where, called)
            if asks and message["role"] not in _SYSTEM:  # the first message that is not a system message
                if role == "user":
                    text = f"{asks}\n{text}"
                else:
                    self._add(turns, "user", asks)
                asks = ""
            keeps_blank = index == 1 and first["role"] in _SYSTEM and message["role"] == "user"
            self._add(turns, role, text, keeps_blank=keeps_blank)
        if asks:
            self._add(turns, "user", asks)
        return turns

    def _add(self, turns: list[tuple[str, str]], role: str, text: str, *, keeps_blank: bool = False) -> None:
        """Adds a turn of ``role``. If the last turn has this role, ``text`` is added to that turn instead."""
        if turns and turns[-1][0] == role:
            parts = [turns.pop()[1], text]
            text = _JOINT.join(part for part in parts if keeps_blank or part.strip())
        turns.append((role, text))

    def _read(self, message: Mapping[str, Any], where: str, called: set[str]) -> tuple[str, str]:
        """The role and the text of a message. ``called`` has the names of the functions called so far, and
        gets the names in this message."""
        roles = tuple(role for role in _ROLES if role != "tool" or self.prompts_tools)
        role = role_of(message, where, roles, self.name)
        calls_only = role == "assistant" and message.get("tool_calls") is not None
        content = message.get("content", "" if calls_only else None)
        if role == "tool":
            result = _read_result(message, content, where)
            if result.name not in called:
                raise InvalidRequestError(
                    f"{where} is the result of a tool, but no message before it calls this tool"
                )
            return _ROLES[role], write_results([result])
        parts = text_parts(content, where)
        # The official templates trim each part of a user or model text, and do not change the system text.
        text = "".join(parts if role in _SYSTEM else [part.strip() for part in parts])
        for key in ("tool_calls", "function_call"):
            if message.get(key) and (not self.prompts_tools or role != "assistant" or key == "function_call"):
                raise InvalidRequestError(f"{where}: {key} in a message of the role {role}; expected none")
        calls, _ = read_calls(message.get("tool_calls"), where)
        called.update(call.name for call in calls)
        if calls:
            written = write_calls([(call.name, call.arguments) for call in calls])
            text = f"{text}\n{written}" if text else written
        return _ROLES[role], text


def _read_result(message: Mapping[str, Any], content: Any, where: str) -> ToolResult:
    name = message.get("name")
    if name is None:
        raise InvalidRequestError(
            f"{where} is the result of a tool, but no call before it has its tool_call_id"
        )
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(text_parts(content, where))
    return ToolResult(tool_name(name, where), json_value(content, f"{where}.content"))


GEMMA = GemmaFormat()
