"""The numbers that say how tokens are chosen, in one table: :data:`OPTIONS`.

:class:`gemlet.GenerationConfig`, the command line, ``generation_config.json`` and the keys of GGUF are made
of it. What is no number (seed, stop strings, suppressed tokens) stands in :mod:`gemlet.generation.options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_INT", "MAX_SUPPRESSED", "OPTIONS", "Number"]

MAX_INT = 2**31 - 1
MAX_SUPPRESSED = 1 << 16  # token ids in a list of those that are never generated


@dataclass(frozen=True)
class Number:
    """One option that is a number.

    Attributes:
        default: what Google publishes for Gemma 3, or no effect.
        low, high: the range, both ends included.
        meaning: the range in words, for messages.
        metavar, help: for the command line.
        gguf: the name in ``general.sampling.*``; None where GGUF has none.
        in_files: whether a model's files may recommend a value.
    """

    default: int | float
    low: int | float
    high: int | float
    meaning: str
    metavar: str
    help: str
    gguf: str | None = None
    in_files: bool = True

    @property
    def kind(self) -> type[Any]:
        """``int`` or ``float``."""
        return type(self.default)


OPTIONS = {
    "max_tokens": Number(
        256, 1, MAX_INT, f"an integer from 1 to {MAX_INT}", "N", "most tokens to write", in_files=False
    ),
    "temperature": Number(
        1.0, 0.0, 100.0, "a number from 0 (greedy) to 100", "T", "0 is greedy (default: the model's)", "temp"
    ),
    "top_p": Number(
        0.95,
        0.0,
        1.0,
        "a number from 0 (greedy) to 1 (keep all)",
        "P",
        "nucleus; 1 keeps all (default: the model's)",
        "top_p",
    ),
    "top_k": Number(
        64,
        -1,
        MAX_INT,
        f"an integer from 0 (keep all; -1 too) to {MAX_INT}",
        "K",
        "keep the K likeliest; 0 keeps all (default: the model's)",
        "top_k",
    ),
    "min_p": Number(
        0.0,
        0.0,
        1 - 2**-53,  # the largest double below 1
        "a number from 0 (keep all) to below 1",
        "P",
        "drop what is rarer than P times the likeliest",
        "min_p",
    ),
    "repetition_penalty": Number(
        1.0,
        0.01,
        100.0,
        "a number from 0.01 to 100 (1 is none)",
        "R",
        "above 1 repeats less (default 1)",
        "penalty_repeat",
    ),
}
