"""Compares gemlet's towers with those of transformers, in alternating passes.

    python benchmarks/towers.py --threads 2
    python benchmarks/towers.py --towers siglip --weights q8 --torch other/bin/python

Both have random weights at real shapes. The other Python has the packages of tests/golden/make_vision.py. A
pass is from pixels or log-mel spectra to soft tokens. Every program is a separate process, which makes its
tower once. "ratio" is the median time of the fastest type of torch divided by gemlet's, with its range over
single rounds. "memory" is the memory of the first pass without the weights. "limit" is the time that the
arithmetic of the pass takes at the measured peak of the machine (of int8 for q8, of float32 for f32 and
bf16), and the share of this peak that gemlet reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Tower:
    shape: str  # the model that has it
    size: tuple[int, int]  # height and width of the image; (0, 0) means 30 s of sound
    teraflop: float  # the work of a pass, counted by torch.utils.flop_counter with eager attention


TOWERS = {
    "siglip": Tower("gemma3-4b", (896, 896), 5.461),
    "mobilenet": Tower("gemma3n-e2b", (768, 768), 0.874),
    "gemma4-vision": Tower("gemma4-e2b", (672, 960), 1.078),  # 280 soft tokens
    "gemma3n-audio": Tower("gemma3n-e2b", (0, 0), 0.985),
    "gemma4-audio": Tower("gemma4-e2b", (0, 0), 0.445),
}
SECONDS = 30


def gemlet_pass(name: str, weights: str, threads: int) -> Callable[[], Any]:
    """A pass of gemlet. The text model after the tower has one layer."""
    import numpy as np

    from gemlet.config import shape_config
    from gemlet.loading.builder import finish_model, make_builder
    from gemlet.loading.options import LoadOptions

    tower = TOWERS[name]
    config = shape_config(tower.shape, towers=True)
    config = dataclasses.replace(config, layers=config.layers[:1])
    options = LoadOptions(weights=weights, embedding="q4", threads=threads, max_context=512)
    builder = make_builder(config, options)
    builder.add_random(seed=0)
    model = finish_model(
        builder, config, end_ids=frozenset({1}), source=name, tokenizer=None,
        started=time.perf_counter(), spare_memory=None, prefix_cache=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    if not any(tower.size):
        noise = (0.1 * rng.standard_normal(SECONDS * 16000)).astype(np.float32)
        hearing = model._hearing
        encode = hearing.prepared(hearing.sound(noise, "sound"))
        return lambda: encode(None)
    levels = rng.integers(0, 256, (*tower.size, 3), dtype=np.uint8)
    (view,) = model._media.image(levels, "image").views
    pixels, seeing = view.pixels(), model._media.tower()
    return lambda: seeing.encode(pixels)


def torch_pass(name: str, dtype: str, threads: int) -> Callable[[], Any]:
    """A pass of transformers."""
    import torch
    import transformers
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder
    from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    height, width = TOWERS[name].size
    frames = 100 * SECONDS

    def made(config: Any) -> Any:
        return transformers.AutoModel.from_config(config).eval().to(kind)  # sdpa if it can

    with torch.no_grad():
        if name == "siglip":
            vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                      "num_attention_heads": 16, "image_size": 896, "patch_size": 14}  # fmt: skip
            config = transformers.Gemma3Config(
                vision_config={**vision, "vision_use_head": False}, text_config={"hidden_size": 2560}
            )
            tower, last = made(config.vision_config), Gemma3MultiModalProjector(config).to(kind)
            pixels = torch.rand(1, 3, height, width).to(kind)
            return lambda: last(tower(pixel_values=pixels).last_hidden_state)
        if name == "mobilenet":
            import timm

            tower = timm.create_model("mobilenetv5_300m_enc", pretrained=False).eval().to(kind)
            tower = tower.to(memory_format=torch.channels_last)
            config = transformers.Gemma3nConfig()
            last = Gemma3nMultimodalEmbedder(config.vision_config, config.text_config).to(kind)
            pixels = torch.rand(1, 3, height, width).to(kind, memory_format=torch.channels_last)
            return lambda: last(inputs_embeds=tower(pixels).flatten(2).transpose(1, 2))
        if name == "gemma4-vision":
            text = transformers.Gemma4TextConfig(hidden_size=1536)
            config = transformers.Gemma4VisionConfig(use_clipped_linears=True)
            tower, last = made(config), Gemma4MultimodalEmbedder(config, text).to(kind)
            rows, cols = height // config.patch_size, width // config.patch_size
            places = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)[None]
            pixels = torch.rand(1, rows * cols, 3 * config.patch_size**2).to(kind)
            see = {"pixel_values": pixels, "pixel_position_ids": places}
            return lambda: last(tower(**see).last_hidden_state)
        heard = torch.rand(1, frames, 128).to(kind)
        if name == "gemma4-audio":
            text, config = transformers.Gemma4TextConfig(hidden_size=1536), transformers.Gemma4AudioConfig()
            tower, last = made(config), Gemma4MultimodalEmbedder(config, text).to(kind)
            mask = torch.ones(1, frames, dtype=torch.bool)
            return lambda: last(tower(heard, mask).last_hidden_state)
        config = transformers.Gemma3nConfig()
        tower = made(config.audio_config)
        last = Gemma3nMultimodalEmbedder(config.audio_config, config.text_config).to(kind)
        mask = torch.zeros(1, frames, dtype=torch.bool)  # True is padding
        return lambda: last(inputs_embeds=tower(heard, mask).last_hidden_state)


def memory(field: str) -> int:
    """Kilobytes of memory of this process: VmRSS is the memory now, VmHWM the peak since the last call of
    forget_peak()."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def serve(program: str, name: str, kind: str, threads: str, busy: str) -> None:
    """Prints the megabytes of the first pass, then for each line of standard input the seconds of another."""
    clock = time.process_time if busy == "busy" else time.perf_counter
    if program == "torch":
        import torch

        guard: Any = torch.inference_mode()
        guard.__enter__()
        run = torch_pass(name, kind, int(threads))
    else:
        run = gemlet_pass(name, kind, int(threads))
    forget_peak()
    before = memory("VmRSS")
    run()
    print((memory("VmHWM") - before) / 1024, flush=True)
    for _ in sys.stdin:
        started = clock()
        run()
        print(clock() - started, flush=True)


