"""llama.cpp's quantizer, for frontier.py: it runs in an environment that has llama-cpp-python.

python benchmarks/llama_quantizer.py SOURCE TARGET TYPE [IMPORTANCE]
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np


def quantize(source: str, target: str, kind: str, importance: str | None = None) -> None:
    """Writes ``source`` as ``kind``, such as "Q4_K_M" or "F32". ``importance`` is an .npz file with the mean
    squares of the inputs of each tensor."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_" + ("ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    params.allow_requantize = kind == "F32"
    if importance is not None:
        with np.load(importance) as file:
            means = {name.encode(): np.ascontiguousarray(file[name], np.float32) for name in file.files}
        entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last entry has no name
        for entry, (name, values) in zip(entries, means.items(), strict=False):
            entry.name, entry.size = name, values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"{target}: llama.cpp did not write it; see its message above")


if __name__ == "__main__":
    quantize(*sys.argv[1:])
