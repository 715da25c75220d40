"""Packed models: what convert() writes, what loading them gives, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_python
from real_shapes import write_real_shape, write_real_shape_hole
from tiny_models import CONFIGS, weights_of, with_header, write_folder
from tokenizer_files import gemma4_json

import gemlet
from gemlet.cli import main
from gemlet.errors import GemletError, InvalidRequestError, ModelFileError, TensorError
from gemlet.load import PRESETS
from gemlet.tensors import PER_LAYER_TABLE

IDS = [2, 17, 5, 80, 33, 9, 41, 7, 64, 3, 3, 95]


def logits_of(folder: Path, **arguments: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    with gemlet.load(folder, threads=1, **arguments) as model:
        return model.logits(IDS)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed Gemma 3, never changed."""
    folder = tmp_path_factory.mktemp("packed")
    source = write_folder(folder / "source", CONFIGS["gemma3_text"])
    gemlet.convert(source, folder / "q4", weights="q4", threads=1)
    return folder / "q4"


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


# --- what is written and what it gives --------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("weights", PRESETS)
def test_a_packed_model_is_the_model(tmp_path: Path, family: str, weights: str) -> None:
    source = write_folder(tmp_path / "source", CONFIGS[family], bf16=family == "gemma")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "top_k": 5}))
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    expected = logits_of(source, weights=weights)
    (source / "model.safetensors").unlink()
    with gemlet.load(tmp_path / "packed", threads=1) as model:
        assert model.weights == weights
        assert model.end_ids == {1, 7}
        assert model.generation_config.top_k == 5
        np.testing.assert_array_equal(model.logits(IDS), expected)
    np.testing.assert_array_equal(logits_of(tmp_path / "packed", weights=weights), expected)


