"""Offline batches with Ray Data: :class:`Answers` for ``Dataset.map_batches``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from gemlet.server.batch import started
from gemlet.server.batch_lines import ENDPOINTS, WrongLineError, answer_line, read_request
from gemlet.server.inside import answer
from gemlet.server.settings import ModelSpec, Settings, default_alias

__all__ = ["Answers"]


class Answers:
    """A Ray actor that loads models and answers requests. Each request is a line in the input format of
    ``gemlet batch``.

    The column "text" has the requests, as ``ray.data.read_text`` gives them. The answers are in the column
    "answer". If a line is not a request, its answer has an ``error`` instead of a ``response``.

    Args:
        specs: the models; None for the demo model.
        settings: the server settings; None for the defaults.
        concurrent: the most requests that run at the same time.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec] | None = None,
        settings: Settings | None = None,
        concurrent: int = 32,
    ) -> None:
        self._concurrent = concurrent
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._life = AsyncExitStack()  # keeps the application running
        entering = self._life.enter_async_context(
            started(settings or Settings(), specs or [ModelSpec(default_alias(None))])
        )
        self._app = asyncio.run_coroutine_threadsafe(entering, self._loop).result()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        lines = [str(line) for line in batch["text"]]
        answers = asyncio.run_coroutine_threadsafe(self._answer(lines), self._loop).result()
        return {**batch, "answer": np.array(answers, dtype=object)}

    async def _answer(self, lines: Sequence[str]) -> list[str]:
        free = asyncio.Semaphore(self._concurrent)

        async def one(line: str) -> str:
            try:
                request = read_request(line.encode(), "the requests", 0, ENDPOINTS)
            except WrongLineError as error:
                said = {"code": "invalid_line", "message": error.problem}
                return answer_line("", error=said).decode().rstrip("\n")
            async with free:
                found, _ = await answer(self._app, request)
            return found.decode().rstrip("\n")

        return list(await asyncio.gather(*map(one, lines)))
