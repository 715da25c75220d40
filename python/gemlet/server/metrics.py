"""``/metrics``: counters and histograms of requests that have ended, and gauges of the engines."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from gemlet.base.arrays import np
from gemlet.server.call import Call

__all__ = ["CONTENT_TYPE", "Gauges", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name", "engine")
# Histograms have the same steps as in vLLM, so that dashboards for vLLM work.
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
    *(640, 2560),
)
_PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_WHOLE = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
_TOKENS = tuple(float(step * 10**power) for power in range(7) for step in (1, 2, 5))

# Maps the alias of a model to the name and the value of each gauge and of each counter (..._total).
Gauges = Callable[[], Mapping[str, Mapping[str, float]]]


class _Set:
    """The metrics under one prefix."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"{prefix}:{name}", help, (*_LABELS, *labels), registry=registry)

        def histogram(name: str, help: str, steps: tuple[float, ...]) -> Histogram:
            return Histogram(f"{prefix}:{name}", help, _LABELS, buckets=steps, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self.generation_tokens = counter("generation_tokens", "tokens that were written")
        self.cache_queries = counter("prefix_cache_queries", "tokens of prompts that could have been kept")
        self.cache_hits = counter("prefix_cache_hits", "tokens of prompts that were kept from before")
        self.success = counter("request_success", "requests that ended", "finished_reason")
        self.first_token = histogram("time_to_first_token_seconds", "until the first token", _FIRST_TOKEN)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "mean time between the tokens of a reply", _PER_TOKEN
        )
        self.queued = histogram(
            "request_queue_time_seconds", "until the first token, without its forward passes", _WHOLE
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "forward passes up to the first token", _WHOLE
        )
        self.decode = histogram("request_decode_time_seconds", "from the first token to the end", _WHOLE)
        self.inference = histogram(
            "request_inference_time_seconds", "from the first forward pass to the end", _WHOLE
        )
        self.whole = histogram("e2e_request_latency_seconds", "from the request to its end", _WHOLE)
        self.prompt_length = histogram("request_prompt_tokens", "tokens of a prompt", _TOKENS)
        self.reply_length = histogram("request_generation_tokens", "tokens of a reply", _TOKENS)

    def count(self, call: Call) -> None:
        labels = (call.model, "0")
        seconds = call.seconds()
        self.prompt_tokens.labels(*labels).inc(call.prompt_tokens)
        self.generation_tokens.labels(*labels).inc(call.completion_tokens)
        self.cache_queries.labels(*labels).inc(call.prompt_tokens)
        self.cache_hits.labels(*labels).inc(call.cached_tokens)
        self.success.labels(*labels, call.finish or "abort").inc()
        self.whole.labels(*labels).observe(seconds)
        self.prompt_length.labels(*labels).observe(call.prompt_tokens)
        self.reply_length.labels(*labels).observe(call.completion_tokens)
        if call.first_token is not None:
            self.first_token.labels(*labels).observe(call.first_token)
            self.decode.labels(*labels).observe(seconds - call.first_token)
            if call.prefill_seconds is not None:
                self.prefill.labels(*labels).observe(call.prefill_seconds)
                queued = max(0.0, call.first_token - call.prefill_seconds)
                self.queued.labels(*labels).observe(queued)
                self.inference.labels(*labels).observe(seconds - queued)
            if call.completion_tokens > 1:
                pace = (seconds - call.first_token) / (call.completion_tokens - 1)
                self.per_token.labels(*labels).observe(pace)


