"""Compares gemlet's prefill with OpenVINO's: the same shape, bits and threads, in alternating runs.

    python -m venv ov && ov/bin/pip install openvino numpy
    python benchmarks/openvino_peer.py --openvino-python ov/bin/python --shape gemma3-1b --weights q4

The Gemma 3 graph consists of OpenVINO's own operations with random weights. The weights have 4 or 8 bits and
one float16 scale for 32 weights of a row; the tied embedding has 8 bits and one scale for a row. The graph is
compiled once for each length, with constant shapes and without a key-value cache, which makes it as fast as
possible. Length 1 is a decoding step without earlier tokens.

``--configs`` names the settings to try: activations in f32 or bf16, or quantized to 8 bits in groups of 32
("i8x32"). All settings and gemlet run alternately. The fastest setting is OpenVINO's figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from typing import Any

from peers import Gemlet, serve, shape_of

GROUP = 32


class OpenVino:
    """Gemma 3 as an OpenVINO graph, from the ids of a prompt to the logits of its last token."""

    def __init__(self, shape: Any, weights: str, threads: int, lengths: list[int], config: str) -> None:
        import numpy as np
        import openvino as ov

        self.np, self.ov, self.shape, self.bits = np, ov, shape, {"q4": 4, "q8": 8}[weights]
        self.rng = np.random.default_rng(0)
        activations, _, group = config.partition("x")
        settings = {
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": {"i8": "f32"}.get(activations, activations),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group or "0",
        }
        self.matrices: dict[tuple[str, int, int, int], Any] = {}
        self.requests = {}
        for length in lengths:
            self.compiled = ov.Core().compile_model(self.graph(length), "CPU", settings)
            self.requests[length] = self.compiled.create_infer_request()

    def matrix(self, name: str, rows: int, cols: int, bits: int, group: int) -> Any:
        """A compressed matrix and the operations that expand it. OpenVINO fuses them into the product."""
        np, ov = self.np, self.ov
        from openvino import opset13 as op

        key = (name, rows, cols, bits)
        if key not in self.matrices:
            packed = self.rng.integers(0, 256, rows * cols * bits // 8, np.uint8)
            scales = (self.rng.random((rows, cols // group, 1)) + 0.5) / np.sqrt(cols) / 2 ** (bits - 2)
            self.matrices[key] = packed, scales.astype(np.float16)
        packed, scales = self.matrices[key]
        grouped = [rows, cols // group, group] if group < cols else [rows, cols]
        kind = {4: ov.Type.i4, 8: ov.Type.i8}[bits]
        packed = packed.view(np.int8) if bits == 8 else packed
        quants = op.constant(ov.Tensor(packed, ov.Shape(grouped), kind))
        scaled = op.multiply(op.convert(quants, "f16"), op.constant(scales.reshape([*grouped[:-1], 1])))
        if group < cols:
            scaled = op.reshape(scaled, np.array([rows, cols]), special_zero=False)
        return op.convert(scaled, "f32")

    def graph(self, length: int) -> Any:
        np, ov, shape = self.np, self.ov, self.shape
        from openvino import opset13 as op

        def product(x: Any, name: str, rows: int, cols: int) -> Any:
            return op.matmul(x, self.matrix(name, rows, cols, self.bits, GROUP), False, True)

        def norm(x: Any, size: int) -> Any:
            mean = op.reduce_mean(op.power(x, np.float32(2)), np.array([-1]), keep_dims=True)
            root = op.sqrt(op.add(mean, np.float32(1e-6)))
            gain = np.full(size, 1.001, np.float32)
            return op.multiply(op.multiply(x, op.divide(np.float32(1), root)), gain)

        def rotate(x: Any, theta: float, size: int) -> Any:
            angles = np.outer(np.arange(length), theta ** (-np.arange(0, size, 2) / size))
            angles = np.concatenate([angles, angles], -1)[None, None].astype(np.float32)
            first, second = op.variadic_split(x, 3, np.array([size // 2, size // 2])).outputs()
            turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
            return op.add(op.multiply(x, np.cos(angles)), op.multiply(turned, np.sin(angles)))

        def heads(x: Any, count: int, size: int) -> Any:
            split = op.reshape(x, np.array([1, length, count, size]), False)
            return op.transpose(split, np.array([0, 2, 1, 3]))

        hidden, layers = shape["hidden_size"], shape["layers"]
        embedding = self.matrix("embedding", shape["vocab_size"], hidden, 8, hidden)
        ids = op.parameter([1, length], ov.Type.i32, "ids")
        x = op.multiply(op.gather(embedding, ids, np.int32(0)), np.float32(hidden**0.5))
        for i, layer in enumerate(layers):
            size, wide, many = (layer[key] for key in ("head_dim", "intermediate_size", "num_heads"))
            h = norm(x, hidden)
            q, k, v = (
                heads(product(h, f"{i}.{part}", count * size, hidden), count, size)
                for part, count in (("q", many), ("k", 1), ("v", 1))
            )
            q, k = (rotate(norm(part, size), layer["rope_theta"], size) for part in (q, k))
            k, v = (op.broadcast(part, np.array([1, many, length, size])) for part in (k, v))
            behind = np.subtract.outer(np.arange(length), np.arange(length))
            seen = (behind >= 0) & (behind < (layer["sliding_window"] or length))
            mask = np.where(seen, 0, -np.inf).astype(np.float32)[None, None]
            causal = bool(seen[-1, 0])  # the window hides nothing: the operation's own mask is cheaper
            mask, scale = np.float32(0) if causal else mask, np.float32(layer["query_scale"])
            h = op.scaled_dot_product_attention(q, k, v, op.constant(mask), op.constant(scale), causal)
            h = op.reshape(op.transpose(h, np.array([0, 2, 1, 3])), np.array([1, length, many * size]), False)
            x = op.add(x, norm(product(h, f"{i}.o", hidden, many * size), hidden))
            h = norm(x, hidden)
            gate = op.gelu(product(h, f"{i}.gate", wide, hidden), "tanh")
            h = product(op.multiply(gate, product(h, f"{i}.up", wide, hidden)), f"{i}.down", hidden, wide)
            x = op.add(x, norm(h, hidden))
        last = op.slice(x, np.array([length - 1]), np.array([length]), np.array([1]), np.array([1]))
        logits = op.matmul(norm(last, hidden), embedding, False, True)
        return ov.Model([logits], [ids], "gemma3")

    def clear(self) -> None:
        pass

    def extend(self, ids: list[int]) -> None:
        self.logits = self.requests[len(ids)].infer([self.np.array([ids], self.np.int32)])[0]

    def report(self) -> str:
        """The kernels of the compiled graph's products and the types of their weights."""
        kinds: Counter[str] = Counter()
        for node in self.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if info["layerType"].astype(str) == "FullyConnected":
                kernel, weights = info["primitiveType"].astype(str), node.input(1).get_element_type()
                kinds[f"{kernel} with {weights.get_type_name()} weights"] += 1
        return ", ".join(f"{count} products by {kind}" for kind, count in kinds.items())


