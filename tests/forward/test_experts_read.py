"""A mixture of experts reads the experts to which its tokens are routed, and no others.

The test runs in a separate process. During a forward pass, the pages of all other experts in the mapped
file cannot be read: a read ends the process. The NumPy reference says to which experts a token is routed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.weights.formats import PRESETS
from reference import experts
from reference.forward import forward
from reference.model import Cache, Model
from support.processes import run_program, start_program
from support.programs.experts import extend_with_others_protected
from support.tiny_models import CONFIGS, weights_of, write_folder

pytestmark = pytest.mark.tier

# In every format, each matrix of an expert contains a whole page of memory (4 KiB).
SIZES = {"hidden_size": 256, "moe_intermediate_size": 96, "num_experts": 12, "top_k_experts": 2}
CONFIG = CONFIGS["gemma4_experts"] | SIZES
PROMPT, LAST = [2, 17], 64
MARGIN = 0.25  # the last chosen expert leads the next one by so much that rounding does not decide


def routes(folder: Path, ids: list[list[int]]) -> list[list[set[int]]]:
    """For each pass in ``ids``, the experts in each layer to which its tokens are routed."""
    model, cache, found = Model.open(folder), Cache(), []
    plain = experts.route
    try:
        for step in ids:
            chosen: list[set[int]] = []

            def spy(model: Model, index: int, x: NDArray[Any], chosen: list[set[int]] = chosen) -> Any:
                gates = plain(model, index, x)
                at = f"layers.{index}"
                t = model.norm(x, None) * model.weights[f"{at}.router_scale"] * x.shape[-1] ** -0.5
                scores = -np.sort(-model.linear(t, f"{at}.router_proj"), axis=-1)
                assert (scores[:, 1] - scores[:, 2] > MARGIN).all()
                chosen.append(set(np.flatnonzero(gates.any(axis=0)).tolist()))
                return gates

            experts.route = spy
            forward(model, np.array(step), cache)
            found.append(chosen)
    finally:
        experts.route = plain
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = weights_of(CONFIG, seed=9)
    for name in tensors:
        if name.endswith("router.proj.weight"):
            tensors[name] *= 1000
    return write_folder(tmp_path_factory.mktemp("experts"), CONFIG, tensors=tensors)


@pytest.fixture(scope="module")
def routed(folder: Path) -> list[list[set[int]]]:
    """The experts of the prompt and of the last token."""
    return routes(folder, [PROMPT, [LAST]])


def steps_of(prompt: list[set[int]], last: list[set[int]]) -> list[tuple[list[int], list[set[int]]]]:
    return [(PROMPT, prompt), ([LAST], last)]


@pytest.mark.parametrize("weights", PRESETS)
def test_no_other_expert_is_read(
    tmp_path: Path, folder: Path, routed: list[list[set[int]]], weights: str
) -> None:
    gemlet.convert(folder, tmp_path / "packed", weights=weights, threads=1)
    prompt, last = routed
    assert all(len(kept) == 2 for kept in last)
    assert all(len(kept) < 5 for kept in prompt)
    found = run_program(extend_with_others_protected, tmp_path / "packed", steps_of(prompt, last))
    with gemlet.load(tmp_path / "packed", threads=1) as model:
        expected = [model.logits(PROMPT)[-1], model.logits([*PROMPT, LAST])[-1]]
    for logits, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(logits, wanted)


def test_reading_another_expert_would_be_noticed(
    tmp_path: Path, folder: Path, routed: list[list[set[int]]]
) -> None:
    gemlet.convert(folder, tmp_path / "packed", weights="q4", threads=1)
    prompt, last = copy.deepcopy(routed)
    last[1].pop()
    done = start_program(extend_with_others_protected, tmp_path / "packed", steps_of(prompt, last))
    assert done.returncode != 0
    assert "Segmentation fault" in done.stderr
    assert len(done.stdout.splitlines()) == 1
