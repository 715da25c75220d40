"""``POST /v1/chat/completions``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from gemlet import _core
from gemlet.base.sampling_options import MAX_INT
from gemlet.chat.reply import Content, Reasoning, ToolCall, ToolCallPiece
from gemlet.generation.result import Chunk
from gemlet.server.answers import while_connected
from gemlet.server.ask import Ask, Choice, Running, finish_reason, is_plain_text
from gemlet.server.call import call_of
from gemlet.server.fields import (
    EFFORTS,
    GENERATION,
    IGNORED,
    MOST_CHOICES,
    NAME,
    NOT_DONE,
    OF_TOKENS,
    REPLY,
    SALT,
    STREAM,
    TOOLS,
    TOP_LOGPROBS,
    library_options,
)
from gemlet.server.forms import FORMS, form_names, form_of
from gemlet.server.logprobs import check_length, of_chat, of_prompt, top_of_prompt
from gemlet.server.models import Served
from gemlet.server.problems import Problem
from gemlet.server.schema import (
    Anything,
    Either,
    Flag,
    Integer,
    Kind,
    ListOf,
    Object,
    OneOf,
    Text,
    says_nothing,
)
from gemlet.server.service import TextEvent, event, fields_of, service_of
from gemlet.server.streamed_calls import StreamedCalls
from gemlet.server.tool_choices import allowed

__all__ = ["CHAT", "MESSAGES", "MOST_MESSAGES", "chat", "usage_of"]

MOST_MESSAGES = 1 << 16
MESSAGES = ListOf(Anything(dict), MOST_MESSAGES, 1)  # the chat format reads them
_REASONING = Text()
_NAMES = {
    "prompt": "messages",
    "thinking": "reasoning_effort",
    "thinking_budget": "thinking_token_budget",
}
FINGERPRINT = f"gemlet-{_core.__version__}"

CHAT: Mapping[str, Kind] = {
    "model": NAME,
    "messages": MESSAGES,
    "max_tokens": REPLY,
    "max_completion_tokens": REPLY,
    "n": Integer(1, MOST_CHOICES),
    "tools": TOOLS,
    "tool_choice": Either(
        "auto, none, required, a function or allowed_tools",
        OneOf("auto", "none", "required"),
        Anything(dict),
    ),
    "parallel_tool_calls": Flag(),
    "reasoning_effort": OneOf(*EFFORTS),
    "chat_template_kwargs": Object({"enable_thinking": Flag(), "thinking": Flag()}),
    "continue_final_message": Flag(),
    "load_audio_from_video": Flag(),
    "add_generation_prompt": Flag(),
    "cache_salt": SALT,
    "logprobs": Flag(),
    "top_logprobs": TOP_LOGPROBS,
    **GENERATION,
    **STREAM,
    **IGNORED,
    **NOT_DONE,
    **FORMS,
    **OF_TOKENS,
    "thinking_token_budget": Integer(-1, MAX_INT),  # -1: no limit
}


async def chat(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields.get("model"))
    most = service.reply_tokens(call, served, fields, "max_tokens", "max_completion_tokens")
    seconds = service.settings.request_seconds
    ask = await service.beside(request, lambda: _ask(fields, served, most, seconds))
    running = await service.start([ask], call)
    check_length(running)
    wants_ids = fields.get("return_token_ids", False)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": FINGERPRINT,
    }
    if fields.get("stream"):
        wants_usage = fields.get("stream_options", {}).get("include_usage", False)
        head["object"] = "chat.completion.chunk"
        return service.stream(_pieces(running, head, wants_usage, wants_ids), request, running)
    make = await while_connected(request, _whole(running, head, wants_ids, service.threads))
    return await service.answer(make, is_large=call.completion_tokens > 1000)


def _ask(fields: Mapping[str, Any], served: Served, most: int, seconds: float) -> Ask:
    continues = fields.get("continue_final_message", False)
    if fields.get("add_generation_prompt", not continues) is continues:
        raise Problem(
            400,
            "add_generation_prompt: expected the opposite of continue_final_message; leave one of them out",
            param="add_generation_prompt",
        )
    options = {**library_options(fields), **form_of(fields), **top_of_prompt(fields), "max_tokens": most}
    if fields.get("thinking_token_budget", -1) >= 0:
        options["thinking_budget"] = fields["thinking_token_budget"]
    if fields.get("logprobs", False):
        options["logprobs"] = fields.get("top_logprobs", 0)
    elif fields.get("top_logprobs", 0):
        raise Problem(400, "top_logprobs: send logprobs: true with it", param="top_logprobs")
    tools, choice = allowed(fields.get("tools", ()), fields.get("tool_choice"))
    return Ask(
        served,
        options,
        messages=as_said(fields["messages"]),
        tools=tools or None,
        tool_choice=choice,
        thinking=_thinking(fields),
        continue_final=continues,
        load_audio_from_video=fields.get("load_audio_from_video", False),
        salt=fields.get("cache_salt"),
        one_call=fields.get("parallel_tool_calls") is False,
        seconds=seconds,
        count=fields.get("n", 1),
        shows_ids=fields.get("return_token_ids", False),
        names={**form_names(fields), **_NAMES},
    )


def as_said(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages in the form that the library reads. Replies of this server or of another one may have the
    reasoning under two names; only one of them is kept. Raises :class:`Problem` for mistakes that the library
    would not notice."""
    found = []
    for i, message in enumerate(messages):
        for name in ("reasoning", "reasoning_content"):
            if message.get(name) is not None:
                _REASONING.check(message[name], f"messages[{i}].{name}")
        if not says_nothing(message.get("function_call")):
            where = f"messages[{i}].function_call"
            raise Problem(400, f"{where}: this is the older form of tools; send tool_calls", param=where)
        if not says_nothing(message.get("audio")):
            where = f"messages[{i}].audio"
            raise Problem(
                400, f"{where}: gemlet does not store sounds; send the text", param=where, code="unsupported"
            )
        message = _with_refusal(message, f"messages[{i}]")
        if message.get("reasoning") is not None and "reasoning_content" in message:
            message = {name: value for name, value in message.items() if name != "reasoning_content"}
        found.append(message)
    return found


