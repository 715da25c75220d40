"""``POST /v1/completions``: the older interface, which continues texts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from gemlet.server.answers import while_connected
from gemlet.server.ask import Ask, Running, finish_reason, is_plain_text
from gemlet.server.call import call_of
from gemlet.server.fields import (
    GENERATION,
    IGNORED,
    MOST_CHOICES,
    NAME,
    NOT_DONE,
    OF_TOKENS,
    REPLY,
    SALT,
    STREAM,
    TOKENS,
    TOP_LOGPROBS,
    library_options,
)
from gemlet.server.forms import FORMS, form_names, form_of
from gemlet.server.logprobs import check_length, of_completion, of_prompt, of_text, top_of_prompt
from gemlet.server.openai_chat import FINGERPRINT, usage_of
from gemlet.server.problems import Problem
from gemlet.server.schema import Either, Flag, Integer, Kind, ListOf, Refused, Text
from gemlet.server.service import TextEvent, event, fields_of, service_of

__all__ = ["COMPLETIONS", "PROMPT", "completions"]

_DEFAULT_TOKENS = 16  # OpenAI's default

PROMPT = Either(
    f"a text, up to {MOST_CHOICES} texts, token ids, or up to {MOST_CHOICES} lists of them",
    Text(least=1),
    TOKENS,
    ListOf(Text(least=1), MOST_CHOICES, 1),
    ListOf(TOKENS, MOST_CHOICES, 1),
)
COMPLETIONS: Mapping[str, Kind] = {
    "model": NAME,
    "prompt": PROMPT,
    "max_tokens": REPLY,
    "cache_salt": SALT,
    "n": Integer(1, MOST_CHOICES),
    **GENERATION,
    **STREAM,
    **IGNORED,
    **NOT_DONE,
    **FORMS,
    **OF_TOKENS,
    "logprobs": TOP_LOGPROBS,
    "echo": Flag(),
    "suffix": Refused("gemlet continues a text, and cannot fill a gap between two"),
}


async def completions(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields.get("model"))
    most = service.reply_tokens(call, served, fields, "max_tokens", default=_DEFAULT_TOKENS)
    options = {**library_options(fields), **form_of(fields), **top_of_prompt(fields), "max_tokens": most}
    if "logprobs" in fields:
        options["logprobs"] = fields["logprobs"]
    options |= _echo(fields)
    common: Any = {
        "salt": fields.get("cache_salt"),
        "seconds": service.settings.request_seconds,
        "count": fields.get("n", 1),
        "shows_ids": fields.get("return_token_ids", False),
        "names": form_names(fields),
    }
    asks = [Ask(served, options, prompt, **common) for prompt in _prompts(fields["prompt"])]
    running = await service.start(asks, call)
    check_length(running)
    wants_ids = fields.get("return_token_ids", False)
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": FINGERPRINT,
    }
    if fields.get("stream"):
        wants_usage = fields.get("stream_options", {}).get("include_usage", False)
        return service.stream(_pieces(running, head, wants_usage, wants_ids), request, running)
    whole = await while_connected(request, _whole(running, head, wants_ids, service.threads))
    return await service.answer(lambda: whole, is_large=call.completion_tokens > 1000)


def _echo(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The library's options for the field ``echo``. If log probabilities are wanted, the prompt needs them,
    too."""
    if not fields.get("echo"):
        return {}
    if "logprobs" not in fields:
        return {"echo": True}
    if "prompt_logprobs" in fields:
        instead = "leave it out; echo gives them with logprobs"
        raise Problem(400, f"prompt_logprobs: {instead}", param="prompt_logprobs")
    if fields.get("stream"):
        raise Problem(400, "echo: a stream cannot have it with logprobs; send stream: false", param="echo")
    return {"echo": True, "prompt_logprobs": fields["logprobs"]}


def _prompts(given: Any) -> list[Any]:
    """A list of prompts. A text is one prompt, and so is a list of token ids."""
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def _choice(index: int, text: str, finish: str | None, logprobs: Any) -> dict[str, Any]:
    reason = None if finish is None else finish_reason(finish, has_calls=False)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


async def _whole(
    running: Running, head: Mapping[str, Any], wants_ids: bool, threads: anyio.CapacityLimiter
) -> dict[str, Any]:
    async for _ in running:
        pass
    running.end()
    choices = []
    for index, choice in enumerate(running.choices):
        options = choice.ask.options
        logprobs = await of_text(choice, threads) if "logprobs" in options else None
        shown = _choice(index, choice.reply.content, choice.finish, logprobs)
        if wants_ids:
            shown |= {"token_ids": choice.token_ids, "prompt_token_ids": choice.prompt_ids}
        of_its_prompt = None if options.get("echo") else await of_prompt(choice, threads)
        if of_its_prompt is not None:
            shown["prompt_logprobs"] = of_its_prompt
        choices.append(shown)
    return {**head, "choices": choices, "usage": usage_of(running)}


async def _pieces(
    running: Running, head: Mapping[str, Any], wants_usage: bool, wants_ids: bool
) -> AsyncIterator[bytes]:
    more = {"usage": None} if wants_usage else {}
    offsets = [0] * len(running.choices)
    plain = [
        TextEvent({**head, "choices": [_choice(index, TextEvent.TEXT, None, None)], **more})
        for index in range(len(running.choices))
    ]
    begun: set[int] = set()
    async for index, chunk in running:
        if is_plain_text(chunk) and not wants_ids:
            yield plain[index].of(chunk.text)
            continue
        choice, logprobs = running.choices[index], None
        if not (chunk.text or (wants_ids and choice.token_ids)) and chunk.finish_reason is None:
            continue
        if found := choice.take_logprobs():
            logprobs = of_completion(choice.ask.served, found, offsets[index])
            offsets[index] += sum(map(len, logprobs["tokens"]))
        shown = _choice(index, chunk.text, chunk.finish_reason, logprobs)
        if wants_ids:
            shown["token_ids"] = choice.take_token_ids()
            if index not in begun:
                shown["prompt_token_ids"] = choice.prompt_ids
            begun.add(index)
        yield event({**head, "choices": [shown], **more})
    running.end()
    if wants_usage:
        yield event({**head, "choices": [], "usage": usage_of(running)})
    yield b"data: [DONE]\n\n"
