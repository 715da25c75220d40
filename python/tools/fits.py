"""Prints the table of python/MACHINES.md: for every model and memory size, the best format that fits.

The memory plan (gemlet.loading.memory_plan) decides what fits. Copy the output into the guide by hand.

python python/tools/fits.py          prints the table
python python/tools/fits.py --check  fails if the guide does not contain this table
"""

from __future__ import annotations

import sys
from pathlib import Path

from gemlet.base.sizes import size_text
from gemlet.config import SHAPES, shape_config
from gemlet.errors import MemoryLimitError
from gemlet.loading.for_memory import PROCESS_BYTES, options_for_memory
from gemlet.loading.memory_plan import plan_memory
from gemlet.loading.options import LoadOptions

GUIDE = Path(__file__).resolve().parents[1] / "MACHINES.md"
MEMORY = {  # column of the table -> megabytes
    "512 MB": 512,
    "1 GB": 1000,
    "2 GB": 2000,
    "4 GB": 4000,
    "8 GB": 8000,
    "16 GB": 16000,
    "32 GB": 32000,
}
SYSTEM = 100  # MB of memory that the other programs of a small system use


def best(shape: str, megabytes: int) -> str:
    """The best format of the model for this memory, or "-" if the model does not fit in any format."""
    try:
        chosen = options_for_memory((megabytes - SYSTEM) * 10**6, shape_config(shape), LoadOptions())
    except MemoryLimitError:
        return "-"
    return f"{chosen.weights}, embedding q4" if chosen.embedding == "q4" else chosen.weights


def needs(shape: str) -> str:
    """The memory that the model needs with q4 weights and up to 4096 tokens, as text."""
    config = shape_config(shape)
    context = min(4096, config.max_position_embeddings)
    options = LoadOptions(weights="q4", max_context=context)
    return size_text(plan_memory(config, options, process=PROCESS_BYTES).total)


def table() -> str:
    lines = ["| model | q4 takes | " + " | ".join(MEMORY) + " |", "|---|--:|" + "---|" * len(MEMORY)]
    for shape in SHAPES:
        cells = [best(shape, megabytes) for megabytes in MEMORY.values()]
        lines.append(f"| {shape} | {needs(shape)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    if sys.argv[1:] != ["--check"]:
        print(table(), end="")
        return 0
    if table() in GUIDE.read_text(encoding="utf-8"):
        return 0
    print(f"{GUIDE.name} does not contain the table below; replace the table in the guide by it\n\n{table()}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