def _with_refusal(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Turns an assistant's refusal into text of the message. It is a part of the content, or a field."""
    content, refusal = message.get("content"), message.get("refusal")
    if message.get("role") != "assistant":
        return message
    if isinstance(content, list):
        parts = []
        for j, part in enumerate(content):
            if isinstance(part, Mapping) and part.get("type") == "refusal":
                part = {
                    "type": "text",
                    "text": Text().check(part.get("refusal"), f"{where}.content[{j}].refusal"),
                }
            parts.append(part)
        return {**message, "content": parts}
    if refusal is not None and not content:
        return {**message, "content": Text().check(refusal, f"{where}.refusal")}
    return message


def _thinking(fields: Mapping[str, Any]) -> bool:
    said = fields.get("chat_template_kwargs", {})
    asked = [said[name] for name in ("enable_thinking", "thinking") if name in said]
    if "reasoning_effort" in fields:
        asked.append(fields["reasoning_effort"] not in ("none", "minimal"))
    if len(set(asked)) > 1:
        raise Problem(
            400,
            "reasoning_effort: it contradicts chat_template_kwargs; send one of them",
            param="reasoning_effort",
        )
    return asked[0] if asked else False


def usage_of(running: Running) -> dict[str, Any]:
    """``usage`` of a request. Its replies must have ended."""
    call = running.call
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": call.cached_tokens,
            "text_tokens": call.prompt_tokens - call.audio_tokens - call.image_tokens,
            "audio_tokens": call.audio_tokens,
            "image_tokens": call.image_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": running.reasoning_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _whole(
    running: Running, head: Mapping[str, Any], wants_ids: bool, threads: anyio.CapacityLimiter
) -> Callable[[], dict[str, Any]]:
    """The data from which the answer is made."""
    try:
        async for _ in running:
            pass
        running.end()
        of_its_prompt = await of_prompt(running.choices[0], threads)
    finally:
        await running.aclose()

    def make() -> dict[str, Any]:
        choices = [_choice(index, choice, wants_ids) for index, choice in enumerate(running.choices)]
        shown = {**head, "choices": choices, "usage": usage_of(running)}
        if wants_ids:
            shown["prompt_token_ids"] = running.choices[0].prompt_ids
        if of_its_prompt is not None:
            shown["prompt_logprobs"] = of_its_prompt
        return shown

    return make


