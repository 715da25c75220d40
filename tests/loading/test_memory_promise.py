"""The memory of models of real sizes: the plan, and the peak of a process that loads and runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.processes import run_program
from support.programs.memory_promise import load_and_generate
from support.real_shapes import write_real_shape_hole
from support.tokenizer_files import gemma4_json

pytestmark = pytest.mark.tier

GB = 10**9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "arguments", "tokens", "bound"),
    [
        ("gemma3n-e2b", {"weights": "q4", "max_context": 4096}, 4080, 2.1 * GB),
        ("gemma4-e2b", {"weights": "q4", "max_context": 4096}, 600, 2.0 * GB),
        ("gemma3n-e4b", {"weights": "q4", "embedding": "q4", "max_context": 4096}, 600, 3.1 * GB),
        ("gemma4-e4b", {"weights": "q4", "embedding": "q4", "max_context": 4096}, 600, 3.1 * GB),
    ],
)
def test_peak_memory_at_real_shapes(
    hole_path: Path, shape: str, arguments: dict[str, object], tokens: int, bound: float
) -> None:
    """The tokenizer has 262,144 pieces. The weights are zero, but take the same memory. The first model fills
    its context, which takes the largest share of memory there (3.5 %); the others fill one pass. Every plan
    counts the whole context, and load() refuses a plan above the bound."""
    folder = hole_path / shape
    write_real_shape_hole(folder, shape)
    (folder / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    arguments = arguments | {"max_memory": int(bound)}
    peak, planned, generated = run_program(load_and_generate, folder, arguments, tokens, timeout=900)
    assert generated == 8
    assert peak < bound
    # The plan counts what the process has at that time. If the system reclaims idle pages, it is less.
    assert 0.85 * planned < peak < 1.05 * planned
