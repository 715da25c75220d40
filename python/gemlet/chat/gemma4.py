"""The chat format of Gemma 4::

    <bos><|turn>system
    <|think|>
    {system}<|tool>declaration:NAME{...}<tool|><turn|>
    <|turn>user
    {text}<turn|>
    <|turn>model
    <|channel>thought
    {reasoning}
    <channel|><|tool_call>call:NAME{...}<tool_call|><|tool_response>response:NAME{...}<tool_response|>{reply}<turn|>

The template published with the weights has been revised several times. :class:`Gemma4Revision` holds the
differences between the revisions as data. Within a revision, the template depends on the size of the model in
one place: only in the larger models, a prompt without thinking ends in an empty thought. For every
conversation that a template accepts and understands, gemlet writes exactly the same bytes, including the
template's oddities. gemlet differs from the template only in these cases:

- if the ``arguments`` of a call are a string of JSON (OpenAI's form), gemlet parses the string; the templates
  paste it;
- a key of the arguments that contains a sign of the notation (``a:b``) is put in quotes;
- results may be messages of the role ``tool``, and may be mappings, even in revisions that only know results
  in the assistant's message (``tool_responses``);
- a result is written after the call that it answers, wherever the client put the result
  (:mod:`.conversation`);
- ``<|think|>`` at the beginning or end of a system message turns thinking on and is not text;
- the reasoning of a message may be under any of the usual keys, as in transformers;
- a result that answers no call is refused, while the templates drop it. Images, audio and video are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gemlet.base.front_door import public
from gemlet.base.records import field, record
from gemlet.base.text import show
from gemlet.chat.base import CallGrammar, ChatFormat, Messages, Segments, Tools
from gemlet.chat.call_grammar import named_tools, native_grammar
from gemlet.chat.conversation import read_conversation
from gemlet.chat.gemma4_tools import (
    SchemaStyle,
    ToolResult,
    WrittenCall,
    read_calls,
    read_list,
    tool_name,
    write_call,
    write_result,
    write_tool,
)
from gemlet.chat.messages import checked_tools, is_same, json_value, mapping_at, role_of, text_parts
from gemlet.chat.reply import GEMMA4_MARKERS
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["THINK", "Gemma4Format", "Gemma4Revision"]

_SYSTEM = ("system", "developer")
THINK = "<|think|>"  # the control token that lets the model think
# The keys that clients use for the reasoning of a message. The first key with a text counts.
_REASONING = ("reasoning", "reasoning_content", "thinking")
_ROLES = ("user", "assistant", *_SYSTEM, "tool")


@record(frozen=True)
class Gemma4Revision:
    """The points in which one revision of the official template differs from the others.

    Attributes:
        name: for error messages.
        think: the text after the marker ``<|think|>``.
        schema: the form of the declarations of tools.
        continues: which assistant messages continue the turn of the message before them. "never": none.
            "after results": a message that calls tools, if the message before it ended with results.
            "always": a message after any assistant message.
        keeps_reasoning: which assistant messages after the last user message keep their reasoning: "none",
            "calls" (the messages that call tools), or "all".
        thought_end: the text between a thought and ``<channel|>``.
        awaits_results: whether a call without a result leaves the turn open and ends in ``<|tool_response>``.
        empty_thought: when a prompt without thinking ends in an empty thought. "new turn": only if the prompt
            ends with the beginning of a new turn. "always": in every case.
        closes: where ``<turn|>`` is written. "message": after each message, except a message that ends with
            results and has no content. "text": after each message that has visible text or no results.
            "turn": once at the end of a turn.
        resumes_thinking: whether a prompt with thinking opens a thought if the prompt ends with results.

    >>> from gemlet.chat import gemma4_format
    >>> revision = gemma4_format().revision
    >>> revision.name, revision.keeps_reasoning
    ('canonical, July 2026', 'all')
    """

    name: str
    think: str
    schema: SchemaStyle
    continues: Literal["never", "after results", "always"]
    keeps_reasoning: Literal["none", "calls", "all"]
    thought_end: str
    awaits_results: bool
    empty_thought: Literal["new turn", "always"]
    closes: Literal["message", "text", "turn"] = "message"
    resumes_thinking: bool = False


@record
class _Message:
    role: str
    texts: list[str]
    is_list: bool  # whether the content is a list of parts and not a string
    has_content: bool
    reasoning: str = ""
    calls: list[WrittenCall] = field(default_factory=list)
    call_ids: list[Any] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)


@record(frozen=True, repr=False)
class Gemma4Format(ChatFormat):
    """Gemma 4's format in one of its revisions.

    Attributes:
        revision: the revision of the official template.
        empty_thought: whether a prompt without thinking ends in an empty thought. It does not for E2B and
            E4B.
        is_exact: False if the model's template is a revision that gemlet does not know. ``revision`` is then
            the nearest known revision.

    >>> from gemlet.chat import gemma4_format
    >>> gemma4_format().render([{"role": "user", "content": "Hi"}])
    '<bos><|turn>user\\nHi<turn|>\\n<|turn>model\\n<|channel>thought\\n<channel|>'
    """

    revision: Gemma4Revision
    empty_thought: bool
    is_exact: bool = True

    markers = ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>")
    ends = ("<turn|>", "<|tool_response>")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The family and the revision, for error messages and :func:`gemlet.inspect`."""
        return f"gemma4, {'' if self.is_exact else 'nearest to '}{self.revision.name}"

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        read = self._read(read_conversation(messages))
        thinking = _take_think(read[0]) or thinking
        out = Segments()
        out.marker("<bos>")
        read = self._write_system(out, read, checked_tools(tools), thinking)
        last_user = max((i for i, message in enumerate(read) if message.role == "user"), default=-1)
        around = [None, *read, None]
        for index, (before, message, after) in enumerate(zip(around, read, around[2:], strict=False)):
            self._write_message(out, message, before, after, index > last_user)
        if add_generation_prompt:
            self._write_generation_prompt(out, around[-2], thinking)
        return out

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        return native_grammar(*named_tools(tools, names), {})

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        return TokenReplyParser(
            tokenizer, GEMMA4_MARKERS, prompt_ids, thought_end=self.revision.thought_end, pieces=pieces
        )

    # --- writing --------------------------------------------------------------------------------------------

    def _write_system(
        self, out: Segments, messages: list[_Message], tools: list[Any], thinking: bool
    ) -> list[_Message]:
        """Writes the turn of the system message, the tools and ``<|think|>``; returns the other messages."""
        has_system = messages[0].role in _SYSTEM
        if not (has_system or tools or thinking):
            return messages
        out.marker("<|turn>")
        out.text("system\n")
        if thinking:
            out.marker(THINK)
            out.text(self.revision.think)
        if has_system:
            # The latest template writes this space after each part. Earlier templates accept only a string.
            end = " " if messages[0].is_list else ""
            out.text("".join(text.strip() + end for text in messages[0].texts))
        for index, tool in enumerate(tools):
            write_tool(out, tool, f"tools[{index}]", self.revision.schema)
        out.marker("<turn|>")
        out.text("\n")
        return messages[1:] if has_system else messages

    def _write_message(
        self,
        out: Segments,
        message: _Message,
        before: _Message | None,
        after: _Message | None,
        is_after_last_user: bool,
    ) -> None:
        revision = self.revision
        is_model = message.role == "assistant"
        if not self._continues(message, before):
            out.marker("<|turn>")
            out.text("model\n" if is_model else f"{message.role}\n")
        keeps = revision.keeps_reasoning in (("calls", "all") if message.calls else ("all",))
        if keeps and is_after_last_user and message.reasoning:
            out.marker("<|channel>")
            out.text(f"thought\n{message.reasoning}{revision.thought_end}")
            out.marker("<channel|>")
        for call in message.calls:
            write_call(out, call, revision.schema.null)
        for result in message.results:
            write_result(out, result, revision.schema.null)
        text = "".join(_without_thoughts(text) if is_model else text.strip() for text in message.texts)
        out.text(text)
        if revision.awaits_results and message.calls and not message.results:
            out.marker("<|tool_response>")
        elif self._closes(message, after, text):
            out.marker("<turn|>")
            out.text("\n")

    def _continues(self, message: _Message, before: _Message | None) -> bool:
        """Whether ``message`` continues the turn of the message before it."""
        if before is None or self.revision.continues == "never":
            return False
        if self.revision.continues == "after results":
            return bool(before.results and message.calls)
        return before.role == message.role == "assistant"

    def _closes(self, message: _Message, after: _Message | None, text: str) -> bool:
        """Whether ``<turn|>`` follows ``message``, to which its results have been added already."""
        if self.revision.closes == "message":
            return message.has_content or not message.results
        if self.revision.closes == "text" or after is None:
            return bool(text.strip()) or not message.results
        return not message.role == after.role == "assistant"

    def _write_generation_prompt(self, out: Segments, last: _Message | None, thinking: bool) -> None:
        has_results = last is not None and bool(last.results)
        awaits = last is not None and bool(last.calls) and self.revision.awaits_results
        if not has_results and not awaits:
            out.marker("<|turn>")
            out.text("model\n")
        elif has_results and thinking and self.revision.resumes_thinking:
            out.marker("<|channel>")
            out.text("thought\n")
        suits = self.revision.empty_thought == "always" or not (has_results or awaits)
        if self.empty_thought and not thinking and suits:
            out.marker("<|channel>")
            out.text("thought\n")
            out.marker("<channel|>")

    # --- reading --------------------------------------------------------------------------------------------

    def _read(self, messages: list[tuple[str, Mapping[str, Any]]]) -> list[_Message]:
        """Reads the messages, and adds each result to the message whose call it answers."""
        read: list[_Message] = []
        takes_results = False  # whether the latest message other than a result has calls without results
        for where, message in messages:
            role = role_of(message, where, _ROLES, self.name)
            if role == "tool":
                if not takes_results:
                    raise InvalidRequestError(
                        f"{where} is the result of a tool, but the message before it calls no tool; "
                        "put a result after the assistant message whose tool_calls it answers"
                    )
                read[-1].results.append(_read_result(message, read[-1], where))
                continue
            read.append(self._read_message(message, role, where))
            takes_results = bool(read[-1].calls) and not read[-1].results
        return read

    def _read_message(self, message: Mapping[str, Any], role: str, where: str) -> _Message:
        if role != "assistant":
            for key in ("tool_calls", "tool_responses", "function_call"):
                if message.get(key):
                    raise InvalidRequestError(
                        f"{where}: {key} in a message of the role {role}; expected none"
                    )
        if message.get("function_call"):
            raise InvalidRequestError(f"{where} has both function_call and tool_calls; send tool_calls only")
        content = message.get("content")
        calls, call_ids = read_calls(message.get("tool_calls"), where)
        results = _read_responses(message.get("tool_responses"), where)
        if content is None and role == "assistant" and ("content" in message or calls or results):
            content = ""
        read = _Message(role, text_parts(content, where), not isinstance(content, str), bool(content))
        read.calls, read.call_ids, read.results = calls, call_ids, results
        for key in _REASONING:
            reasoning = message.get(key)
            if reasoning is not None and not isinstance(reasoning, str):
                raise InvalidRequestError(f"{where}: {key} is {show(reasoning)}; expected a string")
            read.reasoning = read.reasoning or reasoning or ""
        return read


