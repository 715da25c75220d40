"""The measurements of ``gemlet bench``: prefill (pp) and decode (tg) speed beside what memory allows.

``ppN`` runs N random tokens through an empty context in one call. ``tgN`` is N single-token forward passes
after one BOS token. A depth d first fills the context with d tokens, which are not counted. Sampling and
text are not part of either: these are the numbers llama-bench prints, so the two can be read side by side.

Every row says how many bytes a token reads at least, and which share of the memory bandwidth measured just
before and just after that is: near 100% there is nothing left to win but fewer bytes. A model small enough
for the caches (the demo model) passes 100%.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.bench_defaults import PROMPT_LENGTHS, REPLY_LENGTHS
from gemlet.base.progress import Progress, reporting
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.errors import ContextLengthError, InvalidRequestError
from gemlet.model.model import Model
from gemlet.weights.slots import expected_slots

__all__ = ["BenchResult", "iter_bench", "machine_info", "parameter_count", "run_bench", "weight_bytes"]

_BOS = 2  # the same in every Gemma vocabulary; a speed test needs some first token


@record(frozen=True)
class BenchResult:
    """One row of the table.

    Attributes:
        test: "pp512", "tg128", with a depth "tg128 @ d4096".
        samples: tokens per second of each repetition.
        bytes_per_token: least bytes that a token reads; for prefill, the weights once for every pass.
        bandwidth: bytes per second of plain reading: the larger of the measurements before and after. None
            on a GPU, where nothing measures it.
    """

    test: str
    samples: tuple[float, ...]
    bytes_per_token: float
    bandwidth: float | None

    @property
    def tokens_per_second(self) -> float:
        """Mean over the repetitions."""
        return statistics.fmean(self.samples)

    @property
    def stdev(self) -> float:
        """Sample standard deviation over the repetitions; 0 for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def bandwidth_share(self) -> float | None:
        """Bytes read per second over the measured bandwidth; prefill is bound by arithmetic and stays low."""
        if self.bandwidth is None:
            return None
        return self.tokens_per_second * self.bytes_per_token / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "test": self.test,
            "tokens_per_second": self.tokens_per_second,
            "stdev": self.stdev,
            "bytes_per_token": self.bytes_per_token,
            "bandwidth_share": self.bandwidth_share,
            "samples": list(self.samples),
        }


def parameter_count(config: TextConfig) -> int:
    """Number of parameters of the language model: a tied embedding counted once, every expert, and the table
    of per-layer embeddings.

    >>> from gemlet.bench import parameter_count
    >>> from gemlet.config import shape_config
    >>> parameter_count(shape_config("gemma3-1b"))
    999885952
    """
    return sum(prod(shape) for shape in expected_slots(config).values())


def weight_bytes(model: Model) -> int:
    """Bytes of the packed weights, embedding included."""
    memory = model.memory()
    return memory["weights"] + memory["embedding"]


