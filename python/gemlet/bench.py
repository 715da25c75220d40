"""The measurements of ``gemlet bench``: the speed of prefill (pp) and decode (tg), compared with the memory
bandwidth.

``ppN`` is the prefill of N random tokens in one call, with an empty context. ``tgN`` is N single-token
forward passes after one BOS token. With a depth d, the context first gets d tokens, which are not timed.
Neither test includes sampling or tokenizing. llama-bench measures the same, so its numbers can be compared
with these.

Each row has the least number of bytes that the computation reads per token, and the share of the memory
bandwidth that these bytes take. The bandwidth is measured just before and just after the test. If the share
is near 100%, only a model with fewer bytes can be faster. For a model that fits into the caches, such as the
demo model, the share can be above 100%.
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
        test: the name of the test, such as "pp512" or "tg128", or with a depth "tg128 @ d4096".
        samples: tokens per second of each repetition.
        bytes_per_token: the least bytes that are read per token. Prefill reads the weights once for each
            pass.
        bandwidth: the memory bandwidth in bytes per second, the larger of the measurements before and after
            the test. None on a GPU, where it is not measured.
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
        """The bytes read per second, divided by the bandwidth. It is low for prefill, which is bound by
        arithmetic."""
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
    """The number of parameters of the text model. A tied embedding table counts once; all experts and the
    table of per-layer embeddings count too.

    >>> from gemlet.bench import parameter_count
    >>> from gemlet.config import shape_config
    >>> parameter_count(shape_config("gemma3-1b"))
    999885952
    """
    return sum(prod(shape) for shape in expected_slots(config).values())


def weight_bytes(model: Model) -> int:
    """The bytes of the packed weights, including the embedding table."""
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
    """The facts about the machine and the settings that a reader needs to judge the figures."""
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
        model: the model to measure. Its state does not change.
        prompt: the lengths for pp, in tokens; a length of 0 is left out.
        generate: the lengths for tg, in tokens; a length of 0 is left out.
        depth: the number of tokens that are already in the context when a test starts.
        repetitions: the number of timed runs of each test. One run before them is not timed.
        progress: how to show the progress, as for :func:`gemlet.load`.

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
    """The bandwidth of the host's memory in bytes per second; None for a model on a GPU."""
    if model.tier == "cuda":
        return None
    return _core.measure_read_bandwidth(threads=model.threads) * 1e9


def _measure(
    model: Model, kind: str, count: int, depth: int, repetitions: int, advance: Callable[[int], None]
) -> BenchResult:
    core = model._resident.core
    run = _time_prefill if kind == "pp" else _time_decode
    before = _read_bandwidth(model)
    # The first run loads every page and wakes the threads. It is not timed and can be short.
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
    """The seconds for the prefill of ``count`` tokens after ``depth`` other tokens."""
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
    """The seconds for ``count`` single-token forward passes after ``depth + 1`` other tokens."""
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
