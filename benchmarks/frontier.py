"""Compares gemlet's formats with the files of llama.cpp's quantizer: their quality, and the bytes that a
token reads.

    pip install llama-cpp-python      # best in a separate environment; see --llama-python
    python benchmarks/frontier.py --model gemma-3-270m.gguf --calibrate NOVEL --off-grid

All rows come from the same weights: those of the GGUF file, as float32. llama.cpp quantizes them to its usual
types, with and without an importance matrix. gemlet rounds the weights while loading, or in a conversion with
``calibrate``. The importance matrix and ``calibrate`` use the same tokens. gemlet computes all rows. It loads
the files with ``weights="auto"``, which keeps their values exactly, except that Q4_1 and Q5_1 become q8.

Published files of small models are already quantized. Quantizing such a file to the same type again loses
nothing, and types with a similar grid look better than they are. ``--off-grid`` adds uniform noise to the
weights, as wide as the steps of their type in the file. So they lie on the grid of no type, as trained
weights usually do.

The bytes are all weights that a decoded token reads, including the output head. quality.py explains the
other columns. "Worst / mean" says whether single tokens lose far more than others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import quality

import gemlet
from gemlet import _core
from gemlet.checkpoint.gguf_format import read_gguf
from gemlet.loading.calibration import measure_inputs
from gemlet.packing.calibrated import input_of
from gemlet.sources.opening import open_model_files

TYPES = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
LOADED = (
    ("q8", "q8"),
    *((weights, head) for weights in ("q6k", "q5k", "q5", "q4k", "q4") for head in ("q8", "q6k")),
)
CALIBRATED = tuple((weights, head) for weights in ("q5", "q4") for head in ("q8", "q6k"))
# Type -> the number of values that share a step, and the number of steps in the largest of these values.
STEPS = {"Q4_0": (32, 8), "Q4_K": (32, 7.5), "Q5_0": (32, 16), "Q6_K": (16, 32), "Q8_0": (32, 127)}
_TOGETHER = 4  # models in memory at a time, besides the reference


def measure_importance(model: Path, text: Path | bool, target: Path, threads: int) -> None:
    """The mean square of each input channel of each matrix, under the matrix's name in the file."""
    with gemlet.load(model, weights="f32", threads=threads, prefix_cache=False) as loaded:
        grams = measure_inputs(loaded, text)
    with open_model_files(model) as files:
        found: dict[str, Any] = {
            name: np.diag(grams[input_of(slot)])
            for name, slot in files.slots.items()
            if input_of(slot) in grams
        }
    np.savez(target, **found)


def leave_grid(source: Path, target: Path) -> None:
    """Adds noise to the matrices in ``target``, which has the weights of ``source`` in float32. The noise is
    at most half a step of the type that the matrix has in ``source``."""
    rng = np.random.default_rng(0)
    types = {name: tensor.type for name, tensor in read_gguf(source).tensors.items()}
    for name, tensor in read_gguf(target).tensors.items():
        if types[name] not in STEPS:
            continue
        block, steps = STEPS[types[name]]
        shape = tensor.nbytes // 4 // block, block
        values = np.memmap(target, np.float32, "r+", tensor.offset, shape)
        for start in range(0, len(values), 1 << 16):
            part = values[start : start + (1 << 16)]
            width = np.abs(part).max(axis=-1, keepdims=True) / np.float32(steps)
            part += width * (rng.random(part.shape, np.float32) - np.float32(0.5))


def stored_bytes(path: Path) -> int:
    """The bytes of all tensors of a file."""
    return sum(tensor.nbytes for tensor in read_gguf(path).tensors.values())


class Source(NamedTuple):
    """The file of a row of the table, and the options to load it. With ``stored``, the size of the file says
    what a token reads."""

    path: Path
    options: dict[str, Any]
    stored: bool = False


