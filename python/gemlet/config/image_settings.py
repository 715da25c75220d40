"""Reads ``preprocessor_config.json``, which says how a model's images are prepared:
:class:`ImageSettings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.records import record
from gemlet.base.strict_json import read_json_object
from gemlet.errors import ConfigError

__all__ = [
    "PREPROCESSOR_FILES",
    "TOKEN_BUDGETS",
    "ImageSettings",
    "PanAndScan",
    "parse_image_settings",
    "read_image_settings",
]

# The newer file holds what the older one says as an object inside.
PREPROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
TOKEN_BUDGETS = (70, 140, 280, 560, 1120)  # the most soft tokens of an image of Gemma 4
_MOST_CROPS = 64
_MOST_PIXELS = 1 << 20  # pixels of a side


@record(frozen=True)
class PanAndScan:
    """The rule by which a model also sees the parts of a long image, and the number of parts.

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
    max_soft_tokens: int = (
        280  # tokens of an image, in models in which this number depends on the image's size
    )
    size: tuple[int, int] | None = None  # height and width, if the file has them
    patch_size: int | None = None  # pixels of a side, if the file has it
    pooling_kernel_size: int | None = None  # patches of a side of a token, likewise

    def check(self, where: str, **expected: object) -> None:
        """Raises :class:`ConfigError` for a value of the file that differs from the tower's."""
        for key, value in expected.items():
            if (found := getattr(self, key)) not in (None, value):
                raise ConfigError(
                    f"{where}: the preprocessor's {key} is {found}; expected {value}, as in the tower"
                )


def read_image_settings(
    folder: str, defaults: ImageSettings, absent: ImageSettings | None = None
) -> ImageSettings:
    """Reads from the files in ``folder`` how images are prepared; ``defaults`` if there is no such file.
    ``absent`` has the values for keys that a file lacks, if they differ from ``defaults``.

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
                Keys(inner, path, "" if inner is raw else "image_processor."), absent or defaults
            )
    return defaults


def parse_image_settings(keys: Keys, defaults: ImageSettings) -> ImageSettings:
    """Reads from ``keys`` how images are prepared; missing keys have the values of ``defaults``. As in the
    reference, null does not mean the default: it turns a switch off, and is an error for any other key."""
    raw = keys.raw
    for key in ("do_rescale", "do_resize"):
        if raw.get(key, True) is not True:
            raise keys.wrong(key, "true")
    for key in ("do_center_crop", "do_pad"):
        if raw.get(key) not in (None, False):
            raise keys.wrong(key, "false: no published model crops or pads")
    resample = raw.get("resample", ...)
    if resample is not ... and (type(resample) is not int or resample not in _RESAMPLE):
        raise keys.wrong("resample", " or ".join(f"{n} ({name})" for n, name in _RESAMPLE.items()))
    normalizes = raw.get("do_normalize", defaults.mean is not None)
    if normalizes not in (None, True, False):
        raise keys.wrong("do_normalize", "true or false")
    mean = _channels(keys, "image_mean", -10.0) if "image_mean" in raw and normalizes else defaults.mean
    std = _channels(keys, "image_std", 1e-3) if "image_std" in raw and normalizes else defaults.std
    factor = defaults.rescale_factor
    if "rescale_factor" in raw:
        factor = keys.number("rescale_factor", 1e-6, 1e6)
    does = raw.get("do_pan_and_scan")
    if does not in (None, True, False):
        raise keys.wrong("do_pan_and_scan", "true or false")
    return ImageSettings(
        resample=defaults.resample if resample is ... else _RESAMPLE[resample],
        rescale_factor=factor,
        mean=mean if normalizes else None,
        std=std,
        does_pan_and_scan=bool(does),
        pan_and_scan=parse_pan_and_scan(raw, keys.where, "pan_and_scan_", defaults.pan_and_scan),
        max_soft_tokens=_most_tokens(keys, defaults.max_soft_tokens),
        size=_size(keys) or defaults.size,
        patch_size=_optional(keys, "patch_size"),
        pooling_kernel_size=_optional(keys, "pooling_kernel_size"),
    )


def parse_pan_and_scan(raw: Mapping[str, Any], where: str, prefix: str, defaults: PanAndScan) -> PanAndScan:
    """The values in ``raw``, whose keys begin with ``prefix``; those of ``defaults`` if it has none.

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


def _channels(keys: Keys, key: str, low: float) -> tuple[float, float, float]:
    value = keys.raw[key]
    if (
        not isinstance(value, list)
        or len(value) != 3
        or any(type(one) not in (int, float) or not low <= one <= 10 for one in value)
    ):
        raise keys.wrong(key, f"three numbers from {low:g} to 10")
    return float(value[0]), float(value[1]), float(value[2])


def _optional(keys: Keys, key: str) -> int | None:
    return None if keys.raw.get(key) is None else keys.integer(key, _MOST_PIXELS)


def _most_tokens(keys: Keys, default: int) -> int:
    if keys.raw.get("max_soft_tokens") is None:
        return default
    if keys.raw["max_soft_tokens"] not in TOKEN_BUDGETS:
        raise keys.wrong("max_soft_tokens", f"one of {', '.join(map(str, TOKEN_BUDGETS))}")
    return keys.integer("max_soft_tokens", _MOST_PIXELS)


def _size(keys: Keys) -> tuple[int, int] | None:
    value = keys.raw.get("size")
    if value is None:
        return None
    if not isinstance(value, dict) or not {"height", "width"} <= value.keys():
        raise keys.wrong("size", 'null or an object with "height" and "width"')
    inner = keys.inner(value, "size")
    return inner.integer("height", _MOST_PIXELS), inner.integer("width", _MOST_PIXELS)
