"""The format that fits into a machine's memory: `for_memory` of convert, and the plans behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import gemlet
from gemlet.config import shape_config
from gemlet.errors import InvalidRequestError, MemoryLimitError
from gemlet.loading.for_memory import PROCESS_BYTES, options_for_memory
from gemlet.loading.memory_plan import plan_memory
from gemlet.loading.options import LoadOptions
from golden.folders import HERE

GB = 10**9
ORDER = ["q4", "q4k", "q5", "q5k", "q6k", "q8", "bf16"]  # from small to large


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
    for better in ORDER[ORDER.index(chosen.weights) + 1 :]:
        assert plan_memory(config, replace(chosen, weights=better), process=PROCESS_BYTES).total > limit


def test_more_memory_never_takes_a_smaller_format() -> None:
    config = shape_config("gemma3-1b")
    places = [
        ORDER.index(options_for_memory(GB // 10 * tenths, config, LoadOptions()).weights)
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
    own = {"layers.0.q_proj": "q8"}
    stored = LoadOptions(weights="q4", own_formats=own)
    config = shape_config("gemma3-270m")
    assert options_for_memory(GB, config, stored).own_formats == own
    assert (
        options_for_memory(GB, config, LoadOptions(weights="q4")).weights == "q4"
    )  # not q8, which is larger


def test_what_fits_nowhere_is_refused_with_the_smallest_plan() -> None:
    with pytest.raises(MemoryLimitError, match=r"for_memory is 100 MB.*weights='q4'.*max_context=4096"):
        options_for_memory(100_000_000, shape_config("gemma3-1b"), LoadOptions())


def test_convert_packs_in_the_format_that_fits(tmp_path: Path) -> None:
    gemlet.convert(HERE / "gemma3-270m", tmp_path / "packed", for_memory="2GB")
    assert gemlet.inspect(tmp_path / "packed").weights == "f32"  # as the file has it: nothing is lost
    with pytest.raises(MemoryLimitError, match="for_memory is 1 kB"):
        gemlet.convert(HERE / "gemma3-270m", tmp_path / "none", for_memory=1000)
    assert not (tmp_path / "none").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="for_memory is 'much'"):
        gemlet.convert(None, tmp_path / "x", for_memory="much")
    with pytest.raises(InvalidRequestError, match="give one of the two"):
        gemlet.convert(None, tmp_path / "x", for_memory="1GB", weights="q4")