def _take_think(message: _Message) -> bool:
    """Whether a system message begins or ends with ``<|think|>``, as in Google's documentation. The marker is
    removed from the text."""
    if message.role not in _SYSTEM or not message.texts:
        return False
    texts = message.texts
    first = texts[0].lstrip().removeprefix(THINK)
    found = first != texts[0].lstrip()
    texts[0] = first if found else texts[0]
    last = texts[-1].rstrip().removesuffix(THINK)
    if last == texts[-1].rstrip():
        return found
    texts[-1] = last
    return True


def _without_thoughts(text: str) -> str:
    """The text of an earlier reply without its thoughts, which some clients send back with the reply."""
    kept = [part.split("<|channel>")[0] for part in text.split("<channel|>")]
    return "".join(kept).strip()


def _read_responses(value: Any, where: str) -> list[ToolResult]:
    results: list[ToolResult] = []
    for index, response in enumerate(read_list(value, f"{where}.tool_responses")):
        here = f"{where}.tool_responses[{index}]"
        response = mapping_at(response, here)
        if "response" not in response:
            raise InvalidRequestError(f"{here} has no response; expected the tool's answer")
        name = tool_name(response.get("name", "unknown"), here)
        results.append(ToolResult(name, json_value(response["response"], f"{here}.response")))
    return results


def _read_result(message: Mapping[str, Any], caller: _Message, where: str) -> ToolResult:
    """Reads a message of the role tool. The name of the result is the name of the call with the same id."""
    name = message.get("name")
    call_id = message.get("tool_call_id")
    for call, known in zip(caller.calls, caller.call_ids, strict=True):
        if is_same(known, call_id):
            name = call.name
    if name is None:
        raise InvalidRequestError(
            f"{where}: tool_call_id is {show(call_id)}; expected an id of the calls before it, "
            f"{show(caller.call_ids)}"
        )
    value = message.get("content")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = "".join(text_parts(value, where))
    return ToolResult(tool_name(name, where), json_value(value, f"{where}.content"))
