"""Tests and measures gemlet on an NVIDIA GPU. It has not run on one yet.

    python benchmarks/gpu.py --check build/csrc/gemlet_check_cuda    # an H200; 12 minutes at most

It needs a build with GEMLET_CUDA=on (csrc/kernels/cuda/cuda.cmake). It first compares every operation with
float64, then every family with the official results. Then it runs ``gemlet bench`` with random weights at the
shapes of Gemma 3 1B, 3 4B, Gemma 4 E2B and 26B-A4B. Each step has a time limit. If a step fails or takes too
long, its output is kept, and the next step begins.

Decode is compared with the time to read the bytes of a token, prefill with the time of its multiplications,
at the GPU's published bandwidth and bf16 speed (--bandwidth, --flops)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ("gemma3-1b", "gemma3-4b", "gemma4-e2b", "gemma4-26b-a4b")
FORMATS = ("bf16", "q4")
ROUNDS = ("-p", "512,2048", "-n", "128", "-r", "3", "--max-context", "4096", "--json")


def run(command: list[str], seconds: float) -> dict[str, Any]:
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        out, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        out, code = str(error), 124
    except OSError as error:
        out, code = str(error), 127
    return {"command": command, "code": code, "seconds": time.monotonic() - started, "output": out[-6000:]}


def shares(found: dict[str, Any], bandwidth: float, flops: float) -> None:
    """Adds to each row its share of the roofline: bandwidth for decode, arithmetic for prefill."""
    from gemlet.config import shape_config

    config = shape_config(found["model"]["name"].split(" ")[0])
    for row in found["results"]:
        if row["test"].startswith("tg"):
            row["share_of_bandwidth"] = row["tokens_per_second"] * row["bytes_per_token"] / bandwidth
        else:
            row["share_of_flops"] = row["tokens_per_second"] * flops_per_token(config) / flops


def flops_per_token(config: Any) -> float:
    """Operations in products with the matrices of layers: two for each weight that a token uses."""
    hidden, total = config.hidden_size, 0
    for layer in config.layers:
        heads = layer.num_heads + (2 * layer.num_kv_heads if layer.kv_source < 0 else 0)
        total += hidden * layer.head_dim * (heads + layer.num_heads)
        total += 3 * hidden * layer.intermediate_size
        if layer.num_experts:
            total += 3 * hidden * layer.experts_per_token * layer.expert_intermediate_size
    return 2.0 * total


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", type=Path, help="gemlet_check_cuda of the build")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the results go")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes per second (default: H200)")
    parser.add_argument(
        "--flops", type=float, default=989e12, help="bf16 operations per second (default: H200)"
    )
    options = parser.parse_args()
    gemlet = [sys.executable, "-m", "gemlet"]
    steps = [run([*gemlet, "info", "--json"], 60), run(["nvidia-smi"], 30)]
    if options.check:
        steps.append(run([str(options.check.resolve())], 120))
    tests = ["tests/forward/test_cuda.py"]
    steps.append(run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], 180))
    for shape in SHAPES:
        for weights in FORMATS:
            bench = [*gemlet, "bench", "--random", shape, "--weights", weights, "--device", "cuda", *ROUNDS]
            step = run(bench, 120)
            if step["code"] == 0:
                step["found"] = json.loads(step.pop("output").splitlines()[-1])
                shares(step["found"], options.bandwidth, options.flops)
            steps.append(step)
            options.out.write_text(json.dumps(steps, indent=1))
    for step in steps:
        print(f"{step['code']:4} {step['seconds']:6.1f} s  {' '.join(map(str, step['command']))[:120]}")
        for row in step.get("found", {}).get("results", []):
            share = row.get("share_of_bandwidth", row.get("share_of_flops"))
            speed = f"{row['tokens_per_second']:10.1f} tokens/s"
            print(f"       {row['test']:8} {speed}, {100 * share:.1f} % of the roofline")
    return 0 if all(step["code"] == 0 for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
