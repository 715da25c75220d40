"""The core's sampler for a generation."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from gemlet import _core
from gemlet.base.text import asked_for
from gemlet.generation.options import GenerationConfig

__all__ = ["make_sampler", "warn_of_not_followed"]

_log = logging.getLogger("gemlet")


def make_sampler(
    config: GenerationConfig, *, vocab_limit: int, never: Sequence[int] = ()
) -> tuple[_core.Sampler, int]:
    """The sampler and its seed, a new one where ``config`` has none. Ids from ``vocab_limit`` on are never
    sampled (0: no limit), and those in ``never`` neither."""
    # 32 bits are enough to tell runs apart, and short enough to type again.
    seed = int.from_bytes(os.urandom(4), "little") if config.seed is None else config.seed
    sampler = _core.Sampler(
        temperature=0.0 if config.greedy else config.temperature,
        top_k=config.top_k,
        top_p=1.0 if config.greedy else config.top_p,  # 0 means greedy
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=seed,
        vocab_limit=vocab_limit,
        suppressed=sorted({*config.suppress_tokens, *never}),
    )
    return sampler, seed


def warn_of_not_followed(source: str, values: dict[str, object]) -> None:
    """Says in the log which keys of a model's ``generation_config.json`` gemlet does not follow, and empties
    ``values``: it is said once."""
    if not values:
        return
    asked = asked_for(values)
    values.clear()
    _log.warning(
        "%s: generation_config.json asks for %s, which gemlet does not do; the text may differ from the "
        "reference's",
        source,
        asked,
    )
