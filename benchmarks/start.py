"""Measures a start: from a new interpreter to the first token of a model, in parts.

    gemlet convert MODEL PACKED --weights q4
    python benchmarks/start.py PACKED --processes 20

It prints the processor time of all threads and the elapsed time of each part: median and range over new
processes. "exit" is the time from the first token to the end of the process. The context has room for
4096 tokens, or for as many as the model takes. The files are in the system's page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gemlet.config import read_config

CONTEXT = 4096
PROGRAM = Path(__file__).with_name("start_once.py").read_text()


def start(folder: str, context: int) -> tuple[dict[str, tuple[float, float]], int, bool]:
    """Processor and elapsed seconds of each part, the number of modules, and whether NumPy is one."""
    before, began = os.times(), time.monotonic()
    command = [sys.executable, "-c", PROGRAM, folder, str(context)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    ended, after = time.monotonic(), os.times()
    marks, modules, numpy = json.loads(done.stdout)
    parts, processor, elapsed = {}, 0.0, began
    for name, seconds, at in marks:
        parts[name] = (seconds - processor, at - elapsed)
        processor, elapsed = seconds, at
    whole = sum(after[2:4]) - sum(before[2:4])
    parts["all of these"] = (processor, elapsed - began)
    parts["exit"] = (whole - processor, ended - elapsed)
    return parts, modules, numpy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a packed folder")
    parser.add_argument("--processes", type=int, default=11)
    options = parser.parse_args()
    context = min(CONTEXT, read_config(options.model).max_position_embeddings)
    found = [start(options.model, context) for _ in range(options.processes + 1)][1:]
    print(
        f"{found[0][1]} modules, {'with' if found[0][2] else 'without'} NumPy; milliseconds, median (range)"
    )
    for part in found[0][0]:
        shown = []
        for kind in (0, 1):
            values = sorted(1e3 * parts[part][kind] for parts, _, _ in found)
            shown.append(f"{statistics.median(values):6.0f} ({values[0]:.0f} to {values[-1]:.0f})")
        print(f"{part:14} processor {shown[0]:20}  elapsed {shown[1]}")


if __name__ == "__main__":
    main()
