"""The memory that models of real sizes take: the plan, and the peak of a process that loads and runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes import run_python
from support.real_shapes import write_real_shape_hole
from support.tokenizer_files import gemma4_json

pytestmark = pytest.mark.tier

GB = 10**9

RUN = """
    import json, resource
    import gemlet
    from gemlet.loading.inspect import inspect
    plan = inspect({folder!r}, **{arguments!r}).plan
    with gemlet.load({folder!r}, **{arguments!r}) as model:
        ids = [2] + [i * 37 % 200_000 for i in range(1, {tokens})]
        answer = model.generate(ids, max_tokens=8, temperature=0, stop=[])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({{"peak": peak, "plan": plan.total, "tokens": answer.completion_tokens}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "arguments", "tokens", "bound"),
    [
        ("gemma3n-e2b", {"weights": "q4", "max_context": 4096}, 4080, 2.0 * GB),
        ("gemma4-e2b", {"weights": "q4", "max_context": 4096}, 600, 2.0 * GB),
        ("gemma3n-e4b", {"weights": "q4", "embedding": "q4", "max_context": 4096}, 600, 3.0 * GB),
        ("gemma4-e4b", {"weights": "q4", "embedding": "q4", "max_context": 4096}, 600, 3.0 * GB),
    ],
)
def test_peak_memory_at_real_shapes(
    hole_path: Path, shape: str, arguments: dict[str, object], tokens: int, bound: float
) -> None:
    """With a tokenizer of 262,144 pieces and weights of zero, which take as much. The whole context is filled
    where it is the largest part, 3.5 %; the others fill what one pass computes. Their plan has the whole
    context, and load() refuses one beyond the bound."""
    folder = hole_path / shape
    write_real_shape_hole(folder, shape)
    (folder / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    code = RUN.format(
        folder=folder.as_posix(), arguments=arguments | {"max_memory": int(bound)}, tokens=tokens
    )
    measured = json.loads(run_python(code, timeout=400))
    assert measured["tokens"] == 8
    assert measured["peak"] < bound, measured
    assert measured["peak"] < 1.02 * measured["plan"], measured  # the plan is a promise,
    assert measured["peak"] > 0.85 * measured["plan"], measured  # and not a loose one
