"""The choice of kernels and of the number of threads. The results do not depend on either."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet import _core
from golden.folders import HERE
from support.core_models import layer_config, model_config, random_core
from support.inside import context_of, testing
from support.processes import run_program, start_program
from support.programs import dispatch

INFO = _core.cpu_info()
AVX = 0x6  # XCR0: the operating system saves SSE and AVX registers
AVX512 = 0xE6  # it also saves the mask registers and the upper halves of ZMM
AMX = 0x600E6  # it also saves the tiles and their configuration
AVX2_FEATURES = ["sse2", "osxsave", "avx", "f16c", "fma", "avx2"]
AVX512_FEATURES = [*AVX2_FEATURES, "avx512f", "avx512bw", "avx512vl", "avx512dq"]
AVX512VNNI_FEATURES = [*AVX512_FEATURES, "avx512vnni"]
AMX_FEATURES = [*AVX512VNNI_FEATURES, "avx512bf16", "amx_tile", "amx_int8", "amx_bf16", "amx_granted"]
ALL_FEATURES = [*AMX_FEATURES, "avxvnni"]
ANYTHING = 0xFFFF_FFFF_FFFF_FFFF
# Tier -> the lower tiers that a machine of this tier also has. The tiers do not form a single chain.
CONTAINED = {
    "scalar": [],
    "amx_emulated": ["scalar"],  # only in builds with GEMLET_EMULATE_AMX
    "avx2": ["scalar"],
    "avxvnni": ["scalar", "avx2"],
    "avx512": ["scalar", "avx2"],
    "avx512vnni": ["scalar", "avx2", "avx512"],
    "avx512bf16": ["scalar", "avx2", "avx512", "avx512vnni"],
    "amx": ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16"],
    "neon": ["scalar"],
    "dotprod": ["scalar", "neon"],
    "i8mm": ["scalar", "neon", "dotprod"],
}


def choose(features: list[str], xcr0: int, forced: str | None = None) -> tuple[str, list[str]]:
    return testing.choose_tier(features=features, xcr0=xcr0, forced=forced)


# --- The tier -----------------------------------------------------------------------------------------------
def test_the_highest_tier_that_the_features_allow() -> None:
    """The features of real machines."""
    assert choose([], 0) == ("scalar", ["scalar"])
    for tier, features, xcr0 in (
        ("avx2", AVX2_FEATURES, AVX),  # Haswell
        ("avxvnni", [*AVX2_FEATURES, "avxvnni"], AVX),  # Alder Lake
        ("avx512", AVX512_FEATURES, AVX512),  # Skylake-SP
        ("avx512vnni", AVX512VNNI_FEATURES, AVX512),  # Cascade Lake
        ("avx512bf16", [*AVX512VNNI_FEATURES, "avx512bf16"], AVX512),  # Cooper Lake, Zen 4
        ("amx", AMX_FEATURES, AMX),
    ):
        assert choose(features, xcr0) == (tier, [*CONTAINED[tier], tier])
    # Sapphire Rapids and Zen 5 also have AVX-VNNI.
    amx = ("amx", ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"])
    assert choose(ALL_FEATURES, ANYTHING) == amx
    assert choose([*AVX512_FEATURES, "avxvnni"], AVX512)[0] == "avx512"


@pytest.mark.parametrize("xcr0", [0, 1, 2, 4, 0xE0])
def test_a_system_without_avx_support_gets_scalar(xcr0: int) -> None:
    """CPUID alone is not enough: the instructions fault if the system does not save their registers."""
    assert choose(ALL_FEATURES, xcr0) == ("scalar", ["scalar"])


@pytest.mark.parametrize("xcr0", [AVX, 0x26, 0x46, 0x86, 0x66, 0xA6, 0xC6])
def test_a_system_without_avx512_support_gets_avx2(xcr0: int) -> None:
    assert choose(AMX_FEATURES, xcr0) == ("avx2", ["scalar", "avx2"])
    assert choose(ALL_FEATURES, xcr0)[0] == "avxvnni"


@pytest.mark.parametrize("xcr0", [AVX512, AVX512 | 0x20000, AVX512 | 0x40000, 0x60000 | AVX])
def test_a_system_without_tile_support_does_not_get_amx(xcr0: int) -> None:
    expected = "avx2" if xcr0 & AVX512 != AVX512 else "avx512bf16"
    assert choose(AMX_FEATURES, xcr0) == (expected, [*CONTAINED[expected], expected])


def test_without_xgetbv_nothing_is_assumed() -> None:
    without = [feature for feature in ALL_FEATURES if feature != "osxsave"]
    assert choose(without, ANYTHING) == ("scalar", ["scalar"])


@pytest.mark.parametrize("missing", [feature for feature in AVX2_FEATURES if feature != "sse2"])
def test_a_missing_feature_of_avx2_leaves_scalar(missing: str) -> None:
    """The AVX-512 files use AVX2, FMA and F16C too."""
    features = [feature for feature in AVX512VNNI_FEATURES if feature != missing]
    assert choose(features, AVX512) == ("scalar", ["scalar"])


@pytest.mark.parametrize("missing", [feature for feature in AMX_FEATURES if feature not in AVX2_FEATURES])
def test_a_missing_feature_of_avx512_or_amx_leaves_the_tiers_below(missing: str) -> None:
    """amx_granted says that Linux permits the tiles. It can refuse them although CPUID and XCR0 show them."""
    features = [feature for feature in AMX_FEATURES if feature != missing]
    expected = {"avx512vnni": "avx512", "avx512bf16": "avx512vnni"}.get(missing)
    expected = expected or ("avx512bf16" if missing.startswith("amx") else "avx2")
    assert choose(features, AMX) == (expected, [*CONTAINED[expected], expected])


def test_the_tiers_of_64_bit_arm() -> None:
    """The features have Linux's names. A tier needs everything that the tiers below it need."""
    for tier, features in (
        ("neon", ["asimd"]),  # Cortex-A53, A72
        ("dotprod", ["asimd", "asimddp"]),  # Cortex-A76, Neoverse N1
        ("i8mm", ["asimd", "asimddp", "i8mm"]),  # Neoverse V1, Cortex-A710
        ("neon", ["asimd", "i8mm"]),
        ("scalar", ["asimddp", "i8mm"]),
    ):
        assert choose(features, 0) == (tier, [*CONTAINED[tier], tier])
    for forced in ("scalar", "neon", "dotprod"):
        assert choose(["asimd", "asimddp"], 0, forced)[0] == forced
    with pytest.raises(gemlet.UnsupportedError, match=r"'i8mm'.* lacks; it has: scalar, neon, dotprod$"):
        choose(["asimd", "asimddp"], 0, "i8mm")


