"""The golden folders with sound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from golden.folders import read_tensors
from golden.variants_audio import AUDIO_VARIANTS
from support.inside import core_of
from support.paths import TESTS

FOLDERS = TESTS / "golden" / "audio"
VARIANTS = {variant.name: variant for variant in AUDIO_VARIANTS}
PROMPTS = [(name, index) for name, variant in VARIANTS.items() for index in range(len(variant.prompts))]


def golden(name: str) -> dict[str, NDArray[Any]]:
    return read_tensors(FOLDERS / name / "golden.safetensors")


def waves(name: str, index: int) -> list[NDArray[np.float32]]:
    found = golden(name)
    return [found[f"wave.{index}.{i}"] for i in range(len(VARIANTS[name].prompts[index]))]


def encoder_of(model: gemlet.Model) -> _core.Conformer:
    audio = model.config.audio
    assert audio is not None
    assert audio.encoder is not None
    assert audio.settings is not None
    return _core.Conformer(core_of(model), audio.encoder.to_core(audio.settings.bins))


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Relative to the largest magnitude."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
