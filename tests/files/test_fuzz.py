"""A few hundred broken files for every reader. ``tests/fuzz/fuzz.py`` makes millions."""

from __future__ import annotations

import pytest

from fuzz.fuzz import inputs, run_one
from fuzz.readers import EXTRAS, READERS


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.extra(EXTRAS[name])] if name in EXTRAS else [])
        for name in READERS
    ],
)
def test_broken_files_end_in_a_typed_error(name: str) -> None:
    reader = READERS[name]
    assert all(run_one(reader, data) for data in reader.seeds())
    refused = sum(not run_one(reader, data) for _, data in zip(range(400), inputs(reader, 7), strict=False))
    assert refused > 100, "the mutations change nothing that matters"
