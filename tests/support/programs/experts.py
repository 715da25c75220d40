"""Functions that forward/test_experts_read.py runs in separate processes."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gemlet
from support.inside import context_of
from support.tiny_models import read_header

Kept = Sequence[Sequence[int]]  # for each layer, the numbers of the experts whose memory pages stay readable
LIBC = ctypes.CDLL(None, use_errno=True)


def places_of(path: Path) -> dict[tuple[int, int, str], tuple[int, int]]:
    """The offset and size of each expert's matrices in the file, by layer, expert and name."""
    header, data = read_header(path)
    start = path.stat().st_size - len(data)
    places = {}
    for name, entry in header.items():
        if ".experts." in name:
            _, layer, _, expert, _ = name.split(".")
            begin, end = entry["data_offsets"]
            places[int(layer), int(expert), name] = (start + begin, start + end)
    return places


def protect(path: Path, mode: int, kept: Kept) -> None:
    """Sets the access ``mode`` of all memory pages that contain only matrices of experts, except for the
    experts in ``kept``."""
    with open("/proc/self/maps") as file:
        maps = [line.split(maxsplit=5) for line in file if line.rstrip().endswith(str(path))]
    assert maps
    for (layer, expert, name), (begin, end) in places_of(path).items():
        if expert in kept[layer]:
            continue
        begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin >= end:
            continue
        for at, _, offset, *_ in maps:
            low, high = (int(part, 16) for part in at.split("-"))
            start = low + begin - int(offset, 16)
            if low <= start and start + end - begin <= high:
                if LIBC.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - begin), mode):
                    raise OSError(ctypes.get_errno(), f"mprotect of {name}")
                break
        else:
            raise AssertionError(f"the file of {name} is not mapped into memory")


def extend_with_others_protected(
    folder: Path, steps: Sequence[tuple[list[int], Kept]]
) -> list[NDArray[np.float32]]:
    """The last logits of each step. During a step, the process can read only the experts in ``kept``; reading
    another expert would crash it."""
    path = folder / "model.safetensors"
    found = []
    with gemlet.load(folder, threads=1) as model:
        sequence = context_of(model)
        for ids, kept in steps:
            protect(path, 0, kept)
            sequence.extend(np.array(ids, np.int32))
            protect(path, mmap.PROT_READ, kept)
            found.append(sequence.logits()[0])
            print("a step", flush=True)
    return found
