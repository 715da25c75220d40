"""The extension on a machine that has `tier` and nothing above it: chooses it, and computes the golden taps.

qemu-x86_64 -cpu Nehalem python .ci/emulated.py scalar
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
VARIANTS = ["gemma2-2b", "gemma3-270m"]


def main() -> None:
    import numpy as np

    import gemlet

    sys.path.insert(0, TESTS.as_posix())
    from golden.folders import HERE, TOLERANCE, read_golden, tap_errors
    from support.inside import taps_of

    tier = sys.argv[1]
    for name in VARIANTS:
        golden = read_golden(name)
        with gemlet.load(HERE / name, weights="f32", threads=1) as model:
            if model.tier != tier:
                raise SystemExit(f"runs on {model.tier}, expected {tier}")
            taps = taps_of(model, golden["ids"])
        worst = max(tap_errors(golden, taps).values(), key=lambda error: (np.isnan(error), error))
        if not worst < TOLERANCE:
            raise SystemExit(f"{name}: the taps are off by {worst:.1e}, expected at most {TOLERANCE:.1e}")
        # The quantized kernels have their own tests; here they only have to run on such a machine.
        for weights in ("bf16", "q8", "q4"):
            with gemlet.load(HERE / name, weights=weights, threads=1) as model:
                if not np.isfinite(model.logits(golden["ids"][:20].tolist())).all():
                    raise SystemExit(f"{name}: logits with {weights} weights are not finite")
        print(f"{name}: {tier}, worst tap {worst:.1e}")


if __name__ == "__main__":
    main()
