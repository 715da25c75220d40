"""Gemma 3n and Gemma 4 with sound, from samples to the text, compared with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.errors import InvalidRequestError, UnsupportedError
from support.audio import FOLDERS, PROMPTS, VARIANTS, difference, encoder_of, golden, waves
from support.inside import testing

TOLERANCE = 2e-5  # the largest relative error of an encoder
LOGITS_TOLERANCE = 2e-4


def logits(model: gemlet.Model, name: str, index: int) -> NDArray[np.float32]:
    return model.logits(golden(name)[f"ids.{index}"], audio=waves(name, index))


@pytest.mark.tier
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].has_encoder])
def test_features_and_soft_tokens(name: str) -> None:
    expected = golden(name)
    with gemlet.load(FOLDERS / name, weights="f32", threads=2) as model:
        encoder, settings = encoder_of(model), model.config.audio.settings
        for index, lengths in enumerate(VARIANTS[name].prompts):
            for i in range(len(lengths)):
                key = f"{index}.{i}"
                features, valid = settings.to_core().extract(expected[f"wave.{key}"])
                assert valid == expected[f"valid.{key}"][0]
                assert difference(features, expected[f"features.{key}"]) < TOLERANCE
                taps = testing.conformer_taps(encoder, expected[f"features.{key}"], valid)
                assert difference(taps["encoded"], expected[f"encoded.{key}"]) < TOLERANCE
                soft = encoder.encode(expected[f"features.{key}"], valid)
                assert difference(soft, expected[f"soft.{key}"]) < TOLERANCE


@pytest.mark.tier
@pytest.mark.parametrize(("name", "index"), PROMPTS)
def test_logits_and_greedy_text(name: str, index: int) -> None:
    expected = golden(name)
    with gemlet.load(FOLDERS / name, weights="f32", threads=2) as model:
        assert difference(logits(model, name, index), expected[f"logits.{index}"]) < LOGITS_TOLERANCE
        ids, written = expected[f"ids.{index}"].tolist(), expected[f"greedy.{index}"].tolist()
        result = model.generate(
            ids, audio=waves(name, index), temperature=0, max_tokens=len(written), ignore_eos=True
        )
        assert result.token_ids == written
        assert result.audio_tokens == ids.count(model.config.audio.token_id)


@pytest.mark.tier
@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_is_reused_only_for_the_same_sound(name: str) -> None:
    ids, sounds = golden(name)["ids.0"].tolist(), waves(name, 0)
    with gemlet.load(FOLDERS / name, weights="f32", threads=2) as model:
        options = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
        first = model.generate(ids, audio=sounds, **options)
        again = model.generate(ids, audio=sounds, **options)
        other = model.generate(ids, audio=[0.5 * sounds[0][::-1]], **options)
    assert again.token_ids == first.token_ids
    assert again.cached_tokens == len(ids) - 1
    assert other.cached_tokens < ids.index(VARIANTS[name].config["audio_token_id"]) + 1


@pytest.mark.tier
@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.03), ("q8", 0.1), ("q4", 0.6)])
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].has_encoder])
def test_smaller_formats_come_close(name: str, weights: str, bound: float) -> None:
    """The effect of rounding, which is much larger for a random encoder of 24 columns than for a real one."""
    expected = golden(name)
    with gemlet.load(FOLDERS / name, weights=weights, threads=2) as model:
        soft = encoder_of(model).encode(expected["features.0.0"], int(expected["valid.0.0"][0]))
        assert difference(soft, expected["soft.0.0"]) < bound
        assert np.isfinite(logits(model, name, 0)).all()


@pytest.mark.tier
@pytest.mark.parametrize("weights", ["f32", "q4"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_packed_folder_gives_the_same_bits(name: str, weights: str, tmp_path: Path) -> None:
    gemlet.convert(FOLDERS / name, tmp_path / "packed", weights=weights)
    with gemlet.load(FOLDERS / name, weights=weights, threads=2) as model:
        expected = logits(model, name, 0)
    with gemlet.load(tmp_path / "packed", threads=2) as model:
        np.testing.assert_array_equal(logits(model, name, 0), expected)
    with gemlet.load(tmp_path / "packed", audio=False) as model:
        assert model.config.audio is None
        assert np.isfinite(model.logits([2, 5, 7])).all()


@pytest.mark.tier
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_threads_changes_no_bit(name: str, threads: int) -> None:
    with gemlet.load(FOLDERS / name, weights="bf16", threads=2) as model:
        expected = logits(model, name, 0)
    with gemlet.load(FOLDERS / name, weights="bf16", threads=threads) as model:
        np.testing.assert_array_equal(logits(model, name, 0), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_without_its_encoder(name: str) -> None:
    with gemlet.load(FOLDERS / name, audio=False) as without, gemlet.load(FOLDERS / name) as model:
        assert without.memory()["weights"] < model.memory()["weights"]
        np.testing.assert_array_equal(without.logits([2, 5, 7]), model.logits([2, 5, 7]))
        with pytest.raises(UnsupportedError, match="audio=False"):
            logits(without, name, 0)


def test_sound_at_another_rate_and_with_channels() -> None:
    name, (sound,) = "gemma4", waves("gemma4", 0)
    ids = golden(name)["ids.0"]
    with gemlet.load(FOLDERS / name, weights="f32", threads=2) as model:
        expected = model.logits(ids, audio=[sound])
        stereo = np.stack([2 * sound, 0 * sound], axis=1)
        np.testing.assert_allclose(model.logits(ids, audio=[(stereo, 16000)]), expected, rtol=0, atol=1e-4)
        levels = np.round(sound * 32768).astype(np.int16)
        found = model.logits(ids, audio=[(levels, 16000)])
        assert difference(found, expected) < 0.05


def test_the_number_of_placeholders_must_match_the_sounds() -> None:
    ids, sounds = golden("gemma4")["ids.0"].tolist(), waves("gemma4", 0)
    with gemlet.load(FOLDERS / "gemma4", threads=1) as model:
        with pytest.raises(InvalidRequestError, match=r"14 placeholders of sound .* 2 sounds take 28"):
            model.logits(ids, audio=[*sounds, *sounds])
        with pytest.raises(InvalidRequestError, match="0 placeholders"):
            model.logits([2, 5, 7], audio=sounds)
        with pytest.raises(InvalidRequestError, match="expected a list of sounds"):
            model.logits(ids, audio=sounds[0])
        with pytest.raises(InvalidRequestError, match=r"160 samples at 16 kHz, .* too few .* at least 161"):
            model.logits(ids, audio=[np.zeros(160, np.float32)])


def test_a_file_with_a_part_of_an_encoder_is_a_model_of_text() -> None:
    with gemlet.load(Path(FOLDERS).parent / "gemma4-e2b", threads=1) as model:
        assert model.config.audio is None
        with pytest.raises(UnsupportedError, match="hears no sound"):
            model.logits([2, 5], audio=[np.zeros(1000, np.float32)])
