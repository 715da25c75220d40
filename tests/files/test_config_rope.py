"""Configs with the RoPE types llama3, yarn and dynamic: what is passed over and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gemlet.config import parse_config
from gemlet.errors import ConfigError

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor is missing"),
    ("gemma", {"rope_scaling": YARN | {"beta_fast": "32"}}, "beta_fast is '32'; expected a number"),
    ("gemma", {"rope_scaling": YARN | {"attention_factor": float("nan")}}, "attention_factor is nan"),
    ("gemma", {"rope_scaling": YARN | {"truncate": "no"}}, "truncate is 'no'; expected true or false"),
    ("gemma", {"rope_scaling": YARN | {"low_freq_factor": 1}}, "unknown key 'rope_scaling.low_freq_factor'"),
    ("gemma", {"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1.0; expected more than 1"),
    ("gemma", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "expected more than low_freq_factor"),
    ("gemma", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 1 << 80}}, "an integer from 1"),
    (
        "gemma",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "mscale": 2}},
        "'rope_scaling.mscale'",
    ),
    ("gemma", {"rope_scaling": YARN | {"beta_fast": 16}, "rope_parameters": YARN}, "contradict each other"),
    (
        "gemma3_text",
        {"rope_scaling": YARN | {"truncate": False}},
        "rope_scaling.truncate is False; expected true",
    ),
    ("gemma3_text", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' turns"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model_type": family, **changes}, where="config.json")
    assert message in str(caught.value)


def test_a_file_may_say_the_same_in_both_spellings() -> None:
    both = parse_config(
        {"model_type": "gemma", "rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 10000.0}},
        where="config.json",
    )
    one = parse_config({"model_type": "gemma", "rope_parameters": YARN}, where="config.json")
    assert both.layers == one.layers
    assert len(one.layers[0].rope_frequencies) == one.layers[0].head_dim // 2


def test_a_dynamic_factor_changes_nothing_within_the_context() -> None:
    scaled = {"rope_type": "dynamic", "factor": 4.0}
    config = parse_config({"model_type": "gemma", "rope_scaling": scaled}, where="config.json")
    assert config.layers == parse_config({"model_type": "gemma"}, where="config.json").layers
    assert "rope_scaling.factor" in config.passed_over
