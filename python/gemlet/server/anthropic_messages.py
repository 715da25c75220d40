"""Anthropic's messages: ``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet.chat.reply import Content, Reasoning, ReplyEvent, ToolCall, ToolCallPiece
from gemlet.server.answers import JSONAnswer, while_connected
from gemlet.server.ask import Ask, Choice, Running
from gemlet.server.call import Call, call_of
from gemlet.server.fields import EFFORTS, GENERATION, MOST_TOOLS, NAME, REPLY, STOPS, library_options
from gemlet.server.forms import SCHEMA_FORMAT, of_format
from gemlet.server.models import Served
from gemlet.server.problems import Problem
from gemlet.server.schema import (
    Anything,
    Either,
    Flag,
    Ignored,
    Kind,
    ListOf,
    Number,
    Object,
    OneOf,
    Refused,
    Schema,
    Text,
)
from gemlet.server.sent_media import check_part, media_part
from gemlet.server.service import event, fields_of, service_of
from gemlet.server.streamed_calls import StreamedCalls

__all__ = ["COUNT", "MESSAGES", "count_tokens", "messages"]

_TEXT = Text()
_BLOCKS = ListOf(Anything(dict), 1 << 12)
_CONTENT = Either("a text or a list of blocks", _TEXT, _BLOCKS)
_TAKEN = ("text", "image", "video", "audio", "document", "search_result")
_NO_CACHE = Ignored()  # cache_control: the server caches common beginnings of prompts in any case

COUNT: Mapping[str, Kind] = {
    "model": NAME,
    "messages": ListOf(
        Object({"role": OneOf("user", "assistant", "system"), "content": _CONTENT}, ["role", "content"]),
        1 << 16,
        1,
    ),
    "system": _CONTENT,
    "tools": ListOf(
        Object(
            {
                "type": OneOf("custom"),
                "name": Text(64, 1),
                "description": Text(1 << 16),
                "input_schema": Schema(),
                "cache_control": _NO_CACHE,
                "strict": Ignored(),
                "eager_input_streaming": Ignored(),
                "allowed_callers": Refused("only the model calls tools here", ["direct"]),
                "defer_loading": Refused("the model gets all tools at once"),
                "input_examples": Refused("put them into the description"),
            },
            ["name", "input_schema"],
        ),
        MOST_TOOLS,
    ),
    "tool_choice": Object(
        {
            "type": OneOf("auto", "any", "tool", "none"),
            "name": Text(64),
            "disable_parallel_tool_use": Flag(),
        },
        ["type"],
    ),
    "thinking": Object(
        {
            "type": OneOf("enabled", "disabled", "adaptive", "between_tools"),
            "budget_tokens": REPLY,  # tokens of the thoughts; max_tokens limits thoughts and answer together
            "display": Ignored(),
            "block_binding": Ignored(),
        },
        ["type"],
    ),
    "output_format": SCHEMA_FORMAT,  # sent by older clients
    "load_audio_from_video": Flag(),
    "cache_control": _NO_CACHE,
    "speed": Ignored(),
    "user_profile_id": Ignored(),
    "workspace_id": Ignored(),
    "billing_policy": Ignored(),
    "context_management": Refused("gemlet does not edit conversations"),
    "compaction": Refused("gemlet does not edit conversations"),
    "mcp_servers": Refused("gemlet calls no servers"),
    # effort changes nothing: the model decides how hard it tries, as with reasoning_effort.
    "output_config": Object(
        {
            "format": SCHEMA_FORMAT,
            "effort": OneOf(*EFFORTS[2:]),
            "task_budget": Refused("gemlet counts only the tokens of a reply; send max_tokens"),
        }
    ),
}
MESSAGES: Mapping[str, Kind] = {
    **COUNT,
    "max_tokens": REPLY,
    "stop_sequences": STOPS,
    "stream": Flag(),
    "temperature": Number(0, 1),
    "top_k": GENERATION["top_k"],
    "top_p": GENERATION["top_p"],
    "metadata": Ignored(),
    "service_tier": Ignored(),
    "inference_geo": Ignored(),
    "diagnostics": Ignored(),
    "fallback_credit_token": Ignored(),
    "fallbacks": Refused("only the model that the request names can answer"),
    "container": Refused("gemlet runs no containers"),
    # When the official client gets this code, it sends whole conversations.
    "thread": Refused("gemlet keeps no messages; send all of them", code="thread_unsupported_request"),
}


async def messages(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields["model"])
    most = service.reply_tokens(call, served, fields, "max_tokens")
    options = {**library_options(fields), "max_tokens": most}
    if fields.get("stop_sequences"):
        options["stop"] = fields["stop_sequences"]
    thinking = fields.get("thinking", {"type": "disabled"})
    if thinking["type"] != "disabled" and "budget_tokens" in thinking:
        options["thinking_budget"] = thinking["budget_tokens"]
    formats = {
        "output_config.format": fields.get("output_config", {}).get("format"),
        "output_format": fields.get("output_format"),
    }
    given = {name: form for name, form in formats.items() if form is not None}
    if len(given) > 1:
        raise Problem(400, "output_format and output_config.format: send one of them", param="output_format")
    for name, form in given.items():
        options |= of_format(form, name)
    seconds = service.settings.request_seconds
    ask = await service.beside(request, lambda: _ask(fields, served, options, seconds))
    running = await service.start([ask], call)
    head = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": served.name,
    }
    if fields.get("stream"):
        ping = event({"type": "ping"}, "ping")
        return service.stream(_pieces(running, head), request, running, ping=ping)
    return JSONAnswer(await while_connected(request, _whole(running, head)))


async def count_tokens(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields["model"])
    ask = await service.beside(request, lambda: _ask(fields, served, {}, None))
    count = await anyio.to_thread.run_sync(ask.count_prompt, limiter=service.threads)
    call.settle()
    return JSONAnswer({"input_tokens": count})


def _ask(fields: Mapping[str, Any], served: Served, options: Mapping[str, Any], seconds: float | None) -> Ask:
    choice = fields.get("tool_choice", {"type": "auto"})
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool.get("description", ""),
                "parameters": tool["input_schema"],
            },
        }
        for tool in fields.get("tools", ())
    ]
    conversation = [*_system(fields.get("system")), *_conversation(fields["messages"])]
    return Ask(
        served,
        options,
        messages=conversation,
        tools=tools or None,
        tool_choice=_tool_choice(choice),
        thinking=_thinks(fields.get("thinking", {}).get("type"), conversation),
        continue_final=conversation[-1]["role"] == "assistant",
        load_audio_from_video=fields.get("load_audio_from_video", False),
        one_call=choice.get("disable_parallel_tool_use", False),
        seconds=seconds,
        names=_NAMES,
    )


def _thinks(kind: str | None, conversation: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the model thinks. With ``between_tools``, it thinks only after results of tools."""
    if kind == "between_tools":
        return bool(conversation[-1]["role"] == "tool")
    return kind in ("enabled", "adaptive")


