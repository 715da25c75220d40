"""Writes resize.safetensors: images before and after torchvision resized them, with antialiasing.

pip install torch==2.14.1 torchvision==0.29.1 numpy safetensors
python tests/golden/make_resize.py

N.image [h, w, 3], N.bilinear and N.bicubic [h', w', 3]"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

# (height, width) before and after: growing, shrinking, both, one axis, neither, and the least sizes
CASES = (
    ((7, 9), (20, 31)),
    ((61, 47), (16, 16)),
    ((50, 13), (13, 50)),
    ((13, 50), (50, 13)),
    ((24, 24), (24, 11)),
    ((24, 24), (11, 24)),
    ((24, 24), (24, 24)),
    ((1, 1), (5, 6)),
    ((9, 8), (1, 1)),
    ((90, 2), (3, 40)),
    ((33, 31), (32, 32)),
    ((1, 77), (8, 8)),
)


def main() -> None:
    random = np.random.default_rng(3)
    found: dict[str, torch.Tensor] = {}
    for index, (before, after) in enumerate(CASES):
        image = random.integers(0, 256, (*before, 3), dtype=np.uint8)
        if index % 3 == 1:
            image = np.where(image > 127, 255, 0).astype(np.uint8)  # bicubic leaves the range at such edges
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        found[f"{index}.image"] = torch.from_numpy(image)
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
            resized = functional.resize(tensor, list(after), interpolation=mode, antialias=True)
            found[f"{index}.{mode.value}"] = resized.permute(1, 2, 0).clone(
                memory_format=torch.contiguous_format
            )
    save_file(found, Path(__file__).parent / "resize.safetensors")


if __name__ == "__main__":
    main()
