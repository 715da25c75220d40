"""The chat format of FunctionGemma, a Gemma 3 270M that calls functions::

    <bos><start_of_turn>developer
    {text}<start_function_declaration>declaration:NAME{...}<end_function_declaration><end_of_turn>
    <start_of_turn>user
    {text}<end_of_turn>
    <start_of_turn>model
    <start_function_call>call:NAME{...}<end_function_call><start_function_response>response:NAME{...}\
<end_function_response>{reply}<end_of_turn>

The notation for tools is Gemma 4's notation (:mod:`.gemma4_tools`) with other tokens. The model calls
functions if the developer message tells it to. Google's documentation uses the text "You are a model that can
do function calling with the following functions". Like the official template, gemlet does not add this text.

For every conversation that the official template accepts and understands, gemlet writes exactly the same
bytes. This includes the template's oddities, such as that a user message directly after a result continues
the model's turn. gemlet differs from the template only in these cases:

- if the ``arguments`` of a call are a string of JSON (OpenAI's form), gemlet parses the string; the template
  pastes it;
- a key of the arguments that contains a sign of the notation (``a:b``) is put in quotes;
- a result does not need a name if its ``tool_call_id`` is the id of a call;
- a result that answers no call is refused, and images are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.text import show
from gemlet.chat.base import CallGrammar, ChatFormat, Messages, Segments, Tools
from gemlet.chat.call_grammar import named_tools, native_grammar
from gemlet.chat.conversation import read_conversation
from gemlet.chat.gemma4_tools import (
    SchemaStyle,
    ToolResult,
    read_calls,
    tool_name,
    write_call,
    write_result,
    write_tool,
)
from gemlet.chat.messages import checked_tools, json_value, role_of, text_parts
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["FUNCTION_GEMMA", "REPLY_MARKERS", "FunctionGemmaFormat"]

# A token of Gemma 4 -> the token that FunctionGemma has instead.
_TOKENS = {
    '<|"|>': "<escape>",
    "<|tool>": "<start_function_declaration>",
    "<tool|>": "<end_function_declaration>",
    "<|tool_call>": "<start_function_call>",
    "<tool_call|>": "<end_function_call>",
    "<|tool_response>": "<start_function_response>",
    "<tool_response|>": "<end_function_response>",
}
# The meaning of each token in a reply (:mod:`gemlet.chat.reply`).
REPLY_MARKERS: Mapping[str, str] = {
    "<start_of_turn>": "turn_start",
    "<end_of_turn>": "turn_end",
    "<eos>": "turn_end",
    "<start_function_call>": "call_start",
    "<end_function_call>": "call_end",
    "<start_function_response>": "result_start",
    "<end_function_response>": "result_end",
    "<escape>": "quote",
    **dict.fromkeys(
        ("<pad>", "<bos>", "<start_function_declaration>", "<end_function_declaration>"), "nothing"
    ),
}
_STYLE = SchemaStyle(nullable_first=False, bare_commas=False, described=True)
_ROLES = ("user", "assistant", "system", "developer", "tool")


class FunctionGemmaFormat(ChatFormat):
    """The format that :mod:`gemlet.chat.functiongemma` describes. It has no thinking.

    >>> messages = [{"role": "user", "content": "Light!"}]
    >>> tool = {"type": "function", "function": {"name": "light", "description": "Turns it on."}}
    >>> print(FUNCTION_GEMMA.render(messages, tools=[tool]))
    <bos><start_of_turn>developer
    <start_function_declaration>declaration:light{description:<escape>Turns it on.<escape>}\
