"""The formats of weights in memory, the presets that a caller chooses by name, and the names in other
tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gemlet import _core
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError

__all__ = ["EVERY", "PRESETS"]


class Formats(NamedTuple):
    """The formats of a model in memory."""

    matrices: str
    embedding: str
    kv_cache: str


# The embedding is also the output matrix, and loses more with few bits than other matrices. So presets with
# fewer bits keep it at eight bits.
PRESETS = {
    "f32": Formats("f32", "f32", "f32"),
    "bf16": Formats("bf16", "bf16", "bf16"),
    "bf12": Formats("bf12", "bf12", "bf16"),
    "q8": Formats("q8", "q8", "bf16"),
    "q6k": Formats("q6k", "q8", "bf16"),
    "q5k": Formats("q5k", "q8", "bf16"),
    "q5": Formats("q5", "q8", "bf16"),
    "q4k": Formats("q4k", "q8", "bf16"),
    "q4": Formats("q4", "q8", "bf16"),
}
# A caller cannot choose these formats; they are used only for files that were trained for them. r8, r4 and r2
# are integers with one scale per row, as in Google's QAT checkpoints for mobile devices. These models round
# their activations, which amplifies small errors, so their KV cache is f32. w4a16 is 4-bit integers without
# rounded activations; such a model rounds only its weights, so its KV cache is f32 as well.
STORED = {"w4a16": Formats("w4a16", "bf16", "f32")} | {
    name: Formats(name, name, "f32") for name in ("r8", "r4", "r2")
}
EVERY = PRESETS | STORED
# Formats whose matrices have balanced channels (csrc/model/balance.h).
ROUNDED = ("q6k", "q5k", "q5", "q4k", "q4")
# Format -> the formats that it can replace without loss: every value of these is also a value of the key.
KEEPS = {**{name: (name,) for name in ROUNDED}, "q4": ("q4", "w4a16"), "q8": ("q4", "q5", "q8")}
KV_CACHES = ("f32", "bf16", "int8", "int4")
# The names of formats in other tools, in lower case -> their names in gemlet.
_ELSEWHERE = {
    "float32": "f32",
    "fp32": "f32",
    "bfloat16": "bf16",
    "int8": "q8",
    "q8_0": "q8",
    "int4": "q4",
    "q4_0": "q4",
    "q5_0": "q5",
    **{f"q{bits}_k": f"q{bits}k" for bits in (4, 5, 6)},
}
# Names of formats that gemlet does not have -> the format that an error message suggests instead.
_NEAREST = {
    **dict.fromkeys(("f16", "fp16", "float16", "half"), "bf16"),  # bf16 has the same size
    **dict.fromkeys(("4bit", "nf4", "fp4", "q4_1", "iq4_xs", "q3_k_m", "q2_k"), "q4"),
    **dict.fromkeys(("8bit", "fp8", "q8_k"), "q8"),
    **dict.fromkeys(("5bit", "q5_1"), "q5"),
    **{f"q{bits}_k_{size}": f"q{bits}k" for bits in (4, 5) for size in "sm"},
    "6bit": "q6k",
}
# "auto" rounds these GGUF types to q4. No format holds them exactly, but their own error is larger than that
# of q4. All other types that no format holds exactly become q8.
_ROUNDED_TO_Q4 = ("q2_k", "q3_k")


def formats_of(weights: str, embedding: str | None = None, kv_cache: str | None = None) -> Formats:
    """The formats in memory for the arguments ``weights`` (not "auto"), ``embedding`` and ``kv_cache``."""
    preset = EVERY[weights]
    return Formats(preset.matrices, embedding or preset.embedding, kv_cache or preset.kv_cache)


def format_named(what: str, name: object, choices: Sequence[str]) -> str:
    """Returns the member of ``choices`` that ``name``, the value of the argument ``what``, stands for. The
    name may be gemlet's or another tool's.

    Raises :class:`InvalidRequestError` for any other name.

    >>> format_named("weights", "bfloat16", ["bf16", "q8"]), format_named("weights", "Q8_0", ["bf16", "q8"])
    ('bf16', 'q8')
    """
    plain = name.lower() if isinstance(name, str) and len(name) <= 20 else ""
    for found in (plain, _ELSEWHERE.get(plain)):
        if found is not None and found in choices:
            return found
    listed = ", ".join(map(repr, choices))
    near = _NEAREST.get(plain)
    meant = f"; did you mean {near!r}?" if near in choices else ""
    raise InvalidRequestError(f"{what} is {show_argument(name)}; expected one of {listed}{meant}")


def auto_format(stored: str) -> str | None:
    """The format in memory that ``weights="auto"`` chooses for the type ``stored`` of a file, such as "q4_0".

    It is the smallest format that holds all values of the type. If there is none, it is q4 or q8. For "f16"
    the result is None, because the choice depends on the values.

    >>> [auto_format(stored) for stored in ("bf16", "q5_0", "q3_k", "q6_k", "q5_1", "f16")]
    ['bf16', 'q5', 'q4', 'q6k', 'q8', None]
    """
    if stored == "f16":
        return None
    exact = _core.source_types()[stored][2]
    return exact or ("q4" if stored in _ROUNDED_TO_Q4 else "q8")
