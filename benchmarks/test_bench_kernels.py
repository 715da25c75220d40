"""Measures every matmul kernel of every tier on one thread, compared with the limits of the machine.

    pytest benchmarks/test_bench_kernels.py --benchmark-enable
    pytest benchmarks/test_bench_kernels.py --benchmark-enable -k "decode and q4" -s

Decode multiplies one row by weights that are larger than the caches. Its limit is the read bandwidth of one
thread in GB/s. Prefill multiplies many rows by a matrix of a 1B model. Its limit is the peak of the tier's
own instructions in multiply-adds per second, on int8, bf16 or float32 numbers like the kernel's. Both limits
are measured just before each kernel.
"""

from __future__ import annotations

from typing import Any

import pytest

from gemlet import _core
from gemlet._core import testing

TIERS: list[str] = _core.cpu_info()["tiers"]
MATMULS = [
    (operation, tier)
    for operation, tier in testing.kernel_entries()
    if operation.startswith("matmul_") and tier in TIERS and tier not in ("scalar", "amx_emulated")
]
COLUMNS = 1152
DECODE_BYTES = 160 << 20


@pytest.mark.parametrize(("operation", "tier"), MATMULS, ids=["-".join(entry) for entry in MATMULS])
@pytest.mark.parametrize("rows", [1, 32, 512], ids=["decode", "prefill-32", "prefill-512"])
def test_matmul(benchmark: Any, capsys: Any, operation: str, tier: str, rows: int) -> None:
    activations = operation.split("_")[1]
    kind = {"tiles": "bf16"}.get(activations, activations)
    outputs = 6912
    if rows == 1:
        one = testing.MatmulRun(tier=tier, operation=operation, rows=1, outputs=16, cols=COLUMNS)
        outputs = DECODE_BYTES // one.weight_bytes * 16
    run = testing.MatmulRun(tier=tier, operation=operation, rows=rows, outputs=outputs, cols=COLUMNS)
    benchmark.group = f"{rows} rows"
    if not benchmark.enabled:
        run.run()
        return
    bandwidth = _core.measure_read_bandwidth(threads=1, megabytes=256)
    peak = testing.measure_peak(kind=kind, threads=1, tier=tier)
    benchmark.pedantic(run.run, rounds=9, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    gigabytes, products = run.weight_bytes / seconds / 1e9, run.multiply_adds / seconds / 1e9
    benchmark.extra_info.update(bandwidth=bandwidth, peak=peak, gigabytes=gigabytes, multiply_adds=products)
    line = (
        f"{operation:>18} {tier:<11}{rows:4d} rows:"
        f" {gigabytes:6.1f} GB/s of {bandwidth:5.1f} ({gigabytes / bandwidth:4.0%}),"
        f" {2 * products:7.1f} GOP/s of {2 * peak:7.1f} ({products / peak:4.0%})"
    )
    with capsys.disabled():
        print(f"\n{line}", end="")
