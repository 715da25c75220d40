"""The core's model in memory, and its engine: :class:`Resident`."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from gemlet import _core
from gemlet.errors import ModelClosedError, UnsupportedError
from gemlet.generation.stream import TextStream
from gemlet.model.prefix_cache import PrefixCacheOptions

__all__ = ["Resident"]

_BYTES = ("weights", "embedding", "adapters", "kv_cache", "prefix_cache")  # keys of Model.memory()
_MOST_RUNNING = 32  # the most requests that advance together


class Resident:
    """The core's model and the streams that use it.

    The formats and sizes of the model can be read after :meth:`close`, too.

    Attributes:
        core: the model in the core.
        name: the file, folder or name that the model was loaded from, for people to read.
        prefix_cache: the options of the prefix cache.
        drafter: the draft model in the core; None if there is no draft model.
        lock: whoever begins a stream or adds an adapter holds this lock and first calls :meth:`check_open`.
            :meth:`close` takes the lock, too, so nothing begins after it.
    """

    def __init__(
        self,
        core: _core.Model,
        name: str,
        spare_memory: int | None,
        *,
        writes: bool,
        prefix_cache: PrefixCacheOptions | None = None,
        drafter: _core.Model | None = None,
        draft_tokens: int | None = None,
    ) -> None:
        self.core = core
        self.name = name
        self.weights = core.weights
        self.threads = core.threads
        self.decode_threads = core.decode_threads
        self.kv_cache = core.kv_cache
        self.tier = core.tier
        self.context_length = core.config.max_context
        self.vocab_size = core.config.vocab_size
        self.lock = _core.Turn()
        self.prefix_cache = prefix_cache or PrefixCacheOptions()
        self._spare_memory = spare_memory
        self._writes = writes
        self.drafter = drafter
        self._draft_tokens = draft_tokens or _core.MAX_DRAFT_TOKENS
        self._engine: _core.Engine | None = None
        self._closed = False
        self._draining = False
        self._streams: weakref.WeakSet[TextStream] = weakref.WeakSet()

    def __repr__(self) -> str:
        state = (
            "closed" if self._closed else f"weights={self.weights} threads={self.threads} tier={self.tier}"
        )
        return f"{self.name!r} {state}"

    def check_open(self) -> None:
        """Raises :class:`ModelClosedError` if the model is closed or is being closed."""
        if self._closed:
            raise ModelClosedError(f"the model from {self.name} is closed; load it again")
        if self._draining:
            raise ModelClosedError(f"the model from {self.name} is being closed; load it again")

    def why_closed(self) -> str | None:
        """The error message for a stream that :meth:`close` ended; None while the model is open."""
        if not self._closed:
            return None
        return (
            f"the model from {self.name} was closed before the end of this stream; read the stream first, "
            'inside the "with" block of the model'
        )

    def check_writes(self, what: str) -> None:
        """Raises :class:`UnsupportedError` if the model makes embeddings, and :class:`ModelClosedError` if it
        is closed. ``what`` is the method that was called, for errors."""
        self.check_open()
        if not self._writes:
            raise UnsupportedError(f"{what}: {self.name} makes embeddings and writes no text; use embed()")

    def begin(self, stream: Callable[[], TextStream]) -> TextStream:
        """Calls ``stream`` to make a stream, and registers it, so that :meth:`close` ends it."""
        with self.lock:
            self.check_open()
            begun = stream()
            self._streams.add(begun)
        return begun

    def engine(self) -> _core.Engine:
        """The engine that computes all requests. Its keys and values get half of the memory that is left."""
        with self.lock:
            self.check_open()
            if self._engine is None:
                spare = _core.available_memory() if self._spare_memory is None else self._spare_memory
                room = spare // 2
                logits = 4 * self.vocab_size  # the bytes of one row of logits; each running request has a row
                most = max(1, min(_MOST_RUNNING, room // (4 * logits)))
                room = max(0, room - most * logits)
                guessed = self._of_drafter(room)
                shared = self.prefix_cache.for_engine(room - guessed.get("drafter_kv_bytes", 0)) | guessed
                # Each draft token also needs a row of logits, so their number is limited like the requests.
                self._engine = _core.Engine(self.core, most_running=most, most_drafted=most - 1, **shared)
        return self._engine

    def _of_drafter(self, room: int) -> dict[str, Any]:
        """The engine's arguments for a draft model. ``room`` bytes are shared between the keys and values of
        the two models, in proportion to the bytes of one token."""
        if self.drafter is None:
            return {}
        sizes = [core.memory() for core in (self.drafter, self.core)]
        own, ours = (one["kv_cache_per_token"] + one["kv_cache_per_window_token"] for one in sizes)
        share = room * own // max(1, own + ours)
        return {
            "drafter": self.drafter,
            "draft_tokens": self._draft_tokens,
            "drafter_kv_bytes": share,
            "drafter_cache_bytes": 0 if self.prefix_cache.memory == 0 else share // 4,
        }

    def memory(self) -> dict[str, int]:
        """The result of :meth:`gemlet.Model.memory`."""
        found = self.core.memory()
        if self.drafter is not None:
            own = self.drafter.memory()
            found["drafter"] = sum(own[name] for name in _BYTES)
        return found

    def drain(self, timeout: float) -> None:
        """Refuses new requests, and waits up to ``timeout`` seconds until the running requests have ended."""
        with self.lock:
            self._draining = True
            engine = self._engine
        until = time.monotonic() + timeout
        while engine is not None and time.monotonic() < until:
            stats = engine.stats()
            if not stats["running"] and not stats["waiting"]:
                return
            time.sleep(0.01)

    def close(self) -> None:
        """Ends the streams, then frees the memory. A signal handler or a forked process may call this
        method."""
        with self.lock:
            self._closed = True
            streams = list(self._streams)
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        for stream in streams:
            stream.close()
        if self.drafter is not None:
            self.drafter.close()
        self.core.close()
