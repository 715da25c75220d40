"""Compares the speed of two builds, two settings or two programs.

    python benchmarks/compare.py --a "gemlet bench --json -r 1" --b "other/gemlet bench --json -r 1" -r 7
    python benchmarks/compare.py before.json after.json

With two commands, the runs alternate, A B A B ..., and each pair of runs gives one ratio B/A. So if the
machine slows down in the middle, both sides become slower. Two files were measured at different times, and
the report says so. Commands print, and files hold, the JSON of ``gemlet bench --json`` or of pytest-benchmark
(``--benchmark-save-data``).

The report calls one side faster if there are at least five pairs and all of them agree. Five pairs agree by
chance once in sixteen times. For two files, it calls one side faster if the two ranges do not overlap.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ENOUGH = 5
Speeds = dict[str, list[float]]


def read(text: str, where: str) -> tuple[dict[str, Any], Speeds]:
    """The machine and, for each test, the samples in runs or tokens per second."""
    try:
        report = json.loads(text)
        if "benchmarks" in report:
            cpu = report.get("machine_info", {}).get("cpu", {})
            machine = {"cpu": cpu.get("brand_raw"), "count": cpu.get("count")}
            speeds = {
                b["name"]: [1 / seconds for seconds in b["stats"]["data"]] for b in report["benchmarks"]
            }
        else:
            machine = report["machine"]
            speeds = {row["test"]: [float(sample) for sample in row["samples"]] for row in report["results"]}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        sys.exit(f"compare: {where}: not the JSON of gemlet bench or pytest-benchmark ({problem!r})")
    return machine, speeds


def run(command: str) -> tuple[dict[str, Any], Speeds]:
    """Runs a command and reads the report that it prints."""
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    except OSError as problem:
        sys.exit(f"compare: {command}: {problem}")
    if done.returncode != 0:
        sys.exit(f"compare: {command}: exit code {done.returncode}\n{done.stderr.strip()}")
    return read(done.stdout, command)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def verdict(ratios: list[float]) -> str:
    """The verdict on the ratios B/A of pairs of runs."""
    if len(ratios) < ENOUGH:
        return "too few pairs"
    if min(ratios) > 1:
        return "B faster"
    if max(ratios) < 1:
        return "A faster"
    return "no difference shown"


def verdict_of_ranges(a: list[float], b: list[float]) -> str:
    """The verdict on two sets of samples that were measured separately."""
    if min(len(a), len(b)) < ENOUGH:
        return "too few samples"
    if min(b) > max(a):
        return "B faster"
    if max(b) < min(a):
        return "A faster"
    return "no difference shown"


def print_table(rows: list[list[str]]) -> None:
    """A Markdown table."""
    titles = [
        "test",
        "A per second: median (range)",
        "B per second: median (range)",
        "B/A: median (range)",
        "verdict",
    ]
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    for row in [titles, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |")


def print_machines(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Prints the facts that both machines share, then each difference on a separate line."""
    differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    print("machine:", ", ".join(f"{key} {a[key]}" for key in a if key not in differing))
    for key in differing:
        print(f"  {key}: {a.get(key)} / {b.get(key)}")


def compare_commands(a: str, b: str, rounds: int) -> None:
    """Runs the two commands alternately and prints the ratios of the pairs."""
    medians: dict[str, tuple[list[float], list[float]]] = {}
    machines: list[dict[str, Any]] = [{}, {}]
    for _ in range(rounds):
        for side, command in enumerate((a, b)):
            machines[side], speeds = run(command)
            for test, samples in speeds.items():
                medians.setdefault(test, ([], []))[side].append(statistics.median(samples))
    print_machines(*machines)
    print(f"A: {a}\nB: {b}\n{rounds} pairs of runs\n")
    rows = []
    for test, (of_a, of_b) in medians.items():
        if len(of_a) != rounds or len(of_b) != rounds:
            rows.append([test, "", "", "", "not in every run"])
            continue
        ratios = [y / x for x, y in zip(of_a, of_b, strict=True)]
        range_ = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        rows.append([test, spread(of_a), spread(of_b), range_, verdict(ratios)])
    print_table(rows)


def compare_files(a: Path, b: Path) -> None:
    """Prints two saved reports side by side."""
    reports = []
    for path in (a, b):
        try:
            reports.append(read(path.read_text(encoding="utf-8"), str(path)))
        except OSError as problem:
            sys.exit(f"compare: {path}: {problem}")
    (machine_a, speeds_a), (machine_b, speeds_b) = reports
    print_machines(machine_a, machine_b)
    print(f"A: {a}\nB: {b}\nmeasured at different times: the machine may have changed between the two\n")
    rows = []
    for test in {**speeds_a, **speeds_b}:
        of_a, of_b = speeds_a.get(test, []), speeds_b.get(test, [])
        if not of_a or not of_b:
            rows.append([test, "", "", "", "only in A" if of_a else "only in B"])
            continue
        ratio = statistics.median(of_b) / statistics.median(of_a)
        rows.append([test, spread(of_a), spread(of_b), f"{ratio:.3f}", verdict_of_ranges(of_a, of_b)])
    print_table(rows)


def main() -> None:
    """Reads the arguments and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="JSON", help="two saved reports")
    parser.add_argument("--a", metavar="COMMAND", help="prints a report")
    parser.add_argument("--b", metavar="COMMAND", help="prints a report")
    parser.add_argument("-r", "--rounds", type=int, default=7, metavar="N", help="pairs of runs (default 7)")
    arguments = parser.parse_args()
    if arguments.a and arguments.b and not arguments.files and arguments.rounds >= 1:
        compare_commands(arguments.a, arguments.b, arguments.rounds)
    elif len(arguments.files) == 2 and not arguments.a and not arguments.b:
        compare_files(*arguments.files)
    else:
        parser.error("give two files, or --a and --b")


if __name__ == "__main__":
    main()
