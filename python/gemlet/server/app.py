"""The ASGI application: its routes, and what begins and ends with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from gemlet.errors import GemletError
from gemlet.server import (
    anthropic_messages,
    ollama,
    ollama_models,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    operations,
)
from gemlet.server.bodies import Bodies
from gemlet.server.call import call_of
from gemlet.server.guard import Guard
from gemlet.server.keys import KeyStore
from gemlet.server.limits import Limiter
from gemlet.server.metrics import Metrics
from gemlet.server.models import Models
from gemlet.server.service import Service
from gemlet.server.settings import ModelSpec, Settings

__all__ = ["ROUTES", "make_app"]

_log = logging.getLogger("gemlet.server")
_THREADS = 2
_PATIENCE = 0.1  # seconds in which the event loop waits for another process that writes keys

Endpoint = Callable[[Request], Awaitable[Response]]

# Method, path, what answers, and the right that a key needs. The guard lets nobody else in.
ROUTES: Sequence[tuple[str, str, Endpoint, str | None]] = (
    ("POST", "/v1/chat/completions", openai_chat.chat, "use"),
    ("POST", "/v1/completions", openai_completions.completions, "use"),
    ("POST", "/v1/embeddings", openai_embeddings.embeddings, "use"),
    ("GET", "/v1/models", openai_models.models, "use"),
    ("GET", "/v1/models/{name:path}", openai_models.model, "use"),
    ("POST", "/v1/messages", anthropic_messages.messages, "use"),
    ("POST", "/v1/messages/count_tokens", anthropic_messages.count_tokens, "use"),
    ("POST", "/api/chat", ollama.chat, "use"),
    ("POST", "/api/generate", ollama.generate, "use"),
    ("POST", "/api/embed", ollama.embeddings, "use"),
    ("GET", "/api/tags", ollama_models.tags, "use"),
    ("GET", "/api/ps", ollama_models.ps, "use"),
    ("POST", "/api/show", ollama_models.show, "use"),
    ("GET", "/api/version", ollama_models.version, "use"),
    ("GET", "/v1/usage", operations.usage, "use"),
    ("POST", "/tokenize", operations.tokenize, "use"),
    ("POST", "/detokenize", operations.detokenize, "use"),
    ("GET", "/health", operations.health, None),
    ("GET", "/ready", operations.ready, None),
    ("GET", "/version", operations.version, "use"),
    ("GET", "/metrics", operations.metrics, "metrics"),
)


def _route(method: str, path: str, endpoint: Endpoint, right: str | None) -> Route:
    async def answer(request: Request) -> Response:
        call = call_of(request)
        call.route = path
        if call.key is not None and right is not None:
            call.key.check_right(right)
        return await endpoint(request)

    return Route(path, answer, methods=[method])


def make_app(
    settings: Settings,
    specs: Sequence[ModelSpec],
    on_failure: Callable[[BaseException], None] = lambda _: None,
) -> Guard:
    """The application. Its lifespan opens the file of keys, and loads the models beside the event loop.

    Args:
        on_failure: is told when a model cannot be loaded.
    """
    models = Models(specs)
    metrics = Metrics(lambda: _gauges(models), vllm=settings.vllm_metrics)
    limiter = Limiter(settings.max_requests)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        store = None if settings.keys is None else KeyStore(settings.keys, patience=_PATIENCE)
        limiter.store = guard.keys = store
        guard.service = Service(
            settings,
            models,
            Bodies(settings.max_body, settings.max_bodies, settings.body_seconds),
            limiter,
            metrics,
            anyio.CapacityLimiter(_THREADS),
        )
        loading = asyncio.create_task(_load(models, on_failure))
        try:
            yield
        finally:
            await asyncio.wait([loading])
            await anyio.to_thread.run_sync(models.close)
            if store is not None:
                store.close()

    # Without Starlette around the router: the guard turns errors into answers.
    router = Router([_route(*route) for route in ROUTES], redirect_slashes=False, lifespan=lifespan)
    guard = Guard(
        router,
        metrics,
        asks_for_keys=settings.keys is not None,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
    )
    return guard


async def _load(models: Models, on_failure: Callable[[BaseException], None]) -> None:
    try:
        await anyio.to_thread.run_sync(models.load)
    except Exception as error:
        told = {"error": type(error).__name__}
        if isinstance(error, GemletError | OSError):  # about files, and nobody's prompt
            told["message"] = str(error)
        _log.error("loading failed", extra={"fields": told})
        on_failure(error)
        return
    _log.info("ready", extra={"fields": {"models": [served.name for served in models]}})


def _gauges(models: Models) -> Mapping[str, Mapping[str, float]]:
    return {alias: _engine_gauges(model) for alias, model in models.loaded} if models.is_ready else {}


def _engine_gauges(model: Any) -> Mapping[str, float]:
    memory = model.memory()
    return {f"memory_{name}_bytes": float(memory[name]) for name in ("weights", "kv_cache", "adapters")}
