"""The format that fits into a machine's memory: `for_memory` of convert, and its plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import gemlet
from gemlet.config import shape_config
from gemlet.errors import InvalidRequestError, MemoryLimitError
from gemlet.loading.for_memory import LOSSES, PROCESS_BYTES, options_for_memory, recommend
from gemlet.loading.memory_plan import plan_memory
from gemlet.loading.options import LoadOptions
from gemlet.weights.formats import PRESETS
from golden.folders import HERE
from support.paths import ROOT

GB = 10**9
OWN = {"layers.0.q_proj": "q8"}  # these matrices have another format in the file
ORDER = list(LOSSES)[::-1]  # the formats from the smallest to the largest


def formats_of(options: LoadOptions) -> tuple[str, str]:
    return options.formats.matrices, options.formats.embedding


@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        ("gemma3-270m", 512_000_000),
        ("gemma3-1b", GB),
        ("gemma3n-e2b", 2 * GB),
        ("gemma4-e2b", 2 * GB),
        ("gemma3-1b", 64 * GB),
    ],
)
def test_the_best_format_that_fits(shape: str, limit: int) -> None:
    config = shape_config(shape)
    chosen = options_for_memory(limit, config, LoadOptions())
    assert plan_memory(config, chosen, process=PROCESS_BYTES).total <= limit
    for weights, embedding in ORDER[ORDER.index(formats_of(chosen)) + 1 :]:
        better = replace(chosen, weights=weights, embedding=embedding)
        assert plan_memory(config, better, process=PROCESS_BYTES).total > limit


def test_more_memory_never_takes_a_smaller_format() -> None:
    config = shape_config("gemma3-1b")
    places = [
        ORDER.index(formats_of(options_for_memory(GB // 10 * tenths, config, LoadOptions())))
        for tenths in (9, 12, 16, 20, 30, 40)
    ]
    assert places == sorted(places)
    assert len(set(places)) >= 3


def test_the_embedding_is_rounded_last() -> None:
    config = shape_config("gemma3-1b")
    last = plan_memory(
        config, LoadOptions(weights="q4", embedding="q4", max_context=4096), process=PROCESS_BYTES
    ).total
    chosen = options_for_memory(last + 20_000_000, config, LoadOptions())
    assert (chosen.weights, chosen.embedding) == ("q4", "q4")
    given = options_for_memory(last + 400_000_000, config, LoadOptions(embedding="q4"))
    assert given.embedding == "q4"


def test_the_formats_of_the_file_are_kept_where_they_fit() -> None:
    stored = LoadOptions(weights="q4", own_formats=OWN)
    config = shape_config("gemma3-270m")
    assert options_for_memory(GB, config, stored).own_formats == OWN
    assert options_for_memory(GB, config, LoadOptions(weights="q4")).weights == "q4"  # q8 would be larger


def test_a_model_that_never_fits_is_refused_with_its_smallest_plan() -> None:
    with pytest.raises(MemoryLimitError, match=r"for_memory is 100 MB.*weights='q4'.*max_context=4096"):
        options_for_memory(100_000_000, shape_config("gemma3-1b"), LoadOptions())


def test_convert_packs_in_the_format_that_fits(tmp_path: Path) -> None:
    gemlet.convert(HERE / "gemma3-270m", tmp_path / "packed", for_memory="2GB")
    assert gemlet.inspect(tmp_path / "packed").weights == "f32"  # the file has f32, so nothing is lost
    with pytest.raises(MemoryLimitError, match="for_memory is 1 kB"):
        gemlet.convert(HERE / "gemma3-270m", tmp_path / "none", for_memory=1000)
    assert not (tmp_path / "none").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="for_memory is 'much'"):
        gemlet.convert(None, tmp_path / "x", for_memory="much")
    with pytest.raises(InvalidRequestError, match="give one of the two"):
        gemlet.convert(None, tmp_path / "x", for_memory="1GB", weights="q4")


def test_inspect_recommends_what_convert_takes_and_says_what_it_loses() -> None:
    found = gemlet.inspect(for_memory="1GB").recommended
    assert found is not None
    assert (found.weights, found.embedding, found.max_context) == ("bf16", "bf16", 1024)
    config = shape_config("gemma3-1b")
    losses = []
    for limit in (GB, 12 * GB // 10, 2 * GB, 8 * GB):
        advice = recommend(limit, config, LoadOptions())
        chosen = options_for_memory(limit, config, LoadOptions())
        assert (advice.weights, advice.embedding) == (chosen.weights, chosen.formats.embedding)
        assert advice.needs == plan_memory(config, chosen, process=PROCESS_BYTES).total <= limit
        assert advice.loss == LOSSES[advice.weights, advice.embedding]
        losses.append(advice.loss)
    assert losses == sorted(losses, reverse=True)
    stored = recommend(GB, shape_config("gemma3-270m"), LoadOptions(weights="q4", own_formats=OWN))
    assert stored.loss is None
    text = str(gemlet.inspect(for_memory="1GB"))
    assert "advice     for 1.00 GB: weights bf16, embedding bf16; needs" in text
    assert "KL divergence of 0.00019 to f32" in text
    with pytest.raises(MemoryLimitError, match="for_memory is 1 kB"):
        gemlet.inspect(for_memory=1000)
    with pytest.raises(InvalidRequestError, match="give one of the two"):
        gemlet.inspect(for_memory="1GB", weights="q8")


def test_the_losses_are_those_of_the_guide() -> None:
    """The losses here are the same as in the table of benchmarks/README.md, which one command wrote."""
    guide = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for (weights, embedding), loss in LOSSES.items():
        usual = PRESETS[weights].embedding == embedding
        name = f"`{weights}`" if usual else f'`{weights}`, `embedding="{embedding}"`'
        row = next(line for line in guide.splitlines() if line.startswith(f"| {name} |"))
        assert float(row.split("|")[2]) == loss
