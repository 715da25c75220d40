"""How a model's images are prepared, as ``preprocessor_config.json`` says: :class:`ImageSettings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.records import record
from gemlet.base.strict_json import read_json_object
from gemlet.errors import ConfigError

__all__ = ["PREPROCESSOR_FILES", "ImageSettings", "PanAndScan", "parse_image_settings", "read_image_settings"]

# The newer file holds what the older one says as an object inside.
PREPROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_MOST_CROPS = 64
_MOST_PIXELS = 1 << 20  # of a side


@dataclass(frozen=True)
class PanAndScan:
    """When a long image is also seen in parts, and in how many.

    ``min_crop_size`` is the least length of a side of a part, in pixels; an image is cut if its long side is
    at least ``min_ratio_to_activate`` times the short one.
    """

    min_crop_size: int = 256
    max_num_crops: int = 4
    min_ratio_to_activate: float = 1.2


@record(frozen=True)
class ImageSettings:
    """``(level * rescale_factor - mean) / std`` of each channel; ``mean`` None leaves out the last two."""

    resample: str = "bilinear"
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    does_pan_and_scan: bool = False
    pan_and_scan: PanAndScan = PanAndScan()
    max_soft_tokens: int = 280  # of an image, in models where its size decides how many it has
    size: tuple[int, int] | None = None  # height and width, where the file says them


def read_image_settings(folder: str, defaults: ImageSettings) -> ImageSettings:
    """What the files in ``folder`` say of images; ``defaults`` where they say nothing.

    Raises :class:`ConfigError` for a value that gemlet does not know.
    """
    for name in PREPROCESSOR_FILES:
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            continue
        raw = read_json_object(path, error=ConfigError)
        inner = raw.get("image_processor") if name == PREPROCESSOR_FILES[0] else raw
        if isinstance(inner, dict):
            return parse_image_settings(
                Keys(inner, path, "" if inner is raw else "image_processor."), defaults
            )
    return defaults


def parse_image_settings(keys: Keys, defaults: ImageSettings) -> ImageSettings:
    """What ``keys`` say of images; ``defaults`` where they say nothing."""
    raw = keys.raw
    for key in ("do_rescale", "do_resize"):
        if raw.get(key) not in (None, True):
            raise keys.wrong(key, "true")
    resample = raw.get("resample")
    if resample is not None and (type(resample) is not int or resample not in _RESAMPLE):
        raise keys.wrong("resample", " or ".join(f"{n} ({name})" for n, name in _RESAMPLE.items()))
    normalizes = raw.get("do_normalize")
    if normalizes not in (None, True, False):
        raise keys.wrong("do_normalize", "true or false")
    mean = _channels(keys, "image_mean", -10.0) or defaults.mean
    std = _channels(keys, "image_std", 1e-3) or defaults.std
    factor = defaults.rescale_factor
    if raw.get("rescale_factor") is not None:
        factor = keys.number("rescale_factor", 1e-6, 1e6)
    does = raw.get("do_pan_and_scan")
    if does not in (None, True, False):
        raise keys.wrong("do_pan_and_scan", "true or false")
    return ImageSettings(
        resample=defaults.resample if resample is None else _RESAMPLE[resample],
        rescale_factor=factor,
        mean=None if normalizes is False or (normalizes is None and defaults.mean is None) else mean,
        std=std,
        does_pan_and_scan=bool(does),
        pan_and_scan=parse_pan_and_scan(raw, keys.where, "pan_and_scan_", defaults.pan_and_scan),
        max_soft_tokens=_most_tokens(keys, defaults.max_soft_tokens),
        size=_size(keys),
    )


def parse_pan_and_scan(raw: Mapping[str, Any], where: str, prefix: str, defaults: PanAndScan) -> PanAndScan:
    """The values in ``raw``, whose keys begin with ``prefix``; those of ``defaults`` where it has none.

    >>> parse_pan_and_scan({"max_num_crops": 2}, "pan_and_scan", "", PanAndScan())
    PanAndScan(min_crop_size=256, max_num_crops=2, min_ratio_to_activate=1.2)
    """
    fields = {f"{prefix}{name}": value for name, value in vars(defaults).items()}
    given = {key: value for key, value in raw.items() if key in fields and value is not None}
    keys = Keys(given, where, "", fields)
    return PanAndScan(
        min_crop_size=keys.integer(f"{prefix}min_crop_size", _MOST_PIXELS),
        max_num_crops=keys.integer(f"{prefix}max_num_crops", _MOST_CROPS),
        min_ratio_to_activate=keys.number(f"{prefix}min_ratio_to_activate", 1.0, 1e6),
    )


def _channels(keys: Keys, key: str, low: float) -> tuple[float, float, float] | None:
    value = keys.raw.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 3
        or any(type(one) not in (int, float) or not low <= one <= 10 for one in value)
    ):
        raise keys.wrong(key, f"three numbers from {low:g} to 10")
    return float(value[0]), float(value[1]), float(value[2])


def _most_tokens(keys: Keys, default: int) -> int:
    if keys.raw.get("max_soft_tokens") is None:
        return default
    return keys.integer("max_soft_tokens", _MOST_PIXELS)


def _size(keys: Keys) -> tuple[int, int] | None:
    value = keys.raw.get("size")
    if not isinstance(value, dict) or "height" not in value:
        return None
    inner = keys.inner(value, "size")
    return inner.integer("height", _MOST_PIXELS), inner.integer("width", _MOST_PIXELS)
