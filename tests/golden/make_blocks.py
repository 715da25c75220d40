"""Writes blocks.safetensors: blocks of every GGUF type that gemlet reads, and their values from the ``gguf``
package.

The bytes are random, so that every bit of every field counts. Only the float16 scales are chosen: they are
finite, have both signs, and some are zero or below float16's normal range.

    pip install gguf==0.19.0 safetensors
    python tests/golden/make_blocks.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

# type -> the places of the float16 numbers in a block
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
ROWS, ROW_VALUES = 17, 256  # a panel and a row


def main() -> None:
    random = np.random.default_rng(20260701)
    tensors = {}
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ROWS * ROW_VALUES // values, size), dtype=np.uint8)
        for place in places:
            scale = random.normal(0, 10.0 ** random.uniform(-7, 1, len(blocks)))
            scale[random.random(len(blocks)) < 0.1] = 0
            blocks[:, place : place + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
        rows = blocks.reshape(ROWS, -1)
        tensors[f"{name}.blocks"] = rows
        tensors[f"{name}.values"] = dequantize(rows, kind).astype(np.float32)
    save_file(tensors, Path(__file__).with_name("blocks.safetensors"))


if __name__ == "__main__":
    main()
