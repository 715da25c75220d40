"""``GET /v1/models`` and ``GET /v1/models/{id}``, which Anthropic's clients ask for, too."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet.server.answers import JSONAnswer
from gemlet.server.call import call_of
from gemlet.server.models import Served
from gemlet.server.openai_files import page
from gemlet.server.service import service_of

__all__ = ["allowed", "model", "models"]


def _shown(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "gemlet",
        "parent": served.parent,
        "max_model_len": served.model.context_length,
        # Anthropic's.
        "type": "model",
        "display_name": served.name,
        "created_at": datetime.fromtimestamp(served.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": served.model.context_length,
    }


def allowed(request: Request) -> list[Served]:
    """The models that the key of the request may use."""
    service, key = service_of(request), call_of(request).key
    service.models.check_ready()
    return [served for served in service.models if key is None or not key.models or served.name in key.models]


async def models(request: Request) -> Response:
    shown = [_shown(served) for served in allowed(request)]
    return JSONAnswer(page(shown, has_more=False))


async def model(request: Request) -> Response:
    return JSONAnswer(_shown(service_of(request).find(call_of(request), request.path_params["name"])))