def test_a_forced_tier_is_taken_or_refused() -> None:
    for forced in ("scalar", "avx2", "avx512", "avx512vnni"):
        assert choose(AVX512VNNI_FEATURES, AVX512, forced)[0] == forced
    assert choose(AVX512VNNI_FEATURES, AVX512, "")[0] == "avx512vnni"
    with pytest.raises(gemlet.UnsupportedError, match=r"'avx512vnni'.* lacks; it has: scalar, avx2$"):
        choose(AVX2_FEATURES, AVX, "avx512vnni")
    for unknown in ("AVX2", "avx", "avx2 ", "sse", "amx8"):
        with pytest.raises(gemlet.UnsupportedError, match=r"is not a tier.*: scalar, avx2$"):
            choose(AVX2_FEATURES, AVX, unknown)


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="'avx3'"):
        choose(["avx3"], AVX)


@pytest.mark.tier
def test_this_machine_uses_one_of_its_tiers() -> None:
    assert INFO["tiers"][0] == "scalar"
    assert INFO["tier"] in INFO["tiers"]
    assert INFO["kernels"] == kernels_of(INFO["tier"])
    with open("/proc/cpuinfo", encoding="ascii") as file:
        flags = next((line.split() for line in file if line.startswith(("flags", "Features"))), [])
    for feature in ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"):
        assert feature not in flags or feature.replace("12_", "12").replace("x_v", "xv") in INFO["features"]
    for feature in ("asimd", "asimddp", "i8mm"):
        assert (feature in flags) == (feature in INFO["features"])
    assert "avx2" not in INFO["tiers"] or {"avx2", "fma", "f16c"} <= {*flags}
    assert "avx512vnni" not in INFO["tiers"] or {"avx512f", "avx512_vnni"} <= {*flags}


