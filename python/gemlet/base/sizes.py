"""Reads sizes of memory from text, formats them as text, and measures this process's resident memory."""

from __future__ import annotations

import os
import re

from gemlet.base.text import show
from gemlet.errors import InvalidRequestError

__all__ = ["parse_memory", "resident_bytes", "size_text"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_LARGEST = 1 << 62


def parse_memory(value: int | str, name: str = "max_memory") -> int:
    """The number of bytes that the argument ``name`` stands for. ``value`` is a number of bytes, or text such
    as "2GB", "1.5 GiB" or "800MB".

    >>> parse_memory("2GB"), parse_memory("1.5GiB"), parse_memory(4096)
    (2000000000, 1610612736, 4096)
    """
    if type(value) is int and 0 < value < _LARGEST:
        return value
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    size = round(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if not 0 < size < _LARGEST:
        raise InvalidRequestError(
            f'{name} is {show(value)}; expected a number of bytes, or a size like "2GB" or "800MiB"'
        )
    return size


def resident_bytes() -> int:
    """The bytes of resident memory that this process has now; 0 if the system does not report them."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def size_text(size: int) -> str:
    """A number of bytes as people read it: three digits and a decimal unit.

    >>> size_text(392_940_544), size_text(4_697_620_480), size_text(12_000)
    ('393 MB', '4.70 GB', '12 kB')
    """
    if size >= 10**9:
        return f"{size / 10**9:.2f} GB"
    return f"{size / 10**6:.0f} MB" if size >= 10**6 else f"{size / 10**3:.0f} kB"
