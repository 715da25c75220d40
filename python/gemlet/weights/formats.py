"""The formats of weights in memory, and the presets that name them."""

from __future__ import annotations

from typing import NamedTuple

from gemlet import _core
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError

__all__ = ["PRESETS"]


class Formats(NamedTuple):
    """Formats in memory."""

    matrices: str
    embedding: str
    kv_cache: str


# The embedding is also the output matrix and loses more to four bits than the others do, so "q4" keeps it at
# eight.
PRESETS = {
    "f32": Formats("f32", "f32", "f32"),
    "bf16": Formats("bf16", "bf16", "bf16"),
    "bf12": Formats("bf12", "bf12", "bf16"),
    "q8": Formats("q8", "q8", "bf16"),
    "q4": Formats("q4", "q8", "bf16"),
}
KV_CACHES = ("f32", "bf16", "int8")
# Types of GGUF that no format holds exactly -> the format whose rounding is small beside their own error. All
# others that no format holds exactly become q8.
_ROUNDED_TO_Q4 = ("q2_k", "q3_k")


def formats_of(weights: str, embedding: str | None = None, kv_cache: str | None = None) -> Formats:
    """The formats in memory that ``weights`` (not "auto"), ``embedding`` and ``kv_cache`` stand for."""
    if embedding is not None and (not isinstance(embedding, str) or embedding not in PRESETS):
        choices = ", ".join(repr(choice) for choice in PRESETS)
        raise InvalidRequestError(f"embedding is {show(embedding)}; expected one of {choices}, or None")
    if kv_cache is not None and (not isinstance(kv_cache, str) or kv_cache not in KV_CACHES):
        choices = ", ".join(repr(choice) for choice in KV_CACHES)
        raise InvalidRequestError(f"kv_cache is {show(kv_cache)}; expected one of {choices}, or None")
    preset = PRESETS[weights]
    return Formats(preset.matrices, embedding or preset.embedding, kv_cache or preset.kv_cache)


def auto_format(stored: str) -> str | None:
    """The format in memory that ``weights="auto"`` means for a type in files ("q4_0"): the smallest that has
    all its values, as the core says, else q4 or q8. None for float16, where the values decide.

    >>> [auto_format(stored) for stored in ("bf16", "q5_0", "q3_k", "q6_k", "f16")]
    ['bf16', 'q8', 'q4', 'q8', None]
    """
    if stored == "f16":
        return None
    exact = _core.source_types()[stored][2]
    return exact or ("q4" if stored in _ROUNDED_TO_Q4 else "q8")


def check_weights(weights: str) -> None:
    if not isinstance(weights, str) or (weights != "auto" and weights not in PRESETS):
        choices = ", ".join(repr(choice) for choice in ("auto", *PRESETS))
        raise InvalidRequestError(f"weights is {show(weights)}; expected one of {choices}")
