"""A chat format that runs the model's own template: :class:`TemplateFormat`.

The template writes the same text as in transformers, to the last byte. gemlet differs from transformers in
the requests that it accepts:

- if the ``arguments`` of a call are a string of JSON (OpenAI's form), gemlet parses the string, as vLLM does;
- the role ``developer`` becomes ``system`` for a template that does not know ``developer``;
- the content of a message becomes a text or a list of parts, whichever the template can read;
- tools and thinking are refused if the template does not use them;
- a control token that a message spells stays text (:mod:`gemlet.chat.hiding`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, record, replace
from gemlet.base.text import show
from gemlet.chat.base import CallGrammar, ChatFormat, Messages, Segments, Tools
from gemlet.chat.gemma4_tools import read_list
from gemlet.chat.hiding import Hiding
from gemlet.chat.messages import (
    check_flags,
    checked_messages,
    checked_tools,
    json_value,
    refuse_other_than_text,
    role_of,
)
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.chat.template_process import run_template
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Template", "TemplateFormat"]

_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_THINKING = ("enable_thinking", "thinking")  # the names that templates use for the variable
_OWN = {"messages", "tools", "documents", "add_generation_prompt", *_THINKING}
_HAS_DEFAULT = late_pattern(
    r"guideline\s*(?:\|\s*d|is\s+(?:not\s+)?(?:un)?defined)|if\s+(?:not\s+)?guideline"
)
_CONTINUED = "GEMLET_CONTINUES_HERE"


@record(frozen=True)
class Template:
    """A template and its properties.

    Attributes:
        text: the text of the template.
        special: the special tokens. The keys are the names that templates use, such as ``bos_token``.
        names: the names of the variables that the template reads.
        content: the form in which the template reads the content of a message: "text", "parts" or "any".
    """

    text: str
    special: Mapping[str, str]
    names: frozenset[str] = frozenset()
    content: str = "any"

    def variables(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> dict[str, Any]:
        """The variables for the template, as in transformers."""
        return {
            **self.special,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **dict.fromkeys(_THINKING, thinking),
        }


@record(frozen=True, repr=False)
class TemplateFormat(ChatFormat):
    """The format that :mod:`gemlet.chat.template_format` describes. :func:`gemlet.chat.chat_format_for` makes
    it.

    Attributes:
        base: the format of gemlet whose parser reads the replies; None if no format of gemlet fits.
        values: further variables for the template, as :meth:`with_values` sets them.
        problem: the error that every use of the format raises, if the template cannot be run; or None.

    >>> import gemlet
    >>> text = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}"
    >>> with gemlet.load(chat_template=text) as model:
    ...     print(model.chat_format.render([{"role": "user", "content": "Hi"}]))
    user: Hi<end_of_turn>
    """

    template: Template
    tokenizer: Tokenizer = field(compare=False)
    name: str = "template"
    ends: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    base: ChatFormat | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: UnsupportedError | None = None
    markers: tuple[str, ...] = ()

    @public
    def with_values(self, **values: Any) -> TemplateFormat:
        """This format with further variables for the template, such as ShieldGemma's ``guideline``.

        >>> import gemlet
        >>> from gemlet.chat import chat_format_for
        >>> tokenizer = gemlet.load().tokenizer
        >>> text = "{{ guideline }}: {{ messages[0].content }}"
        >>> found = chat_format_for("gemma2", tokenizer, template=text)
        >>> found.with_values(guideline="No hate").render([{"role": "user", "content": "Hi"}])
        'No hate: Hi'
        """
        checked = {name: json_value(value, name) for name, value in values.items()}
        if taken := sorted(checked.keys() & (_OWN | self.template.special.keys())):
            raise InvalidRequestError(
                f"{taken[0]}: gemlet itself gives this variable to the template; leave it out"
            )
        return replace(self, values={**self.values, **checked})

    @public
    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        *,
        tools: Tools | None = None,
        thinking: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        values = self._values(messages, tools, thinking, add_generation_prompt, continue_final_message)
        return self._run(values, continue_final_message)

    def _told(self, messages: Messages) -> Messages:
        if not isinstance(messages, Sequence):
            return messages
        # A template may leave the thoughts out of replies, and gemlet does not know the marks of thoughts.
        return [one for one in messages if isinstance(one, Mapping) and one.get("role") != "assistant"]

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        return self._prompt(messages, tools, thinking, add_generation_prompt, False)

    def _prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        thinking: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Segments:
        values = self._values(messages, tools, thinking, add_generation_prompt, continue_final_message)
        special = {name: values.pop(name) for name in self.template.special}
        hidden, stands_for = self._hiding.hide(values)
        text = self._run({**special, **hidden}, continue_final_message)
        return self._hiding.segments(text, stands_for)

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        if self.base is None:
            return super().call_grammar(tools, names)
        return self.base.call_grammar(tools, names)

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        if self.base is not None:
            return self.base.reply_parser(tokenizer, prompt_ids, tools=tools, pieces=pieces)
        return TokenReplyParser(tokenizer, dict.fromkeys((*self.ends, "<eos>"), "turn_end"))

    @cached_property
    def _hiding(self) -> Hiding:
        return Hiding(self.tokenizer, self.template.text)

    # --- the input of the template --------------------------------------------------------------------------

    def _values(
        self,
        messages: Messages,
        tools: Tools | None,
        thinking: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> dict[str, Any]:
        check_flags(
            thinking=thinking,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        tools = checked_tools(tools)
        if self.problem is not None:
            raise UnsupportedError(str(self.problem))
        names = self.template.names
        if tools and "tools" not in names:
            raise UnsupportedError("tools: the model's chat template has no place for them")
        if thinking and not names.intersection(_THINKING):
            raise UnsupportedError("thinking: the model's chat template cannot switch it on or off")
        given = self.template.special.keys() | self.values.keys()
        if missing := sorted(name for name in names - given if name.endswith("_token")):
            raise UnsupportedError(
                f"the model's chat template writes {missing[0]}, which gemlet does not know; give a text for "
                f"it with chat_format.with_values({missing[0]}=...)"
            )
        if "guideline" in names - given and not _HAS_DEFAULT.search(self.template.text):
            raise InvalidRequestError(
                "the model's chat template asks whether a text violates a guideline; give the guideline with "
                "chat_format.with_values(guideline=...)"
            )
        checked = checked_messages(messages)
        read = [self._message(message, f"messages[{i}]") for i, message in enumerate(checked)]
        if continue_final_message:
            add_generation_prompt = False
            read[-1] = _continued(read[-1], f"messages[{len(read) - 1}]")
        declared = json_value(tools, "tools") if tools else None
        return {**self.template.variables(read, declared, thinking, add_generation_prompt), **self.values}

    def _message(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        read = json_value(message, where)
        role = role_of(message, where, _ROLES, self.name)
        if role == "developer" and role not in self.template.text:
            read["role"] = "system"
        content = read.get("content")
        if role == "tool" and isinstance(content, dict):
            content = read["content"] = json.dumps(content, ensure_ascii=False)
        if content is not None and not isinstance(content, str | list):
            raise InvalidRequestError(
                f"{where}: content is {show(content)}; expected a string or a list of parts"
            )
        if isinstance(content, list):
            for i, part in enumerate(content):
                refuse_other_than_text(part, f"{where}.content[{i}]")
            in_text = self.template.content == "text" or (
                role in ("system", "developer") and self.template.content == "any"
            )
            if in_text and all(map(_is_plain, content)):
                read["content"] = "".join(part["text"] for part in content)
        elif isinstance(content, str) and self.template.content == "parts":
            read["content"] = [{"type": "text", "text": content}]
        reasoning = next((read[key] for key in _REASONING if read.get(key) is not None), None)
        if reasoning is not None:
            read = {"thinking": reasoning, **read, "reasoning_content": reasoning}
        for call in read_list(read.get("tool_calls"), f"{where}.tool_calls"):
            _parse_arguments(call, where)
        return {key: value for key, value in read.items() if value is not None}

    # --- the output of the template -------------------------------------------------------------------------

    def _run(self, values: Mapping[str, Any], continue_final_message: bool) -> str:
        text = run_template(self.template.text, [values]).texts[0]
        if isinstance(text, GemletError):
            raise text
        if not continue_final_message:
            return text
        before, found, _ = text.rpartition(_CONTINUED)
        if not found:
            raise UnsupportedError(
                "continue_final_message: the model's chat template leaves the last message out or changes it"
            )
        return before


def _is_plain(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {"type", "text"} and isinstance(part["text"], str)


def _continued(message: dict[str, Any], where: str) -> dict[str, Any]:
    """The message with a mark at the place where the reply continues."""
    content = message.get("content", "")
    if message["role"] != "assistant" or message.get("tool_calls") or message.get("function_call"):
        found = "calls tools" if message["role"] == "assistant" else f"has the role {message['role']}"
        raise InvalidRequestError(
            f"{where} {found}; continue_final_message needs a text of the role assistant at the end"
        )
    if isinstance(content, str):
        return {**message, "content": content.rstrip() + _CONTINUED}
    if content and _is_plain(content[-1]):
        last = {**content[-1], "text": content[-1]["text"].rstrip() + _CONTINUED}
        return {**message, "content": [*content[:-1], last]}
    raise InvalidRequestError(f"{where}: content does not end in a text; expected a text to continue")


def _parse_arguments(call: Any, where: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return
        if isinstance(arguments, dict):
            function["arguments"] = json_value(arguments, f"{where}: arguments")
