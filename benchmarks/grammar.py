"""Measures how much time it takes to follow a grammar, with random weights at a real shape.

    python benchmarks/grammar.py --tokenizer gemma-3-270m.gguf gemma3-1b q4

The vocabulary has to be a real one (262,144 tokens), because a mask has a bit for each of its tokens. The
model alternately generates free text, JSON that follows a schema, and text that follows a regular expression
which allows everything: first one request at a time, then eight together.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 0, "maximum": 1000},
        "kind": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "n", "kind"],
    "additionalProperties": False,
}
# A schema with so many keys that the JSON is not complete before the measurement ends.
SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "minItems": 400, "items": ITEM}},
    "required": ["items"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {},
    "json_schema": {"json_schema": SCHEMA},
    "regex": {"regex": "(.|\n)*"},
}


def step(model: gemlet.Model, texts: int, tokens: int, form: dict[str, Any]) -> float:
    """Milliseconds between two tokens of a request."""
    results = model.generate(
        [[5] * 8] * texts, max_tokens=tokens, temperature=1.0, seed=1, ignore_eos=True, **form
    )
    assert all(one.completion_tokens == tokens for one in results)
    return 1e3 * statistics.fmean(one.decode_seconds / (tokens - 1) for one in results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="?", default="gemma3-1b")
    parser.add_argument("weights", nargs="?", default="q4")
    parser.add_argument("--tokenizer", required=True, help="a model or file with the tokenizer to use")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    options = LoadOptions(weights=given.weights, threads=given.threads, max_context=1024)
    tokenizer = gemlet.Tokenizer.from_file(given.tokenizer)
    with random_model(given.shape, options, tokenizer=tokenizer) as model:
        bandwidth = _core.measure_read_bandwidth(threads=model.threads)
        print(
            f"{given.shape} {model.weights}, tier {model.tier}, {model.threads} threads, "
            f"{tokenizer.vocab_size} pieces; {bandwidth:.1f} GB/s"
        )
        for texts in (1, 8):
            found: dict[str, list[float]] = {name: [] for name in FORMS}
            for turn in range(given.turns + 1):
                names = list(FORMS)
                for name in names[turn % 3 :] + names[: turn % 3]:
                    taken = step(model, texts, given.tokens, FORMS[name])
                    if turn > 0:  # the first one allocates and compiles
                        found[name].append(taken)
            for name, times in found.items():
                ratios = sorted(a / b for a, b in zip(times, found["free"], strict=True))
                print(
                    f"{texts} together, {name}: {statistics.median(times):.1f} ms a token, "
                    f"{statistics.median(ratios):.3f} times as long as free text "
                    f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
