"""Mutations of good files: of their bytes, and of JSON values, by themselves or in a safetensors header."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
]
VALUES: list[Any] = [
    *NUMBERS,
    0.5,
    -0.0,
    1e308,
    1e-320,
    True,
    False,
    None,
    "",
    "a",
    "é\u0000",
    [],
    {},
    [[]],
    "x" * 300,
]
BYTES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0" * 8,
    b"\xff" * 8,
    b"{",
    b'"',
    b"[" * 40,
    (1 << 62).to_bytes(8, "little"),
]


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """Makes one to four changes: flips bits, removes or doubles parts, writes extreme numbers, cuts off the
    end."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4])):
        # Headers are at the front. Damage there has the largest effects.
        at = chance.randrange(min(len(out), chance.choice([16, 256, 4096, 1 << 30])) or 1) if out else 0
        kind = chance.randrange(7)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            piece = chance.choice(BYTES)
            out[at : at + len(piece)] = piece
        elif kind == 2:
            del out[at : at + chance.choice([1, 2, 4, 8, 64])]
        elif kind == 3:
            out[at:at] = out[at : at + chance.choice([1, 4, 8, 64])]
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            size = chance.choice([1, 2, 4, 8])
            number = chance.choice(NUMBERS) + chance.choice([0, 0, 1, -1])
            out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        else:
            out += chance.choice(BYTES)
    return bytes(out)


def mutate_json(chance: random.Random, data: bytes) -> bytes:
    """Replaces, removes, doubles, renames or moves one to three values."""
    value = json.loads(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        value = _change(chance, value)
    return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def mutate_safetensors(chance: random.Random, data: bytes) -> bytes:
    """Applies :func:`mutate_json` to the header. The length before it is mostly correct."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutate_json(chance, data[8:end])
    length = len(header) + chance.choice([0, 0, 0, 0, 0, 0, 1, -1, 8])
    return max(length, 0).to_bytes(8, "little") + header + data[end:]


def _change(chance: random.Random, value: Any) -> Any:
    containers = [value] if isinstance(value, (dict, list)) else []
    for container in containers:  # the list grows during the loop
        inner = container.values() if isinstance(container, dict) else container
        containers += [entry for entry in inner if isinstance(entry, (dict, list))]
        if len(containers) > 2000:
            break
    full = [container for container in containers if container]
    if not full:
        return copy.deepcopy(chance.choice(VALUES))
    target = chance.choice(full)
    key = chance.choice(list(target) if isinstance(target, dict) else range(len(target)))
    kind = chance.randrange(6)
    if kind == 0:
        del target[key]
    elif kind == 1 and isinstance(target, dict):
        target[chance.choice(["", "extra", str(key) + "x", "__metadata__"])] = target.pop(key)
    elif kind == 2 and isinstance(target, list):
        target *= chance.choice([2, 50])
    elif kind == 3 and isinstance(target[key], int):
        target[key] += chance.choice([1, -1, 8, 1 << 20])
    elif kind == 4:
        target[key] = [target[key]] if chance.random() < 0.5 else copy.deepcopy(chance.choice(full))
    else:
        target[key] = copy.deepcopy(chance.choice(VALUES))
    return value