def kernels_of(tier: str) -> dict[str, str]:
    """The tier of each operation's kernel if `tier` is used: `tier` itself, or the nearest one below that has
    it."""
    allowed = [*CONTAINED[tier], tier]
    return {operation: found for operation, found in testing.kernel_entries() if found in allowed}


@pytest.mark.parametrize("tier", INFO["tiers"])
def test_a_forced_tier_is_the_one_that_runs(tier: str) -> None:
    forced = {"GEMLET_CPU": tier}
    model_tier, info, logits = run_program(dispatch.use_the_forced_tier, environment=forced)
    assert model_tier == info["tier"] == tier
    assert "GEMLET_CPU" in info["reason"]
    assert info["kernels"] == kernels_of(tier)
    with gemlet.load(threads=1) as model:
        expected = model.logits([2, 100, 200, 300])[-1, :8]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-2)  # some tiers round activations to bf16


@pytest.mark.parametrize("forced", ["sse9", "AVX2", "amx,avx2", "avx2\udcff"])
def test_the_error_for_a_missing_tier_names_the_available_ones(forced: str) -> None:
    done = start_program(dispatch.load_the_demo, environment={"GEMLET_CPU": forced})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gemlet.errors.UnsupportedError: ")
    shown = os.fsencode(forced).decode("utf-8", "backslashreplace")
    assert f"'{shown}'" in last
    assert last.endswith(", ".join(INFO["tiers"]))


# --- The number of threads ----------------------------------------------------------------------------------
def test_threads_default_to_what_the_process_may_use() -> None:
    threads, reason = _core.default_threads()
    limits = [INFO["affinity"], INFO["physical_cores"]] + (
        [INFO["cgroup_quota"]] if INFO["cgroup_quota"] else []
    )
    assert threads == min(limits)
    assert INFO["affinity"] == len(os.sched_getaffinity(0))
    assert f"affinity {INFO['affinity']}" in reason
    assert f"physical cores {INFO['physical_cores']}" in reason
    assert f"cgroup quota {INFO['cgroup_quota'] or 'none'}" in reason


def test_threads_respect_affinity() -> None:
    run_program(dispatch.use_one_core)


@pytest.mark.tier
@pytest.mark.parametrize("kv_cache", ["bf16", "int8", "int4"])
def test_threads_store_neighbouring_tokens(kv_cache: str) -> None:
    """Rows are so wide that each row would be one task. One word holds the values of 2 (bf16), 4 (int8) or
    8 (int4) tokens."""
    layers = [layer_config(num_heads=8, num_kv_heads=8, head_dim=256, sliding_window=0)] * 2
    ids = np.arange(1, 200, dtype=np.int32) % 96
    logits = []
    for threads in (1, 4, 4, 4):
        core = random_core(model_config(*layers), kv_cache=kv_cache, threads=threads)
        sequence = _core.TokenSequence(core)
        sequence.extend(ids[:3], logits="none")  # the next tokens begin in the middle of a word
        sequence.extend(ids[3:], logits="all")
        logits.append(sequence.logits())
    for found in logits[1:]:
        np.testing.assert_array_equal(found, logits[0])


