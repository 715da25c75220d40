"""Configs with RoPE types that no published Gemma has. Used by make_rope_types.py and its test."""

from __future__ import annotations

from typing import Any, NamedTuple

from .variants import GLOBAL, LOCAL


class RopeTypeCase(NamedTuple):
    """The checkpoint `folder` of tests/golden, with `changes` to the config of its text model. The layers of
    the kind `kind` have the RoPE type."""

    name: str
    folder: str
    kind: str
    changes: dict[str, Any]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

ROPE_TYPES = (
    RopeTypeCase("gemma1-yarn", "gemma1-2b", GLOBAL, {"rope_scaling": YARN | {"attention_factor": 1.5}}),
    RopeTypeCase(
        "gemma1-dynamic", "gemma1-2b", GLOBAL, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}}
    ),
    RopeTypeCase("gemma2-llama3", "gemma2-27b", GLOBAL, {"rope_scaling": LLAMA3}),
    RopeTypeCase(
        "gemma2-yarn-untruncated",
        "gemma2-2b",
        GLOBAL,
        {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False}},
    ),
    RopeTypeCase(
        "gemma3-yarn", "gemma3-270m", GLOBAL, {"rope_scaling": {"rope_type": "yarn", "factor": 3.0}}
    ),
    RopeTypeCase(
        "gemma3-llama3",
        "gemma3-rope-parameters",
        GLOBAL,
        {"rope_parameters": {GLOBAL: LLAMA3 | {"rope_theta": 1e4}, LOCAL: {"rope_theta": 1e4}}},
    ),
    RopeTypeCase(
        "gemma3n-yarn",
        "gemma3n-e2b",
        GLOBAL,
        {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}},
    ),
    RopeTypeCase(
        "gemma4-yarn",
        "gemma4-e2b",
        GLOBAL,
        {
            "rope_parameters": {
                GLOBAL: YARN | {"factor": None, "rope_theta": 1e5, "attention_factor": 0.8},
                LOCAL: {"rope_theta": 1e4, "rope_type": "default"},
            }
        },
    ),
    RopeTypeCase(
        "gemma4-llama3",
        "gemma4-e2b",
        LOCAL,
        {
            "rope_parameters": {
                GLOBAL: {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
                LOCAL: LLAMA3 | {"rope_theta": 1e4},
            }
        },
    ),
)


def with_changes(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with `changes` to its text model."""
    if "text_config" in config:
        return {**config, "text_config": config["text_config"] | changes}
    return config | changes
