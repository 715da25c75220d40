"""The ASGI application: its routes, and what starts and ends together with it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from gemlet.errors import GemletError
from gemlet.model.model import Model
from gemlet.server import (
    anthropic_messages,
    ollama,
    ollama_models,
    openai_audio,
    openai_batches,
    openai_chat,
    openai_completions,
    openai_decisions,
    openai_embeddings,
    openai_files,
    openai_models,
    openai_responses,
    operations,
    page,
)
from gemlet.server.answers import JSONAnswer
from gemlet.server.batches import Batches
from gemlet.server.bodies import Bodies
from gemlet.server.call import call_of
from gemlet.server.content_filter import ContentFilter, Filter
from gemlet.server.file_store import FileStore
from gemlet.server.guard import Guard
from gemlet.server.kept_responses import KeptResponses
from gemlet.server.keys import KeyStore
from gemlet.server.limits import Limiter
from gemlet.server.metrics import Metrics
from gemlet.server.models import Models
from gemlet.server.openapi import document
from gemlet.server.schema import Kind
from gemlet.server.service import FIELDS, Service, service_of
from gemlet.server.settings import ModelSpec, Settings
from gemlet.server.status import status
from gemlet.server.tracing import Tracing

__all__ = ["ROUTES", "make_app"]

_log = logging.getLogger("gemlet.server")
_THREADS = 2
_PARTING = 5.0  # seconds that the last traces may take to be sent
_WATCH = 1.0  # seconds between two looks for revoked keys
_SWEEP = 60.0  # seconds between two looks for expired files
_BREATH = 0.01  # seconds in which others may work between removing some expired files and the next
_PATIENCE = 0.1  # seconds for which the event loop waits for another process that writes keys

Endpoint = Callable[[Request], Awaitable[Response]]


class Way(NamedTuple):
    """A route: its method and path, the function that answers, the right that a key needs ("any": every key
    will do; None: no key is needed), and the fields of the body."""

    method: str
    path: str
    endpoint: Endpoint
    right: str | None = "use"
    table: Mapping[str, Kind] | None = None
    required: Sequence[str] = ()


# The guard refuses requests without a key, except for the routes whose right is None.
ROUTES: Sequence[Way] = (
    Way("POST", "/v1/chat/completions", openai_chat.chat, "use", openai_chat.CHAT, ["messages"]),
    Way(
        *("POST", "/v1/completions", openai_completions.completions, "use"),
        *(openai_completions.COMPLETIONS, ["prompt"]),
    ),
    Way(
        "POST", "/v1/embeddings", openai_embeddings.embeddings, "use", openai_embeddings.EMBEDDINGS, ["input"]
    ),
    Way(
        *("POST", "/v1/decisions", openai_decisions.decide, "use"),
        *(openai_decisions.DECISIONS, ["input", "questions"]),
    ),
    Way("POST", "/v1/audio/transcriptions", openai_audio.transcribe),
    Way("POST", "/v1/audio/translations", openai_audio.translate),
    Way("POST", "/v1/responses", openai_responses.respond, "use", openai_responses.RESPONSES, ["input"]),
    Way("GET", "/v1/responses/{name}", openai_responses.response),
    Way("DELETE", "/v1/responses/{name}", openai_responses.delete),
    Way("POST", "/v1/files", openai_files.upload),
    Way("GET", "/v1/files", openai_files.files),
    Way("GET", "/v1/files/{name}", openai_files.file),
    Way("DELETE", "/v1/files/{name}", openai_files.delete),
    Way("GET", "/v1/files/{name}/content", openai_files.content),
    Way(
        *("POST", "/v1/batches", openai_batches.create, "use", openai_batches.CREATE),
        ["input_file_id", "endpoint", "completion_window"],
    ),
    Way("GET", "/v1/batches", openai_batches.batches),
    Way("GET", "/v1/batches/{name}", openai_batches.batch),
    Way("POST", "/v1/batches/{name}/cancel", openai_batches.cancel),
    Way("GET", "/v1/models", openai_models.models),
    Way("GET", "/v1/models/{name:path}", openai_models.model),
    Way(
        *("POST", "/v1/messages", anthropic_messages.messages, "use"),
        *(anthropic_messages.MESSAGES, ["model", "messages", "max_tokens"]),
    ),
    Way(
        *("POST", "/v1/messages/count_tokens", anthropic_messages.count_tokens, "use"),
        *(anthropic_messages.COUNT, ["model", "messages"]),
    ),
    Way("POST", "/api/chat", ollama.chat, "use", ollama.CHAT, ["model", "messages"]),
    Way("POST", "/api/generate", ollama.generate, "use", ollama.GENERATE, ["model"]),
    Way("POST", "/api/embed", ollama.embeddings, "use", ollama.EMBED, ["model", "input"]),
    Way(
        *("POST", "/api/embeddings", ollama.embedding, "use"),
        *(ollama.OLDER_EMBED, ["model", "prompt"]),
    ),
    Way("POST", "/api/show", ollama_models.show, "use", ollama_models.SHOW),
    Way("GET", "/api/tags", ollama_models.tags),
    Way("GET", "/api/ps", ollama_models.ps),
    Way("GET", "/api/version", ollama_models.version),
    Way("POST", "/tokenize", operations.tokenize, "use", operations.TOKENIZE),
    Way("POST", "/detokenize", operations.detokenize, "use", operations.DETOKENIZE, ["tokens"]),
    Way("GET", "/v1/usage", operations.usage),
    Way("GET", "/version", operations.version),
    Way("GET", "/ping", operations.ping),
    Way("GET", "/load", operations.load),
    Way("GET", "/openapi.json", lambda _: _openapi()),
    Way("GET", "/health", operations.health, None),
    Way("GET", "/ready", operations.ready, None),
    Way("GET", "/metrics", operations.metrics, "metrics"),
    Way("GET", "/status", status, "any"),
    *(Way("GET", path, page.file(path), None) for path in page.FILES),
)


async def _openapi() -> Response:
    return JSONAnswer(document([(way.method, way.path, way.table, way.required) for way in ROUTES]))


def _route(way: Way) -> Route:
    async def answer(request: Request) -> Response:
        call = call_of(request)
        call.route = way.path
        if call.key is not None and way.right not in (None, "any"):
            call.key.check_right(way.right)
        if way.table is not None:
            service = service_of(request)
            request.scope[FIELDS] = await service.read(request, way.table, way.required)
        return await way.endpoint(request)

    return Route(way.path, answer, methods=[way.method])


def make_app(
    settings: Settings,
    specs: Sequence[ModelSpec],
    on_failure: Callable[[BaseException], None] = lambda _: None,
    filters: Sequence[Filter] = (),
    tracing: Tracing | None = None,
) -> Guard:
    """Makes the application. Its lifespan opens the file of keys, and loads the models beside the event loop.

    Args:
        on_failure: is called with the error when a model cannot be loaded.
        filters: hooks before and after replies, besides the filters of the settings.
        tracing: gets the spans, whatever the settings say about traces.

    Raises:
        GemletError: the content filter cannot be made, or an extra is not installed.
    """
    models = Models(specs, settings.filter_model)
    metrics = Metrics(lambda: _gauges(models), models.adapters, models.caches, vllm=settings.vllm_metrics)
    limiter = Limiter(settings.max_requests)
    shield = None if settings.filter_model is None else models.shield
    filter = ContentFilter(settings, shield, filters, metrics.count_verdict)
    if settings.otel and tracing is None:
        tracing = Tracing()

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        store = None
        try:
            store = None if settings.keys is None else KeyStore(settings.keys, patience=_PATIENCE)
            files = None if settings.data is None else FileStore(settings.data)
        except GemletError as error:
            if store is not None:
                store.close()
            on_failure(error)
            raise
        # The thread reads the models while the limiter below makes anyio import its modules.
        loaded = asyncio.get_running_loop().run_in_executor(None, models.load)
        limiter.store = guard.keys = store
        batches = None if files is None else Batches(files, guard, store, settings.batch_concurrent)
        guard.service = Service(
            settings,
            models,
            Bodies(settings.max_body, settings.max_bodies, settings.body_seconds),
            limiter,
            metrics,
            KeptResponses(settings.max_kept),
            anyio.CapacityLimiter(_THREADS),
            filter,
            batches,
        )
        loading = asyncio.create_task(_wait(loaded, models, batches, on_failure))
        watching = [] if store is None else [asyncio.create_task(_watch_keys(limiter, batches))]
        watching += [] if files is None else [asyncio.create_task(_watch_files(files))]
        try:
            yield
        finally:
            for watch in watching:
                watch.cancel()
            await asyncio.wait([loading])
            if batches is not None:
                await batches.stop()
                batches.store.close()
            await anyio.to_thread.run_sync(models.close)
            if store is not None:
                store.close()
            if tracing is not None:
                with anyio.move_on_after(_PARTING):
                    await anyio.to_thread.run_sync(tracing.close, abandon_on_cancel=True)

    # The router runs without a Starlette application around it: the guard turns errors into answers.
    router = Router([_route(way) for way in ROUTES], redirect_slashes=False, lifespan=lifespan)
    guard = Guard(
        router,
        metrics,
        tracing,
        asks_for_keys=settings.keys is not None,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
    )
    return guard


async def _wait(
    loaded: Awaitable[None],
    models: Models,
    batches: Batches | None,
    on_failure: Callable[[BaseException], None],
) -> None:
    """Waits until the models are loaded, and writes it to the log."""
    try:
        await loaded
    except Exception as error:
        told = {"error": type(error).__name__}
        if isinstance(error, GemletError | OSError):  # the message is about files, not about a prompt
            told["message"] = str(error)
        _log.error("loading failed", extra={"fields": told})
        on_failure(error)
        return
    if batches is not None:
        batches.resume()
    _log.info("ready", extra={"fields": {"models": [served.name for served in models]}})


async def _watch_keys(limiter: Limiter, batches: Batches | None) -> None:
    while True:
        await asyncio.sleep(_WATCH)
        with suppress(sqlite3.Error):  # another process is writing; the next look comes soon
            limiter.end_revoked()
            if batches is not None:
                batches.end_revoked()


async def _watch_files(files: FileStore) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        with suppress(sqlite3.Error, OSError):  # it tries again at the next look
            while files.remove_expired():
                await asyncio.sleep(_BREATH)


def _gauges(models: Models) -> Mapping[str, Mapping[str, float]]:
    return {alias: _engine_gauges(model) for alias, model in models.loaded} if models.is_ready else {}


def _engine_gauges(model: Model) -> Mapping[str, float]:
    """The present values and the counts (``..._total``), under their names in the metrics."""
    memory, stats = model.memory(), model.stats()
    return {
        **{
            f"memory_{name}_bytes": memory[name]
            for name in ("weights", "kv_cache", "prefix_cache", "adapters")
        },
        **{name: stats[key] for name, key in _FROM_STATS.items()},
        "kv_cache_usage_perc": _kv_usage(stats),
    }


def _kv_usage(stats: Mapping[str, float]) -> float:
    """The part (0 to 1) of the memory for keys and values that running texts take. The prefix cache counts as
    free."""
    used = max(0, stats["kv_bytes"] - stats["prefix_cache_bytes"])
    return used / max(1, stats["kv_bytes"] + max(0, stats["kv_room_bytes"]))


_FROM_STATS = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "num_preemptions_total": "preemptions",
    "spec_decode_num_drafts_total": "drafts",
    "spec_decode_num_draft_tokens_total": "drafted_tokens",
    "spec_decode_num_accepted_tokens_total": "accepted_tokens",
    "steps_total": "steps",
    "step_seconds_total": "step_seconds",
}