def compare(options: argparse.Namespace) -> None:
    from gemlet import _core

    model = shape_of(options.shape)
    if model["family"] != "gemma3" or any(layer["num_kv_heads"] != 1 for layer in model["layers"]):
        raise SystemExit(f"{options.shape}: only Gemma 3 shapes with one key-value head are built")
    script, threads = sys.argv[0], str(options.threads)
    shape, lengths = json.dumps(model), json.dumps(options.prefill)
    commands = {"gemlet": [sys.executable, script, "--serve-gemlet", options.shape, options.weights, threads]}
    for config in options.configs:
        serving = ["--serve-openvino", shape, options.weights, threads, lengths, config]
        commands[config] = [options.openvino_python, script, *serving]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    engines: dict[str, Any] = {}
    for name, command in commands.items():  # one by one: two starts would slow each other down
        engines[name] = subprocess.Popen(command, **pipes)
        while (line := engines[name].stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"{name} did not start; see its message above")
            print(f"{name}: {line}", end="")

    def ask(name: str, test: str) -> float:
        print(test, file=engines[name].stdin, flush=True)
        return float(engines[name].stdout.readline())

    print(f"{options.shape} {options.weights}, {threads} threads, tier {_core.cpu_info()['tier']}")
    print(f"{'prefill':>8} {'OpenVINO':>10} {'gemlet tok/s':>14} {'OpenVINO tok/s':>16} {'ratio':>6}  spread")
    for count in options.prefill:
        test = f"prefill {count}"
        turns = [{name: ask(name, test) for name in engines} for _ in range(1 + options.repeat)][1:]
        for config in options.configs:
            ours, theirs = (count / statistics.median(t[name] for t in turns) for name in ("gemlet", config))
            ratios = [turn[config] / turn["gemlet"] for turn in turns]
            speeds = f"{count:8} {config:>10} {ours:14.1f} {theirs:16.1f} {ours / theirs:6.2f}"
            print(f"{speeds}  {min(ratios):.2f} to {max(ratios):.2f}", flush=True)
    for engine in engines.values():
        engine.kill()
        engine.wait()


def main() -> None:
    if sys.argv[1:2] == ["--serve-gemlet"]:
        return serve(Gemlet(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    if sys.argv[1:2] == ["--serve-openvino"]:
        shape, weights, threads, lengths, config = sys.argv[2:]
        engine = OpenVino(json.loads(shape), weights, int(threads), json.loads(lengths), config)
        print(engine.report())
        return serve(engine)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", default="gemma3-1b")
    parser.add_argument("--weights", default="q4", choices=("q4", "q8"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, nargs="*", default=[32, 512])
    parser.add_argument("--configs", nargs="*", default=["i8x32", "bf16", "f32"])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--openvino-python", default=sys.executable, help="a Python that has openvino")
    return compare(parser.parse_args())


if __name__ == "__main__":
    main()
