"""The golden folders with images."""

from __future__ import annotations

from typing import Any

from safetensors.numpy import load_file

import gemlet
from gemlet import _core
from golden.variants_vision import VISION_VARIANTS, VisionVariant
from support.inside import core_of
from support.paths import TESTS

FOLDERS = TESTS / "golden" / "vision"
VARIANTS = {variant.name: variant for variant in VISION_VARIANTS}
PROMPTS = [(name, index) for name, variant in VARIANTS.items() for index in range(len(variant.prompts))]


def golden(name: str) -> dict[str, Any]:
    return dict(load_file(FOLDERS / name / "golden.safetensors"))


def images_of(name: str, index: int) -> list[Any]:
    found = golden(name)
    return [found[f"image.{index}.{i}"] for i in range(len(VARIANTS[name].prompts[index].images))]


def pan_and_scan(variant: VisionVariant, index: int) -> dict[str, Any] | None:
    """The argument for the options that the reference was given."""
    options = variant.prompts[index].options
    if not options.get("do_pan_and_scan"):
        return None
    begin = "pan_and_scan_"
    return {key.removeprefix(begin): value for key, value in options.items() if key.startswith(begin)}


def tower_of(model: gemlet.Model) -> _core.SiglipTower:
    assert model.config.vision is not None
    return _core.SiglipTower(core_of(model), model.config.vision.to_core())
