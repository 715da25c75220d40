"""Many texts continued at once, by the core's engine: :func:`generate_all`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.progress import Progress, reporting
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError
from gemlet.generation.answer import Prepared, Timing
from gemlet.generation.result import FinishReason, Generation
from gemlet.model.resident import Resident

__all__ = ["ManyPrompts", "Prompt", "generate_all", "prompts_of", "seeds_of"]

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]
ManyPrompts = list[str] | list[list[int]] | list[NDArray[np.integer[Any]]]
_KINDS = (str, list, tuple, np.ndarray)


def prompts_of(prompt: object) -> list[object] | None:
    """The prompts where it is a list of them, texts or lists of token ids; None where it is a single one.

    >>> prompts_of(["The door", [2, 5]]), prompts_of([2, 5]), prompts_of("The door")
    (['The door', [2, 5]], None, None)
    """
    if not isinstance(prompt, (list, tuple)) or not any(isinstance(one, _KINDS) for one in prompt):
        return None
    for index, one in enumerate(prompt):
        if not isinstance(one, _KINDS):
            raise InvalidRequestError(
                f"prompt[{index}]: got {show_argument(one)}, expected a text or a list of token ids"
            )
    return list(prompt)


def seeds_of(seed: object, count: int) -> list[Any]:
    """A seed for each of ``count`` prompts: one for all, or a list of them."""
    if not isinstance(seed, (list, tuple)):
        return [seed] * count
    if len(seed) != count:
        raise InvalidRequestError(
            f"seed: got {len(seed)} of them, expected one, or {count} as for the prompts"
        )
    return list(seed)


class _Running:
    """One of the texts: reads its tokens from the engine as they come."""

    def __init__(self, prepared: Prepared, engine: _core.Engine, news: _core.News) -> None:
        self.answer = prepared.answer
        self.result: Generation | None = None
        self._began = time.perf_counter()
        self._first: float | None = None  # when the first token came
        self._request = engine.submit(
            prepared.ids,
            sampler=prepared.sampler,
            news=news,
            max_tokens=prepared.answer.config.max_tokens,
            end_ids=sorted(prepared.answer.end_ids),
            adapter=prepared.adapter,
            # Nobody reads slowly here: all texts are read in turn, as soon as there is news.
            most_unread=max(16, prepared.answer.config.max_tokens),
        )

    def read(self) -> None:
        """Takes the tokens that are there; sets ``result`` with the last one."""
        ids, core_reason = self._request.take()
        if ids and self._first is None:
            self._first = time.perf_counter()
        reason = cast("FinishReason | None", core_reason)
        self.answer.ended = reason == "stop"
        for token_id in ids:
            _, ending = self.answer.push(token_id)
            if ending is not None:
                reason, self.answer.ended = ending, False
                break
        if reason is None:
            return
        self.cancel()
        now = time.perf_counter()
        first = now if self._first is None else self._first
        steps = max(0, len(self.answer.token_ids) - 1)
        timing = Timing(first - self._began, now - first, steps, self._request.cached_tokens)
        _, self.result = self.answer.end(reason, timing)

    def cancel(self) -> None:
        self._request.cancel()


def generate_all(resident: Resident, prepared: Sequence[Prepared], progress: Progress) -> list[Generation]:
    """The continuation of each, in their order. What a signal handler raises ends all of them."""
    engine, news = resident.engine(), _core.News()
    running: list[_Running] = []
    try:
        for one in prepared:
            running.append(_Running(one, engine, news))
        with reporting(progress, "generating", len(running), "texts") as advance:
            waiting = running
            while waiting:
                seen = news.value
                for text in waiting:
                    text.read()
                left = [text for text in waiting if text.result is None]
                if len(left) < len(waiting):
                    advance(len(waiting) - len(left))
                else:
                    engine.wait(news, seen)
                waiting = left
    finally:
        for text in running:
            text.cancel()
    return [text.result for text in running if text.result is not None]