<end_function_declaration><end_of_turn>
    <start_of_turn>user
    Light!<end_of_turn>
    <start_of_turn>model
    <BLANKLINE>
    """

    name = "functiongemma"
    markers = ("<bos>", "<start_of_turn>", "<end_of_turn>", *_TOKENS.values())
    ends = ("<end_of_turn>", "<start_function_response>")

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        if thinking:
            raise UnsupportedError(
                f"thinking: the chat format {self.name} does not have it; the chat format of Gemma 4 does"
            )
        rest = read_conversation(messages)
        declared = checked_tools(tools)
        out = _Writer()
        out.marker("<bos>")
        where, first = rest[0]
        offset = 1 if first.get("role") in ("system", "developer") else 0
        if declared or offset:
            out.begin_turn("developer")
            if offset:
                out.text(_trimmed(first.get("content"), where))
            for index, tool in enumerate(declared):
                write_tool(out, tool, f"tools[{index}]", _STYLE)
            out.end_turn()
        before = ""  # whether the previous message ends with "calls" or "results", or "" for neither
        caller: list[tuple[str, Any]] = []  # name and id of each call that the next results may answer
        for index, (where, message) in enumerate(rest[offset:], offset):
            role = role_of(message, where, _ROLES, self.name)
            if role == "tool":
                if before == "":
                    raise InvalidRequestError(
                        f"{where} is the result of a tool, but the message before it calls no tool; "
                        "put a result after the assistant message whose tool_calls it answers"
                    )
                for result in _read_results(message, caller, where):
                    write_result(out, result, _STYLE.null)
                before = "results"
                continue
            if before != "results":
                out.begin_turn("model" if role == "assistant" else role)
            calls, ids = _read_calls(message, role, where)
            content = message.get("content")
            if content is not None or (role != "assistant"):
                out.text(_trimmed(content, where))
            for call in calls:
                write_call(out, call, _STYLE.null)
            before = "calls" if calls else ""
            if not calls:
                out.end_turn()
            elif index == len(rest) - 1:
                out.marker("<start_function_response>")
            caller = [(call.name, call_id) for call, call_id in zip(calls, ids, strict=True)]
        if add_generation_prompt and before != "results":
            out.begin_turn("model")
        return out

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        return native_grammar(*named_tools(tools, names), _TOKENS)

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        return TokenReplyParser(tokenizer, REPLY_MARKERS, prompt_ids, pieces=pieces)


class _Writer(Segments):
    """Takes the tokens of Gemma 4's notation and writes the tokens of FunctionGemma."""

    def marker(self, name: str) -> None:
        super().marker(_TOKENS.get(name, name))

    def begin_turn(self, role: str) -> None:
        self.marker("<start_of_turn>")
        self.text(f"{role}\n")

    def end_turn(self) -> None:
        self.marker("<end_of_turn>")
        self.text("\n")


def _trimmed(content: Any, where: str) -> str:
    return "".join(part.strip() for part in text_parts(content, where))


def _read_calls(message: Mapping[str, Any], role: str, where: str) -> tuple[list[Any], list[Any]]:
    if message.get("function_call"):
        raise InvalidRequestError(f"{where} has both function_call and tool_calls; send tool_calls only")
    if role != "assistant" and message.get("tool_calls"):
        raise InvalidRequestError(f"{where}: tool_calls in a message of the role {role}; expected none")
    return read_calls(message.get("tool_calls"), where)


def _read_results(
    message: Mapping[str, Any], calls: Sequence[tuple[str, Any]], where: str
) -> list[ToolResult]:
    """Reads the results in a message of the role tool. The content is a text, a mapping or a list of
    mappings. A mapping is ``{"name", "response"}`` or only the response. An empty content has no results."""
    content = message.get("content")
    if not content:
        return []
    is_list = isinstance(content, Sequence) and not isinstance(content, str | bytes)
    parts = list(content) if is_list else [content]
    if is_list and all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        parts = ["".join(text_parts(content, where))]
    results: list[ToolResult] = []
    for part in parts:
        if isinstance(part, Mapping) and "name" in part and "response" in part:
            name, value = part["name"], part["response"]
        else:
            name, value = message.get("name"), part
            if name is None:
                name = next((n for n, known in calls if known == message.get("tool_call_id")), None)
            if name is None:
                ids = [call_id for _, call_id in calls]
                raise InvalidRequestError(
                    f"{where}: tool_call_id is {show(message.get('tool_call_id'))}; expected an id of the "
                    f"calls before it, {show(ids)}"
                )
        name = name.strip() if isinstance(name, str) else name
        results.append(ToolResult(tool_name(name, where), json_value(value, f"{where}.content")))
    return results


FUNCTION_GEMMA = FunctionGemmaFormat()
