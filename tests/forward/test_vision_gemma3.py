"""Gemma 3 with images, from 8-bit levels to the text, compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.config.image_settings import ImageSettings
from gemlet.media.images import read_image
from gemlet.media.preparing import chosen_pan_and_scan, normalized, views_of
from support.inside import testing
from support.vision import FOLDERS, VARIANTS, golden, images_of, levels_of, pan_and_scan, prompts_of, tower_of

TOLERANCE = 2e-5
NAMES = ["gemma3", "gemma3-resaved"]
PROMPTS = prompts_of(NAMES)


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, relative to the largest magnitude."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def logits(model: gemlet.Model, name: str, index: int) -> NDArray[np.float32]:
    how = pan_and_scan(VARIANTS[name], index)
    return model.logits(golden(name)[f"ids.{index}"], images=images_of(name, index), pan_and_scan=how)


@pytest.mark.parametrize(("name", "index"), PROMPTS)
def test_the_tower_sees_the_levels_of_the_reference(name: str, index: int) -> None:
    with gemlet.load(FOLDERS / name, weights="f32") as model:
        config = model.config.vision
    assert config is not None
    how = chosen_pan_and_scan(pan_and_scan(VARIANTS[name], index), config.settings)
    views = [view for image in images_of(name, index) for view in views_of(read_image(image), config, how)]
    expected = levels_of(name, index)
    assert len(views) == len(expected)
    for view, levels in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view.resized(), levels)


def test_pixels_are_the_references() -> None:
    for name in NAMES:
        found = normalized(levels_of(name, 0), ImageSettings(mean=(0.5,) * 3, std=(0.5,) * 3))
        np.testing.assert_allclose(found, golden(name)["pixels.0"], rtol=0, atol=1e-6)


@pytest.mark.tier
@pytest.mark.parametrize("name", NAMES)
def test_features_and_soft_tokens(name: str) -> None:
    expected = golden(name)
    with gemlet.load(FOLDERS / name, weights="f32") as model:
        tower = tower_of(model)
        for index in range(len(VARIANTS[name].prompts)):
            pixels = normalized(levels_of(name, index), model.config.vision.settings)
            soft = np.concatenate([tower.encode(one) for one in pixels])
            features = np.stack([testing.siglip_taps(tower, one)["features"] for one in pixels])
            assert difference(features, expected[f"features.{index}"]) < TOLERANCE
            assert difference(soft, expected[f"soft.{index}"]) < TOLERANCE


@pytest.mark.tier
@pytest.mark.parametrize(("name", "index"), PROMPTS)
def test_logits_and_greedy_text(name: str, index: int) -> None:
    expected = golden(name)
    with gemlet.load(FOLDERS / name, weights="f32") as model:
        assert difference(logits(model, name, index), expected[f"logits.{index}"]) < TOLERANCE
        ids, written = expected[f"ids.{index}"].tolist(), expected[f"greedy.{index}"].tolist()
        how = pan_and_scan(VARIANTS[name], index)
        rows = model.logits(ids + written, images=images_of(name, index), pan_and_scan=how)
        rows[:, VARIANTS[name].config["image_token_index"]] = -np.inf
        assert rows.argmax(axis=1)[len(ids) - 1 : -1].tolist() == written


@pytest.mark.tier
@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.01), ("q8", 0.03), ("q4", 0.25)])
def test_soft_tokens_of_smaller_formats_come_close(weights: str, bound: float) -> None:
    expected = golden("gemma3")["soft.0"]
    with gemlet.load(FOLDERS / "gemma3", weights=weights) as model:
        pixels = normalized(levels_of("gemma3", 0), model.config.vision.settings)
        found = tower_of(model).encode(pixels[0])
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert 0 < error < bound


@pytest.mark.tier
@pytest.mark.parametrize("weights", ["f32", "q8", "q4"])
def test_a_packed_folder_gives_the_same_bits(weights: str, tmp_path: Path) -> None:
    gemlet.convert(FOLDERS / "gemma3", tmp_path / "packed", weights=weights)
    with gemlet.load(FOLDERS / "gemma3", weights=weights) as model:
        expected = logits(model, "gemma3", 2)
    with gemlet.load(tmp_path / "packed") as model:
        np.testing.assert_array_equal(logits(model, "gemma3", 2), expected)
    with gemlet.load(tmp_path / "packed", vision=False) as model:
        assert model.config.vision is None
        assert np.isfinite(model.logits([2, 5, 7])).all()


@pytest.mark.tier
@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    with gemlet.load(FOLDERS / "gemma3", weights="bf16", threads=2) as model:
        expected = logits(model, "gemma3", 0)
    with gemlet.load(FOLDERS / "gemma3", weights="bf16", threads=threads) as model:
        np.testing.assert_array_equal(logits(model, "gemma3", 0), expected)


def test_a_model_without_its_tower() -> None:
    with gemlet.load(FOLDERS / "gemma3", vision=False) as without, gemlet.load(FOLDERS / "gemma3") as model:
        assert without.memory()["weights"] < model.memory()["weights"]
        np.testing.assert_array_equal(without.logits([2, 5, 7]), model.logits([2, 5, 7]))
        with pytest.raises(gemlet.UnsupportedError, match="vision=False"):
            logits(without, "gemma3", 0)


@pytest.mark.tier
def test_the_plan_counts_the_tower() -> None:
    plans = [
        gemlet.inspect(FOLDERS / "gemma3", weights="f32", vision=vision).plan for vision in (True, False)
    ]
    assert plans[0].weights > plans[1].weights
    assert plans[0].activations > plans[1].activations


def test_images_and_placeholders_have_to_match() -> None:
    ids = golden("gemma3")["ids.0"].tolist()
    (image,) = images_of("gemma3", 0)
    with gemlet.load(FOLDERS / "gemma3") as model:
        with pytest.raises(gemlet.InvalidRequestError, match=r"16 placeholders .* have 32 tokens"):
            model.logits(ids, images=[image, image])
        with pytest.raises(gemlet.InvalidRequestError, match="0 placeholders"):
            model.logits([2, 5], images=[image])
        split = [2, *[143] * 8, 5, *[143] * 8]
        with pytest.raises(
            gemlet.InvalidRequestError,
            match=r"at positions 1 to 8 .* expected 16 placeholders with token id 143",
        ):
            model.logits(split, images=[image])
        with pytest.raises(gemlet.InvalidRequestError, match="images: got"):
            model.logits(ids, images=image)


def test_a_closed_model_sees_nothing() -> None:
    with gemlet.load(FOLDERS / "gemma3") as model:
        tower = tower_of(model)
    with pytest.raises(gemlet.ModelClosedError):
        tower.encode(np.zeros((112, 112, 3), np.float32))
    with pytest.raises(gemlet.ModelClosedError):
        logits(model, "gemma3", 0)


def test_wrong_values_of_pan_and_scan_are_refused() -> None:
    ids, images = golden("gemma3")["ids.0"], images_of("gemma3", 0)
    with gemlet.load(FOLDERS / "gemma3") as model:
        for wrong in ({"crops": 2}, {"max_num_crops": 0}, {"min_ratio_to_activate": 0.5}, 3, "yes"):
            with pytest.raises(gemlet.InvalidRequestError, match="pan_and_scan"):
                model.logits(ids, images=images, pan_and_scan=wrong)  # type: ignore[arg-type]