def test_the_file_is_safetensors_with_aligned_tensors(packed: Path) -> None:
    header, data = read_header(packed / "model.safetensors")
    metadata = header.pop("__metadata__")
    assert metadata["gemlet_format"] == "1"
    assert metadata["gemlet_weights"] == "q4"
    described = json.loads(metadata["gemlet_tensors"])
    assert described["layers.1.down_proj"] == ["q4", [64, 96]]
    assert described["embed_tokens"] == ["q8", [96, 64]]
    assert described["final_norm"] == ["f32", [64]]
    assert described.keys() == header.keys()
    begin = (packed / "model.safetensors").stat().st_size - len(data)
    for entry in header.values():
        assert entry["dtype"] == "U8"
        assert (begin + entry["data_offsets"][0]) % 64 == 0
        assert entry["shape"] == [entry["data_offsets"][1] - entry["data_offsets"][0]]
    from safetensors import safe_open

    with safe_open(packed / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == set(described)


def test_an_embedding_of_its_own_format(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    gemlet.convert(source, tmp_path / "packed", weights="q4", embedding="q4", threads=1)
    expected = logits_of(source, weights="q4", embedding="q4")
    np.testing.assert_array_equal(logits_of(tmp_path / "packed"), expected)
    with pytest.raises(InvalidRequestError, match=r"embedding is 'q8', but .*packed is packed as 'q4'"):
        gemlet.load(tmp_path / "packed", embedding="q8")


def test_the_demo_model_with_its_tokenizer_and_chat_format(tmp_path: Path) -> None:
    gemlet.convert(None, tmp_path / "demo", weights="q8", threads=1)
    with gemlet.load(tmp_path / "demo", threads=1) as model, gemlet.load(weights="q8", threads=1) as demo:
        for one in (model, demo):
            assert one.tokenizer is not None
        message = [{"role": "user", "content": "Hello"}]
        options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        assert model.chat(message, **options).text == demo.chat(message, **options).text
        assert model.generation_config == demo.generation_config


def test_the_per_layer_table_stays_in_the_file(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma3n_text"], bf16=True)
    gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1)
    header, _ = read_header(tmp_path / "packed" / "model.safetensors")
    assert header[PER_LAYER_TABLE]["dtype"] == "BF16"
    assert list(header)[-1] == PER_LAYER_TABLE


def test_inspect(packed: Path) -> None:
    found = gemlet.inspect(packed)
    assert (found.weights, found.problem) == ("q4", None)
    assert found.stored == {"q4": 21, "f32": 19, "q8": 1}


def test_what_is_there_before_is_kept(tmp_path: Path, packed: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for taken in ("file", "folder", "source"):
        with pytest.raises(ModelFileError, match=rf"{taken}: exists; expected a folder to make"):
            gemlet.convert(source, tmp_path / taken)
    for destination in ("", "a\0b", 3):
        with pytest.raises(InvalidRequestError, match="destination is"):
            gemlet.convert(source, destination)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="is packed already, as q4"):
        gemlet.convert(packed, tmp_path / "again")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    gemlet.convert(source, tmp_path / "link", threads=1)
    assert (tmp_path / "link").is_symlink()
    gemlet.convert(source, tmp_path / "new" / "deep", threads=1)
    np.testing.assert_array_equal(logits_of(tmp_path / "empty"), logits_of(tmp_path / "new" / "deep"))


def test_a_mount_point_is_refused_before_anything_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: path == str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    with pytest.raises(ModelFileError, match=r"volume: is a mount point.*give a new folder in it"):
        gemlet.convert(None, tmp_path / "volume", progress=lambda done, total: pytest.fail("packs"))
    gemlet.convert(None, tmp_path / "volume" / "model", weights="q4", threads=1)


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma"])
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = np.nan
    source = write_folder(tmp_path / "source", CONFIGS["gemma"], tensors=tensors)
    with pytest.raises(TensorError, match=r"model\.safetensors: tensor 'model\.layers\.2\.mlp\.up_proj"):
        gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1)

    class EnoughError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        gemlet.convert(source, tmp_path / "packed", weights="q4", threads=1, progress=stop)
    assert os.listdir(tmp_path) == ["source"]


def test_conversions_to_one_place_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    together = threading.Barrier(2)
    failures: list[GemletError] = []

    def meet(done: int, total: int) -> None:
        if done == total:
            together.wait(timeout=30)

    def convert() -> None:
        try:
            gemlet.convert(source, tmp_path / "packed", weights="q8", threads=1, progress=meet)
        except ModelFileError as problem:
            failures.append(problem)

    threads = [threading.Thread(target=convert) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 1
    assert sorted(os.listdir(tmp_path)) == ["packed", "source"]
    logits_of(tmp_path / "packed")


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_folder(tmp_path / "source", CONFIGS["gemma3n_text"])
    gemlet.convert(source, tmp_path / "packed", threads=1, progress=lambda *step: seen.append(step))
    header, data = read_header(source / "model.safetensors")
    done = [step for step, _ in seen]
    assert done == sorted(done)
    assert len(done) == len(header)
    assert seen[-1] == (len(data), len(data))
    seen.clear()
    with gemlet.load(source, threads=1, progress=lambda *step: seen.append(step)):
        assert seen[-1][0] == seen[-1][1] < len(data)  # the table is not read


def test_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemlet.progress._DELAY", 0)
    gemlet.load(threads=1).close()
    gemlet.load(threads=1, progress=False).close()
    assert capsys.readouterr().err == ""  # not a terminal
    gemlet.load(threads=1, progress=True).close()
    assert "loading" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gemlet.load(threads=1).close()
    assert "loading" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    gemlet.load(threads=1).close()
    assert capsys.readouterr().err == ""
    with pytest.raises(gemlet.UnsupportedError, match=r"pip install 'gemlet\[progress\]'"):
        gemlet.load(progress=True)
    with pytest.raises(InvalidRequestError, match="progress is 3"):
        gemlet.load(progress=3)  # type: ignore[arg-type]


# --- processes --------------------------------------------------------------------------------------


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
    import gemlet, gemlet.model, gemlet.source

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
    import gemlet, gemlet.conversion, gemlet.model, gemlet.source
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
def test_a_second_start_takes_milliseconds(tmp_path: Path) -> None:
    """At the shape of a 1B model, packed with 262,144 pieces, or in the cache without a tokenizer: best of
    four new processes, the time of load() alone, which the imports are no part of."""
    source, packed = tmp_path / "source", tmp_path / "packed"
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
        shutil.rmtree(source)
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


def test_ctrl_c_while_converting(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    code = f"""
import os, signal, sys
import gemlet
signal.signal(signal.SIGINT, signal.default_int_handler)
before = len(os.listdir("/proc/self/fd"))
try:
    gemlet.convert({str(source)!r}, {str(tmp_path / "packed")!r}, threads=2,
                   progress=lambda done, total: os.kill(os.getpid(), signal.SIGINT))
except KeyboardInterrupt:
    assert len(os.listdir("/proc/self/fd")) == before
    sys.exit(17)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60)
    assert run.returncode == 17
    assert os.listdir(tmp_path) == ["source"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    arguments = ["convert", str(source), str(tmp_path / "packed"), "--weights", "q8"]
    assert main(arguments) == 0
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "packed"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "q8"


# --- what is refused --------------------------------------------------------------------------------

Change = Callable[[dict[str, Any], bytearray], object]


def describe(header: dict[str, Any], **entries: Any) -> None:
    described = json.loads(header["__metadata__"]["gemlet_tensors"])
    described |= entries
    kept = {name: entry for name, entry in described.items() if entry is not None}
    header["__metadata__"]["gemlet_tensors"] = json.dumps(kept)


def shorten(header: dict[str, Any], data: bytearray) -> None:
    """The last tensor loses its last 64 bytes."""
    name = list(header)[-1]
    begin, end = header[name]["data_offsets"]
    header[name] |= {"data_offsets": [begin, end - 64], "shape": [end - 64 - begin]}
    del data[-64:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda header, data: header["__metadata__"].update(gemlet_format="2"),
            ModelFileError,
            "packed model of format '2', written by gemlet '.*reads format 1. Convert the original again",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_layout="99"),
            ModelFileError,
            "of layout '99'",
        ),
        (
            lambda header, data: header["__metadata__"].pop("gemlet_layout"),
            ModelFileError,
            "of layout None",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_weights="q3"),
            ModelFileError,
            "gemlet_weights is 'q3'",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_tensors="[" * 100_000),
            ModelFileError,
            "gemlet_tensors is not",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_tensors='{"a": 1}'),
            ModelFileError,
            "gemlet_tensors is not",
        ),
        (
            lambda header, data: describe(header, final_norm=["q9", [64]]),
            ModelFileError,
            "gives 'final_norm' the format 'q9'",
        ),
        (
            lambda header, data: describe(header, **{"layers.0.q_proj": ["q4", [64, 128]]}),
            TensorError,
            r"'layers.0.q_proj' has shape \[64, 128\]; expected \[128, 64\]",
        ),
        (
            lambda header, data: describe(header, **{"layers.0.q_proj": ["q8", [128, 64]]}),
            TensorError,
            r"'layers.0.q_proj' has 4608 bytes, expected 8704: \[128, 64\] as packed q8",
        ),
        (
            lambda header, data: describe(header, final_norm=None),
            TensorError,
            r"'final_norm' has shape \[\]; expected \[64\]",
        ),
        (
            lambda header, data: header.update(surprise=header.pop("final_norm")),
            TensorError,
            "'final_norm' is missing",
        ),
        (
            lambda header, data: header.update(
                surprise={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
            ),
            TensorError,
            "unexpected tensor 'surprise'",
        ),
        (
            lambda header, data: header["final_norm"].update(dtype="I8"),
            TensorError,
            "'final_norm' is I8 .*expected U8 at a multiple of 64",
        ),
        (shorten, TensorError, r"has \d+ bytes, expected \d+: \["),
        (
            lambda header, data: data.pop(),
            ModelFileError,
            "The file is cut short or its header is wrong",
        ),
    ],
)
def test_headers_that_lie(
    packed: Path, tmp_path: Path, change: Change, error: type[Exception], message: str
) -> None:
    header, data = read_header(packed / "model.safetensors")
    changed = bytearray(data)
    change(header, changed)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(with_header(text, bytes(changed)))
    with pytest.raises(error, match=message):
        gemlet.load(tmp_path, threads=1)


def test_data_that_is_not_aligned(packed: Path, tmp_path: Path) -> None:
    header, data = read_header(packed / "model.safetensors")
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64 + 4)
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(with_header(text, data))
    with pytest.raises(TensorError, match=r"is U8 at byte \d+; expected U8 at a multiple of 64"):
        gemlet.load(tmp_path, threads=1)


def test_another_config(packed: Path, tmp_path: Path) -> None:
    for name, changes, message in (
        ("layers", {"num_hidden_layers": 4}, r"tensor 'layers\.3\.pre_attention_norm' is missing"),
        ("fewer", {"num_hidden_layers": 2}, r"unexpected tensor 'layers\.2\."),
        ("wider", {"intermediate_size": 128}, r"'layers\.0\.gate_proj' has shape \[96, 64\]"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        os.link(packed / "model.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIGS["gemma3_text"] | changes))
        with pytest.raises(TensorError, match=message):
            gemlet.load(folder, threads=1)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma3n_text", "gemma4_experts"])
@pytest.mark.parametrize("weights", ["bf16", "bf12", "q8", "q4"])
def test_no_bit_pattern_does_harm(tmp_path: Path, family: str, weights: str) -> None:
    """Values are not checked when a packed file is mapped: any may be there, and NaN ends in an error."""
    source = write_folder(tmp_path / "source", CONFIGS[family], bf16=True)
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    path = tmp_path / "packed" / "model.safetensors"
    _, data = read_header(path)
    begin = path.stat().st_size - len(data)
    random = np.random.default_rng(0)
    for fill in (b"\xff", b"\x7f", None):
        with open(path, "r+b") as file:
            file.seek(begin)
            file.write(random.bytes(len(data)) if fill is None else fill * len(data))
        with gemlet.load(tmp_path / "packed", threads=1) as model, contextlib.suppress(TensorError):
            finite = np.isfinite(model.logits(IDS)[-1]).all()  # the per-layer table is checked as it is read
            with contextlib.nullcontext() if finite else pytest.raises(gemlet.GemletError, match="NaN"):
                model.generate(IDS, max_tokens=2)
