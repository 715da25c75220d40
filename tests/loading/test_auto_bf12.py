"""With ``weights="auto"``, bf16 in files becomes bf12 in memory, matrix by matrix, in models of some size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet.sources import model_files

DEMO = Path(gemlet.__file__).parent / "demo"
IDS = [2, *range(40, 90)]
WILD = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every model as if it were larger than the processor's caches."""
    monkeypatch.setattr(model_files, "_CACHED_BYTES", 0)


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with one matrix whose exponents lie too far apart for bf12."""
    folder = tmp_path_factory.mktemp("auto") / "wild"
    shutil.copytree(DEMO, folder)
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(blob[:8], "little")
    entry = json.loads(blob[8:start])[WILD]
    assert entry["dtype"] == "BF16"
    begin, end = (start + offset for offset in entry["data_offsets"])
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**16, (end - begin) // 2, dtype=np.uint16) & np.uint16(0x807F)
    bits |= random.integers(80, 122, bits.size, dtype=np.uint16) << np.uint16(7)
    blob[begin:end] = bits.tobytes()
    path.write_bytes(blob)
    return folder


def test_a_small_model_stays_in_bf16() -> None:
    with gemlet.load(threads=1) as model:
        assert model.weights == "bf16"


@pytest.mark.tier
@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("cache", [False, True])
def test_the_values_and_results_are_those_of_bf16(
    cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(1 + cache):
        with gemlet.load(threads=1, cache=cache) as model, gemlet.load(weights="bf16", threads=1) as other:
            assert (model.weights, other.weights) == ("bf12", "bf16")
            np.testing.assert_array_equal(model.logits(IDS), other.logits(IDS))
            memory = model.memory()
            assert memory["weights"] + memory["embedding"] < 0.8 * sum(
                other.memory()[name] for name in ("weights", "embedding")
            )
    info = gemlet.inspect()
    assert (info.weights, info.kept_as["bf16"]) == ("bf16", "bf12 or bf16")  # the larger one


@pytest.mark.tier
@pytest.mark.usefixtures("every_size")
def test_a_matrix_without_room_stays_in_bf16(wild: Path, tmp_path: Path) -> None:
    with pytest.raises(gemlet.TensorError, match="up_proj"):
        gemlet.load(wild, weights="bf12", threads=1)
    with gemlet.load(wild, weights="bf16", threads=1) as model:
        expected = model.logits(IDS)
    gemlet.convert(wild, tmp_path / "packed")
    info = gemlet.inspect(tmp_path / "packed")
    assert info.own_formats == {"layers.1.up_proj": "bf16"}
    for source in (wild, tmp_path / "packed"):
        with gemlet.load(source, threads=1) as model:
            assert model.weights == "bf12"
            np.testing.assert_array_equal(model.logits(IDS), expected)
            memory = model.memory()
            assert (info.plan.weights, info.plan.embedding) == (memory["weights"], memory["embedding"])


@pytest.mark.usefixtures("every_size")
def test_max_memory_counts_with_what_is_loaded(wild: Path) -> None:
    """To the byte, the plan is the one for the formats that the values need."""
    with pytest.raises(gemlet.MemoryLimitError, match="weights='bf12'"):
        gemlet.load(wild, max_memory=1000, threads=1)
