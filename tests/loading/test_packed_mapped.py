"""A packed model's file while it is in use: the memory and the time it takes, the embedding left on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.processes import run_python
from support.real_shapes import write_real_shape, write_real_shape_hole
from support.tiny_models import CONFIGS, logits_of, weights_of, write_folder
from support.tokenizer_files import gemma4_json

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError
from gemlet.weights.formats import PRESETS

pytestmark = pytest.mark.tier


def test_the_pages_are_shared_and_not_copied(tmp_path: Path) -> None:
    """The memory of a packed model is the file's: resident, but none of this process alone."""
    config = CONFIGS["gemma"] | {"vocab_size": 60_000, "hidden_size": 256}
    write_folder(tmp_path / "source", config, bf16=True)
    gemlet.convert(tmp_path / "source", tmp_path / "packed", threads=1)
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size >> 20
    assert size >= 29
    run_python(f"""
    import gemlet

    def memory():
        lines = open("/proc/self/status").read().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return [int(found[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")]

    gemlet.load(threads=1).close()
    anonymous, file = memory()
    model = gemlet.load({str(tmp_path / "packed")!r}, threads=1)
    model.logits([2, 5])  # the whole embedding is the output matrix
    after_anonymous, after_file = memory()
    assert after_file - file > {size} * 0.95, (file, after_file)
    assert after_anonymous - anonymous < 5, (anonymous, after_anonymous)
    model.close()
    assert memory()[1] < file + 5
    """)


def test_an_embedding_on_disk_is_never_resident(tmp_path: Path) -> None:
    """For the same logits: of one row, of many, and of more ids than the window has room for."""
    config = CONFIGS["gemma3_text"] | {"vocab_size": 1024, "hidden_size": 256, "num_hidden_layers": 1}
    config["max_position_embeddings"] = 512
    tensors = weights_of(config)
    name = "model.embed_tokens.weight"
    rows = np.random.default_rng(0).permuted(np.arange(1 << 17) % 1024)
    tensors[name] = tensors[name][rows]
    write_folder(tmp_path / "source", config | {"vocab_size": rows.size}, tensors=tensors, bf16=True)
    gemlet.convert(tmp_path / "source", tmp_path / "packed", weights="f32")
    (tmp_path / "source" / "model.safetensors").unlink()
    code = f"""
    import re
    import numpy as np
    import gemlet, gemlet.model.model, gemlet.sources.opening

    def peak():
        return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

    gemlet.load(threads=1).generate("The", max_tokens=2)
    before = peak()
    with gemlet.load({str(tmp_path / "packed")!r}, threads=2, embedding_on_disk={{on_disk}}) as model:
        ids = [2] + [i * 5003 % 131072 for i in range(400)]
        tokens = model.generate(ids, max_tokens=5, temperature=0, stop=[]).token_ids
        print(peak() - before, model.memory()["embedding"] / 2**20)
        print(tokens, hash(model.logits(ids[:20]).tobytes()))
    """
    found = {}
    for on_disk in (False, True):
        numbers, found[on_disk] = run_python(code.format(on_disk=on_disk), PYTHONHASHSEED="0").splitlines()
        size, told = map(float, numbers.split())
        assert told == (32 if on_disk else 128)
        assert told - 10 < size < told + 8, numbers
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
    with pytest.raises(InvalidRequestError, match="no cache has its packed form"):
        gemlet.load(source, embedding_on_disk=True, cache=True)
    for value in (1, None, "yes"):
        for opens in (gemlet.load, gemlet.inspect):
            with pytest.raises(InvalidRequestError, match="embedding_on_disk is"):
                opens(source, embedding_on_disk=value)  # type: ignore[operator]
    assert main(["generate", "x", "--model", str(source), "--embedding-on-disk"]) == 1
    assert main(["bench", "--random", "gemma3-270m", "--embedding-on-disk"]) == 1
    assert main(["inspect", str(source), "--embedding-on-disk"]) == 1


