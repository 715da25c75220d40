"""Tests of ``gemlet bench`` and of some scripts in benchmarks/: the form of their reports, not the speeds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.bench import BenchResult, iter_bench, parameter_count, run_bench, weight_bytes
from gemlet.cli.parser import run as main
from gemlet.config import shape_config
from gemlet.config.shapes import TOWER_SHAPES
from gemlet.errors import ContextLengthError, InvalidRequestError
from gemlet.weights.tower_slots import tower_slots
from golden.folders import HERE
from support.paths import ROOT

COMPARE = ROOT / "benchmarks" / "compare.py"
START = ROOT / "benchmarks" / "start.py"


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ("gemma3-270m", 268_098_176),  # google/gemma-3-270m
        ("gemma3-1b", 999_885_952),  # google/gemma-3-1b-pt
        ("gemma3n-e2b", 4_435_182_688),  # the text model with the table of per-layer embeddings
        ("gemma4-26b-a4b", 25_233_141_790),  # the text model with all experts
    ],
)
def test_parameter_counts_equal_the_published_counts(shape: str, count: int) -> None:
    assert parameter_count(shape_config(shape)) == count


def test_a_separate_output_matrix_counts() -> None:
    tied = shape_config("gemma3-270m")
    untied = replace(tied, tie_word_embeddings=False)
    assert parameter_count(untied) - parameter_count(tied) == tied.vocab_size * tied.hidden_size


def test_rows_in_order_with_their_bytes(model: gemlet.Model) -> None:
    rows = run_bench(model, prompt=[8, 0, 16], generate=[4], depth=0, repetitions=2)
    assert [row.test for row in rows] == ["pp8", "pp16", "tg4"]
    for row in rows:
        assert len(row.samples) == 2
        assert min(row.samples) > 0
        assert row.bandwidth > 1e8  # bytes per second; every machine is faster
        assert row.bandwidth_share == pytest.approx(
            row.tokens_per_second * row.bytes_per_token / row.bandwidth
        )
    # A decode step reads every weight. This includes the embedding table, which is also the output matrix.
    assert rows[2].bytes_per_token >= 0.9 * weight_bytes(model)
    assert rows[0].bytes_per_token == pytest.approx(2 * rows[1].bytes_per_token, rel=0.05)


def test_depth_counts_in_the_context_but_not_in_the_tokens(model: gemlet.Model) -> None:
    shallow = run_bench(model, prompt=[], generate=[4], repetitions=1)[0]
    deep = run_bench(model, prompt=[8], generate=[4], depth=100, repetitions=1)
    assert [row.test for row in deep] == ["pp8 @ d100", "tg4 @ d100"]
    assert deep[1].bytes_per_token > shallow.bytes_per_token


def test_mean_and_deviation() -> None:
    row = BenchResult("tg4", (10.0, 12.0, 14.0), 100.0, 2400.0)
    assert (row.tokens_per_second, row.stdev, row.bandwidth_share) == (12.0, 2.0, 0.5)
    assert BenchResult("tg4", (10.0,), 100.0, 1.0).stdev == 0.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"generate": [True]}, "generate"),
        ({"depth": -1}, "depth"),
        ({"repetitions": 0}, "repetitions"),
        ({"prompt": [], "generate": [0]}, "nothing to measure"),
    ],
)
def test_bad_requests(model: gemlet.Model, options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name}"):
        next(iter_bench(model, **options))


def test_lengths_beyond_the_context_are_refused_before_measuring(model: gemlet.Model) -> None:
    room = model.context_length
    with pytest.raises(ContextLengthError, match=f"tg8 at depth {room - 8}: {room + 1} tokens"):
        next(iter_bench(model, prompt=[8], generate=[8], depth=room - 8))


def gemlet_bench(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gemlet", "bench", "-p", "16", "-n", "4,2", "-r", "2", "-t", "1", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=300,
    )
    assert done.stderr == ""
    return done.stdout


def test_json_schema() -> None:
    report = json.loads(gemlet_bench("--json"))
    assert set(report) == {"machine", "model", "results"}
    assert report["machine"]["threads"] == 1
    assert report["machine"]["tier"]
    assert report["machine"]["read_bandwidth_bytes_per_second"] > 0
    assert report["model"]["name"] == "demo"
    assert report["model"]["bytes"] > 0
    assert report["model"]["parameters"] == gemlet.inspect().parameters
    assert [row["test"] for row in report["results"]] == ["pp16", "tg4", "tg2"]
    for row in report["results"]:
        assert set(row) == {
            "test",
            "tokens_per_second",
            "stdev",
            "bytes_per_token",
            "bandwidth_share",
            "samples",
        }
        assert len(row["samples"]) == 2


def test_table() -> None:
    lines = gemlet_bench().splitlines()
    titles = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert titles == [
        *("model", "size", "params", "weights", "threads", "tier"),
        *("test", "t/s", "bytes/token", "bandwidth"),
    ]
    assert set(lines[1]) <= set("|-:")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert [row[6] for row in rows] == ["pp16", "tg4", "tg2"]
    assert all("±" in row[7] and row[8].endswith("MB") and row[9].endswith("%") for row in rows)
    assert len({len(line) for line in lines[:5]}) == 1
    assert "GB/s" in lines[-1]


# --- benchmarks/start.py


def test_measuring_the_start_of_a_model_with_a_short_context(tmp_path: Path) -> None:
    """Other models are measured with a context of 4096 tokens. The demo model has a shorter context."""
    gemlet.convert(None, tmp_path / "demo", weights="q4")
    command = [sys.executable, str(START), str(tmp_path / "demo"), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    parts = [line.partition(" processor ")[0].strip() for line in done.stdout.splitlines()[1:]]
    assert parts[0] == "interpreter"
    assert parts[-3:] == ["first token", "all of these", "exit"]


# --- benchmarks/compare.py


def compare(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(COMPARE), *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    return done.stdout


def report(speeds: dict[str, list[float]], **machine: object) -> dict[str, Any]:
    return {
        "machine": {"cpu": "x", "threads": 1, **machine},
        "results": [{"test": test, "samples": samples} for test, samples in speeds.items()],
    }


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[str, str, Path]:
    """Two commands, A and B, that print fixed results, and a file in which they log the order of their runs.
    In the test tg, B is a tenth faster than A."""
    log = tmp_path / "order"
    commands = []
    for name, tg in (("A", 100.0), ("B", 110.0)):
        script = tmp_path / f"{name}.py"
        result = json.dumps(report({"pp8": [50.0, 51.0], "tg4": [tg, tg]}))
        script.write_text(f"open({str(log)!r}, 'a').write({name!r})\nprint({result!r})\n")
        commands.append(f"{sys.executable} {script}")
    return commands[0], commands[1], log


def test_commands_run_in_turns_and_ratios_are_paired(recorder: tuple[str, str, Path]) -> None:
    a, b, log = recorder
    output = compare("--a", a, "--b", b, "-r", "5")
    assert log.read_text() == "AB" * 5
    lines = {line.split("|")[1].strip(): line for line in output.splitlines() if line.startswith("| ")}
    assert "1.100" in lines["tg4"]
    assert "B faster" in lines["tg4"]
    assert "1.000" in lines["pp8"]
    assert "no difference shown" in lines["pp8"]


def test_a_few_rounds_prove_no_difference(recorder: tuple[str, str, Path]) -> None:
    a, b, _ = recorder
    output = compare("--a", a, "--b", b, "-r", "2")
    assert "B faster" not in output
    assert "too few" in output


def test_files_are_compared_with_a_warning(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report({"tg4": [10, 11, 12, 10, 11], "pp8": [5, 6, 5, 6, 5]}, tier="avx2")))
    new.write_text(json.dumps(report({"tg4": [20, 21, 22, 20, 21], "pp8": [6, 5, 6, 5, 6]}, tier="amx")))
    output = compare(str(old), str(new))
    lines = {line.split("|")[1].strip(): line for line in output.splitlines() if line.startswith("| ")}
    assert "B faster" in lines["tg4"]
    assert "no difference shown" in lines["pp8"]
    assert "measured at different times" in output
    assert "tier: avx2 / amx" in output


def test_the_error_names_the_command_that_failed(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no model')\n")
    done = subprocess.run(
        [sys.executable, str(COMPARE), "--a", f"{sys.executable} {script}", "--b", "true"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert "no model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "option", "test", "tokens"),
    [
        ("vision/gemma3", "--image=64x48", "image 64x48", 16),
        ("vision/gemma4-unified", "--image=64x48", "image 64x48", 70),
        ("audio/gemma4", "--audio=0.5", "audio 0.5 s", 13),
        ("audio/gemma4-unified", "--audio=0.5", "audio 0.5 s", 100),
    ],
)
def test_the_towers_of_a_model_are_measured(
    name: str, option: str, test: str, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "--model", str(HERE / name), "--threads", "1", "-r", "2", option]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["results"]
    assert row["test"] == test
    assert 0 < row["tokens"] <= tokens
    assert len(row["samples"]) == 2
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / (sum(row["samples"]) / 2))
    assert found["peak_memory_bytes"] > found["model"]["bytes"]
    assert main(arguments) == 0
    assert test in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image"], "sees no images"),
        (["--audio"], "hears no sound"),
        (["--image", "0x5"], "got 0x5, expected 1x1"),
        (["--audio", "31"], "got 31 seconds"),
        (["--audio", "nan"], "got nan seconds"),
    ],
)
def test_towers_that_cannot_be_measured(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "vision/gemma3" if "x" in options[-1] else "audio/gemma4" if len(options) > 1 else "gemma3-270m"
    assert main(["bench", "--model", str(HERE / name), *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", TOWER_SHAPES)
def test_random_models_have_towers_of_the_published_sizes(name: str) -> None:
    """The numbers of parameters, in millions, equal those of the published towers."""
    config = shape_config(name, towers=True)
    sizes = {kind: 0 for kind in ("vision", "audio")}
    for slot, shape in tower_slots(config).items():
        sizes[slot.partition(".")[0]] += prod(shape)
    least = {"gemma3": 416, "gemma3n": 294, "gemma4": 167}.get(name.partition("-")[0], 0)
    if name == "gemma4-12b":
        least = 30
    assert least <= sizes["vision"] / 1e6 < least + 420
    assert (sizes["audio"] > 0) == (
        name.startswith("gemma3n") or name in ("gemma4-e2b", "gemma4-e4b", "gemma4-12b")
    )
    assert shape_config(name).vision is None
