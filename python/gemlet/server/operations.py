"""Routes for operators (health, version, metrics, usage), and ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet import _core
from gemlet.errors import GemletError
from gemlet.model.model import Model
from gemlet.server.answers import JSONAnswer
from gemlet.server.call import call_of
from gemlet.server.fields import NAME, TOKENS, TOOLS
from gemlet.server.metrics import CONTENT_TYPE
from gemlet.server.models import Served
from gemlet.server.openai_chat import MESSAGES, as_said
from gemlet.server.problems import Problem, problem_of
from gemlet.server.schema import Flag, Kind, Text
from gemlet.server.sent_media import has_media
from gemlet.server.service import fields_of, service_of

__all__ = [
    "DETOKENIZE",
    "TOKENIZE",
    "detokenize",
    "health",
    "load",
    "metrics",
    "ping",
    "ready",
    "tokenize",
    "usage",
    "version",
]

_DEADLINE = 10.0  # seconds within which a healthy model writes a token
_MOST_CHARACTERS = 1 << 20  # the longest text to tokenize; it may be longer than the context
_MOST_TOKENS = 1 << 16  # the most tokens of messages; they may be longer than the context

TOKENIZE: Mapping[str, Kind] = {
    "model": NAME,
    "prompt": Text(_MOST_CHARACTERS),
    "messages": MESSAGES,
    "tools": TOOLS,
    "add_special_tokens": Flag(),
    "add_generation_prompt": Flag(),
}
DETOKENIZE: Mapping[str, Kind] = {"model": NAME, "tokens": TOKENS}


async def health(request: Request) -> Response:
    """200 and {"status": "ok"}; 503 until the models are loaded. With ``?deep=1``, each model also has to
    write a token in time. If the server has keys, this needs one."""
    service = service_of(request)
    service.models.check_ready()
    if request.scope["query_string"] == b"deep=1":  # the guard refuses a query without a key
        async with service.deep_check:
            for name, model in service.models.loaded:
                if not model.prompts:
                    await _write_a_token(name, model)
    return JSONAnswer({"status": "ok"})


async def _write_a_token(name: str, model: Model) -> None:
    end = next(iter(model.end_ids), 0)
    try:
        async with model.astream([end], max_tokens=1, ignore_eos=True, timeout=_DEADLINE) as stream:
            reason = [chunk.finish_reason async for chunk in stream][-1]
    except GemletError:
        reason = "cancelled"
    if reason not in ("length", "stop", "context"):
        raise Problem(503, f"{name} wrote no token within {_DEADLINE:g} s", kind="unavailable_error")


async def ready(request: Request) -> Response:
    """200 while the server takes requests; 503 before, and while it stops."""
    service_of(request).models.check_ready()
    return JSONAnswer({"status": "ready"})


async def ping(request: Request) -> Response:
    """The name that vLLM also has for ``GET /health``. The answer is empty."""
    service_of(request).models.check_ready()
    return Response()


async def load(request: Request) -> Response:
    """The number of requests that run, in vLLM's form. This request is not counted."""
    return JSONAnswer({"server_load": service_of(request).limiter.running})


async def version(request: Request) -> Response:
    return JSONAnswer({"version": _core.__version__})


async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})


async def usage(request: Request) -> Response:
    """The usage of the request's key, by day and model."""
    store, key = service_of(request).limiter.store, call_of(request).key
    if store is None or key is None:
        raise Problem(404, "the server has no keys, so it does not count usage", kind="not_found_error")
    rows = [{n: v for n, v in row.items() if n != "key"} for row in store.usage(key.id)]
    return JSONAnswer({"object": "list", "key": key.name, "data": rows})


async def tokenize(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    if ("prompt" in fields) is ("messages" in fields):
        raise Problem(400, "send either prompt or messages", param="prompt")
    served = service.find(call, fields.get("model"))
    ids = await anyio.to_thread.run_sync(_encode, served, fields, limiter=service.threads)
    call.settle()
    return JSONAnswer({"count": len(ids), "max_model_len": served.model.context_length, "tokens": ids})


def _encode(served: Served, fields: Mapping[str, Any]) -> list[int]:
    model = served.model
    try:
        if model.tokenizer is None:
            raise Problem(400, f"{served.name} has no tokenizer", code="unsupported")
        if "prompt" in fields:
            add_bos = fields.get("add_special_tokens", True)
            return model.tokenizer.encode(fields["prompt"], add_bos, allow_control=False)
        if model.chat_format is None:
            raise Problem(400, f"{served.name} has no chat format", code="unsupported")
        messages = as_said(fields["messages"])
        if any(map(has_media, messages)):
            instead = "POST /v1/messages/count_tokens counts images, videos and sounds, too"
            raise Problem(400, f"messages: /tokenize takes only texts; {instead}", param="messages")
        return model.chat_format.encode_chat(
            model.tokenizer,
            messages,
            fields.get("add_generation_prompt", True),
            tools=fields.get("tools"),
            most_tokens=max(model.context_length, _MOST_TOKENS),
        )
    except Exception as error:
        raise problem_of(error, hidden=model.source, shown=served.name) from error


async def detokenize(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields.get("model"))
    if served.model.tokenizer is None:
        raise Problem(400, f"{served.name} has no tokenizer", code="unsupported")
    decode = partial(served.model.tokenizer.decode, fields["tokens"], skip_control=False)
    text = await anyio.to_thread.run_sync(decode, limiter=service.threads)
    call.settle()
    return JSONAnswer({"prompt": text})
