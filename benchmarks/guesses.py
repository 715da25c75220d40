"""Measures the time that draft tokens save, and whether they make a request slower.

    python benchmarks/guesses.py                          # the demo model
    python benchmarks/guesses.py --model model.gguf --weights q4 --tokens 200
    python benchmarks/guesses.py --random gemma3-1b --weights q4 --tokens 100

Two engines over one model answer each prompt alternately, with and without draft tokens. Both must generate
the same tokens. Only the time of decoding counts. Look at the ratio of the medians, because other work on the
machine changes single runs. It does not change the numbers of draft tokens and of accepted draft tokens. A
rejected draft token costs about a tenth of a step.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

TEXTS = {
    "story": "The door opened, and the old man came in out of the rain.",
    "list": "Apples: 3\nPears: 5\nPlums: 8\nNuts: 13\nWrite the list again.\nApples: 3\nPears: 5\n",
    "code": "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\ndef mul(",
    "speech": '"Who is there?" she said. "It is I," he said. "Who are you?" she said. "It is I," ',
}


def prompts(model: gemlet.Model) -> dict[str, NDArray[np.int32]]:
    random = np.random.default_rng(0).integers(5, model.vocab_size - 5, 300, dtype=np.int32)
    found = {"random tokens": random, "random tokens, five times": np.tile(random[:60], 5)}
    if model.tokenizer is not None:
        for name, text in TEXTS.items():
            found[name] = np.array(model.tokenizer.encode(text), np.int32)
        chapter = (Path(__file__).parent.parent / "tests/data/heldout.txt").read_text()[:3000]
        found["chapter"] = np.array(model.tokenizer.encode(chapter)[:600], np.int32)
    return found


def write(
    engine: _core.Engine, ids: NDArray[np.int32], temperature: float, tokens: int, seed: int
) -> tuple[list[int], float]:
    """The generated tokens, and the seconds that they took after the first token."""
    news = _core.News()
    sampler = _core.Sampler(temperature=temperature, top_k=64, top_p=0.95, seed=seed)
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
    parser.add_argument("--model", help="a model to load")
    parser.add_argument("--random", help="a shape, with random weights")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.0, 1.0])
    given = parser.parse_args()
    if given.random:
        options = LoadOptions(weights=given.weights, threads=given.threads, max_context=2048)
        model = random_model(given.random, options)
    else:
        model = gemlet.load(given.model, weights=given.weights, threads=given.threads)
    with model:
        core = model._resident.core
        engines = {drafts: _core.Engine(core, drafts=drafts) for drafts in ("never", "paying")}
        print(f"{model.source} {model.weights}, tier {model.tier}, {model.threads} threads")
        for temperature in given.temperature:
            for name, ids in prompts(model).items():
                seconds: dict[str, list[float]] = {drafts: [] for drafts in engines}
                before = engines["paying"].stats()
                for turn in range(given.turns):
                    texts = {}
                    for drafts in sorted(engines, reverse=turn % 2 == 1):
                        texts[drafts], taken = write(engines[drafts], ids, temperature, given.tokens, turn)
                        seconds[drafts].append(taken)
                    assert texts["never"] == texts["paying"], name
                after = engines["paying"].stats()
                steps, drafted, right = (
                    after[count] - before[count] for count in ("steps", "drafted_tokens", "accepted_tokens")
                )
                ratios = sorted(a / b for a, b in zip(seconds["never"], seconds["paying"], strict=True))
                of_medians = statistics.median(seconds["never"]) / statistics.median(seconds["paying"])
                print(
                    f"{name}, temperature {temperature}: {of_medians:.3f} times as fast with draft tokens; "
                    f"pairs {statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
                    f"{steps} steps, {drafted} draft tokens, {right} of them accepted",
                    flush=True,
                )


if __name__ == "__main__":
    main()