def cpu_name() -> str:
    """The name of the processor, or of the architecture if the system does not have the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


def machine_info(model: Model) -> dict[str, Any]:
    """The facts without which a figure means nothing: processor, tier, threads, system."""
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "tier": model.tier,
        "threads": model.threads,
        "decode_threads": model.decode_threads,
        "kv_cache": model.kv_cache,
        "gemlet": _core.__version__,
    }


def run_bench(
    model: Model,
    *,
    prompt: Sequence[int] = PROMPT_LENGTHS,
    generate: Sequence[int] = REPLY_LENGTHS,
    depth: int = 0,
    repetitions: int = 5,
) -> list[BenchResult]:
    """All rows of :func:`iter_bench` at once.

    >>> import gemlet
    >>> from gemlet.bench import run_bench
    >>> with gemlet.load() as model:
    ...     rows = run_bench(model, prompt=[8], generate=[4], repetitions=2)
    >>> [row.test for row in rows]
    ['pp8', 'tg4']
    """
    return list(iter_bench(model, prompt=prompt, generate=generate, depth=depth, repetitions=repetitions))


def iter_bench(
    model: Model,
    *,
    prompt: Sequence[int] = PROMPT_LENGTHS,
    generate: Sequence[int] = REPLY_LENGTHS,
    depth: int = 0,
    repetitions: int = 5,
    progress: Progress = False,
) -> Iterator[BenchResult]:
    """Measures prefill of every length in ``prompt`` and decode of every length in ``generate``, row by row.

    Args:
        model: what to measure; it is left as it was.
        prompt: numbers of tokens for pp; 0 is left out.
        generate: numbers of tokens for tg; 0 is left out.
        depth: tokens already in the context when the clock starts.
        repetitions: timed runs of each test, after one that is not timed.
        progress: whether to show which run it is, as for :func:`gemlet.load`.

    Raises:
        InvalidRequestError: a negative number, or nothing to run.
        ContextLengthError: a test does not fit the model's context.

    >>> import gemlet
    >>> from gemlet.bench import iter_bench
    >>> with gemlet.load() as model:
    ...     for row in iter_bench(model, prompt=[8], generate=[0], repetitions=2):
    ...         print(row.test, row.tokens_per_second > 0)
    pp8 True
    """
    for name, values, least in (
        ("prompt", prompt, 0),
        ("generate", generate, 0),
        ("depth", [depth], 0),
        ("repetitions", [repetitions], 1),
    ):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidRequestError(
                    f"{name}: got {show_argument(value)}, expected an integer of at least {least}"
                )
    tests = [("pp", count) for count in prompt if count] + [("tg", count) for count in generate if count]
    if not tests:
        raise InvalidRequestError("nothing to measure: every length of prompt and generate is 0")
    for kind, count in tests:
        needed = depth + count + (kind == "tg")
        if needed > model.context_length:
            raise ContextLengthError(
                f"{kind}{count} at depth {depth}: {needed} tokens, "
                f"but the context holds {model.context_length}"
            )
    for kind, count in tests:
        with reporting(progress, _test_name(kind, count, depth), repetitions + 1, "runs") as advance:
            row = _measure(model, kind, count, depth, repetitions, advance)
        yield row


def _test_name(kind: str, count: int, depth: int) -> str:
    return f"{kind}{count}" + (f" @ d{depth}" if depth else "")


def _read_bandwidth(model: Model) -> float | None:
    """Bytes per second of the host's memory; None for a model that is not in it."""
    if model.tier == "cuda":
        return None
    return _core.measure_read_bandwidth(threads=model.threads) * 1e9


def _measure(
    model: Model, kind: str, count: int, depth: int, repetitions: int, advance: Callable[[int], None]
) -> BenchResult:
    core = model._resident.core
    run = _time_prefill if kind == "pp" else _time_decode
    before = _read_bandwidth(model)
    # The first run touches every page and wakes the threads. It need not be long.
    run(model, min(count, _core.PASS_TOKENS if kind == "pp" else 4), 0)
    samples = []
    for _ in range(repetitions):
        advance(1)
        samples.append(count / run(model, count, depth))
    after = _read_bandwidth(model)
    if kind == "pp":
        passes = -(-count // _core.PASS_TOKENS)
        bytes_per_token = core.bytes_per_token(depth=depth) * passes / count
    else:
        bytes_per_token = float(core.bytes_per_token(depth=depth + count // 2))
    test = _test_name(kind, count, depth)
    return BenchResult(
        test, tuple(samples), bytes_per_token, max(before, after) if before and after else None
    )


def _random_ids(model: Model, count: int) -> NDArray[np.int32]:
    ids = np.random.default_rng(0).integers(0, model.vocab_size, size=count, dtype=np.int32)
    ids[:1] = min(_BOS, model.vocab_size - 1)
    return ids


def _time_prefill(model: Model, count: int, depth: int) -> float:
    """Seconds for ``count`` tokens after ``depth`` others."""
    ids = _random_ids(model, depth + count)
    sequence = _core.TokenSequence(model._resident.core)
    try:
        if depth:
            sequence.extend(ids[:depth])
        started = time.perf_counter()
        sequence.extend(ids[depth:])
        return time.perf_counter() - started
    finally:
        sequence.close()


def _time_decode(model: Model, count: int, depth: int) -> float:
    """Seconds for ``count`` single-token forward passes after ``depth`` tokens and one more."""
    ids = _random_ids(model, depth + 1 + count)
    sequence = _core.TokenSequence(model._resident.core)
    try:
        sequence.extend(ids[: depth + 1])
        started = time.perf_counter()
        for position in range(depth + 1, depth + 1 + count):
            sequence.extend(ids[position : position + 1])
        return time.perf_counter() - started
    finally:
        sequence.close()
