"""Ollama's dialect: ``/api/chat``, ``/api/generate``, ``/api/embed`` and ``/api/embeddings``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet.chat.reply import Content, Reasoning, Reply, ToolCall, collect
from gemlet.server.answers import JSONAnswer, as_line, while_connected
from gemlet.server.ask import Ask, Running
from gemlet.server.call import call_of
from gemlet.server.fields import GENERATION, NAME, STOP, TOOLS, TOP_LOGPROBS, library_options
from gemlet.server.logprobs import of_chat
from gemlet.server.models import Served
from gemlet.server.openai_chat import MOST_MESSAGES
from gemlet.server.openai_embeddings import INPUT, embed, is_large, texts_of
from gemlet.server.problems import Problem
from gemlet.server.schema import (
    Anything,
    Either,
    Flag,
    Ignored,
    Integer,
    Kind,
    ListOf,
    Object,
    OneOf,
    Refused,
    Schema,
    Text,
)
from gemlet.server.sent_media import MOST_PARTS, part_of_file
from gemlet.server.service import Service, fields_of, service_of

__all__ = ["CHAT", "EMBED", "GENERATE", "OLDER_EMBED", "chat", "embedding", "embeddings", "find", "generate"]

# Options that say how Ollama itself runs a model, and options that change nothing without mirostat.
_RUNNER = (
    *("num_keep", "num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread"),
    *("numa", "f16_kv", "logits_all", "vocab_only", "embedding_only", "mirostat_tau", "mirostat_eta"),
)
_OPTIONS: Mapping[str, Kind] = {
    "num_predict": Integer(-2, 2**31 - 1),
    "num_ctx": Integer(1, 2**31 - 1),
    "repeat_penalty": GENERATION["repetition_penalty"],
    "stop": STOP,
    "load_audio_from_video": Flag(),
    **{
        name: GENERATION[name]
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seed",
            "presence_penalty",
            "typical_p",
            "frequency_penalty",
        )
    },
    **dict.fromkeys(_RUNNER, Ignored()),
    "repeat_last_n": Refused("gemlet's penalty counts the whole text", -1),
    "tfs_z": Refused("gemlet does not do this", 1, 1.0),
    "mirostat": Refused("gemlet does not do this", 0),
    "penalize_newline": Refused("gemlet's penalty counts the whole text", True),
}
_EVERYWHERE: Mapping[str, Kind] = {
    "model": NAME,
    "options": Object(_OPTIONS),
    "keep_alive": Ignored(),  # models stay as long as the server runs
}
_REPLY: Mapping[str, Kind] = {
    **_EVERYWHERE,
    "stream": Flag(),
    "think": Either("true, false, low, medium, high or max", Flag(), OneOf("low", "medium", "high", "max")),
    "format": Either("json, or a JSON schema of at most 256 KB", OneOf("json", ""), Schema()),
    "logprobs": Flag(),
    "top_logprobs": TOP_LOGPROBS,
}
_IMAGES = ListOf(Text(least=1), MOST_PARTS)  # files as base64; Ollama's clients also send sounds here
CHAT: Mapping[str, Kind] = {**_REPLY, "messages": ListOf(Anything(dict), MOST_MESSAGES), "tools": TOOLS}
GENERATE: Mapping[str, Kind] = {
    **_REPLY,
    "prompt": Text(),
    "system": Text(),
    "raw": Flag(),
    "suffix": Refused("gemlet continues a text, and cannot fill a gap between two"),
    "images": _IMAGES,
    "template": Refused("a request cannot set the chat template"),
    "context": Refused("send the conversation to /api/chat"),
    **dict.fromkeys(("width", "height", "steps"), Refused("gemlet draws no images", 0)),
}
EMBED: Mapping[str, Kind] = {
    **_EVERYWHERE,
    "input": INPUT,
    "truncate": Flag(),
    "dimensions": Integer(1, 1 << 16),
}
OLDER_EMBED: Mapping[str, Kind] = {**_EVERYWHERE, "prompt": Text(least=1)}


def find(service: Service, request: Request, name: str) -> Served:
    """The model ``name``. Ollama's clients may append the tag ``:latest``, which is removed."""
    return service.find(call_of(request), name.removesuffix(":latest"))


