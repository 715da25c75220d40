"""OpenAI's responses: ``POST /v1/responses``, and ``GET`` and ``DELETE`` of one that is kept."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet.server.answers import JSONAnswer, as_line, as_line_in_pieces, while_connected
from gemlet.server.ask import Ask, Running
from gemlet.server.call import call_of
from gemlet.server.fields import (
    EFFORTS,
    GENERATION,
    IGNORED,
    MOST_TOOLS,
    NAME,
    NOT_DONE,
    REPLY,
    SALT,
    TOP_LOGPROBS,
    library_options,
)
from gemlet.server.forms import SCHEMA_FORMAT, of_format
from gemlet.server.kept_responses import KeptResponse
from gemlet.server.logprobs import of_chat
from gemlet.server.problems import Problem
from gemlet.server.response_items import OutputItems, conversation_of
from gemlet.server.schema import (
    Anything,
    Either,
    Flag,
    Ignored,
    Kind,
    ListOf,
    Object,
    OneOf,
    Refused,
    Schema,
    Text,
)
from gemlet.server.service import Service, TextEvent, event, fields_of, service_of
from gemlet.server.streamed_calls import StreamedCalls
from gemlet.server.tool_choices import ALLOWED, allowed

__all__ = ["RESPONSES", "delete", "respond", "response"]

_TOOL = Object(
    {
        "type": OneOf("function"),
        "name": Text(64, 1),
        "description": Text(1 << 16),
        "parameters": Schema(),
        "strict": Ignored(),
        "output_schema": Ignored(),
        "allowed_callers": Refused("only the model calls tools here", ["direct"]),
        "defer_loading": Refused("the model gets all tools at once"),
        "async": Refused("gemlet waits for no tools"),
    },
    ["type", "name"],
)


_LOGPROBS = "message.output_text.logprobs"  # the only value of ``include`` that changes something
RESPONSES: Mapping[str, Kind] = {
    "model": NAME,
    "input": Either("a text or a list of items", Text(least=1), ListOf(Anything(dict), 1 << 16, 1)),
    "instructions": Text(),
    "previous_response_id": Text(100, 1),
    "store": Flag(),
    "cache_salt": SALT,
    "load_audio_from_video": Flag(),
    "max_output_tokens": REPLY,
    "reasoning": Object(
        {
            "effort": OneOf(*EFFORTS),
            "summary": Ignored(),
            "generate_summary": Ignored(),
            "context": Ignored(),
            "mode": Refused("gemlet has one mode", "standard"),
        }
    ),
    "tools": ListOf(_TOOL, MOST_TOOLS),
    "tool_choice": Either(
        "auto, none, required, a function or allowed_tools",
        OneOf("auto", "none", "required"),
        Object({"type": OneOf("function"), "name": Text(64, 1)}, ["type", "name"]),
        ALLOWED,
    ),
    "parallel_tool_calls": Flag(),
    "stream": Flag(),
    "stream_options": Ignored(),
    **GENERATION,
    **{name: kind for name, kind in IGNORED.items() if name != "store"},
    **NOT_DONE,
    "top_logprobs": TOP_LOGPROBS,
    "include": ListOf(Text(100), 100),
    "truncation": Refused("gemlet does not shorten conversations", "disabled"),
    "text": Object({"format": SCHEMA_FORMAT, "verbosity": NOT_DONE["verbosity"]}),
    "background": Refused("gemlet answers while you wait", False),
    "background_options": Refused("gemlet answers while you wait"),
    "context_management": Refused("gemlet does not shorten conversations"),
    "access_programs": Refused("only OpenAI's own service has them"),
    "image": Refused("gemlet gives the model the images as they are"),
    "conversation": Refused("send previous_response_id"),
    "prompt": Refused("gemlet keeps no prompts"),
    "max_tool_calls": Refused("gemlet calls no tools itself"),
}


async def respond(request: Request) -> Response:
    service, call, fields = service_of(request), call_of(request), fields_of(request)
    served = service.find(call, fields.get("model"))
    owner = None if call.key is None else call.key.id
    before = _before(service, owner, fields.get("previous_response_id"))
    given = await service.beside(request, lambda: conversation_of(fields["input"]))
    said = [*(before.messages if before is not None else ()), *given]
    system = [{"role": "system", "content": fields["instructions"]}] if fields.get("instructions") else []
    most = service.reply_tokens(call, served, fields, "max_output_tokens")
    tools = [
        {"type": "function", "function": {n: v for n, v in tool.items() if n != "type"}}
        for tool in fields.get("tools", ())
    ]
    chosen, choice = allowed(tools, fields.get("tool_choice"))
    effort = fields.get("reasoning", {}).get("effort", "none")
    form = of_format(fields.get("text", {}).get("format", {"type": "text"}), "text.format")
    ask = Ask(
        served,
        {**library_options(fields), **form, **_logprobs(fields), "max_tokens": most},
        messages=[*system, *said],
        tools=chosen or None,
        tool_choice=choice,
        token_by_token=_LOGPROBS in fields.get("include", ()),
        thinking=effort not in ("none", "minimal"),
        load_audio_from_video=fields.get("load_audio_from_video", False),
        salt=fields.get("cache_salt"),
        one_call=fields.get("parallel_tool_calls") is False,
        seconds=service.settings.request_seconds,
        names={
            "messages": "input",
            "prompt": "input",
            "thinking": "reasoning.effort",
            "json_schema": "text.format.schema",
        },
    )
    running = await service.start([ask], call)
    head = _head(fields, served.name)

    async def keep(answer: Mapping[str, Any]) -> bytes:
        is_large = call.completion_tokens > 1000
        line = await service.line(lambda: answer, is_large=is_large)
        if fields.get("store", True):
            kept = [*said, running.choices[0].result_message()]
            size = len(await service.beside(request, lambda: as_line_in_pieces(kept)))
            service.kept.put(owner, answer, kept, size + len(line))
        return line

    if fields.get("stream"):
        numbers = itertools.count()
        return service.stream(
            _pieces(running, head, keep, numbers), request, running, on_error=partial(_failure, numbers)
        )
    line = await while_connected(request, _whole(running, head, keep))
    return Response(line, media_type="application/json")


def _logprobs(fields: Mapping[str, Any]) -> dict[str, int]:
    """The library's option for those that ``include`` asks for."""
    if _LOGPROBS in fields.get("include", ()):
        return {"logprobs": fields.get("top_logprobs", 0)}
    if fields.get("top_logprobs", 0):
        raise Problem(400, f"top_logprobs: it needs {_LOGPROBS} in include", param="top_logprobs")
    return {}


