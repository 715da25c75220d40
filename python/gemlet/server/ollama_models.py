"""Models in Ollama's dialect: ``/api/tags``, ``/api/show``, ``/api/ps`` and ``/api/version``."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet import _core
from gemlet.errors import GemletError
from gemlet.model.model import Model
from gemlet.server.answers import JSONAnswer
from gemlet.server.call import call_of
from gemlet.server.fields import NAME
from gemlet.server.models import Served
from gemlet.server.ollama import find
from gemlet.server.openai_models import allowed
from gemlet.server.schema import Flag, Kind
from gemlet.server.service import fields_of, service_of

__all__ = ["SHOW", "ps", "show", "tags", "version"]

SHOW: Mapping[str, Kind] = {"model": NAME, "name": NAME, "verbose": Flag()}
_NEVER = "9999-12-31T23:59:59Z"


def _details(served: Served) -> dict[str, Any]:
    family = served.model.config.family
    return {
        "parent_model": served.parent or "",
        "format": "gemlet",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": served.model.weights,
    }


def _entry(served: Served) -> dict[str, Any]:
    memory = served.model.memory()
    return {
        "name": served.name,
        "model": served.name,
        "size": memory["weights"] + memory["embedding"],
        "digest": hashlib.sha256(served.name.encode()).hexdigest(),
        "details": _details(served),
    }


async def tags(request: Request) -> Response:
    found = [{**_entry(served), "modified_at": _time(served.created)} for served in allowed(request)]
    return JSONAnswer({"models": found})


async def ps(request: Request) -> Response:
    found = [
        {
            **_entry(served),
            "expires_at": _NEVER,
            "size_vram": 0,
            "context_length": served.model.context_length,
        }
        for served in allowed(request)
    ]
    return JSONAnswer({"models": found})


async def show(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = find(service, request, fields.get("model") or fields.get("name") or "")
    call.settle()
    model, config = served.model, served.model.config
    family = config.family
    return JSONAnswer(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(served),
            "model_info": {
                "general.architecture": family,
                f"{family}.context_length": model.context_length,
                f"{family}.embedding_length": config.hidden_size,
                f"{family}.block_count": len(config.layers),
            },
            "capabilities": _capabilities(model),
            "modified_at": _time(served.created),
        }
    )


def _capabilities(model: Model) -> list[str]:
    """The abilities of the model, in Ollama's words. Clients read them to decide what they send."""
    if model.prompts:
        return ["embedding"]
    senses = {"vision": model.config.vision, "audio": model.config.audio}
    found = ["completion", *(name for name, tower in senses.items() if tower is not None)]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked: Mapping[str, Any] = {"tools": {"tools": [tool]}, "thinking": {"thinking": True}}
    for name, options in asked.items():
        with contextlib.suppress(GemletError):
            if model.chat_format is not None:
                model.chat_format.render([{"role": "user", "content": "x"}], **options)
                found.append(name)
    return found


async def version(request: Request) -> Response:
    return JSONAnswer({"version": _core.__version__})


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
