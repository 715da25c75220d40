"""Function calls for models that have no tokens for calls (Gemma 1 to 3n). The prompt describes the
functions.

The text that asks for calls is that of Google's documentation for Gemma 3 (:func:`instruction`). The model
answers in plain text, so only the form of its reply shows whether it calls a function. :class:`CallFinder`
looks for calls at the beginning of lines: in Python's form, in JSON, and in fences such as ``tool_code``. A
result goes back as a turn of the user (:func:`write_results`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.chat.gemma4_tools import ToolResult, tool_name
from gemlet.chat.messages import json_value, mapping_at
from gemlet.chat.python_calls import NAME, parse_calls
from gemlet.chat.reply import Content, MalformedToolCall, ReplyEvent, ToolCall, ToolCallPiece, new_call_id
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.chat.tool_calls import MalformedCallError
from gemlet.errors import InvalidRequestError

__all__ = ["CallFinder", "PromptedReplyParser", "instruction", "parameters_of", "write_results"]

_ASK = (
    "You have access to functions. If you decide to invoke any of the function(s),\n"
    "you MUST put it in the format of\n"
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n\n"
    "You SHOULD NOT include any other text in the response if you call a function\n"
)
_TOLD = ("name", "description", "parameters")  # the keys of a function that the prompt shows to the model
_FENCE = late_pattern(r"```[ \t]*(tool_code|tool_call|tool_calls|json|python|)[ \t]*\n")
_MAYBE_FENCE = late_pattern(r"`{1,2}|```[ \t]*[a-z_]{0,10}[ \t]*")
_PYTHON_HEAD = late_pattern(rf"\s*(?:(\[)\s*)?({NAME})\s*\(")
_MAYBE_PYTHON = late_pattern(rf"\s*(?:\[\s*)?(?:({NAME})\s*)?")
_JSON_HEAD = late_pattern(
    rf"""\s*(?:(\[)\s*)?\{{\s*["']name["']\s*:\s*["']({NAME})["']\s*,\s*["'](?:parameters|arguments)["']"""
)
_JSON_START = '{"name":"'
# The beginning of a JSON call after all white space has been removed.
_MAYBE_JSON = late_pattern(r'\{"name":"[\w.-]*(?:"(?:,(?:"\w{0,10}"?)?)?)?')
_LONGEST_HEAD = 300
_OPENING, _CLOSING = "([{", ")]}"


def parameters_of(tools: Sequence[Any]) -> dict[str, list[str]]:
    """The names of the parameters of each function; ``tools`` are in OpenAI's form.

    >>> parameters_of([{"function": {"name": "f", "parameters": {"properties": {"a": {}}}}}])
    {'f': ['a']}
    """
    found: dict[str, list[str]] = {}
    for index, tool in enumerate(tools):
        function = mapping_at(mapping_at(tool, f"tools[{index}]").get("function"), f"tools[{index}].function")
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        name = tool_name(function.get("name"), f"tools[{index}].function")
        found[name] = list(properties) if isinstance(properties, Mapping) else []
    return found


def instruction(tools: Sequence[Any]) -> str:
    """The part of the prompt that describes ``tools``, which are in OpenAI's form. The user's text follows on
    the next line.

    >>> print(instruction([{"function": {"name": "now"}}]))
    You have access to functions. If you decide to invoke any of the function(s),
    you MUST put it in the format of
    [func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
    <BLANKLINE>
    You SHOULD NOT include any other text in the response if you call a function
    [
      {
        "name": "now"
      }
    ]
    """
    for name in parameters_of(tools):
        if not re.fullmatch(NAME, name):
            raise InvalidRequestError(
                f"tools: got the name {show(name)}, expected letters, digits, _, . and -, with a letter or _ "
                "at the start"
            )
    functions = [json_value(tool["function"], f"tools[{i}].function") for i, tool in enumerate(tools)]
    told = [{key: function[key] for key in _TOLD if key in function} for function in functions]
    return _ASK + json.dumps(told, indent=2, ensure_ascii=False)


def write_results(results: Iterable[ToolResult]) -> str:
    """The results of calls as the text of a user turn.

    >>> print(write_results([ToolResult("now", "noon")]))
    ```tool_output
    {"name": "now", "result": "noon"}
    ```
    """
    written = ({"name": result.name, "result": result.value} for result in results)
    return "\n".join(f"```tool_output\n{json.dumps(each, ensure_ascii=False)}\n```" for each in written)


class PromptedReplyParser(TokenReplyParser):
    """A :class:`TokenReplyParser` that finds calls in the text of the reply. ``parameters`` come from
    :func:`parameters_of`."""

    def __init__(
        self, *arguments: Any, parameters: Mapping[str, Sequence[str]], pieces: bool = False
    ) -> None:
        self._finder: CallFinder | None = None  # the base class reads the prompt, which has no calls to find
        super().__init__(*arguments)
        self._finder = CallFinder(parameters, pieces=pieces)

    def push(self, ids: Iterable[int]) -> list[ReplyEvent]:
        return self._found(super().push(ids))

    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        events = self._found(super().finish(ended=ended))
        return events if self._finder is None else events + self._finder.finish(ended=ended)

    def _found(self, events: list[ReplyEvent]) -> list[ReplyEvent]:
        if self._finder is None:
            return events
        found: list[ReplyEvent] = []
        for event in events:
            found += self._finder.push(event.text) if isinstance(event, Content) else [event]
        return found


class CallFinder:
    """Finds function calls in a text that comes in pieces. Text that may be a call is held back.

    Args:
        parameters: the names of the parameters of each known function. A call of an unknown function is found
            only at the beginning of the text.
        pieces: whether to give a :class:`ToolCallPiece` as soon as the name of a call is complete.

    >>> finder = CallFinder({"now": []})
    >>> finder.push("[now("), finder.push(")]"), finder.push(" Done.")
    ([], [ToolCall(name='now', arguments={})], [Content(text='Done.')])
    """

    def __init__(self, parameters: Mapping[str, Sequence[str]], *, pieces: bool = False) -> None:
        self._parameters = parameters
        self._pieces = pieces
        self._text = ""  # the text that is in no event yet
        self._is_line_start = True
        self._is_beginning = True  # whether all events so far are white space
        self._skips_space = False  # true after a call
        self._scan: _Scan | None = None  # the scan of a call that has begun
        self._is_known = False  # whether the function of this call is known
        self._begun = ""  # the name of the function of this call
        self._id = ""  # the id of this call, once an event has had its name

    def push(self, text: str) -> list[ReplyEvent]:
        """Takes ``text`` and returns the events that it makes certain."""
        self._text += text
        events: list[ReplyEvent] = []
        while self._text:
            if self._skips_space:
                self._text = self._text.lstrip()
                self._skips_space = not self._text
                continue
            if self._scan is None and not self._begin(events):
                break
            if self._scan is not None:
                end = self._scan.end(self._text)
                if end is None:
                    break
                self._end_call(end, events)
        return events

    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        """Ends the text and returns the remaining events. ``ended`` means that the model itself ended the
        text. Then missing brackets at the end of a call are added.

        >>> finder = CallFinder({"now": []})
        >>> finder.push("[now("), finder.finish(ended=True)
        ([], [ToolCall(name='now', arguments={})])
        """
        events: list[ReplyEvent] = []
        if self._scan is not None:
            self._end_call(len(self._text), events, missing=self._scan.missing() if ended else None)
        return events + self._give(len(self._text))

    def _begin(self, events: list[ReplyEvent]) -> bool:
        """Gives the text up to the next call. Returns False if this needs more text."""
        if not self._is_line_start:
            end = self._text.find("\n") + 1
            events += self._give(end or len(self._text))
            return bool(end)
        kind = self._kind()
        if kind == "maybe":
            return False
        if kind == "text":
            blank = len(self._text) - len(self._text.lstrip())
            blank = self._text.rfind("\n", 0, blank) + 1  # empty lines
            events += self._give(blank or len(self._text.split("\n", 1)[0]))
        elif self._pieces and self._is_known:
            self._id = new_call_id()
            events.append(ToolCallPiece(self._begun, "", self._id))
        return True

    def _kind(self) -> str:
        """The kind of the line: "call", "text", or "maybe" if only more text can tell."""
        fence = _FENCE.match(self._text)
        if fence is None and _MAYBE_FENCE.fullmatch(self._text):
            return "maybe"
        start = fence.end() if fence else 0
        for pattern in (_PYTHON_HEAD, _JSON_HEAD):
            if head := pattern.match(self._text, start):
                bracket, name = head[1], head[2]
                # Whether the line begins with JSON, a bracket or a fence, and not only with ``name(``.
                is_asked = pattern is _JSON_HEAD or bracket or fence
                if is_asked and name not in self._parameters:
                    name = name.rpartition(".")[2]  # module.name
                self._is_known = name in self._parameters
                if self._is_known or (is_asked and self._is_beginning) or (fence and name == "print"):
                    self._begun, self._scan = name, _Scan(start, bool(fence))
                    return "call"
                return "text"
        rest = self._text[start:]
        if len(rest) > _LONGEST_HEAD:
            return "text"
        dense = "".join(rest.split()).replace("'", '"').removeprefix("[")
        if _JSON_START.startswith(dense) or _MAYBE_JSON.fullmatch(dense):
            return "maybe"
        maybe = _MAYBE_PYTHON.fullmatch(rest)
        if maybe is None:
            return "text"
        # A word without more around it may only be a call if the name of a known function begins with it.
        word, is_asked = maybe[1], "[" in maybe[0] or fence
        may_be = not word or is_asked or any(name.startswith(word) for name in self._parameters)
        return "maybe" if may_be else "text"

    def _give(self, count: int) -> list[ReplyEvent]:
        text, self._text = self._text[:count], self._text[count:]
        if not text:
            return []
        self._is_line_start = text.endswith("\n")
        self._is_beginning = self._is_beginning and not text.strip()
        return [Content(text)]

    def _end_call(self, end: int, events: list[ReplyEvent], missing: str | None = "") -> None:
        """Reads the call that ends at position ``end``. ``missing`` has the closing brackets that the model
        did not write; None if the call was cut off."""
        assert self._scan is not None
        raw, inner = self._text[:end], self._scan.inner(self._text[:end])
        call_id, self._id, self._scan = self._id, "", None
        try:
            calls = parse_calls(inner + (missing or ""), self._parameters)
        except MalformedCallError as problem:
            if self._is_known:
                reason = (
                    str(problem) if missing is not None else f"the reply ended within the call: {problem}"
                )
                events.append(MalformedToolCall(raw, reason, call_id))
            events += self._give(end)
            self._is_beginning = False
            return
        self._text = self._text[end:]
        for name, arguments in calls:
            call = ToolCall(name, arguments, call_id or new_call_id())
            if self._pieces:
                events += [] if call_id else [ToolCallPiece(name, "", call.id)]
                written = json.dumps(arguments, ensure_ascii=False)
                events.append(ToolCallPiece(name, written, call.id))
            events.append(call)
            call_id = ""
        self._is_line_start = self._skips_space = True
        self._is_beginning = False


class _Scan:
    """Looks for the end of a call: the position where its brackets or its fence are closed."""

    def __init__(self, start: int, is_fenced: bool) -> None:
        self._start = self._at = start
        self._is_fenced = is_fenced
        self._open: list[str] = []  # the closing brackets that are still expected
        self._quote = ""

    def end(self, text: str) -> int | None:
        """The position in ``text`` where the call ends; None if it has not ended yet. When this method is
        called again, ``text`` is the text of the last time with more text at the end."""
        if self._is_fenced:
            found = text.find("\n```", max(self._start, self._at - 4))
            self._at = len(text)
            return None if found < 0 else found + 4
        while self._at < len(text):
            character = text[self._at]
            self._at += 1
            if self._quote:
                if character == "\\":
                    self._at += 1
                elif character == self._quote:
                    self._quote = ""
            elif character in "\"'":
                self._quote = character
            elif character in _OPENING:
                self._open.append(_CLOSING[_OPENING.index(character)])
            elif character in _CLOSING and self._open:
                self._open.pop()
                if not self._open:
                    return self._at
        return None

    def inner(self, raw: str) -> str:
        """The call without its fence."""
        return raw[self._start :].removesuffix("```") if self._is_fenced else raw

    def missing(self) -> str:
        """The brackets that the model left open."""
        return "" if self._quote else "".join(reversed(self._open))
