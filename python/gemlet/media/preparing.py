"""From an image's levels to what a tower takes: :func:`prepare_image`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.text import show_argument
from gemlet.config.image_settings import ImageSettings, PanAndScan, parse_pan_and_scan
from gemlet.config.vision_config import SiglipConfig
from gemlet.errors import ConfigError, InvalidRequestError
from gemlet.media.images import Levels

__all__ = ["ImageView", "chosen_pan_and_scan", "crops_of", "views_of"]


@dataclass(frozen=True)
class ImageView:
    """An image, or a part of one, as the tower will see it.

    Attributes:
        levels: uint8 ``[height, width, 3]``, not resized yet.
        tokens: how many soft tokens it becomes.
        digest: 32 bytes of all that these depend on besides the model.
        first: whether it is a whole image, which others may follow that are parts of it.
    """

    levels: Levels
    tokens: int
    digest: bytes
    first: bool
    config: SiglipConfig

    def resized(self) -> Levels:
        """The levels in the size that the tower takes."""
        size = self.config.image_size
        return _core.resize_image(self.levels, height=size, width=size, filter=self.config.settings.resample)

    def pixels(self) -> NDArray[np.float32]:
        """float32 ``[size, size, 3]``, normalised."""
        return normalized(self.resized(), self.config.settings)


def normalized(levels: Levels, settings: ImageSettings) -> NDArray[np.float32]:
    """``(level * rescale_factor - mean) / std``, as torchvision computes it.

    >>> normalized(np.array([[[0, 255, 51]]], np.uint8), ImageSettings()).tolist()
    [[[0.0, 1.0, 0.20000000298023224]]]
    """
    values = levels.astype(np.float32)
    if settings.mean is None:
        return values * np.float32(settings.rescale_factor)
    whole = np.float32(1.0 / settings.rescale_factor)
    mean, std = (np.array(one, np.float32) * whole for one in (settings.mean, settings.std))
    return np.asarray((values - mean) / std, np.float32)


def chosen_pan_and_scan(asked: object, settings: ImageSettings) -> PanAndScan | None:
    """What the argument ``pan_and_scan`` of a call means: None for the model's own way, True, False, or a
    mapping of values that replace the model's.

    >>> chosen_pan_and_scan({"max_num_crops": 2}, ImageSettings())
    PanAndScan(min_crop_size=256, max_num_crops=2, min_ratio_to_activate=1.2)
    """
    if asked is None:
        asked = settings.does_pan_and_scan
    if asked is True or asked is False:
        return settings.pan_and_scan if asked else None
    if not isinstance(asked, Mapping):
        raise InvalidRequestError(
            f"pan_and_scan: got {show_argument(asked)}, expected True, False or a mapping"
        )
    names = tuple(vars(settings.pan_and_scan))
    for key in asked:
        if key not in names:
            raise InvalidRequestError(f"pan_and_scan: got {show_argument(key)}, expected {', '.join(names)}")
    try:
        return parse_pan_and_scan(asked, "pan_and_scan", "", settings.pan_and_scan)
    except ConfigError as problem:
        raise InvalidRequestError(str(problem)) from None


def crops_of(height: int, width: int, how: PanAndScan) -> list[tuple[int, int, int, int]]:
    """The parts (top, left, height, width) of an image in which it is seen besides as a whole.

    >>> crops_of(300, 700, PanAndScan())
    [(0, 0, 300, 350), (0, 350, 300, 350)]
    >>> crops_of(300, 300, PanAndScan())
    []
    """
    long, short = max(height, width), min(height, width)
    if long / short < how.min_ratio_to_activate:
        return []
    count = int(long / short + 0.5)
    count = min(how.max_num_crops, max(2, min(long // how.min_crop_size, count)))
    length = -(-long // count)
    if min(length, short) < how.min_crop_size:
        return []
    cuts = [(at, min(length, long - at)) for at in range(0, length * count, length) if at < long]
    if width >= height:
        return [(0, at, height, size) for at, size in cuts]
    return [(at, 0, size, width) for at, size in cuts]


def views_of(levels: Levels, config: SiglipConfig, how: PanAndScan | None) -> list[ImageView]:
    """The image as a whole, and the parts of it that ``how`` asks for."""
    height, width = levels.shape[:2]
    parts = [] if how is None else crops_of(height, width, how)
    found = [_view(levels, config, first=True)]
    for top, left, rows, columns in parts:
        part = np.ascontiguousarray(levels[top : top + rows, left : left + columns])
        found.append(_view(part, config, first=False))
    return found


def _view(levels: Levels, config: SiglipConfig, *, first: bool) -> ImageView:
    digest = hashlib.sha256(repr((levels.shape, config)).encode())
    digest.update(levels.data)
    return ImageView(levels, config.tokens, digest.digest(), first, config)