async def chat(request: Request) -> Response:
    service = service_of(request)
    fields = fields_of(request)
    served = find(service, request, fields["model"])
    if not fields["messages"]:
        return _loaded(request, fields, _as_message)
    conversation = await service.beside(request, lambda: _conversation(fields["messages"]))
    ask = _ask(service, request, served, fields, messages=conversation, tools=fields.get("tools"))
    return await _answer(service, request, ask, fields, _as_message)


async def generate(request: Request) -> Response:
    service = service_of(request)
    fields = fields_of(request)
    served = find(service, request, fields["model"])
    prompt = fields.get("prompt", "")
    if not prompt:
        return _loaded(request, fields, _as_response)
    if fields.get("raw"):
        if fields.get("images"):
            raise Problem(400, "images: a raw prompt cannot have images; leave raw out", param="images")
        ask = _ask(service, request, served, fields, prompt=prompt)
    else:
        system = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
        asked = {"role": "user", "content": prompt, "images": fields.get("images")}
        conversation = [*system, _message(asked, "prompt")]
        ask = _ask(service, request, served, fields, messages=conversation)
    return await _answer(service, request, ask, fields, _as_response)


async def embeddings(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = find(service, request, fields["model"])
    texts = texts_of(fields["input"])
    begun = time.monotonic_ns()
    embedded = embed(
        *(service, call, served, texts, None, fields.get("dimensions")),
        is_list=texts is fields["input"],
        truncate=fields.get("truncate", True),
    )
    vectors = await while_connected(request, embedded)
    duration = time.monotonic_ns() - begun

    def make() -> dict[str, Any]:
        return {
            "model": fields["model"],
            "embeddings": vectors.tolist(),
            "total_duration": duration,
            "load_duration": 0,
            "prompt_eval_count": call.prompt_tokens,
        }

    return await service.answer(make, is_large=is_large(vectors))


async def embedding(request: Request) -> Response:
    """``POST /api/embeddings``, the older form: one text."""
    service, call, fields = service_of(request), call_of(request), fields_of(request)
    served = find(service, request, fields["model"])
    work = embed(
        *(service, call, served, [fields["prompt"]], None, None), is_list=False, truncate=True, field="prompt"
    )
    (vector,) = await while_connected(request, work)
    return JSONAnswer({"embedding": vector.tolist()})


_NAMES = {
    "thinking": "think",
    "json_schema": "format",
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
}


def _ask(service: Service, request: Request, served: Served, fields: Mapping[str, Any], **what: Any) -> Ask:
    options = fields.get("options", {})
    room, most = served.model.context_length, options.get("num_predict", -1)
    if options.get("num_ctx", 0) > room:
        raise Problem(400, f"num_ctx: the context of this model has {room} tokens here", param="num_ctx")
    if most == 0:
        raise Problem(400, "num_predict: got 0, expected 1 or more, or -1 for no limit", param="num_predict")
    limits = {"num_predict": most} if most > 0 else {}
    named = library_options(options)
    if "repeat_penalty" in options:
        named["repetition_penalty"] = options["repeat_penalty"]
    form = fields.get("format")
    if form:
        named["json_schema"] = {"type": "object"} if form == "json" else form
    if fields.get("logprobs"):
        named["logprobs"] = fields.get("top_logprobs", 0)
    elif fields.get("top_logprobs"):
        raise Problem(400, "top_logprobs: send logprobs: true with it", param="top_logprobs")
    named["max_tokens"] = service.reply_tokens(call_of(request), served, limits, "num_predict")
    seconds = service.settings.request_seconds
    return Ask(
        served,
        named,
        thinking=bool(fields.get("think")),
        load_audio_from_video=options.get("load_audio_from_video", False),
        seconds=seconds,
        names={**_NAMES, **({"prompt": "messages"} if "messages" in fields else {"messages": "prompt"})},
        **what,
    )


def _conversation(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    images = [message["images"] for message in given if isinstance(message.get("images"), list)]
    if sum(map(len, images)) > MOST_PARTS:
        raise Problem(
            400, f"messages: a request has at most {MOST_PARTS} images and sounds", param="messages"
        )
    return [_message(message, f"messages[{i}]") for i, message in enumerate(given)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The message in OpenAI's form. There the reasoning and the name of a tool have other names, and images,
    videos and sounds are parts of the content."""
    found = {
        name: value for name, value in message.items() if name not in ("images", "thinking", "tool_name")
    }
    if message.get("thinking"):
        found["reasoning"] = message["thinking"]
    if message.get("tool_name"):
        found["name"] = message["tool_name"]
    if message.get("images"):
        images = _IMAGES.check(message["images"], f"{where}.images")
        content = Text().check(message.get("content") or "", f"{where}.content")
        text = [{"type": "text", "text": content}] if content else []
        found["content"] = [*map(part_of_file, images), *text]
    return found


# --- the reply ----------------------------------------------------------------------------------------------


def _as_message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["thinking"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": call.arguments}} for call in reply.tool_calls
        ]
    return {"message": message}


def _as_response(reply: Reply) -> dict[str, Any]:
    return {"response": reply.content, **({"thinking": reply.reasoning} if reply.reasoning else {})}


def _loaded(request: Request, fields: Mapping[str, Any], form: Any) -> Response:
    """The answer to a request without a prompt, which clients send to have the model loaded."""
    call_of(request).settle()
    end = {"done": True, "done_reason": "load"}
    return JSONAnswer({"model": fields["model"], "created_at": _now(), **form(Reply()), **end})


async def _answer(
    service: Service, request: Request, ask: Ask, fields: Mapping[str, Any], form: Any
) -> Response:
    running = await service.start([ask], call_of(request))
    name = fields["model"]
    if fields.get("stream", True):
        return service.stream(_pieces(running, name, form), request, running, ping=None)
    return JSONAnswer(await while_connected(request, _whole(running, name, form)))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _end(running: Running) -> dict[str, Any]:
    """The reason and the counts in the last line. Durations are in nanoseconds."""
    running.end()
    (choice,) = running.choices
    result = choice.result
    return {
        "done": True,
        "done_reason": {"context": "length"}.get(choice.finish, choice.finish),
        "total_duration": round(running.call.seconds() * 1e9),
        "load_duration": 0,
        "prompt_eval_count": result.prompt_tokens,
        "prompt_eval_duration": round(result.prefill_seconds * 1e9),
        "eval_count": result.completion_tokens,
        "eval_duration": round(result.decode_seconds * 1e9),
    }


def _logprobs(running: Running) -> dict[str, Any]:
    """The log probabilities that came since the last call, in the form of chat completions."""
    (choice,) = running.choices
    found = choice.take_logprobs()
    return {"logprobs": of_chat(choice.ask.served, found)["content"]} if found else {}


async def _whole(running: Running, name: str, form: Any) -> dict[str, Any]:
    async for _ in running:
        pass
    end = _end(running)
    said = {**form(running.choices[0].reply), **_logprobs(running)}
    return {"model": name, "created_at": _now(), **said, **end}


async def _pieces(running: Running, name: str, form: Any) -> AsyncIterator[bytes]:
    async for _, chunk in running:
        shown: Sequence[Any] = [e for e in chunk.events if isinstance(e, Content | Reasoning | ToolCall)]
        if shown:
            said = {**form(collect(shown)), **_logprobs(running)}
            yield as_line({"model": name, "created_at": _now(), **said, "done": False}) + b"\n"
    end = _end(running)
    said = {**form(Reply()), **_logprobs(running)}
    yield as_line({"model": name, "created_at": _now(), **said, **end}) + b"\n"