class Process:
    """A program with one tower."""

    def __init__(self, python: str, *arguments: str) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.megabytes = self._number()

    def _number(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a program did not start; see its message above")
        return float(line)

    def run(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._number()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(name: str, options: argparse.Namespace, peaks: dict[str, float]) -> None:
    threads = str(options.threads)
    programs = [(sys.executable, "gemlet", kind) for kind in options.weights]
    if options.torch:
        programs += [(options.torch, "torch", kind) for kind in options.torch_types]
    busy = "busy" if options.busy else "quiet"
    processes = [Process(python, program, name, kind, threads, busy) for python, program, kind in programs]
    turns = [[process.run() for process in processes] for _ in range(options.repeat)]
    columns = list(zip(*turns, strict=True))
    medians = [statistics.median(column) for column in columns]
    theirs = range(len(options.weights), len(programs))
    best = min(theirs, key=lambda i: medians[i], default=None)
    for i, (_, program, kind) in enumerate(programs):
        row = f"{name:>14} {program:>7} {kind:>5} {medians[i] * 1e3:8.0f} ms"
        row += f" ({min(columns[i]) * 1e3:.0f} to {max(columns[i]) * 1e3:.0f})"
        if program == "gemlet":
            if best is not None:
                ratios = [turn[best] / turn[i] for turn in turns]
                row += f", ratio {medians[best] / medians[i]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            limit = TOWERS[name].teraflop / peaks["i8" if kind in ("q8", "q4") else "f32"] * 1e6
            row += f", memory {processes[i].megabytes:.0f} MB"
            row += f", limit {limit:.0f} ms, {limit / medians[i] / 1e3:.0%} of it"
        print(row, flush=True)
    for process in processes:
        process.close()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--towers", nargs="*", default=list(TOWERS), choices=TOWERS)
    parser.add_argument("--weights", nargs="*", default=["f32", "bf16", "q8"])
    parser.add_argument("--torch", metavar="PYTHON", help="also runs transformers, with this Python")
    parser.add_argument("--torch-types", nargs="*", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--busy",
        action="store_true",
        help="counts seconds of the processor, for a machine with other work; with one thread",
    )
    options = parser.parse_args()

    from gemlet import _core

    def peak() -> dict[str, float]:
        return {k: 2 * _core.testing.measure_peak(kind=k, threads=options.threads) for k in ("f32", "i8")}

    turns = [peak() for _ in range(10)]
    peaks = {kind: max(turn[kind] for turn in turns) for kind in turns[0]}
    shown = ", ".join(f"{kind} {value:.0f}" for kind, value in peaks.items())
    print(f"{options.threads} threads, tier {_core.cpu_info()['tier']}, peaks in GFLOP/s: {shown}")
    for name in options.towers:
        compare(name, options, peaks)


if __name__ == "__main__":
    main()
