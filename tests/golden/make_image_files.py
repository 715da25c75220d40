"""Writes tests/golden/image_files.safetensors: unusual files of images, and the levels that transformers
gives for them.

pip install torch==2.13.0 torchvision==0.28.0 transformers==5.24.0 pillow==13.0.0 safetensors
python tests/golden/make_image_files.py

file.NAME [n] uint8          the file
levels.NAME [16, 16, 3]      uint8: what Gemma3ImageProcessor makes of it for a tower of 16 x 16 pixels
size.NAME [2] int64          height and width in which Gemma4ImageProcessor has it
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

HERE = Path(__file__).parent
SIDE = 16


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def sixteen_bits(levels: np.ndarray[Any, Any]) -> bytes:
    """A PNG with three channels of 16 bits, which Pillow does not write."""
    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    for kind, chunk in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return data


def files() -> dict[str, bytes]:
    random = np.random.default_rng(3)

    def noise(*shape: int, most: int = 256, kind: type = np.uint8) -> np.ndarray[Any, Any]:
        return random.integers(0, most, shape, dtype=kind)

    colours = Image.fromarray(noise(13, 21, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {
        "cmyk.jpg": encoded(colours.convert("CMYK"), "JPEG", quality=95),
        "grey.jpg": encoded(colours.convert("L"), "JPEG"),
        "grey16.png": encoded(Image.fromarray(noise(13, 21, most=1 << 16, kind=np.uint16))),
        "colour16.png": sixteen_bits(noise(13, 21, 3, most=1 << 16, kind=np.uint16)),
        "bits.png": encoded(colours.convert("1")),
        "palette.png": encoded(colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=20)),
        "palette.gif": encoded(colours.convert("P"), "GIF"),
        "lossless.webp": encoded(colours, "WEBP", lossless=True),
        "turned.png": encoded(colours, exif=exif),
    }
    for height, width in ((1, 1), (1, 200), (200, 1), (2, 3000), (1500, 3)):
        found[f"{height}x{width}.png"] = encoded(Image.fromarray(noise(height, width, 3)))
    return found


def main() -> None:
    side = {"height": SIDE, "width": SIDE}
    processor = Gemma3ImageProcessor(size=side, do_normalize=False, do_rescale=False)
    tensors = {}
    for name, data in files().items():
        path = HERE / name
        path.write_bytes(data)
        image = load_image(str(path))  # given a path, it rotates the image upright
        path.unlink()
        pixels = processor([image], return_tensors="pt")["pixel_values"][0]
        size = get_aspect_ratio_preserving_size(
            height=image.height, width=image.width, patch_size=16, max_patches=280 * 9, pooling_kernel_size=3
        )
        tensors[f"file.{name}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        tensors[f"levels.{name}"] = pixels.permute(1, 2, 0).round().to(torch.uint8).contiguous()
        tensors[f"size.{name}"] = torch.tensor(size)
    save_file(tensors, HERE / "image_files.safetensors")


if __name__ == "__main__":
    main()
