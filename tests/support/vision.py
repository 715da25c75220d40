"""The golden folders with images."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load_file

import gemlet
from golden.variants_vision import VISION_VARIANTS, VisionPrompt, VisionVariant
from support.inside import core_of
from support.paths import TESTS

FOLDERS = TESTS / "golden" / "vision"
VARIANTS = {variant.name: variant for variant in VISION_VARIANTS}


def golden(name: str) -> dict[str, Any]:
    return dict(load_file(FOLDERS / name / "golden.safetensors"))


def prompts_of(names: list[str]) -> list[tuple[str, int]]:
    return [(name, index) for name in names for index in range(len(VARIANTS[name].prompts))]


def levels_of(name: str, index: int) -> Any:
    """What the tower sees, of all images of a prompt, of one size."""
    found = golden(name)
    count = sum(key.startswith(f"levels.{index}.") for key in found)
    return np.stack([found[f"levels.{index}.{i}"] for i in range(count)])


def images_of(name: str, index: int) -> list[Any]:
    found = golden(name)
    return [found[f"image.{index}.{i}"] for i in range(_count(VARIANTS[name].prompts[index]))]


def _count(prompt: VisionPrompt) -> int:
    return len(prompt.images) if prompt.frames is None else prompt.frames[0]


def pan_and_scan(variant: VisionVariant, index: int) -> dict[str, Any] | None:
    """The argument for the options that the reference was given."""
    options = variant.prompts[index].options
    if not options.get("do_pan_and_scan"):
        return None
    begin = "pan_and_scan_"
    return {key.removeprefix(begin): value for key, value in options.items() if key.startswith(begin)}


def tower_of(model: gemlet.Model) -> Any:
    assert model.config.vision is not None
    return model.config.vision.tower(core_of(model))