@pytest.mark.slow
def test_peak_memory_at_a_real_shape(tmp_path: Path) -> None:
    """In MiB, each in a fresh process: packing needs little besides what it makes, converting does not even
    need that, and a mapped model needs its file."""
    source, packed = tmp_path / "source", tmp_path / "packed"
    write_real_shape(source, "gemma3-270m")
    measure = """
    import re
    import gemlet, gemlet.loading.convert, gemlet.model.model, gemlet.sources.opening
    gemlet.load(threads=1, weights="q4").generate("The", max_tokens=2)
    def peak():  # getrusage() would say that of the process that started this one, if it is larger
        return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
    before = peak()
    """
    load = f"{measure}\n    with gemlet.load({{folder!r}}, weights='q4', threads=2) as model:\n        "
    over = float(
        run_python(
            load.format(folder=str(source))
            + "print(peak() - before - sum(model.memory()[key] for key in ('weights', 'embedding')) / 2**20)"
        )
    )
    assert over < 32
    converting = run_python(
        f"{measure}\n    gemlet.convert({str(source)!r}, {str(packed)!r}, weights='q4')\n"
        "    print(peak() - before)"
    )
    assert float(converting) < 64
    size = (packed / "model.safetensors").stat().st_size / 2**20
    assert size > 200
    mapped = float(
        run_python(
            load.format(folder=str(packed))
            + "model.generate([2, 10, 20], max_tokens=4, temperature=0); print(peak() - before)"
        )
    )
    assert 0.95 * size < mapped < 1.05 * size + 16  # and the cache and scratch of a short text


@pytest.mark.slow
def test_a_second_start_takes_milliseconds(tmp_path: Path, hole_path: Path) -> None:
    """At the shape of a 1B model, packed with 262,144 pieces, or in the cache without a tokenizer: best of
    four new processes, the time of load() alone, which the imports are no part of."""
    source, packed = hole_path / "source", tmp_path / "packed"
    write_real_shape_hole(source, "gemma3-1b")
    (source / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    prepare = f"""
        import os
        import gemlet
        gemlet.convert({str(source)!r}, {str(packed)!r}, weights="q4")
        os.remove({str(source / "tokenizer.json")!r})
        gemlet.load({str(source)!r}, weights="q4", cache=True).close()
        """
    start = """
        import time
        import gemlet
        gemlet.load().generate("x", max_tokens=1)
        before = time.perf_counter()
        model = gemlet.load({!r}, weights="q4", max_context=4096, cache={})
        print(time.perf_counter() - before)
        assert {} or model.tokenizer.vocab_size == 262144
        assert len(model.generate([2, 20, 30], max_tokens=2, temperature=0).token_ids) > 0
        """
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    try:
        run_python(prepare, **home)
        for folder, cache in ((packed, False), (source, True)):
            seconds = [float(run_python(start.format(str(folder), cache, cache), **home)) for _ in range(4)]
            assert min(seconds) < 0.1, (folder, seconds)
    finally:
        shutil.rmtree(packed, ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_a_packed_file_cut_short_while_in_use(packed: Path, tmp_path: Path) -> None:
    """An error, where touching the mapping would end the process; replaced or removed it does no harm."""
    for name in ("q4", "other"):
        (tmp_path / name).mkdir()
        for file in packed.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    run_python(f"""
    import os
    import gemlet, pytest
    first = gemlet.load({str(tmp_path / "q4")!r}, threads=1)
    expected = first.logits([1, 2, 3])
    os.replace({str(tmp_path / "other/model.safetensors")!r}, {str(tmp_path / "q4/model.safetensors")!r})
    assert (first.logits([1, 2, 3]) == expected).all()
    second = gemlet.load({str(tmp_path / "q4")!r}, threads=1)
    os.truncate({str(tmp_path / "q4/model.safetensors")!r}, 5000)
    with pytest.raises(gemlet.ModelFileError, match="was cut short while it was in use"):
        second.logits([1, 2, 3])
    assert (first.logits([1, 2, 3]) == expected).all()
    with pytest.raises(gemlet.ModelFileError, match="cut short"):
        gemlet.load({str(tmp_path / "q4")!r})
    """)