# Errors name the field without an index: one message of Anthropic's may become several of OpenAI's, and the
# system prompt becomes one more.
_NAMES = {
    "messages": "messages",
    "prompt": "messages",
    "thinking_budget": "thinking.budget_tokens",
    "json_schema": "output_config.format.schema",
    "stop": "stop_sequences",
}


def _tool_choice(choice: Mapping[str, Any]) -> Any:
    if choice["type"] == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return {"any": "required"}.get(choice["type"], choice["type"])


# --- from Anthropic's messages to OpenAI's ------------------------------------------------------------------


def _system(content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": _parts(content, "system", ("text",))}] if content else []


def _conversation(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages in OpenAI's form. A message of the user that has results of tools becomes several."""
    found: list[dict[str, Any]] = []
    for index, message in enumerate(given):
        where, content = f"messages[{index}].content", message["content"]
        if isinstance(content, str):
            found.append({"role": message["role"], "content": content})
        elif message["role"] == "system":
            found.append({"role": "system", "content": _parts(content, where, ("text",))})
        elif message["role"] == "user":
            results = [block for block in content if block.get("type") == "tool_result"]
            found += [_result(block, where) for block in results]
            rest = [block for block in content if block.get("type") != "tool_result"]
            if rest or not results:
                found.append({"role": "user", "content": _parts(rest, where)})
        else:
            found.append(_assistant(content, where))
    return found


def _parts(content: Any, where: str, takes: Sequence[str] = _TAKEN) -> Any:
    if isinstance(content, str):
        return content
    return [_part(block, f"{where}[{i}]", takes) for i, block in enumerate(content)]


def _part(block: Mapping[str, Any], where: str, takes: Sequence[str]) -> dict[str, Any]:
    kind = str(block.get("type"))
    if kind not in takes:
        shown = kind if kind in _KINDS else "of an unknown type"
        raise Problem(
            400, f"{where}: the block is {shown}; gemlet takes {', '.join(takes)} here", param=where
        )
    if kind == "text":
        return {"type": "text", "text": _TEXT.check(block.get("text"), f"{where}.text")}
    if kind in ("document", "search_result"):
        return {"type": "text", "text": _document(block, where)}
    source = _SOURCES[kind].check(block.get("source"), f"{where}.source")
    if source["type"] == "url":
        part = {"type": f"{kind}_url", f"{kind}_url": {"url": source.get("url", "")}}
        check_part(part, where, param=where)
        return part
    if "data" not in source:
        raise Problem(
            400, f"{where}.source.data is missing", param=f"{where}.source.data", code="missing_field"
        )
    return media_part(kind, source["data"])


def _document(block: Mapping[str, Any], where: str) -> str:
    """The text of a document or of a search result. Its title and its source or context come first."""
    _CITATIONS.check(block.get("citations") or {}, f"{where}.citations")
    source, is_found = block.get("source"), block["type"] == "search_result"
    names = ("title", "source" if is_found else "context")
    head = [_TEXT.check(block[name], f"{where}.{name}") for name in names if block.get(name) is not None]
    if is_found:
        content, place = block.get("content"), f"{where}.content"
    else:
        if isinstance(source, dict) and source.get("type") in ("base64", "url", "file"):
            said = f"{where}.source: the document is a file; gemlet takes documents of text"
            raise Problem(400, said, param=f"{where}.source", code="unsupported")
        source = _TEXT_SOURCE.check(source, f"{where}.source")
        content, place = source.get("data", source.get("content")), f"{where}.source"
    content = _CONTENT.check(content, place)
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in _parts(content, place, ("text",)))
    return "\n".join([*head, content])


_CITATIONS = Object({"enabled": Refused("gemlet does not say where an answer is from", False)})
_TEXT_SOURCE = Object(
    {
        "type": OneOf("text", "content"),  # no files and no PDF
        "media_type": OneOf("text/plain"),
        "data": _TEXT,
        "content": _CONTENT,
    },
    ["type"],
)
_KINDS = (
    *("image", "video", "audio", "document", "search_result"),
    *("tool_use", "tool_result", "thinking", "redacted_thinking"),
)
# Anthropic's own API has only images.
_SOURCES = {
    kind: Object(
        {
            "type": OneOf("base64", "url"),
            "media_type": OneOf(*(f"{kind}/{form}" for form in forms)),
            "data": _TEXT,
            "url": _TEXT,  # only data URLs, as in all dialects
        },
        ["type"],
    )
    for kind, forms in (
        ("image", ("jpeg", "png", "gif", "webp")),
        ("video", ("mp4", "quicktime", "webm", "x-matroska", "x-msvideo")),
        ("audio", ("wav", "x-wav", "mpeg", "mp4", "flac", "ogg", "webm")),
    )
}


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    called = Text(256, 1).check(block.get("tool_use_id"), f"{where}.tool_use_id")
    content = _CONTENT.check(block.get("content", ""), f"{where}.content")
    return {"role": "tool", "tool_call_id": called, "content": _parts(content, f"{where}.content")}


def _assistant(content: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(content):
        kind, place = block.get("type"), f"{where}[{i}]"
        if kind == "thinking":
            thoughts.append(_TEXT.check(block.get("thinking"), f"{place}.thinking"))
        elif kind == "redacted_thinking":
            continue  # only the service that made the block can read it
        elif kind == "tool_use":
            function = {
                "name": Text(64, 1).check(block.get("name"), f"{place}.name"),
                "arguments": Anything(dict).check(block.get("input"), f"{place}.input"),
            }
            called = Text(256, 1).check(block.get("id"), f"{place}.id")
            calls.append({"id": called, "type": "function", "function": function})
        else:
            texts.append(_part(block, place, ("text",))["text"])
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


# --- and back -----------------------------------------------------------------------------------------------


def _usage(call: Call) -> dict[str, int]:
    return {
        "input_tokens": call.prompt_tokens - call.cached_tokens,
        "cache_read_input_tokens": call.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": call.completion_tokens,
    }


def _reason(choice: Choice) -> dict[str, Any]:
    """``stop_reason`` and ``stop_sequence``."""
    stop = choice.stop_string()
    if stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    names = {
        "length": "max_tokens",
        "context": "model_context_window_exceeded",
        "content_filter": "refusal",
    }
    if choice.finish == "stop" and choice.reply.tool_calls:
        names["stop"] = "tool_use"
    return {"stop_reason": names.get(choice.finish, "end_turn"), "stop_sequence": None}


def _block(happened: ReplyEvent) -> dict[str, Any] | None:
    """The empty block that begins with this event."""
    if isinstance(happened, Content):
        return {"type": "text", "text": ""}
    if isinstance(happened, Reasoning):
        return {"type": "thinking", "thinking": "", "signature": ""}
    if isinstance(happened, ToolCall | ToolCallPiece):
        return {"type": "tool_use", "id": happened.id, "name": happened.name, "input": {}}
    return None


async def _whole(running: Running, head: Mapping[str, Any]) -> dict[str, Any]:
    async for _ in running:
        pass
    running.end()
    (choice,) = running.choices
    blocks: list[dict[str, Any]] = []
    for happened in choice.events:
        begun = _block(happened)
        if begun is None:
            continue
        if isinstance(happened, ToolCall):
            blocks.append({**begun, "input": happened.arguments})
            continue
        if not blocks or blocks[-1]["type"] != begun["type"]:
            blocks.append(begun)
        blocks[-1][blocks[-1]["type"]] += getattr(happened, "text", "")
    return {**head, "content": blocks, **_reason(choice), "usage": _usage(running.call)}


async def _pieces(running: Running, head: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """The events of a stream. The number of tokens in the prompt is known only at the end of the stream, so
    ``message_delta`` has it."""
    nothing = {"stop_reason": None, "stop_sequence": None, "usage": _usage(Call())}
    yield event({"type": "message_start", "message": {**head, "content": [], **nothing}}, "message_start")
    index, opened, calls = -1, ("", ""), StreamedCalls()
    async for _, chunk in running:
        for happened in calls.events(chunk):
            begun = _block(happened)
            if begun is None or isinstance(happened, ToolCall):  # the pieces of the call came before
                continue
            block = begun["type"], begun.get("id", "")
            if block != opened:
                if index >= 0:
                    yield event({"type": "content_block_stop", "index": index}, "content_block_stop")
                index, opened = index + 1, block
                start = {"type": "content_block_start", "index": index, "content_block": begun}
                yield event(start, "content_block_start")
            if delta := _delta(happened):
                yield event(
                    {"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta"
                )
    if index >= 0:
        yield event({"type": "content_block_stop", "index": index}, "content_block_stop")
    running.end()
    end = {"type": "message_delta", "delta": _reason(running.choices[0]), "usage": _usage(running.call)}
    yield event(end, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


def _delta(happened: ReplyEvent) -> dict[str, Any] | None:
    if isinstance(happened, Content):
        return {"type": "text_delta", "text": happened.text}
    if isinstance(happened, Reasoning):
        return {"type": "thinking_delta", "thinking": happened.text}
    if isinstance(happened, ToolCallPiece) and happened.arguments:
        return {"type": "input_json_delta", "partial_json": happened.arguments}
    return None
