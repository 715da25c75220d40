"""Reading images: files, arrays and Pillow's objects, orientation, transparency, and values that are not
images."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gemlet import InvalidRequestError, _core
from gemlet.config.gemma4_vision import budget_size
from gemlet.media.containers import HEAD_BYTES, kind_of
from gemlet.media.images import MOST_PIXELS, read_image
from golden.folders import HERE, read_tensors
from support.extras import optional

pytestmark = pytest.mark.extra("vision")
Image = optional("PIL.Image")

LEVELS = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_every_form_gives_the_same_levels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(LEVELS))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    flipped = np.ascontiguousarray(LEVELS[::-1])[::-1]  # this array is not contiguous
    for form in (LEVELS, flipped, data, bytearray(data), path, str(path), url, Image.fromarray(LEVELS)):
        np.testing.assert_array_equal(read_image(form), LEVELS)


def test_an_image_that_needs_no_change_is_not_copied() -> None:
    """A copy of a large image takes hundreds of megabytes."""
    data = encoded(Image.fromarray(LEVELS))
    never = mock.Mock(side_effect=AssertionError("a copy"))
    with mock.patch.multiple(Image.Image, copy=never, convert=never):
        np.testing.assert_array_equal(read_image(data), LEVELS)


def test_errors_have_no_addresses() -> None:
    with pytest.raises(InvalidRequestError, match="not an image, or is damaged") as error:
        read_image(b"BM" + bytes(60))
    assert "0x" not in str(error.value)


def test_grey_and_palette_become_colours() -> None:
    grey = LEVELS[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for form in (grey, grey[:, :, None], encoded(Image.fromarray(grey)), Image.fromarray(grey)):
        np.testing.assert_array_equal(read_image(form), expected)
    palette = Image.fromarray(LEVELS).convert("P")
    np.testing.assert_array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_transparent_pixels_get_a_white_background() -> None:
    rgba = np.concatenate([LEVELS, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    rgba[0, 0, 3], rgba[1, 1, 3] = 0, 51
    for form in (rgba, encoded(Image.fromarray(rgba)), Image.fromarray(rgba)):
        found = read_image(form)
        assert found[0, 0].tolist() == [255, 255, 255]
        assert np.abs(found[1, 1] - (0.2 * LEVELS[1, 1] + 0.8 * 255)).max() <= 0.5
        np.testing.assert_array_equal(found[2:], LEVELS[2:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(LEVELS), exif=exif)
    turned = {
        1: LEVELS,
        2: LEVELS[:, ::-1],
        3: LEVELS[::-1, ::-1],
        4: LEVELS[::-1],
        5: LEVELS.transpose(1, 0, 2),
        6: np.rot90(LEVELS, -1),
        7: np.rot90(LEVELS.transpose(1, 0, 2), 2),
        8: np.rot90(LEVELS),
    }[orientation]
    np.testing.assert_array_equal(read_image(data), turned)


REFERENCE = read_tensors(HERE / "image_files.safetensors")


@pytest.mark.parametrize("name", [key[5:] for key in REFERENCE if key.startswith("file.")])
def test_unusual_files_are_seen_as_in_transformers(name: str) -> None:
    """Images of 16 bits, with a palette, in CMYK, rotated, of one pixel, extremely long."""
    levels = read_image(REFERENCE[f"file.{name}"].tobytes())
    seen = _core.resize_image(levels, height=16, width=16, filter="bilinear")
    np.testing.assert_array_equal(seen, REFERENCE[f"levels.{name}"])
    assert budget_size(*levels.shape[:2], 48, 280) == tuple(REFERENCE[f"size.{name}"])


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has so many pixels."""
    data = bytearray(encoded(Image.fromarray(LEVELS)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (MOST_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    with pytest.raises(InvalidRequestError):
        read_image(bomb(width, height))


def in_pieces(kind: str, count: int) -> bytes:
    """The file with ``count`` more pieces, which are all empty."""
    data = encoded(Image.fromarray(LEVELS), kind)
    at = {"PNG": 33, "JPEG": 2, "GIF": 13 + (3 << (data[10] & 7) + 1)}[kind]
    chunk = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
    pieces = {"PNG": chunk * count, "JPEG": b"\xff\xe5\0\2" * count, "GIF": b"!\xfe" + b"\1a" * count + b"\0"}
    return data[:at] + pieces[kind] + data[at:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_file_in_many_pieces(kind: str) -> None:
    """Pillow reads each piece separately, which takes minutes for a file of some megabytes."""
    assert read_image(in_pieces(kind, 1000)).shape == LEVELS.shape
    with (
        mock.patch.object(Image, "open", side_effect=AssertionError("opens")),
        pytest.raises(InvalidRequestError, match=r"in more than 20\d\d pieces"),
    ):
        read_image(in_pieces(kind, 2100))


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    data = encoded(Image.fromarray(LEVELS), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    again = [data[:-2] + last * count + data[-2:] for count in (20, 60)]
    assert read_image(again[0]).shape == LEVELS.shape
    with pytest.raises(InvalidRequestError, match="times over its 35 pixels; expected at most 64 times"):
        read_image(again[1])


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_clipping_by_pillow_gives_a_warning(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    deep = Image.fromarray(np.full((2, 3), 300, {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    assert deep.mode == mode
    assert (read_image(deep, "photo") == 255).all()
    assert f"photo: the image has the mode {mode}, and its values above 255 are cut to 255" in caplog.text


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_other_kinds_of_arrays_and_modes() -> None:
    np.testing.assert_array_equal(read_image(np.matrix(LEVELS[:, :, 0])), read_image(LEVELS[:, :, 0]))
    grey = Image.fromarray(LEVELS[:, :, 0]).convert("LA")
    np.testing.assert_array_equal(read_image(grey.convert("La")), read_image(grey))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("GIF", {})],
)
def test_formats_of_files(kind: str, options: dict[str, Any]) -> None:
    grey = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(16, axis=0)
    data = encoded(Image.fromarray(grey), kind, **options)
    assert kind_of(data[:HEAD_BYTES]) == "image"
    read = read_image(data)
    assert read.shape == grey.shape
    assert np.abs(read.astype(int) - grey).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected one of PNG, JPEG, WEBP, GIF"):
        read_image(encoded(Image.fromarray(LEVELS), kind))


def test_damaged_files_are_refused() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 90, 3), dtype=np.uint8)))
    jpeg = encoded(Image.fromarray(LEVELS), "JPEG")
    for wrong in (b"", b"GIF89a", data[: len(data) // 2], jpeg[:90], b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"):
        with pytest.raises(InvalidRequestError, match="photo"):
            read_image(wrong, "photo")


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        5,
        [1, 2],
        {"url": "x"},
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 2, 2, 3), np.uint8),
        "data:image/png,abc",
        "data:image/png;base64,???",
        "https://example.com/cat.png",
        "/nowhere/cat.png",
        "a\0b",
    ],
)
def test_wrong_images_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"photo"):
        read_image(wrong, "photo")


def test_random_changes_of_files_end_in_typed_errors() -> None:
    random = np.random.default_rng(5)
    small = Image.fromarray(LEVELS)
    files = [encoded(small, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    for trial in range(400):
        data = bytearray(files[trial % len(files)])
        for _ in range(random.integers(1, 6)):
            data[random.integers(len(data))] = random.integers(256)
        if trial % 4 == 0:
            del data[random.integers(len(data)) :]
        try:
            found = read_image(bytes(data))
        except InvalidRequestError:
            continue
        assert found.dtype == np.uint8
        assert found.ndim == 3
