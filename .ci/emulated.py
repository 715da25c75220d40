"""Checks that the extension chooses the given tier on this machine, whose highest tier it must be, and that
it computes the golden taps.

qemu-x86_64 -cpu Nehalem python .ci/emulated.py scalar
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
VARIANTS = ["gemma2-2b", "gemma3-270m"]


def check_golden(name: str, tier: str, path: Path | None = None) -> str:
    """Compares one golden folder, or the file `path` with the same model, and returns a line of the
    report."""
    import numpy as np

    import gemlet

    sys.path.insert(0, TESTS.as_posix())
    from golden.folders import EMBEDDING_NAMES, HERE, TOLERANCE, read_golden, tap_errors
    from support.inside import taps_of

    golden = read_golden(name)
    source = path or HERE / name
    with gemlet.load(source, weights="f32", threads=1) as model:
        if model.tier != tier:
            raise SystemExit(f"runs on {model.tier}, expected {tier}")
        if name in EMBEDDING_NAMES:
            found, expected = model.embed([golden["ids"].tolist()])[0], golden["embedding"]
            worst = float(np.abs(found - expected).max() / np.abs(expected).max())
        else:
            taps = taps_of(model, golden["ids"])
            worst = max(tap_errors(golden, taps).values(), key=lambda error: (np.isnan(error), error))
    if not worst < TOLERANCE:
        raise SystemExit(f"{name}: off by {worst:.1e}, expected at most {TOLERANCE:.1e}")
    return f"{name}: {tier}, worst error {worst:.1e}"


def check_formats(name: str) -> None:
    """Checks only that the quantized kernels run on this machine. Other tests check the results of these
    kernels."""
    import numpy as np

    import gemlet

    sys.path.insert(0, TESTS.as_posix())
    from golden.folders import HERE, read_golden

    ids = read_golden(name)["ids"][:20].tolist()
    for weights in ("bf16", "q8", "q4"):
        with gemlet.load(HERE / name, weights=weights, threads=1) as model:
            if not np.isfinite(model.logits(ids)).all():
                raise SystemExit(f"{name}: logits with {weights} weights are not finite")


def main() -> None:
    for name in VARIANTS:
        said = check_golden(name, sys.argv[1])
        check_formats(name)
        print(said)


if __name__ == "__main__":
    main()
