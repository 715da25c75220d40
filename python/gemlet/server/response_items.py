"""The items of ``/v1/responses``, in requests and in answers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.chat.reply import Content, MalformedToolCall, Reasoning, ReplyEvent, ToolCall, ToolCallPiece
from gemlet.server.problems import Problem
from gemlet.server.schema import OneOf, Text, wrong
from gemlet.server.sent_media import check_part

__all__ = ["OutputItems", "conversation_of"]

_TEXT = Text()
_ROLE = OneOf("user", "assistant", "system", "developer")
_PARTS = ("input_text", "output_text", "text", "refusal")
_MEDIA = ("input_image", "input_audio", "input_video")


def conversation_of(given: str | Sequence[Mapping[str, Any]], *, media: bool = True) -> list[dict[str, Any]]:
    """The messages of an ``input``. A thought and the calls that follow it become one message. Images, videos
    and sounds are allowed if ``media`` is true.

    >>> conversation_of([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where, kind = f"input[{index}]", item.get("type", "message")
        if kind == "message":
            role = _ROLE.check(item.get("role"), f"{where}.role")
            takes_media = media and role != "assistant"
            text = _content(item.get("content"), f"{where}.content", takes_media)
            if role == "assistant" and found and found[-1].get("content") == "" and _is_open(found[-1]):
                found[-1]["content"] = text
            else:
                found.append({"role": role, "content": text})
        elif kind == "reasoning":
            thought = _text(item.get("content") or [], f"{where}.content", ("reasoning_text",))
            found.append({"role": "assistant", "content": "", "reasoning": thought})
        elif kind == "function_call" and item.get("status") == "incomplete":
            continue  # its text is also in a message
        elif kind == "function_call":
            function = {
                "name": Text(64, 1).check(item.get("name"), f"{where}.name"),
                "arguments": _TEXT.check(item.get("arguments"), f"{where}.arguments"),
            }
            called = Text(256, 1).check(item.get("call_id"), f"{where}.call_id")
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            calls = found[-1].setdefault("tool_calls", [])
            calls.append({"id": called, "type": "function", "function": function})
        elif kind == "function_call_output":
            called = Text(256, 1).check(item.get("call_id"), f"{where}.call_id")
            text = _content(item.get("output"), f"{where}.output", media)
            found.append({"role": "tool", "tool_call_id": called, "content": text})
        else:
            raise Problem(
                400,
                f"{where}: items of this type are not supported; gemlet takes message, reasoning, "
                "function_call and function_call_output",
                param=where,
                code="unsupported",
            )
    return found


def _is_open(message: Mapping[str, Any]) -> bool:
    """Whether the message is a thought. Then the next item is its answer."""
    return "reasoning" in message and "tool_calls" not in message


def _content(content: Any, where: str, media: bool) -> str | list[dict[str, Any]]:
    """The content as a text; as a list of parts if there are images, videos or sounds."""
    if not media or not isinstance(content, list) or not any(map(_is_media, content)):
        return _text(content, where, _PARTS)
    found: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        if _is_media(part):
            check_part(part, place, param=place)
            found.append(dict(part))
        else:
            found.append({"type": "text", "text": _text([part], place, _PARTS)})
    return found


def _is_media(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _MEDIA


def _text(content: Any, where: str, kinds: Sequence[str]) -> str:
    if isinstance(content, str):
        return _TEXT.check(content, where)
    if not isinstance(content, list):
        raise wrong(where, content, "a text or a list of parts")
    texts = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        if not isinstance(part, dict) or part.get("type") not in kinds:
            raise Problem(400, f"{place}: expected a part of the type {' or '.join(kinds)}", param=place)
        name = "refusal" if part["type"] == "refusal" else "text"
        texts.append(_TEXT.check(part.get(name), f"{place}.{name}"))
    return "".join(texts)


class OutputItems:
    """Makes items from the events of a reply. :meth:`push` and :meth:`finish` return the events of a stream.

    >>> items = OutputItems()
    >>> [found["type"] for found in items.push(Content("Hi"))]
    ['response.output_item.added', 'response.content_part.added', 'response.output_text.delta']
    >>> _ = items.finish()
    >>> items.items[0]["content"][0]["text"]
    'Hi'
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False
        self._logprobs: list[Any] = []  # log probabilities of tokens whose text has not been pushed yet

    def add_logprobs(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Adds the log probabilities of the tokens in the next event. Only events of text show them."""
        self._logprobs += found

    def _take_logprobs(self) -> list[Any]:
        found, self._logprobs = self._logprobs, []
        return found

    def push(self, happened: ReplyEvent) -> list[dict[str, Any]]:
        if not isinstance(happened, Content):
            self._take_logprobs()
        if isinstance(happened, ToolCallPiece):
            return self._piece(happened)
        if isinstance(happened, ToolCall):
            return self._call(happened)
        if isinstance(happened, MalformedToolCall):  # the pieces that came before do not become a call
            return self.finish()
        if not isinstance(happened, Content | Reasoning):
            return []
        is_text = isinstance(happened, Content)
        kind = "message" if is_text else "reasoning"
        found = []
        if not self._is_open or self.items[-1]["type"] != kind:
            found = [*self.finish(), *self._begin(kind)]
        self._part["text"] += happened.text
        name = "output_text" if is_text else "reasoning_text"
        more: dict[str, Any] = {}
        if is_text:
            more["logprobs"] = self._take_logprobs()
            self._part["logprobs"] += more["logprobs"]
        return [*found, self._said(f"response.{name}.delta", delta=happened.text, **more)]

    def finish(self) -> list[dict[str, Any]]:
        """Ends the open item, if there is one."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        if item["type"] == "function_call":
            item["status"] = "incomplete"
            return [self._item("done")]
        part = self._part
        item["status"] = "completed"
        more: dict[str, Any] = {}
        if part["type"] == "output_text":
            part["logprobs"] += self._take_logprobs()  # this includes tokens that added no text
            more["logprobs"] = part["logprobs"]
        done = [self._said(f"response.{part['type']}.done", text=part["text"], **more)]
        if part["type"] == "output_text":
            done.append(self._said("response.content_part.done", part=dict(part)))
        return [*done, self._item("done")]

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.items[-1]["content"][0]
        return part

    def _begin(self, kind: str) -> list[dict[str, Any]]:
        name = f"{'msg' if kind == 'message' else 'rs'}_{secrets.token_hex(12)}"
        item: dict[str, Any] = {"type": kind, "id": name, "status": "in_progress", "content": []}
        if kind == "message":
            item["role"] = "assistant"
        else:
            item["summary"] = []
        self.items.append(item)
        self._is_open = True
        added = self._item("added")
        if kind == "message":
            item["content"] = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
            part = {**self._part, "logprobs": []}
            return [added, self._said("response.content_part.added", part=part)]
        item["content"] = [{"type": "reasoning_text", "text": ""}]
        return [added]

    def _piece(self, piece: ToolCallPiece) -> list[dict[str, Any]]:
        found = []
        if not self._is_open or self.items[-1].get("call_id") != piece.id:
            found = self.finish()
            item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": piece.id}
            self.items.append({**item, "name": piece.name, "arguments": "", "status": "in_progress"})
            self._is_open = True
            found.append(self._item("added"))
        if not piece.arguments:
            return found
        self.items[-1]["arguments"] += piece.arguments
        return [*found, self._of_call("delta", delta=piece.arguments)]

    def _call(self, call: ToolCall) -> list[dict[str, Any]]:
        """Ends a call. If the answer is not a stream, the call had no pieces before."""
        found = []
        if not self._is_open or self.items[-1].get("call_id") != call.id:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            found = self._piece(ToolCallPiece(call.name, arguments, call.id))
        self._is_open = False
        item = self.items[-1]
        item["status"] = "completed"
        return [
            *found,
            self._of_call("done", arguments=item["arguments"], name=call.name),
            self._item("done"),
        ]

    def _of_call(self, what: str, **more: Any) -> dict[str, Any]:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.function_call_arguments.{what}", **place, **more}

    def _item(self, what: str) -> dict[str, Any]:
        index = len(self.items) - 1
        return {
            "type": f"response.output_item.{what}",
            "output_index": index,
            "item": dict(self.items[index]),
        }

    def _said(self, kind: str, **more: Any) -> dict[str, Any]:
        index = len(self.items) - 1
        place = {"item_id": self.items[index]["id"], "output_index": index, "content_index": 0}
        return {"type": kind, **place, **more}