def _choice(index: int, choice: Choice, wants_ids: bool) -> dict[str, Any]:
    reply = choice.reply
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        message["reasoning"] = message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [tool_call(call) for call in reply.tool_calls]
    reason = finish_reason(choice.finish, has_calls=bool(reply.tool_calls))
    logprobs = of_chat(choice.ask.served, choice.logprobs) if "logprobs" in choice.ask.options else None
    shown = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
    return {**shown, "token_ids": choice.token_ids} if wants_ids else shown


def tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


async def _pieces(
    running: Running, head: Mapping[str, Any], wants_usage: bool, wants_ids: bool
) -> AsyncIterator[bytes]:
    """The events of a stream. Every choice begins with its role and ends with its finish reason."""
    more = {"usage": None} if wants_usage else {}

    def piece(
        index: int, delta: Mapping[str, Any], reason: str | None = None, *, begin: Mapping[str, Any] = {}
    ) -> bytes:
        found = running.choices[index].take_logprobs()
        logprobs = of_chat(running.choices[index].ask.served, found) if found else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if wants_ids:
            choice["token_ids"] = running.choices[index].take_token_ids()
        return event({**head, "choices": [choice], **more, **begin})

    try:
        calls = [StreamedCalls() for _ in running.choices]
        plain = []
        for index in range(len(calls)):
            choice = {"index": index, "delta": {"content": TextEvent.TEXT}, "logprobs": None}
            plain.append(TextEvent({**head, "choices": [{**choice, "finish_reason": None}], **more}))
            begin: dict[str, Any] = {}
            if wants_ids and index == 0:
                begin["prompt_token_ids"] = running.choices[index].prompt_ids
            yield piece(index, {"role": "assistant", "content": ""}, begin=begin)
        async for index, chunk in running:
            if is_plain_text(chunk) and not wants_ids:
                yield plain[index].of(chunk.text)
                continue
            deltas = _deltas(chunk, calls[index])
            if wants_ids and not deltas and chunk.finish_reason is None and running.choices[index].token_ids:
                deltas = [{}]
            for delta in deltas:
                yield piece(index, delta)
            if chunk.finish_reason is not None:
                yield piece(index, {}, finish_reason(chunk.finish_reason, has_calls=calls[index].has_whole))
        running.end()
        if wants_usage:
            yield event({**head, "choices": [], "usage": usage_of(running)})
        yield b"data: [DONE]\n\n"
    finally:
        await running.aclose()


def _deltas(chunk: Chunk, calls: StreamedCalls) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    count = calls.count
    for happened in calls.events(chunk):
        if isinstance(happened, Content):
            deltas.append({"content": happened.text})
        elif isinstance(happened, Reasoning):
            deltas.append({"reasoning": happened.text, "reasoning_content": happened.text})
        elif isinstance(happened, ToolCallPiece) and not happened.arguments:  # the first piece of its call
            function = {"name": happened.name, "arguments": ""}
            deltas.append(_of_call(count, id=happened.id, type="function", function=function))
            count += 1
        elif isinstance(happened, ToolCallPiece):
            deltas.append(_of_call(count - 1, function={"arguments": happened.arguments}))
    return deltas


def _of_call(place: int, **what: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": place, **what}]}
