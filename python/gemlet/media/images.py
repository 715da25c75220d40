"""Turns an image in any form into its 8-bit levels: :func:`read_image`.

Pillow only decodes files; the core does everything after that. Files are not trusted: a file is checked
before it is decoded, and formats for which Pillow would start another program are not read.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import TYPE_CHECKING, Any

from gemlet.base.arrays import NDArray, is_array, np
from gemlet.base.late import log
from gemlet.base.text import reason_of, show_argument
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.media.files import bytes_of
from gemlet.media.image_layout import check_layout, check_scans

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MOST_FILE_BYTES", "MOST_PIXELS", "Levels", "decoded_bytes", "read_image"]


Levels = NDArray["np.uint8"]  # [height, width, 3]

MOST_PIXELS = 1 << 26
MOST_FILE_BYTES = 1 << 26
_MIXED = 1 << 20  # pixels that are put on white at a time
_ORIENTATION = 0x0112  # the tag of EXIF data
_DEEP = ("I", "F")  # modes of Pillow with more than 8 bits
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_EXPECTED = (
    "expected a path, the bytes of a file, an open file, a Pillow image or a uint8 array [height, width, 3]"
)


def read_image(image: object, name: str = "image") -> Levels:
    """Returns ``image`` as uint8 ``[height, width, 3]``. ``image`` is a path, the bytes of a file, an open
    file, a data URL, a Pillow image, or an array ``[height, width]`` or ``[height, width, channels]`` with 1,
    3 or 4 channels. The image is turned upright by its EXIF data, and transparent parts get a white
    background.

    Raises :class:`InvalidRequestError` if ``image`` is not an image, is damaged or too large, and
    :class:`UnsupportedError` for a file if Pillow is not installed. ``name`` is the argument's name for
    messages.

    >>> read_image([[0, 255]])
    Traceback (most recent call last):
        ...
    gemlet.errors.InvalidRequestError: image: got [[0, 255]], expected a path, the bytes of a file, ...
    """
    if is_array(image):
        return _from_array(np.asarray(image), name)
    data = bytes_of(image, name, MOST_FILE_BYTES)
    if data is not None:
        return _from_file(data, name)
    pillow = sys.modules.get("PIL.Image")  # if Pillow is not imported, this is not one of its images
    if pillow is not None and isinstance(image, pillow.Image):
        return _from_pillow(image, name)
    raise InvalidRequestError(f"{name}: got {show_argument(image)}, {_EXPECTED}")


def decoded_bytes(data: bytes) -> int:
    """The bytes of memory that decoding the image file ``data`` takes, computed from the header; 0 if
    :func:`read_image` refuses the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from PIL import Image

            check_layout(data, "image")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                levels = 4 * image.height * image.width
                # For a progressive JPEG, the decoder keeps all coefficients until it has read the last scan.
                return levels * (3 if "progressive" in image.info else 1)
        except Exception:  # Pillow's decoders raise nearly everything
            return 0


def _check_size(name: str, height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InvalidRequestError(
            f"{name}: it has {width} x {height} pixels; expected at least 1 and at most {MOST_PIXELS}"
        )


def _from_array(array: NDArray[Any], name: str) -> Levels:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InvalidRequestError(
            f"{name}: got an array of {array.dtype} {list(array.shape)}, expected uint8 [height, width, 3]"
        )
    _check_size(name, array.shape[0], array.shape[1])
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        array = _on_white(array)
    return np.ascontiguousarray(array)


def _on_white(array: NDArray[np.uint8]) -> Levels:
    found = np.empty((*array.shape[:2], 3), np.uint8)
    rows = max(1, _MIXED // array.shape[1])  # in parts, because float32 takes four times the memory of uint8
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        alpha = part[:, :, 3:].astype(np.float32) / np.float32(255)
        mixed = alpha * part[:, :, :3] + (np.float32(1) - alpha) * np.float32(255)
        found[start : start + rows] = np.rint(mixed)
    return found


def _from_file(data: bytes, name: str) -> Levels:
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedError(
            f'{name}: Pillow, which decodes files, is not installed; use pip install "gemlet[vision]", or '
            "pass a uint8 array [height, width, 3]"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, and sizes that are checked below
        try:
            check_layout(data, name)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(name, image.height, image.width)
                check_scans(data, name, image.height * image.width)
                return _from_pillow(image, name)
        except InvalidRequestError:
            raise
        except MemoryError:
            raise
        except Exception as problem:  # Pillow's decoders raise nearly everything
            raise InvalidRequestError(
                f"{name}: the file is not an image, or is damaged: {reason_of(problem)}; expected one "
                f"of {', '.join(_FORMATS)} (or pass what PIL.Image.open() returns)"
            ) from None


def _from_pillow(image: Image.Image, name: str) -> Levels:
    from PIL import ImageOps

    _check_size(name, image.height, image.width)
    try:
        # exif_transpose() and convert() would copy an image even if it needs no change, and a large image
        # takes hundreds of megabytes.
        is_turned = image.getexif().get(_ORIENTATION, 1) != 1
        upright = ImageOps.exif_transpose(image) if is_turned else image
        if upright.mode == "La":  # "LA" is the only mode to which Pillow converts it
            upright = upright.convert("LA")
        if upright.mode.startswith(_DEEP):
            log.warning(
                "%s: the image has the mode %s, and its values above 255 are cut to 255, as in "
                "transformers; scale the values to 0 to 255 first",
                name,
                upright.mode,
            )
        transparent = upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info
        mode = "RGBA" if transparent else "RGB"
        levels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError) as problem:
        raise InvalidRequestError(f"{name}: the image cannot be decoded: {reason_of(problem)}") from None
    return _from_array(levels, name)
