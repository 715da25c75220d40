"""``GET /status``: the present state of the server, for the page and for ``gemlet top``."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet import _core
from gemlet.base.sizes import resident_bytes
from gemlet.chat.gemma4 import Gemma4Format
from gemlet.server.answers import JSONAnswer
from gemlet.server.call import call_of
from gemlet.server.models import Served
from gemlet.server.openai_models import allowed
from gemlet.server.service import Service, service_of

__all__ = ["status"]


async def status(request: Request) -> Response:
    """The state of the server. Every key sees the models that it may use, their memory, and how many requests
    run. Only a key with the right "metrics" sees the totals of all requests and the usage of all keys. If the
    server has no keys, everybody sees the totals."""
    service, key = service_of(request), call_of(request).key
    sees_all = key is None or "metrics" in key.rights
    is_ready = service.models.is_ready
    shown: dict[str, Any] = {
        "version": _core.__version__,
        "ready": is_ready,
        "uptime_seconds": round(time.monotonic() - service.started, 3),
        "requests": {"running": service.limiter.running, "most": service.limiter.most},
        "memory_bytes": resident_bytes(),
        "models": [
            _model(service, served, sees_all=sees_all) for served in (allowed(request) if is_ready else ())
        ],
    }
    if key is not None and service.limiter.store is not None:
        shown["usage"] = service.limiter.store.usage(None if sees_all else key.id, days=1)
    return JSONAnswer(shown)


def _model(service: Service, served: Served, *, sees_all: bool) -> dict[str, Any]:
    model = served.model
    shown: dict[str, Any] = {
        "id": served.name,
        "parent": served.parent,
        "family": model.config.family,
        "weights": model.weights,
        "context_length": model.context_length,
        "chats": model.chat_format is not None and model.tokenizer is not None and not model.prompts,
        "thinks": isinstance(model.chat_format, Gemma4Format),
        "sees": model.config.vision is not None,
        "hears": model.config.audio is not None,
    }
    if sees_all:
        shown["first_token_seconds"] = service.metrics.first_tokens(served.name)
    if served.adapter is not None:
        return shown  # the rest is the same as for its model
    stats, memory = model.stats(), model.memory()
    shown["requests"] = {name: stats[name] for name in ("running", "waiting")}
    shown["memory"] = {
        name: memory[name] for name in ("weights", "embedding", "adapters", "kv_cache", "prefix_cache")
    }
    if sees_all:
        shown["engine"] = dict(stats)
    return shown
