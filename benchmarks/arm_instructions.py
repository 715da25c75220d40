"""Counts the instructions of a token on Arm under qemu-user. It needs no Arm machine.

    python benchmarks/arm_instructions.py BUILD [--shapes 270m 1b] [--tiers neon dotprod i8mm]

BUILD is a build for aarch64, such as the one that `.ci/run aarch64` makes. Models with random weights in q4,
with the head in q8, compute a prompt of 8 tokens and then one token at a time, on one thread. A plugin of
QEMU counts the instructions.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

# Layers, hidden size, size between the products of a feed-forward layer, query heads.
SHAPES = {"270m": (18, 640, 2048, 4), "1b": (26, 1152, 6912, 4)}
# Tier -> the name of a processor of QEMU that has this tier.
TIERS = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}
TOKENS = 4
HERE = Path(__file__).resolve().parent


def build(folder: Path, library: Path, compiler: str) -> None:
    source = HERE / "arm_instructions.cpp"
    command = [
        compiler,
        "-std=c++20",
        "-O2",
        "-I",
        HERE.parent / "csrc",
        source,
        library,
        "-lpthread",
        "-ldl",
    ]
    subprocess.run([*command, "-o", folder / "program"], check=True)
    command = ["gcc", "-shared", "-fPIC", "-O2", HERE / "arm_instructions.c", "-o", folder / "count.so"]
    subprocess.run(command, check=True)


def count(folder: Path, tier: str, shape: tuple[int, ...]) -> list[int]:
    """The instructions of each token."""
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", TIERS[tier], "-plugin"]
    command += [f"{folder}/count.so", f"{folder}/program", *map(str, shape), str(TOKENS)]
    environment = {**os.environ, "GEMLET_CPU": tier}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    marks = [int(line) for line in done.stderr.split()]
    return [after - before for before, after in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        build(Path(made), options.build / "csrc" / "libgemlet_core.a", options.compiler)
        print("| shape | tier | million instructions for a token |\n|---|---|--:|")
        for name in options.shapes:
            for tier in options.tiers:
                found = sorted(count(Path(made), tier, SHAPES[name]))
                print(f"| {name} | {tier} | {found[0] / 1e6:.1f} to {found[-1] / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
