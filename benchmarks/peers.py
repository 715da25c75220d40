"""Compares gemlet with llama.cpp: the same shapes, bits and threads, in alternating runs.

    pip install llama-cpp-python gguf      # best in a separate environment; see --llama-python
    python benchmarks/peers.py --shape gemma3-1b --weights q4 --threads 2

Both programs get random weights of a published shape: q4 with Q4_0, q8 with Q8_0, bf16 and bf12 with BF16.
The embedding of "q4" has 8 bits in both. Each program loads its model once. Then they run alternately, so
that changes of the machine's speed affect both in the same way. Compare the ratio of the medians. The
measured read bandwidth limits the speed of decoding.

"batch N" is the work of llama-batched-bench: N sequences, each with its own prompt of 32 tokens, are decoded
together. gemlet's sequences go through its engine, which also chooses the tokens and uses no draft tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TYPES = {  # matrices, embedding
    "q4": ("Q4_0", "Q8_0"),
    "q8": ("Q8_0", "Q8_0"),
    "bf16": ("BF16", "BF16"),
    "bf12": ("BF16", "BF16"),
}


# Limits of a batch: tokens of each prompt, most tokens of a sequence, most sequences.
PROMPT, ROOM, MOST_SEQUENCES = 32, 256, 16


def write_gguf(path: str, shape: dict[str, Any], weights: str, vocabulary: str = "") -> None:
    """Writes a Gemma 3 or 4 as GGUF. The weights are random, of a trained size. `vocabulary` is a GGUF file
    whose vocabulary is copied."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    family, layers = shape["family"], shape["layers"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(len(layers))
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(layers[0]["sliding_window"])
    writer.add_head_count(layers[0]["num_heads"])
    writer.add_vocab_size(shape["vocab_size"])
    if vocabulary:
        for name, field in gguf.GGUFReader(vocabulary).fields.items():
            if name.startswith("tokenizer.ggml."):
                kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(name, field.contents(), kind, inner)
    else:
        writer.add_tokenizer_model("no_vocab")
    per_layer = shape["per_layer_input_size"]
    if family == "gemma3":
        writer.add_feed_forward_length(layers[0]["intermediate_size"])
        writer.add_head_count_kv(layers[0]["num_kv_heads"])
        writer.add_key_length(layers[0]["head_dim"])
        writer.add_value_length(layers[0]["head_dim"])
    else:
        writer.add_feed_forward_length([layer["intermediate_size"] for layer in layers])
        writer.add_head_count_kv([layer["num_kv_heads"] for layer in layers])
        for suffix, layer in (("_swa", layers[0]), ("", layers[-1])):
            for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
                writer.add_uint32(f"{family}.{name}{suffix}", layer["head_dim"])
        writer.add_float32(f"{family}.rope.freq_base_swa", 1e4)
        writer.add_array(
            f"{family}.attention.sliding_window_pattern", [layer["sliding_window"] > 0 for layer in layers]
        )
        writer.add_uint32(
            f"{family}.attention.shared_kv_layers", sum(layer["kv_source"] >= 0 for layer in layers)
        )
        writer.add_uint32(f"{family}.embedding_length_per_layer_input", per_layer)
        writer.add_float32(f"{family}.final_logit_softcapping", 30.0)

    def matrix(name: str, rows: int, cols: int, kind: str) -> None:
        quantization = gguf.GGMLQuantizationType[kind]
        few = (rng.standard_normal((64, cols)) / np.sqrt(cols)).astype(np.float32)
        packed = gguf.quants.quantize(few, quantization)
        data = np.tile(packed, (-(-rows // 64), 1))[:rows]
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quantization)

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    hidden = shape["hidden_size"]
    matrices, embedding = TYPES[weights]
    matrix("token_embd", shape["vocab_size"], hidden, embedding)
    norm("output_norm", hidden)
    if per_layer:
        matrix("per_layer_token_embd", shape["vocab_size"], per_layer * len(layers), embedding)
        matrix("per_layer_model_proj", per_layer * len(layers), hidden, matrices)
        norm("per_layer_proj_norm", per_layer)
    if family == "gemma4":  # divisors of the angles: only a quarter of the pairs rotates
        turning = layers[-1]["head_dim"] // 8
        divisors = [1.0] * turning + [1e30] * (3 * turning)
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    for i, layer in enumerate(layers):
        wide = layer["intermediate_size"]
        heads, kv = (layer[count] * layer["head_dim"] for count in ("num_heads", "num_kv_heads"))
        for part, rows, cols in (
            ("attn_q", heads, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden),
            ("attn_output", hidden, heads),
            ("ffn_gate", wide, hidden), ("ffn_up", wide, hidden), ("ffn_down", hidden, wide),
            *([("inp_gate", per_layer, hidden), ("proj", hidden, per_layer)] if per_layer else []),
        ):  # fmt: skip
            matrix(f"blk.{i}.{part}", rows, cols, matrices)
        for part in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"blk.{i}.{part}", hidden)
        norm(f"blk.{i}.attn_q_norm", layer["head_dim"])
        norm(f"blk.{i}.attn_k_norm", layer["head_dim"])
        if per_layer:
            norm(f"blk.{i}.post_norm", hidden)
        if family == "gemma4":
            norm(f"blk.{i}.layer_output_scale", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp through llama-cpp-python's C interface."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import ctypes

        import llama_cpp

        self.api, self.ctypes = llama_cpp, ctypes
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)

        params.n_seq_max = MOST_SEQUENCES
        params.n_ctx = MOST_SEQUENCES * ROOM
        self.many = llama_cpp.llama_init_from_model(self.model, params)

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def batch(self, count: int, steps: int) -> float:
        api, memory = self.api, self.api.llama_get_memory(self.many)
        api.llama_memory_clear(memory, True)
        batch = api.llama_batch_init(count * PROMPT, 0, 1)

        def decode(tokens: int, start: int) -> None:
            batch.n_tokens = count * tokens
            for i in range(count * tokens):
                sequence, place = divmod(i, tokens)
                batch.token[i] = 2 + (sequence + start + place) * 7 % 1000
                batch.pos[i], batch.n_seq_id[i] = start + place, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, place == tokens - 1
            if api.llama_decode(self.many, batch) != 0:
                raise RuntimeError("llama_decode failed")
            api.llama_synchronize(self.many)

        decode(PROMPT, 0)
        decode(1, PROMPT)
        started = time.perf_counter()
        for step in range(steps):
            decode(1, PROMPT + 1 + step)
        seconds = time.perf_counter() - started
        api.llama_batch_free(batch)
        return seconds / count / steps

    def extend(self, ids: list[int]) -> None:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            tokens = (self.api.llama_token * len(part))(*part)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
            self.api.llama_synchronize(self.context)


class Gemlet:
    def __init__(self, shape: str, weights: str, threads: int) -> None:
        from gemlet.loading.options import LoadOptions
        from gemlet.loading.random_model import random_model

        self.model = random_model(shape, LoadOptions(weights=weights, threads=threads))
        self.clear()

    def clear(self) -> None:
        from gemlet import _core

        self.sequence = _core.TokenSequence(self.model._resident.core)

    def extend(self, ids: list[int]) -> None:
        self.sequence.extend(ids)

    def batch(self, count: int, steps: int) -> float:
        from gemlet import _core

        engine = _core.Engine(self.model._resident.core, most_running=count, drafts="never")
        news, sampler = _core.News(), _core.Sampler(temperature=0.0, seed=1)
        requests = []
        for sequence in range(count):
            ids = [2 + (sequence + place) * 7 % 1000 for place in range(PROMPT)]
            options = {"sampler": sampler, "news": news, "max_tokens": steps + 4 * count}
            requests.append(engine.submit(ids, most_unread=ROOM, **options))
        written, began = [0] * count, 0
        started = 0.0
        while sum(written) - began < count * steps or not began:
            seen = news.value
            for i, request in enumerate(requests):
                written[i] += len(request.take()[0])
            if not began and min(written) > 0:  # from now on, all sequences are decoding
                began, started = sum(written), time.perf_counter()
            engine.wait(news, seen)
        seconds, tokens = time.perf_counter() - started, sum(written) - began
        engine.close()
        return seconds / tokens


def serve(engine: LlamaCpp | Gemlet) -> None:
    """Runs each line of standard input, "prefill N", "decode N DEPTH" or "batch N STEPS", and prints its
    seconds; for a batch, the seconds for a token."""
    print("ready", flush=True)
    for line in sys.stdin:
        test, *numbers = line.split()
        count, depth = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 1
        if test == "batch":
            print(engine.batch(count, int(numbers[1])), flush=True)
            continue
        engine.clear()
        if test == "decode":
            engine.extend([2 + i % 1000 for i in range(depth)])
        started = time.perf_counter()
        if test == "prefill":
            engine.extend([2 + i % 1000 for i in range(count)])
        else:
            for i in range(count):
                engine.extend([5 + i])
        print(time.perf_counter() - started, flush=True)


def shape_of(name: str) -> dict[str, Any]:
    from gemlet.config import shape_config

    config = shape_config(name)
    if config.family not in ("gemma3", "gemma4") or any(layer.num_experts for layer in config.layers):
        raise SystemExit(f"{name}: only Gemma 3 and dense Gemma 4 shapes are written as GGUF")
    return {
        "family": config.family, "hidden_size": config.hidden_size, "vocab_size": config.vocab_size,
        "per_layer_input_size": config.per_layer_input_size, "context": 32768,
        "layers": [vars(layer) for layer in config.layers],
    }  # fmt: skip


def compare(options: argparse.Namespace) -> None:
    from gemlet import _core

    tests = [f"prefill {n}" for n in options.prefill] + [
        f"decode {options.decode} {d}" for d in options.depth
    ]
    tests += [f"batch {n} {options.decode}" for n in options.batch]
    context = max([PROMPT, *options.prefill, *(d + options.decode for d in options.depth)]) + 64
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = str(Path(folder) / "random.gguf")
        script, threads = str(Path(__file__).resolve()), str(options.threads)
        shape = json.dumps(shape_of(options.shape))
        subprocess.run([options.llama_python, script, "--write", path, shape, options.weights], check=True)
        commands = {
            "gemlet": [sys.executable, script, "--serve-gemlet", options.shape, options.weights, threads],
            "llama.cpp": [options.llama_python, script, "--serve-llama", path, threads, str(context)],
        }
        engines = {
            name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for name, command in commands.items()
        }
        for engine in engines.values():
            if engine.stdout is None or engine.stdout.readline() != "ready\n":
                raise SystemExit("a program did not start; see its message above")

        def ask(name: str, test: str) -> float:
            engine = engines[name]
            assert engine.stdin is not None
            assert engine.stdout is not None
            engine.stdin.write(test + "\n")
            engine.stdin.flush()
            return float(engine.stdout.readline())

        print(f"{options.shape} {options.weights}, {threads} threads, tier {_core.cpu_info()['tier']}")
        print(
            f"{'test':>18} {'gemlet tok/s':>14} {'llama.cpp tok/s':>16} {'ratio':>6}  spread; bandwidth GB/s"
        )
        for test in tests:
            for name in engines:
                ask(name, test)
            before = _core.measure_read_bandwidth(threads=options.threads)
            pairs = [(ask("gemlet", test), ask("llama.cpp", test)) for _ in range(options.repeat)]
            after = _core.measure_read_bandwidth(threads=options.threads)
            count = 1 if test.startswith("batch") else int(test.split()[1])
            ours, theirs = (count / statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = sorted(theirs_s / ours_s for ours_s, theirs_s in pairs)
            print(
                f"{test:>18} {ours:14.1f} {theirs:16.1f} {ours / theirs:6.2f}  "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}; {before:.1f}, {after:.1f}",
                flush=True,
            )
        for engine in engines.values():
            engine.kill()
            engine.wait()


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        return write_gguf(sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:6])
    if sys.argv[1:2] == ["--serve-llama"]:
        return serve(LlamaCpp(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    if sys.argv[1:2] == ["--serve-gemlet"]:
        return serve(Gemlet(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="gemma3-1b")
    parser.add_argument("--weights", default="q4", choices=TYPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, nargs="*", default=[32, 512])
    parser.add_argument("--decode", type=int, default=32, help="tokens of a decode test")
    parser.add_argument(
        "--depth", type=int, nargs="*", default=[1], help="tokens in the cache before a decode test"
    )
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[], help="sequences together, at most 16: 4 8 16"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", help="where to put the temporary GGUF file")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="a Python that has llama-cpp-python and gguf"
    )
    return compare(parser.parse_args())


if __name__ == "__main__":
    main()
