"""The RoPE forms of published checkpoints and the positions of rope.safetensors. See make_rope.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .variants import GLOBAL, LOCAL

# The ends of windows and contexts, and the positions beside them. The largest context is 262144.
POSITIONS = (0, 1, 2, 3, 511, 512, 1023, 4095, 8191, 8192, 32767, 65535, 65537, 99999, 100000, 131071, 262143)


@dataclass(frozen=True)
class RopeCase:
    """`config` has the arguments of transformers' `config_class`. `kind` is the kind of layer."""

    name: str
    config_class: str
    kind: str
    head_dim: int
    theta: float
    factor: float
    partial_factor: float
    config: dict[str, Any]


def gemma4_rope(**changes: Any) -> dict[str, Any]:
    proportional = {"partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0, "rope_type": "proportional"}
    return {GLOBAL: proportional | changes, LOCAL: {"rope_theta": 10_000.0, "rope_type": "default"}}


LINEAR = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}

ROPE_CASES = (
    RopeCase("gemma", "GemmaConfig", GLOBAL, 256, 1e4, 1.0, 1.0, {"head_dim": 256}),
    RopeCase("gemma3-global", "Gemma3TextConfig", GLOBAL, 256, 1e6, 1.0, 1.0, {"head_dim": 256}),
    RopeCase("gemma3-linear", "Gemma3TextConfig", GLOBAL, 256, 1e6, 8.0, 1.0, {"head_dim": 256} | LINEAR),
    RopeCase(
        "gemma3-linear-local", "Gemma3TextConfig", LOCAL, 256, 1e4, 1.0, 1.0, {"head_dim": 256} | LINEAR
    ),
    RopeCase("gemma3-27b", "Gemma3TextConfig", GLOBAL, 128, 1e6, 8.0, 1.0, {"head_dim": 128} | LINEAR),
    RopeCase("gemma3n-global", "Gemma3nTextConfig", GLOBAL, 256, 1e6, 1.0, 1.0, {"head_dim": 256}),
    RopeCase("gemma3n-local", "Gemma3nTextConfig", LOCAL, 256, 1e4, 1.0, 1.0, {"head_dim": 256}),
    RopeCase("gemma4-global", "Gemma4TextConfig", GLOBAL, 512, 1e6, 1.0, 0.25, {}),
    RopeCase("gemma4-local", "Gemma4TextConfig", LOCAL, 256, 1e4, 1.0, 1.0, {}),
    RopeCase(
        "gemma4-proportional-factor",
        "Gemma4TextConfig",
        GLOBAL,
        44,
        5e5,
        4.0,
        0.3,  # 6.6 pairs, cut to 6
        {
            "global_head_dim": 44,
            "rope_parameters": gemma4_rope(partial_rotary_factor=0.3, rope_theta=5e5, factor=4.0),
        },
    ),
)