class _Gaps:
    """A histogram of the times between the tokens of one model. They are counted many at a time, because
    there are too many to count one by one."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_PER_TOKEN) + 1, np.int64)
        self._sum = 0.0

    def add(self, given: array[float]) -> None:
        gaps = np.asarray(given, np.float32)
        steps = np.searchsorted(_PER_TOKEN, gaps)  # a step counts the times up to and including it
        self._counts += np.bincount(steps, minlength=len(self._counts))
        self._sum += float(np.sum(gaps, dtype=np.float64))

    def family(self, name: str, model: str) -> Metric:
        family = HistogramMetricFamily(name, "time between the tokens of a reply", labels=_LABELS)
        steps = [*map(floatToGoString, _PER_TOKEN), "+Inf"]
        counts = [(step, float(n)) for step, n in zip(steps, np.cumsum(self._counts), strict=True)]
        family.add_metric((model, "0"), counts, self._sum)
        return family


def _cache_config(name: str, caches: Mapping[str, Mapping[str, str]]) -> Metric:
    """The properties of the caches, as labels. The value is 1, as in vLLM."""
    labels = next(iter(caches.values()))
    family = GaugeMetricFamily(name, "the cache of keys and values", labels=(*_LABELS, *labels))
    for alias, values in caches.items():
        family.add_metric((alias, "0", *values.values()), 1)
    return family


class Metrics:
    """All metrics of a server.

    Args:
        gauges: returns the values of the engines.
        adapters: returns the names of the adapters that are loaded.
        caches: maps the alias of each model to labels of its cache of keys and values. They do not change
            while the server runs.
        vllm: whether each metric also appears under vLLM's name.
    """

    def __init__(
        self,
        gauges: Gauges,
        adapters: Callable[[], Collection[str]] = tuple,
        caches: Callable[[], Mapping[str, Mapping[str, str]]] = dict,
        *,
        vllm: bool = False,
    ) -> None:
        self.registry = CollectorRegistry()
        self._prefixes = ["gemlet", *(["vllm"] if vllm else [])]
        self._sets = [_Set(prefix, self.registry) for prefix in self._prefixes]
        self._responses = Counter(
            "gemlet:http_responses",
            "answers by route and status",
            ("route", "status"),
            registry=self.registry,
        )
        self._verdicts = Counter(
            "gemlet:content_filter_verdicts",
            "prompts and replies that broke a rule of the content filter",
            (*_LABELS, "place", "rule", "action"),
            registry=self.registry,
        )
        self._gauges = gauges
        self._adapters = adapters
        self._caches = caches
        self._running: dict[str, Call] = {}  # id -> call
        self._gaps: dict[str, _Gaps] = {}
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yields the gauges. The registry calls it."""
        found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for alias, values in self._gauges().items():
            for name, value in values.items():
                family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                for prefix in self._prefixes:
                    full = f"{prefix}:{name}"
                    if full not in found:
                        found[full] = family(full, name.replace("_", " "), labels=_LABELS)
                    found[full].add_metric((alias, "0"), value)
        yield from found.values()
        if caches := self._caches():
            for prefix in self._prefixes:
                yield _cache_config(f"{prefix}:cache_config_info", caches)
        if names := self._adapters():
            for prefix in self._prefixes:
                yield self._adapter_requests(f"{prefix}:lora_requests_info", names)
        for model, gaps in self._gaps.items():
            for prefix in self._prefixes:
                yield gaps.family(f"{prefix}:inter_token_latency_seconds", model)

    def _adapter_requests(self, name: str, names: Collection[str]) -> Metric:
        """Lists the adapters with running replies, and those with replies that wait for their first token. As
        in vLLM, the names are labels and the value is the time."""
        family = GaugeMetricFamily(
            name,
            "adapters of requests; the value is the time",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        calls = [call for call in self._running.values() if call.model in names]
        waiting = sorted({call.model for call in calls if call.first_token is None})
        running = sorted({call.model for call in calls if call.first_token is not None})
        family.add_metric((str(len(names)), ",".join(waiting), ",".join(running)), time.time())
        return family

    def describe(self) -> Iterator[Metric]:
        """Yields nothing, so that the registry does not ask the engines before the models are loaded."""
        return iter(())

    def begin(self, call: Call) -> None:
        """Notes that a request asks a model for something. The request is counted when it ends."""
        self._running[call.id] = call
        call.at_end.append(self._count)

    def _count(self, call: Call) -> None:
        self._running.pop(call.id, None)
        for metrics in self._sets:
            metrics.count(call)
        if call.gaps:
            self._gaps.setdefault(call.model, _Gaps()).add(call.gaps)

    def count_response(self, call: Call) -> None:
        self._responses.labels(call.route or "other", str(call.status)).inc()

    def count_verdict(self, model: str, place: str, rule: str, action: str) -> None:
        """Counts a verdict of the content filter about a "prompt" or a "reply"."""
        self._verdicts.labels(model, "0", place, rule, action).inc()

    def first_tokens(self, model: str) -> list[tuple[float | None, int]]:
        """The steps of the histogram in seconds, each with the number of the model's requests that had their
        first token by then. The last step is None, and its number counts all requests."""
        [family] = self._sets[0].first_token.collect()
        return [
            (None if sample.labels["le"] == "+Inf" else float(sample.labels["le"]), int(sample.value))
            for sample in family.samples
            if sample.name.endswith("_bucket") and sample.labels["model_name"] == model
        ]

    def text(self) -> bytes:
        return generate_latest(self.registry)
