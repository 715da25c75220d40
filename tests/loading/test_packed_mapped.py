"""A packed model's file in use: memory, time, the embedding on disk, and a file that changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError
from gemlet.weights.formats import PRESETS
from support.processes import run_program
from support.programs import packed as programs
from support.real_shapes import write_real_shape, write_real_shape_hole
from support.tiny_models import CONFIGS, logits_of, weights_of, write_folder
from support.tokenizer_files import gemma4_json

pytestmark = pytest.mark.tier


def test_the_pages_are_shared_and_not_copied(tmp_path: Path) -> None:
    """The memory of a packed model is the page cache of its file. The process has no copy."""
    config = CONFIGS["gemma"] | {"vocab_size": 60_000, "hidden_size": 256}
    write_folder(tmp_path / "source", config, bf16=True)
    gemlet.convert(tmp_path / "source", tmp_path / "packed", threads=1)
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size >> 20
    assert size >= 29
    run_program(programs.map_a_file, tmp_path / "packed", size)


@pytest.mark.slow
def test_an_embedding_on_disk_is_never_resident(tmp_path: Path) -> None:
    """The logits are the same: for one row, for many, and for more ids than the window has room for."""
    config = CONFIGS["gemma3_text"] | {"vocab_size": 1024, "hidden_size": 256, "num_hidden_layers": 1}
    config["max_position_embeddings"] = 512
    tensors = weights_of(config)
    name = "model.embed_tokens.weight"
    rows = np.random.default_rng(0).permuted(np.arange(1 << 17) % 1024)
    tensors[name] = tensors[name][rows]
    write_folder(tmp_path / "source", config | {"vocab_size": rows.size}, tensors=tensors, bf16=True)
    gemlet.convert(tmp_path / "source", tmp_path / "packed", weights="f32")
    (tmp_path / "source" / "model.safetensors").unlink()
    found = {}
    for on_disk in (False, True):
        taken, said, tokens, logits = run_program(programs.use_an_embedding, tmp_path / "packed", on_disk)
        found[on_disk] = (tokens, logits.tobytes())
        assert said == (32 if on_disk else 128)
        assert said - 10 < taken < said + 8
    assert found[True] == found[False]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("weights", PRESETS)
def test_every_family_with_its_embedding_on_disk(tmp_path: Path, family: str, weights: str) -> None:
    config = CONFIGS[family] | {"tie_word_embeddings": family != "gemma2"}
    source = write_folder(tmp_path / "source", config)
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    found = logits_of(tmp_path / "packed", embedding_on_disk=True)
    np.testing.assert_array_equal(found, logits_of(tmp_path / "packed"))


def test_an_embedding_on_disk_needs_a_packed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma3n_text"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InvalidRequestError, match=r"source is not packed.*`gemlet convert`.*cache=True"):
        gemlet.load(source, embedding_on_disk=True)
    found = logits_of(source, embedding_on_disk=True, cache=True)
    np.testing.assert_array_equal(found, logits_of(source))
    monkeypatch.setenv("GEMLET_CACHE_SIZE", "1kB")
    with pytest.raises(InvalidRequestError, match="the cache has no packed copy"):
        gemlet.load(source, embedding_on_disk=True, cache=True)
    for value in (1, 0, "yes"):
        for opens in (gemlet.load, gemlet.inspect):
            with pytest.raises(InvalidRequestError, match="embedding_on_disk is"):
                opens(source, embedding_on_disk=value)  # type: ignore[operator]
    assert main(["generate", "x", "--model", str(source), "--embedding-on-disk"]) == 1
    assert main(["bench", "--random", "gemma3-270m", "--embedding-on-disk"]) == 1
    assert main(["inspect", str(source), "--embedding-on-disk"]) == 1


@pytest.mark.slow
def test_peak_memory_at_a_real_shape(tmp_path: Path) -> None:
    """The memory of each step, in MiB, in a new process. Packing takes little more than the packed weights.
    Converting needs less than these. A mapped model needs its file."""
    source, packed = tmp_path / "source", tmp_path / "packed"
    write_real_shape(source, "gemma3-270m")
    assert run_program(programs.load_over_its_size, source) < 32
    assert run_program(programs.convert, source, packed) < 64
    size = (packed / "model.safetensors").stat().st_size / 2**20
    assert size > 200
    # The rest is the cache and the scratch of a short text.
    assert 0.95 * size < run_program(programs.load_and_generate, packed) < 1.05 * size + 16


@pytest.mark.slow
def test_a_second_start_takes_milliseconds(tmp_path: Path, hole_path: Path) -> None:
    """The shape is that of a 1B model. It is packed with 262,144 pieces, or in the cache without a tokenizer.
    The weights are mapped, and only the tokenizer is copied. The best of four new processes counts."""
    source, packed = hole_path / "source", tmp_path / "packed"
    write_real_shape_hole(source, "gemma3-1b")
    (source / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    try:
        run_program(programs.convert_and_cache, source, packed, environment=home)
        for folder, cache in ((packed, False), (source, True)):
            costs = [run_program(programs.cost_of_loading, folder, cache, environment=home) for _ in range(4)]
            seconds, copied = map(min, zip(*costs, strict=True))
            assert seconds < 0.1, (folder, costs)
            assert copied < (1 if cache else 16), (folder, costs)
    finally:
        shutil.rmtree(packed, ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_a_packed_file_cut_short_while_in_use(packed: Path, tmp_path: Path) -> None:
    """The caller gets an error; touching the mapping would end the process. Replacing or removing the file
    does no harm."""
    for name in ("q4", "other"):
        (tmp_path / name).mkdir()
        for file in packed.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    run_program(programs.truncate_in_use, tmp_path / "q4", tmp_path / "other")
