"""Measures the cost and the gain of a draft model, with random weights.

    python benchmarks/drafter.py --target gemma3-4b --drafter gemma3-270m --weights q4
    python benchmarks/drafter.py --target gemma4-e2b --weights q4        # an MTP drafter of Gemma 4

It first compares passes over several tokens with a pass over one token. Then it generates tokens without and
with the draft model. With random weights, no draft token would be accepted. So after the draft model has run,
which takes as long as with real weights, each draft token is replaced by the correct token with the
probability --accepted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from gemlet import _core
from gemlet.config import parse_config, shape_config
from gemlet.config.text_config import TextConfig
from gemlet.loading.builder import make_builder
from gemlet.loading.drafter import attached
from gemlet.loading.options import LoadOptions

ROWS = (1, 2, 3, 4, 5, 8)
# The size of published drafters of E2B and E4B: a width of 256, and 32 of 2048 groups of the head.
ASSISTANT: dict[str, Any] = {
    "model_type": "gemma4_assistant",
    "use_ordered_embeddings": True,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
}


def assistant_config(target: TextConfig) -> TextConfig:
    sliding = next(layer for layer in target.layers if layer.sliding_window)
    full = next(layer for layer in target.layers if not layer.sliding_window)
    text = {
        "model_type": "gemma4_text",
        "vocab_size": target.vocab_size,
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": sliding.num_kv_heads,
        "head_dim": sliding.head_dim,
        "global_head_dim": full.head_dim,
        "sliding_window": sliding.sliding_window,
        "num_kv_shared_layers": 4,
        "hidden_size_per_layer_input": 0,
    }
    raw = {**ASSISTANT, "backbone_hidden_size": target.hidden_size, "text_config": text}
    return attached(parse_config(raw, where="drafter"), target)


def build(config: TextConfig, options: LoadOptions, beside: _core.Model | None = None) -> _core.Model:
    builder = make_builder(config, options, beside=beside)
    builder.add_random(seed=0)
    return builder.finish()


def pass_times(core: _core.Model, ids: np.ndarray[Any, Any], turns: int) -> dict[int, list[float]]:
    context = _core.TokenSequence(core)
    context.extend(ids, logits="none")
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(turns):
        for rows in ROWS:
            own = context.fork()
            own.extend(ids[:1])
            start = time.perf_counter()
            own.extend(ids[1 : 1 + rows], logits="all")
            seconds[rows].append(time.perf_counter() - start)
    return seconds


def write(engine: _core.Engine, ids: np.ndarray[Any, Any], tokens: int, seed: int) -> tuple[list[int], float]:
    """The generated tokens, and the seconds that they took after the first token."""
    news = _core.News()
    sampler = _core.Sampler(temperature=1.0, top_k=64, top_p=0.95, seed=seed)
    request = engine.submit(ids, sampler=sampler, news=news, max_tokens=tokens, most_unread=tokens)
    text: list[int] = []
    while True:
        seen = news.value
        new, reason, _ = request.take()
        text += new
        if reason is not None:
            return text, request.times[2]
        engine.wait(news, seen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="gemma4-e2b", help="the shape of the model")
    parser.add_argument("--drafter", help="the shape of the draft model (default: an MTP drafter of Gemma 4)")
    parser.add_argument("--weights", default="q4")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--accepted", type=float, nargs="*", default=[0.7])
    given = parser.parse_args()
    options = LoadOptions(weights=given.weights, threads=given.threads, max_context=2048)
    config = shape_config(given.target)
    core = build(config, options)
    ids = np.random.default_rng(0).integers(5, config.vocab_size - 5, given.prompt, dtype=np.int32)
    print(f"{given.target} {given.weights}, tier {core.tier}, {core.threads} threads")
    seconds = pass_times(core, ids, 4 * given.turns)
    one = statistics.median(seconds[1])
    for rows in ROWS:
        middle = statistics.median(seconds[rows])
        print(f"{rows} rows: {1000 * middle:.1f} ms, {middle / one:.2f} of one row", flush=True)
    own = assistant_config(config) if given.drafter is None else shape_config(given.drafter)
    kept = replace(options, kv_cache=core.kv_cache)
    drafter = build(own, kept, beside=core)
    print(f"drafter: {drafter.memory()['weights'] + drafter.memory()['embedding']:,} bytes")
    plain = _core.Engine(core, drafts="never")
    for accepted in given.accepted:
        ratios: list[float] = []
        stats: dict[str, Any] = {}
        for seed in range(given.turns):
            text, without = write(plain, ids, given.tokens, seed)
            engine = _core.Engine(core, drafter=drafter, rehearsed=([*ids.tolist(), *text], accepted))
            write(engine, ids, given.tokens, seed)  # the engine measures the time of its steps
            same, taken = write(engine, ids, given.tokens, seed)
            assert same == text, seed
            ratios.append(without / taken)
            stats = engine.stats()
            engine.close()
        guessed = stats["drafted_tokens"]
        share = stats["accepted_tokens"] / max(1, guessed)
        print(
            f"accepted with probability {accepted}: {statistics.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f}); {guessed} draft tokens, {share:.2f} of them "
            f"accepted, {stats['steps']} steps for {stats['generated_tokens']} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