def make_sources(arguments: argparse.Namespace, folder: Path) -> dict[str, Source]:
    """Makes the files in ``folder``. The first source is the reference in float32."""
    f32, importance = folder / "f32.gguf", folder / "importance.npz"
    text = arguments.calibrate or True

    def in_llama(*what: object) -> None:
        script = Path(__file__).with_name("llama_quantizer.py")
        command = [arguments.llama_python, str(script), *map(str, what)]
        subprocess.run(command, check=True, stderr=None if arguments.verbose else subprocess.DEVNULL)

    in_llama(arguments.model, f32, "F32")
    if arguments.off_grid:
        leave_grid(arguments.model, f32)
    measure_importance(f32, text, importance, arguments.threads)
    sources = {"f32": Source(f32, {"weights": "f32", "kv_cache": "f32"})}
    for weights, head in LOADED:
        sources[f"{weights}, head {head}"] = Source(f32, {"weights": weights, "embedding": head})
    for weights, head in CALIBRATED:
        target = folder / f"{weights}-{head}"
        gemlet.convert(
            f32, target, weights=weights, embedding=head, calibrate=text, threads=arguments.threads
        )
        sources[f"{weights}, head {head}, calibrated"] = Source(target, {})
    for kind in TYPES:
        for name, extra in ((kind, ()), (f"{kind}, importance matrix", (importance,))):
            target = folder / f"{kind}{'-i' if extra else ''}.gguf"
            in_llama(f32, target, kind, *extra)
            sources[name] = Source(target, {"weights": "auto"}, stored=True)
    return sources


def judge(arguments: argparse.Namespace, folder: Path) -> dict[str, tuple[int, quality.Quality]]:
    """The bytes per token and the quality of each row, by the name of the row."""
    sources = make_sources(arguments, folder)
    chunks = quality.read_chunks(arguments.model, arguments.text, arguments.chunk, arguments.limit)
    rows = {}

    def load(source: Source) -> gemlet.Model:
        return gemlet.load(source.path, **source.options, threads=arguments.threads, prefix_cache=False)

    reference, *names = sources
    with load(sources[reference]) as exact:
        for start in range(0, len(names), _TOGETHER):
            models = {name: load(sources[name]) for name in names[start : start + _TOGETHER]}
            cores = {name: model._resident.core for name, model in models.items()}
            measured = quality.measure(exact._resident.core, cores, chunks, arguments.every)
            for name, row in measured.items():
                source = sources[name]
                size = stored_bytes(source.path) if source.stored else cores[name].bytes_per_token()
                rows[name] = size, row
                print(name, size, row, file=sys.stderr, flush=True)
            for model in models.values():
                model.close()
    return rows


def main() -> None:
    """Reads the arguments, makes the files, measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("--off-grid", action="store_true", help="noise for the weights; see above")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="default: text that the model generates"
    )
    parser.add_argument(
        "--text", type=Path, default=quality.HELD_OUT, metavar="FILE", help="default: the held-out text"
    )
    parser.add_argument("--chunk", type=int, default=1024, metavar="TOKENS", help="default 1024")
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="chunks, default 1")
    parser.add_argument(
        "--every", type=int, default=4, choices=[1, 2, 4, 8, 16], help="judge every Nth token, default 4"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--folder", help="where to put the temporary files, about 3 times the size in bf16")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--verbose", action="store_true", help="show what llama.cpp says")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = judge(arguments, Path(folder))
    if arguments.json:
        found = {
            name: {"bytes_per_token": size, **dataclasses.asdict(row)} for name, (size, row) in rows.items()
        }
        return print(json.dumps(found, indent=2))
    print(f"{arguments.model}, tier {_core.cpu_info()['tier']}\n")
    print("| weights | MB per token | KL | worst | worst / mean | same top-1 | perplexity |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, (size, row) in sorted(rows.items(), key=lambda item: item[1][0]):
        print(
            f"| {name} | {size / 1e6:.1f} | {row.kl:.2e} | {row.kl_worst:.3g} | {row.kl_worst / row.kl:.0f} "
            f"| {row.top_1:.1%} | {row.perplexity:.2f} |"
        )


if __name__ == "__main__":
    main()
