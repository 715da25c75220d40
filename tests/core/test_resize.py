"""Resizing of images gives exactly the levels of torchvision."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemlet import InvalidRequestError, _core
from support.paths import TESTS

CASES = load_file(TESTS / "golden" / "resize.safetensors")
COUNT = sum(name.endswith(".image") for name in CASES)


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_levels_are_torchvisions(index: int, mode: str) -> None:
    expected = CASES[f"{index}.{mode}"]
    height, width, _ = expected.shape
    found = _core.resize_image(CASES[f"{index}.image"], height=height, width=width, filter=mode)
    np.testing.assert_array_equal(found, expected)


def test_an_image_of_one_color_keeps_its_color() -> None:
    for level in (0, 1, 127, 254, 255):
        image = np.full((7, 5, 3), level, np.uint8)
        for size in ((1, 1), (3, 9), (40, 2)):
            for mode in ("bilinear", "bicubic"):
                found = _core.resize_image(image, height=size[0], width=size[1], filter=mode)
                assert (found == level).all()


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5), (1 << 20, 1 << 20), (1 << 62, 4)])
def test_impossible_sizes_are_refused(height: int, width: int) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InvalidRequestError, match="pixels"):
        _core.resize_image(image, height=height, width=width, filter="bilinear")


def test_wrong_images_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="height, width, 3"):
        _core.resize_image(np.zeros((4, 4), np.uint8), height=2, width=2, filter="bilinear")
    with pytest.raises(InvalidRequestError, match="'bilinear' or 'bicubic'"):
        _core.resize_image(np.zeros((4, 4, 3), np.uint8), height=2, width=2, filter="nearest")