async def response(request: Request) -> Response:
    return JSONAnswer(_found(request).response)


async def delete(request: Request) -> Response:
    found = _found(request)
    name = found.response["id"]
    service_of(request).kept.remove(found.owner, name)
    return JSONAnswer({"id": name, "object": "response", "deleted": True})


def _found(request: Request) -> KeptResponse:
    key = call_of(request).key
    found = service_of(request).kept.find(None if key is None else key.id, request.path_params["name"])
    if found is None:
        raise _not_kept("id")
    return found


def _before(service: Service, owner: str | None, name: str | None) -> KeptResponse | None:
    """The response that a request continues. A response of another key counts as unknown."""
    if name is None:
        return None
    found = service.kept.find(owner, name)
    if found is None:
        raise _not_kept("previous_response_id", "previous_response_not_found")
    return found


def _not_kept(param: str, code: str | None = None) -> Problem:
    said = "there is no such response; gemlet keeps only the last ones, until the server ends"
    return Problem(404, said, kind="not_found_error", param=param, code=code)


def _head(fields: Mapping[str, Any], model: str) -> dict[str, Any]:
    reasoning = fields.get("reasoning", {})
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "model": model,
        "output": [],
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": fields.get("store", True),
        "temperature": fields.get("temperature"),
        "text": {"format": fields.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": fields.get("tools", []),
        "top_p": fields.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "metadata": {},
    }


def _ended(running: Running, head: Mapping[str, Any], items: OutputItems) -> dict[str, Any]:
    running.end()
    call, finish = running.call, running.choices[0].finish
    reasons = {
        "content_filter": "content_filter",
        "length": "max_output_tokens",
        "context": "max_output_tokens",
    }
    cut = reasons.get(finish)
    return {
        **head,
        "status": "completed" if cut is None else "incomplete",
        "incomplete_details": None if cut is None else {"reason": cut},
        "output": items.items,
        "usage": {
            "input_tokens": call.prompt_tokens,
            "input_tokens_details": {"cached_tokens": call.cached_tokens},
            "output_tokens": call.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": running.reasoning_tokens},
            "total_tokens": call.prompt_tokens + call.completion_tokens,
        },
    }


_Keep = Callable[[Mapping[str, Any]], Awaitable[bytes]]  # keeps an answer, and gives it as JSON


async def _whole(running: Running, head: Mapping[str, Any], keep: _Keep) -> bytes:
    items = OutputItems()
    choice = running.choices[0]
    async for _, chunk in running:
        items.add_logprobs(of_chat(choice.ask.served, choice.take_logprobs())["content"])
        for happened in chunk.events:
            items.push(happened)
    items.finish()
    return await keep(_ended(running, head, items))


def _failure(numbers: Iterator[int], problem: Problem) -> bytes:
    """The event of an error in a stream. OpenAI's clients raise what has an ``error``."""
    said = {name: getattr(problem, name) for name in ("code", "message", "param")}
    error = {**said, "type": problem.kind}
    return event({"type": "error", **said, "sequence_number": next(numbers), "error": error}, "error")


async def _pieces(
    running: Running, head: Mapping[str, Any], keep: _Keep, numbers: Iterator[int]
) -> AsyncIterator[bytes]:
    items, calls = OutputItems(), StreamedCalls()

    def numbered(found: Mapping[str, Any]) -> bytes:
        return event({**found, "sequence_number": next(numbers)}, found["type"])

    yield numbered({"type": "response.created", "response": head})
    yield numbered({"type": "response.in_progress", "response": head})
    choice = running.choices[0]
    async for _, chunk in running:
        items.add_logprobs(of_chat(choice.ask.served, choice.take_logprobs())["content"])
        for happened in calls.events(chunk):
            for found in items.push(happened):
                yield numbered(found)
    for found in items.finish():
        yield numbered(found)
    answer = _ended(running, head, items)
    line, kind = await keep(answer), f"response.{answer['status']}"
    before, after = numbered({"type": kind, "response": TextEvent.TEXT}).split(as_line(TextEvent.TEXT))
    yield before + line + after
