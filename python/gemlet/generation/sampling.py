"""The core's sampler for a generation."""

from __future__ import annotations

import os

from gemlet import _core
from gemlet.generation.options import GenerationConfig

__all__ = ["make_sampler"]


def make_sampler(config: GenerationConfig, *, vocab_limit: int) -> tuple[_core.Sampler, int]:
    """The sampler and its seed, a new one where ``config`` has none. Ids from ``vocab_limit`` on are never
    sampled; 0: no limit."""
    # 32 bits are enough to tell runs apart, and short enough to type again.
    seed = int.from_bytes(os.urandom(4), "little") if config.seed is None else config.seed
    sampler = _core.Sampler(
        temperature=0.0 if config.greedy else config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=seed,
        vocab_limit=vocab_limit,
    )
    return sampler, seed
