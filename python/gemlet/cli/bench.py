"""``gemlet bench``: measures the speed of prefill and decode, or of the image and audio towers. It prints a
table or JSON."""

from __future__ import annotations

import argparse
import json

from gemlet.bench import BenchResult, iter_bench, machine_info, parameter_count, weight_bytes
from gemlet.bench_towers import iter_tower_bench
from gemlet.cli.common import load_options, one_line, open_model, peak_memory_bytes, print_table
from gemlet.loading.options import LoadOptions
from gemlet.model.model import Model

__all__ = ["run"]

_COLUMNS = (
    ("model", 24, "<"),
    ("size", 11, ">"),
    ("params", 9, ">"),
    ("weights", 7, ">"),
    ("threads", 7, ">"),
    ("tier", 11, ">"),
    ("test", 15, ">"),
    ("t/s", 19, ">"),
    ("bytes/token", 11, ">"),
    ("bandwidth", 9, ">"),
)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    if arguments.random is not None:
        from gemlet.loading.random_model import random_model

        towers = arguments.image_size is not None or arguments.sound_seconds is not None
        model = random_model(arguments.random, LoadOptions(**load_options(arguments)), towers=towers)
        name = f"{arguments.random} (random)"
    else:
        model = open_model(arguments)
        name = model.source
    with model:
        if arguments.image_size is not None or arguments.sound_seconds is not None:
            return _run_towers(model, name, arguments)
        rows: list[BenchResult] = []
        for row in iter_bench(
            model,
            prompt=arguments.p,
            generate=arguments.n,
            depth=arguments.d,
            repetitions=arguments.r,
            progress=None,
        ):
            if not arguments.json:
                if not rows:
                    print(_line([title for title, _, _ in _COLUMNS]))
                    print(_rule())
                print(_line(_cells(model, name, row)), flush=True)
            rows.append(row)
        # Other programs only lower the measured bandwidth, so the highest value is the best estimate.
        bandwidth = max((row.bandwidth for row in rows if row.bandwidth is not None), default=None)
        if arguments.json:
            machine = {**machine_info(model), "read_bandwidth_bytes_per_second": bandwidth}
            described = {
                "name": name,
                "weights": model.weights,
                "bytes": weight_bytes(model),
                "parameters": parameter_count(model.config),
            }
            print(
                json.dumps(
                    {"machine": machine, "model": described, "results": [row.to_json() for row in rows]}
                )
            )
        elif bandwidth is not None:
            print(f"\nread bandwidth, threads {model.threads}: {bandwidth / 1e9:.1f} GB/s")
    return 0


def _run_towers(model: Model, name: str, arguments: argparse.Namespace) -> int:
    rows = list(
        iter_tower_bench(
            model, image=arguments.image_size, seconds=arguments.sound_seconds, repetitions=arguments.r
        )
    )
    peak = peak_memory_bytes()
    described = {"name": name, "weights": model.weights, "bytes": weight_bytes(model)}
    if arguments.json:
        results = [row.to_json() for row in rows]
        found = {"machine": machine_info(model), "model": described, "results": results}
        print(json.dumps({**found, "peak_memory_bytes": peak}))
        return 0
    size = f"{weight_bytes(model) / 1e6:.1f} MB of {model.weights}"
    print(f"{one_line(name)}, {size}, {model.threads} threads, {model.tier}")
    titles = ("test", "soft tokens", "ms", "tokens/s", "ms before it")
    cells = [
        (
            row.test,
            str(row.tokens),
            f"{1e3 * row.seconds:.1f} ± {1e3 * row.stdev:.1f}",
            f"{row.tokens_per_second:.1f}",
            f"{1e3 * row.prepare:.1f}",
        )
        for row in rows
    ]
    print_table(titles, cells, right=(1, 2, 3, 4))
    print(f"\npeak memory of the process: {peak / 1e6:.0f} MB")
    return 0


def _cells(model: Model, name: str, row: BenchResult) -> list[str]:
    return [
        one_line(name)[-24:],
        f"{weight_bytes(model) / 1e6:.1f} MB",
        f"{parameter_count(model.config) / 1e6:.2f} M",
        model.weights,
        str(model.threads),
        model.tier,
        row.test,
        f"{row.tokens_per_second:.2f} ± {row.stdev:.2f}",
        f"{row.bytes_per_token / 1e6:.2f} MB",
        "-" if row.bandwidth_share is None else f"{100 * row.bandwidth_share:.1f} %",
    ]


def _line(cells: list[str]) -> str:
    return (
        "| "
        + " | ".join(
            f"{cell:{align}{width}}" for cell, (_, width, align) in zip(cells, _COLUMNS, strict=True)
        )
        + " |"
    )


def _rule() -> str:
    return (
        "|"
        + "|".join("-" * (width + 1) + ("-" if align == "<" else ":") for _, width, align in _COLUMNS)
        + "|"
    )
