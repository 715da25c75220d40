"""The NumPy reference, compared with the golden taps and the RoPE tables of the official implementation.

test_reference_mistakes.py shows which mistakes in the reference the goldens notice.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from golden.folders import (
    ALL_NAMES,
    BY_NAME,
    HERE,
    TOLERANCE,
    expected_taps,
    read_golden,
    read_tensors,
    tap_errors,
)
from golden.rope_cases import POSITIONS, ROPE_CASES, RopeCase
from reference import blocks, mobilenet
from reference.config import Rope
from reference.forward import forward, greedy
from reference.model import Cache, Model
from reference.weights import read_safetensors

SHORT = [name for name in ALL_NAMES if not name.endswith("-far")]
SHARING = ["gemma3n-e2b", "gemma3n-e4b", "gemma3n-sliced", "gemma4-e2b", "gemma4-e4b", "gemma4-far"]
# The bound for the reference: far below the tolerance of the product, but above float32 noise.
REFERENCE_TOLERANCE = 5e-5

opened = cache(lambda name: Model.open(HERE / name))


def logits_error(name: str, logits: NDArray[Any]) -> float:
    golden = read_golden(name)
    return float(np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max())


def test_every_variant_is_on_disk_and_nothing_else() -> None:
    folders = {path.name for path in HERE.iterdir() if (path / "config.json").exists()}
    assert folders == {*BY_NAME, "embeddinggemma2", "shieldgemma2"}  # the last two have separate tests


@pytest.mark.parametrize("name", ALL_NAMES)
def test_folder_is_small_and_complete(name: str) -> None:
    assert sum(path.stat().st_size for path in (HERE / name).iterdir()) < 1_000_000
    golden = read_golden(name)
    assert golden.keys() - {"ids", "rows", "greedy"} == set(expected_taps(BY_NAME[name]))
    assert golden["ids"].shape == (BY_NAME[name].tokens,)
    assert golden["greedy"].shape == (24,)
    assert all(len(golden[tap]) == len(golden["rows"]) for tap in expected_taps(BY_NAME[name]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_taps_and_logits_agree_with_the_official_implementation(name: str, dtype: Any) -> None:
    golden = read_golden(name)
    taps: dict[str, Any] = {}
    forward(Model.open(HERE / name, dtype), golden["ids"], taps=taps)
    assert taps.keys() == set(expected_taps(BY_NAME[name]))
    errors = tap_errors(golden, taps)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < REFERENCE_TOLERANCE, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("name", ALL_NAMES)
def test_greedy_continuation(name: str) -> None:
    golden = read_golden(name)
    assert greedy(opened(name), golden["ids"], 24) == golden["greedy"].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 16])
@pytest.mark.parametrize("name", SHORT)
def test_chunked_prefill_and_decode_equal_whole_prefill(name: str, chunk: int) -> None:
    ids, seen = read_golden(name)["ids"], Cache()
    parts = [forward(opened(name), ids[at : at + chunk], seen) for at in range(0, len(ids), chunk)]
    assert logits_error(name, np.concatenate(parts)) < REFERENCE_TOLERANCE


@pytest.mark.parametrize("name", SHARING)
def test_layers_that_share_keys_need_only_the_last_token_of_a_prefill(name: str) -> None:
    """These layers run only for the last token of each call. Its logits and the greedy text are the same."""
    golden, model, seen = read_golden(name), opened(name), Cache()
    split = len(golden["ids"]) // 2 + 3
    forward(model, golden["ids"][:split], seen, last_only=True)
    last = forward(model, golden["ids"][split:], seen, last_only=True)
    assert last.shape == (1, model.config.vocab_size)
    scale = np.abs(golden["logits"]).max()
    assert np.abs(last[0] - golden["logits"][-1]).max() / scale < REFERENCE_TOLERANCE
    for expected in golden["greedy"]:
        assert np.argmax(last[-1]) == expected
        last = forward(model, np.array([expected]), seen, last_only=True)


# --- RoPE at far positions ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rope_golden() -> dict[str, NDArray[Any]]:
    return read_tensors(HERE / "rope.safetensors")


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_rope_at_far_positions(case: RopeCase, rope_golden: dict[str, NDArray[Any]]) -> None:
    """Frequencies have the official bits. Rotated heads agree at positions up to the longest context."""
    positions = rope_golden["positions"]
    assert tuple(positions) == POSITIONS
    rope = Rope(case.theta, case.factor, case.partial_factor)
    frequencies = blocks.rope_frequencies(rope, case.head_dim)
    np.testing.assert_array_equal(frequencies, rope_golden[f"{case.name}.frequencies"])
    angles = positions.astype(np.float32)[:, None] * frequencies
    assert np.abs(np.cos(angles) - rope_golden[f"{case.name}.cos"]).max() < 1e-6
    assert np.abs(np.sin(angles) - rope_golden[f"{case.name}.sin"]).max() < 1e-6
    query = np.tile(rope_golden[f"{case.name}.query"], (len(positions), 1, 1))
    expected = rope_golden[f"{case.name}.rotated"]
    assert (
        np.abs(blocks.rotate(query, positions, rope)[:, 0] - expected).max() < 1e-6 * np.abs(expected).max()
    )


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_rope_with_other_frequencies_does_not_pass(
    case: RopeCase, rope_golden: dict[str, NDArray[Any]]
) -> None:
    """The stored cosines show each mistake: exact angles, a ratio of half the lanes, a missing factor."""
    positions, expected = rope_golden["positions"][:, None], rope_golden[f"{case.name}.cos"]
    turning = int(case.partial_factor * case.head_dim // 2)
    lanes = np.arange(case.head_dim // 2)

    def error(exponents: NDArray[Any], factor: float, count: int = turning) -> float:
        frequencies = np.where(lanes < count, case.theta**-exponents / factor, 0.0)
        return float(np.abs(np.cos(positions * frequencies) - expected).max())

    exact = 2 * lanes / case.head_dim
    assert error(exact, case.factor) > TOLERANCE  # 262143 times a float32 frequency
    assert error(lanes / case.head_dim, case.factor) > 0.1
    if case.partial_factor < 1:
        assert error(lanes / turning, case.factor) > 0.1
        assert error(exact, case.factor, count=case.head_dim // 2) > 0.1
        assert error(exact, case.factor, count=turning + 1) > 0.1
    if case.factor > 1:
        assert error(exact, 1.0) > 0.1


@pytest.mark.parametrize("name", ["gemma3n", "gemma3n-odd"])
def test_the_tower_for_images_of_gemma3n(name: str) -> None:
    golden = read_tensors(HERE / "vision" / name / "golden.safetensors")
    tensors = read_safetensors(HERE / "vision" / name / "model.safetensors")
    pixels = golden["levels.0.0"] * np.float32(1 / 255)
    side = round(len(golden["soft.0"]) ** 0.5)
    features = mobilenet.tower(pixels, mobilenet.inside(tensors, "model.vision_tower.timm_model."), side)
    soft = mobilenet.soft_tokens(features, mobilenet.inside(tensors, "model.embed_vision."))
    for found, expected in ((features, golden["features.0"][0]), (soft, golden["soft.0"])):
        assert np.abs(found - expected).max() < REFERENCE_TOLERANCE * np.abs(expected).max()
