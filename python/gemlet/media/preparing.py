"""Turns an image's levels into the input of a tower: :func:`views_of`."""

from __future__ import annotations

from collections.abc import Mapping

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.late import hashlib
from gemlet.base.records import record, replace
from gemlet.base.text import show_argument
from gemlet.config.gemma4_vision import VIDEO_BUDGET, budget_size
from gemlet.config.image_settings import TOKEN_BUDGETS, ImageSettings, PanAndScan, parse_pan_and_scan
from gemlet.config.mobilenet import MobileNetConfig
from gemlet.config.vision_config import SiglipConfig, VisionConfig
from gemlet.errors import ConfigError, InvalidRequestError, UnsupportedError
from gemlet.media.images import Levels

__all__ = [
    "ImageView",
    "chosen_budget",
    "chosen_pan_and_scan",
    "crops_of",
    "frame_view",
    "normalized",
    "views_of",
]


@record(frozen=True)
class ImageView:
    """An image, or a part of an image, that the tower will encode.

    Attributes:
        levels: the pixels, uint8 ``[height, width, 3]``, not resized yet.
        tokens: the number of soft tokens.
        digest: a hash (32 bytes) of everything that the soft tokens depend on besides the model.
        token_id: the id that stands for each soft token in a prompt.
        size: the height and width to which the image is resized.
        settings: how images are resized and normalised.
    """

    levels: Levels
    tokens: int
    digest: bytes
    token_id: int
    size: tuple[int, int]
    settings: ImageSettings

    def resized(self) -> Levels:
        """The levels, resized for the tower."""
        height, width = self.size
        return _core.resize_image(self.levels, height=height, width=width, filter=self.settings.resample)

    def kept_small(self) -> ImageView:
        """The same view with the resized levels only, which take less memory."""
        return replace(self, levels=self.resized())

    def pixels(self) -> NDArray[np.float32]:
        """The tower's input: float32 ``[height, width, 3]``, resized and normalised."""
        return normalized(self.resized(), self.settings)


def normalized(levels: Levels, settings: ImageSettings) -> NDArray[np.float32]:
    """``(level * rescale_factor - mean) / std``, as torchvision computes it.

    >>> normalized(np.array([[[0, 255, 51]]], np.uint8), ImageSettings()).tolist()
    [[[0.0, 1.0, 0.20000001788139343]]]
    """
    values = levels.astype(np.float32)
    if settings.mean is None:
        return values * np.float32(settings.rescale_factor)
    whole = np.float32(1.0 / settings.rescale_factor)
    mean, std = (np.array(one, np.float32) * whole for one in (settings.mean, settings.std))
    return np.asarray((values - mean) / std, np.float32)


def chosen_pan_and_scan(asked: object, settings: ImageSettings) -> PanAndScan | None:
    """Resolves the argument ``pan_and_scan`` of a call: None for the model's own setting, True, False, or a
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
    """The crops (top, left, height, width) that pan and scan makes in addition to the whole image.

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


def chosen_budget(asked: object, config: VisionConfig) -> int | None:
    """The most tokens of an image that the argument ``image_tokens`` of a call asks for; None if an image
    always has the same number of tokens."""
    if isinstance(config, SiglipConfig | MobileNetConfig):
        if asked is not None:
            raise UnsupportedError(f"image_tokens: every image of this model has {config.tokens} tokens")
        return None
    if asked is None:
        return config.settings.max_soft_tokens
    if type(asked) is not int or asked not in TOKEN_BUDGETS:
        listed = ", ".join(map(str, TOKEN_BUDGETS))
        raise InvalidRequestError(f"image_tokens: got {show_argument(asked)}, expected one of {listed}")
    return asked


def views_of(
    levels: Levels, config: VisionConfig, how: PanAndScan | None = None, budget: int | None = None
) -> list[ImageView]:
    """The views of an image: the whole image, and the crops that ``how`` asks for. In models where the number
    of soft tokens depends on the image's size, ``budget`` is the most soft tokens of the image."""
    if isinstance(config, MobileNetConfig):
        return [_view(levels, config, config.token_id)]
    if not isinstance(config, SiglipConfig):
        return [_view(levels, config, config.token_id, budget or config.settings.max_soft_tokens)]
    height, width = levels.shape[:2]
    found = [_view(levels, config, config.token_id)]
    for top, left, rows, columns in [] if how is None else crops_of(height, width, how):
        part = np.ascontiguousarray(levels[top : top + rows, left : left + columns])
        found.append(_view(part, config, config.token_id))
    return found


def frame_view(levels: Levels, config: VisionConfig) -> ImageView:
    """The view of a video's frame."""
    if isinstance(config, SiglipConfig | MobileNetConfig):
        return _view(levels, config, config.token_id)
    return _view(levels, config, config.video_id, VIDEO_BUDGET)


def _view(levels: Levels, config: VisionConfig, token_id: int, budget: int = 0) -> ImageView:
    if isinstance(config, SiglipConfig):
        size, tokens = (config.image_size, config.image_size), config.tokens
    elif isinstance(config, MobileNetConfig):
        size, tokens = config.size, config.tokens
    else:
        side = config.token_side
        size = budget_size(levels.shape[0], levels.shape[1], side, budget)
        tokens = (size[0] // side) * (size[1] // side)
    digest = hashlib.sha256(repr((levels.shape, size, token_id, config)).encode())
    digest.update(levels.data)
    return ImageView(levels, tokens, digest.digest(), token_id, size, config.settings)
