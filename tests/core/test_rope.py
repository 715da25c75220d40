"""The core's rotary embedding, compared with the official one, at positions up to the longest published
context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from golden.folders import HERE, read_tensors
from golden.rope_cases import POSITIONS, ROPE_CASES, RopeCase
from support.core_models import layer_config
from support.inside import testing

TIERS = sorted({tier for operation, tier in testing.kernel_entries() if operation == "rope"})


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    return read_tensors(HERE / "rope.safetensors")


def layer_of(case: RopeCase) -> _core.LayerConfig:
    return layer_config(
        head_dim=case.head_dim,
        rope_theta=case.theta,
        rope_scaling_factor=case.factor,
        rope_partial_factor=case.partial_factor,
    )


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_angles_at_far_positions(case: RopeCase, golden: dict[str, NDArray[Any]]) -> None:
    cosines, sines = testing.rope_table(layer_of(case), POSITIONS)
    assert cosines.shape == sines.shape == (len(POSITIONS), case.head_dim // 2)
    assert np.abs(cosines - golden[f"{case.name}.cos"]).max() < 1e-6
    assert np.abs(sines - golden[f"{case.name}.sin"]).max() < 1e-6


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_rotated_heads_at_far_positions(case: RopeCase, golden: dict[str, NDArray[Any]]) -> None:
    cosines, sines = testing.rope_table(layer_of(case), POSITIONS)
    query = golden[f"{case.name}.query"].reshape(-1, case.head_dim)[0]
    expected = golden[f"{case.name}.rotated"]
    supported = [tier for tier in TIERS if tier in _core.cpu_info()["tiers"]]
    assert "scalar" in supported
    for tier in supported:
        for i in range(len(POSITIONS)):
            turned = testing.kernel_rowwise(
                tier=tier, operation="rope", x=query, other=cosines[i], third=sines[i], scalar=1.0
            )
            assert np.abs(turned - expected[i]).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_other_roundings_of_the_frequencies_do_not_pass(
    case: RopeCase, golden: dict[str, NDArray[Any]]
) -> None:
    """At the end of the longest contexts, frequencies in double precision give visibly different results."""
    lanes = np.arange(case.head_dim // 2)
    turning = lanes < int(case.partial_factor * case.head_dim // 2)
    exact = np.where(turning, case.theta ** (-2 * lanes / case.head_dim) / case.factor, 0)
    off = np.cos(np.array(POSITIONS)[:, None] * exact) - golden[f"{case.name}.cos"]
    assert np.abs(off).max() > 1e-4