@pytest.mark.tier
@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bits() -> None:
    """The prompts are long and short, and decoding reads the cache in several pieces. Each format has a
    different size of tasks."""
    ids = np.random.default_rng(0).integers(4, 4000, 560, dtype=np.int32)
    for weights, counts in (("bf16", (1, 2, 8)), ("q8", (1, 3)), ("q4", (1, 8))):
        results = []
        for threads in counts:
            with gemlet.load(weights=weights, threads=threads) as model:
                assert model.threads == threads
                sequence = context_of(model)
                rows = []
                for first, last in ((0, 540), (540, 547), (547, 548), (548, 549), (549, 560)):
                    sequence.extend(ids[first:last], logits="last")
                    rows.append(sequence.logits().copy())
                sequence.close()
                results.append(np.concatenate(rows))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0], err_msg=weights)


@pytest.mark.tier
@pytest.mark.parametrize("name", ["gemma2-27b", "gemma3-1b"])
def test_any_number_of_threads_gives_the_same_bits_in_golden_models(name: str) -> None:
    results = []
    for threads in (1, 2, 3, 8):
        with gemlet.load(HERE / name, weights="q4", threads=threads) as model:
            ids = np.arange(60) % model.vocab_size
            results.append(model.logits(ids.tolist()))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


CPUS = "sys/devices/system/cpu"
GROUPS = "sys/fs/cgroup"
V1_QUOTA = f"{GROUPS}/cpu/cpu.cfs_quota_us"
V1_PERIOD = f"{GROUPS}/cpu/cpu.cfs_period_us"


def system(folder: Path, cgroup: str, files: dict[str, str]) -> str:
    """Makes a folder with /proc and /sys of a machine. Each CPU is a core; the process is in ``cgroup``."""
    cores = {f"{CPUS}/cpu{cpu}/topology/core_id": str(cpu) for cpu in os.sched_getaffinity(0)}
    for name, text in {"proc/self/cgroup": cgroup, **cores, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/", {f"{GROUPS}/cpu.max": "max 100000"}, None),
        ("0::/", {f"{GROUPS}/cpu.max": "100000 100000"}, 1),
        ("0::/", {f"{GROUPS}/cpu.max": "20000 100000"}, 1),
        ("0::/", {f"{GROUPS}/cpu.max": "150000 100000"}, 2),
        # The group with the lowest limit counts.
        ("0::/a/b", {f"{GROUPS}/a/cpu.max": "90000 100000", f"{GROUPS}/a/b/cpu.max": "max 100000"}, 1),
        # Version 1 in a container: the path is that of the host, the files of the group are at the root.
        ("4:cpu,cpuacct:/docker/0123", {V1_QUOTA: "100000", V1_PERIOD: "100000"}, 1),
        ("4:cpu,cpuacct:/", {V1_QUOTA: "-1", V1_PERIOD: "100000"}, None),
    ],
)
def test_threads_respect_the_quota_of_a_cgroup(
    tmp_path: Path, cgroup: str, files: dict[str, str], quota: int | None
) -> None:
    threads, reason = _core.default_threads(files=system(tmp_path, cgroup, files))
    cores = len(os.sched_getaffinity(0))
    assert threads == min(cores, quota or cores)
    assert f"cgroup quota {quota or 'none'}, physical cores {cores}" in reason


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/", {}, 8 << 30),
        ("0::/", {f"{GROUPS}/memory.max": "max", f"{GROUPS}/memory.stat": "anon 1"}, 8 << 30),
        # The system gives back the memory of file pages when it is needed.
        ("0::/", {f"{GROUPS}/memory.max": "4096", f"{GROUPS}/memory.stat": "anon 1024\nfile 2048"}, 3072),
        (
            "3:memory:/docker/0123",
            {
                f"{GROUPS}/memory/memory.limit_in_bytes": "4096",
                f"{GROUPS}/memory/memory.stat": "rss 9\ntotal_rss 96",
            },
            4000,
        ),
    ],
)
def test_memory_that_a_cgroup_leaves(
    tmp_path: Path, cgroup: str, files: dict[str, str], available: int
) -> None:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB", **files}
    assert _core.available_memory(files=system(tmp_path, cgroup, files)) == available
