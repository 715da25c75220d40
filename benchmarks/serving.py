"""Measures the engine with many requests, with random weights at a real shape.

    python benchmarks/serving.py busy gemma3-1b q4   # short requests while 8 write and a long one is read
    python benchmarks/serving.py mixed gemma3-1b q4  # 64 requests of mixed length, together and one by one
    python benchmarks/serving.py mixed gemma3-1b q4 --prompts 8 120 --written 8 120
    python benchmarks/serving.py alone gemma3-1b q4  # one request, and passes in the caller's thread
    python benchmarks/serving.py bytes gemma3-1b q4  # the bytes of a step of 16 requests and of one request

The engine uses no draft tokens and no prefix cache, so that every token is computed. The variants alternate.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model

WRITERS, LONG, SHORT = 8, 4096, 32  # streams that write; tokens of the long prompt and of the short ones
SHORTS = 8  # short requests, one after the other, at random moments


@dataclass
class Read:
    """A request and the times at which its tokens came."""

    request: _core.Request
    began: float
    times: list[float] = field(default_factory=list)
    has_ended: bool = False

    @property
    def first(self) -> float:
        return self.times[0] - self.began


class Requests:
    """Requests to one engine, read by one thread."""

    def __init__(self, model: gemlet.Model) -> None:
        self.engine = _core.Engine(model._resident.core, drafts="never")
        self.news = _core.News()
        self.live: list[Read] = []

    def ask(self, ids: NDArray[np.int32], max_tokens: int) -> Read:
        sampler = _core.Sampler(temperature=1.0, top_k=64, top_p=0.95, seed=1)
        began = time.perf_counter()
        request = self.engine.submit(
            ids, sampler=sampler, news=self.news, max_tokens=max_tokens, most_unread=1 << 16
        )
        self.live.append(Read(request, began))
        return self.live[-1]

    def look(self, patience: float | None = None) -> None:
        """Waits for new tokens, at most this many seconds, and takes them."""
        seen = self.news.value
        for one in self.live:
            ids, reason, _ = one.request.take()
            one.times += [time.perf_counter()] * len(ids)
            one.has_ended = reason is not None
        self.live = [one for one in self.live if not one.has_ended]
        if self.live:
            self.engine.wait(self.news, seen, patience)

    def finish(self) -> None:
        while self.live:
            self.look()


def prompt(model: gemlet.Model, tokens: int, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(5, model.vocab_size - 5, tokens, dtype=np.int32)


def gaps(times: Sequence[float], first: float, last: float) -> list[float]:
    """The gaps between tokens that came from ``first`` to ``last``."""
    inside = [one for one in times if first <= one <= last]
    return [b - a for a, b in itertools.pairwise(inside)]


def busy(model: gemlet.Model, turns: int) -> None:
    random = np.random.default_rng(1)
    for turn in range(turns + 1):
        requests = Requests(model)
        idle = requests.ask(prompt(model, SHORT, 100 * turn), 1)
        requests.finish()
        writers = [requests.ask(prompt(model, SHORT, 100 * turn + i), 400) for i in range(WRITERS)]
        while min(len(one.times) for one in writers) < 40:
            requests.look()
        before = time.perf_counter()
        long = requests.ask(prompt(model, LONG, 100 * turn + 50), 1)
        asked = [prompt(model, SHORT, 100 * turn + 60 + i) for i in range(SHORTS)]
        firsts = []
        for ids in asked:
            end = time.perf_counter() + random.uniform(0.3, 0.6)
            while time.perf_counter() < end:
                requests.look(end - time.perf_counter())
            short = requests.ask(ids, 1)
            while not short.has_ended:
                requests.look()
            if long.has_ended:
                break
            firsts.append(short.first / idle.first)
        while not long.has_ended and not all(one.has_ended for one in writers):
            requests.look()
        end = time.perf_counter()
        alone = [one for w in writers for one in gaps(w.times, w.times[8], before)]
        meanwhile = [one for w in writers for one in gaps(w.times, before, end)]
        requests.engine.close()
        if turn == 0:  # the first one allocates
            continue
        median, largest = statistics.median(meanwhile), max(meanwhile)
        long_seconds = long.first if long.has_ended else end - long.began
        print(
            f"short request: idle {idle.first * 1e3:.0f} ms; meanwhile {statistics.median(firsts):.2f} times "
            f"that, {min(firsts):.2f} to {max(firsts):.2f}, of {len(firsts)}; long prompt {long_seconds:.1f} "
            f"s; gaps of {WRITERS} streams: alone median "
            f"{statistics.median(alone) * 1e3:.1f} ms, largest {max(alone) * 1e3:.1f}; meanwhile median "
            f"{median * 1e3:.1f} ms, largest {largest * 1e3:.1f}, {largest / median:.2f} times; "
            f"long prompt read: {long.has_ended}",
            flush=True,
        )


def mixed(
    model: gemlet.Model, turns: int, count: int, prompts: Sequence[int], written: Sequence[int]
) -> None:
    random = np.random.default_rng(1)
    asked = [
        (prompt(model, int(random.integers(*prompts)), i), int(random.integers(*written)))
        for i in range(count)
    ]
    tokens = sum(most for _, most in asked)

    def run(together: bool) -> float:
        requests = Requests(model)
        started = time.perf_counter()
        for ids, most in asked:
            requests.ask(ids, most)
            if not together:
                requests.finish()
        requests.finish()
        seconds = time.perf_counter() - started
        requests.engine.close()
        return seconds

    run(True)  # the first one allocates
    pairs = [(run(True), run(False)) for _ in range(turns)]
    ratios = sorted(alone / together for together, alone in pairs)
    together, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{count} requests, {sum(len(ids) for ids, _ in asked)} tokens of prompts and {tokens} generated: "
        f"together {together:.2f} s, one by one {alone:.2f} s, {statistics.median(ratios):.2f} times "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def alone(model: gemlet.Model, turns: int, tokens: int = 64) -> None:
    """One request through the engine and through :meth:`Model.generate`, compared with the code before the
    engine: the caller's thread extends a sequence by each token that it chose."""
    core, ids = model._resident.core, prompt(model, SHORT, 1)
    options = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "seed": 1}

    def by_the_caller() -> list[int]:
        sequence, sampler = _core.TokenSequence(core), _core.Sampler(**options)
        sequence.extend(ids)
        text = [sequence.sample(sampler)]
        while len(text) < tokens:
            sequence.extend(text[-1:])
            text.append(sequence.sample(sampler))
        return text

    def by_an_engine() -> list[int]:
        request = engine.submit(
            ids, sampler=_core.Sampler(**options), news=news, max_tokens=tokens, most_unread=64
        )
        text: list[int] = []
        while True:
            seen = news.value
            new, reason, _ = request.take()
            text += new
            if reason is not None:
                return text
            engine.wait(news, seen)

    def by_generate() -> list[int]:
        found = model.generate(ids, max_tokens=tokens, ignore_eos=True, **options)
        assert isinstance(found, gemlet.Generation)
        return found.token_ids

    engine, news = _core.Engine(core, drafts="never"), _core.News()
    ways = {"the caller's thread": by_the_caller, "engine": by_an_engine, "generate()": by_generate}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        texts = []
        for name in sorted(ways, reverse=turn % 2 == 1):
            started = time.perf_counter()
            texts.append(ways[name]())
            if turn > 0:  # the first one allocates
                seconds[name].append(time.perf_counter() - started)
        assert texts[0] == texts[1] == texts[2]
    before = seconds["the caller's thread"]
    for name, taken in seconds.items():
        ratios = sorted(a / b for a, b in zip(before, taken, strict=True))
        print(
            f"{name}: {statistics.median(taken) * 1e3 / tokens:.2f} ms a token, "
            f"{statistics.median(ratios):.3f} times as fast as in the caller's thread "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def read_bytes(model: gemlet.Model) -> None:
    """The bytes that steps without prompts read, as ``model.stats()`` counts them."""
    found = {}
    for count in (1, 16):
        requests = Requests(model)
        writers = [requests.ask(prompt(model, SHORT, i), 40) for i in range(count)]
        while min(len(one.times) for one in writers) < 2:
            requests.look()
        before = requests.engine.stats()
        while requests.live and min(len(one.times) for one in writers) < 30:
            requests.look()
        after = requests.engine.stats()
        found[count] = (after["bytes_read"] - before["bytes_read"]) / (after["steps"] - before["steps"])
        requests.engine.close()
    print(
        f"a step of 1 request reads {found[1] / 1e6:.1f} MB, of 16 {found[16] / 1e6:.1f} MB, keys and "
        f"values of all included: {found[16] / found[1]:.3f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("busy", "mixed", "alone", "bytes"))
    parser.add_argument("shape", nargs="?", default="gemma3-1b")
    parser.add_argument("weights", nargs="?", default="q4")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs=2, default=[8, 200], help="their shortest and longest")
    parser.add_argument("--written", type=int, nargs=2, default=[8, 64], help="likewise, tokens to generate")
    parser.add_argument("--model", help="a model to load, instead of random weights")
    given = parser.parse_args()
    options = LoadOptions(weights=given.weights, threads=given.threads, max_context=LONG + 512)
    if given.model:
        model = gemlet.load(given.model, weights=given.weights, threads=given.threads)
    else:
        model = random_model(given.shape, options)
    with model:
        bandwidth = _core.measure_read_bandwidth(threads=model.threads)
        print(
            f"{model.source} {model.weights}, tier {model.tier}, {model.threads} threads; "
            f"{bandwidth:.1f} GB/s"
        )
        if given.what == "busy":
            busy(model, given.turns)
        elif given.what == "mixed":
            mixed(model, given.turns, given.requests, given.prompts, given.written)
        elif given.what == "alone":
            alone(model, given.turns)
        else:
            read_bytes(model)


if __name__ == "__main__":
    main()
