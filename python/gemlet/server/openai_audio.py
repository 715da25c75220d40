"""``POST /v1/audio/transcriptions`` and ``/v1/audio/translations`` write what is said in a recording."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gemlet.errors import GemletError
from gemlet.media.sounds import MOST_FILE_BYTES, decoded_bytes, read_sound
from gemlet.server.answers import JSONAnswer, while_connected
from gemlet.server.ask import Ask
from gemlet.server.call import call_of
from gemlet.server.fields import NAME
from gemlet.server.models import Served
from gemlet.server.openai_chat import usage_of
from gemlet.server.problems import Problem, problem_of
from gemlet.server.schema import Kind, Number, OneOf, Refused, Text, read
from gemlet.server.sent_media import MOST_DECODED
from gemlet.server.service import service_of
from gemlet.server.uploads import read_form

__all__ = ["transcribe", "translate"]

_RATE = 16000
_PIECE = 30 * _RATE  # samples that a model hears at a time
_MOST_PIECES = 32  # pieces of a recording
_MOST_TOKENS = 512  # the most tokens for a piece; a model that writes more repeats itself
_FIELDS: Mapping[str, Kind] = {
    "model": NAME,
    "language": Text(40, 2),
    "prompt": Text(4096),
    "response_format": OneOf("json", "text"),
    "temperature": Number(0, 2),
    "timestamp_granularities[]": Refused("gemlet does not know at what time a word was said"),
    "stream": Refused("gemlet answers with the whole text", "false"),
}


async def transcribe(request: Request) -> Response:
    return await _answer(request, translates=False)


async def translate(request: Request) -> Response:
    return await _answer(request, translates=True)


async def _answer(request: Request, *, translates: bool) -> Response:
    service, call = service_of(request), call_of(request)
    service.models.check_ready()
    service.limiter.enter(call)
    with tempfile.TemporaryDirectory(prefix="gemlet-") as folder:
        place = Path(folder) / "sound"
        most = min(MOST_FILE_BYTES, service.settings.max_body)
        form = await read_form(
            request, place, name="file", most=most, room=most, seconds=service.settings.body_seconds
        )
        data = await anyio.to_thread.run_sync(place.read_bytes, limiter=service.threads)
    given: dict[str, Any] = dict(form.fields)
    if "temperature" in given:
        given["temperature"] = _number(given["temperature"])
    fields = read(given, _FIELDS, ignore_unknown=service.settings.unknown_fields == "ignore")
    served = service.find(call, fields.get("model"))
    pieces = await anyio.to_thread.run_sync(_pieces, served, data, limiter=service.threads)
    instruction = _instruction(fields.get("language"), fields.get("prompt", ""), translates)
    most_tokens = service.reply_tokens(call, served, {}, "max_tokens", default=_MOST_TOKENS)
    options = {"temperature": fields.get("temperature", 0.0), "max_tokens": most_tokens}
    asks = [
        Ask(
            served,
            options,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": instruction},
                        {"type": "audio", "audio": (piece, _RATE)},
                    ],
                }
            ],
            seconds=service.settings.request_seconds,
            own_media=True,
        )
        for piece in pieces
    ]
    running = await service.start(asks, call)

    async def whole() -> str:
        async for _ in running:
            pass
        running.end()
        return " ".join(choice.reply.content.strip() for choice in running.choices).strip()

    text = await while_connected(request, whole())
    if fields.get("response_format") == "text":
        return PlainTextResponse(text + "\n")
    found = usage_of(running)
    usage = {
        "type": "tokens",
        "input_tokens": found["prompt_tokens"],
        "input_token_details": {
            name: found["prompt_tokens_details"][name] for name in ("text_tokens", "audio_tokens")
        },
        "output_tokens": found["completion_tokens"],
        "total_tokens": found["total_tokens"],
    }
    is_cut = any(choice.finish == "length" for choice in running.choices)
    return JSONAnswer({"text": text, "usage": usage, **({"truncated": True} if is_cut else {})})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Problem(
            400, f"temperature: got {text[:40]!r}, expected a number", param="temperature"
        ) from None


def _pieces(served: Served, data: bytes) -> list[Any]:
    """The samples of a file, in pieces that the model can hear at once. This runs in a thread."""
    model = served.model
    if model.config.audio is None:
        raise Problem(400, f"{served.name} cannot hear sound", param="model", code="unsupported")
    if decoded_bytes(data) > MOST_DECODED:
        raise Problem(
            400, f"file: a recording has at most {MOST_DECODED} bytes when it is decoded", param="file"
        )
    try:
        sound = read_sound(data, "file", most=_MOST_PIECES * _PIECE + 1)
    except GemletError as error:
        raise problem_of(error, hidden=model.source, shown=served.name) from error
    samples = sound.samples
    count = -(-len(samples) // _PIECE)
    if count > _MOST_PIECES:
        raise Problem(
            400,
            f"file: the recording has {sound.seconds:.0f} seconds, expected at most "
            f"{_MOST_PIECES * _PIECE // _RATE}; send it in parts",
            param="file",
        )
    # The pieces have equal lengths, so the last one is not very short.
    size = -(-len(samples) // count)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _instruction(language: str | None, prompt: str, translates: bool) -> str:
    spoken = f" in {language}" if language else ""
    if translates:
        task = f"Translate what is said in the following recording{spoken} into English."
    else:
        task = f"Transcribe what is said in the following recording{spoken}."
    task += " Write nothing but that, without line breaks."
    return f"{task} What may help: {prompt.strip()}" if prompt.strip() else task
