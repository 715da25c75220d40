"""load(cache=True): what the cache keeps, when an entry is used, and damaged entries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.base import cache_entries
from gemlet.base.cache_entries import cache_folder, cache_limit
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.errors import InvalidRequestError, TensorError
from gemlet.packing import digest, write
from support.processes import command_of, environment_of, in_fork, run_program
from support.programs import cache as programs
from support.tiny_models import CONFIGS, weights_of, write_folder
from support.waiting import PATIENCE

pytestmark = pytest.mark.tier

IDS = [2, 17, 5, 80, 33, 9]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMLET_CACHE_SIZE", raising=False)
    return tmp_path / "cache" / "gemlet" / "packed"


def source_of(path: Path, family: str = "gemma", **arguments: Any) -> Path:
    return write_folder(path, CONFIGS[family], **arguments)


def logits_of(source: Path, **arguments: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    with gemlet.load(source, threads=1, **arguments) as model:
        return model.logits(IDS)


def packed_bytes(source: Path, **arguments: Any) -> int:
    """The bytes that loading ``source`` with the cache packed. 0 if the cache had everything."""
    seen = [0]
    gemlet.load(
        source, threads=1, cache=True, progress=lambda done, total: seen.append(done), **arguments
    ).close()
    return seen[-1]


def entries(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir())


@pytest.mark.parametrize("family", ["gemma", "gemma3n_text", "gemma4_experts"])
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_the_second_load_packs_nothing(tmp_path: Path, folder: Path, family: str, weights: str) -> None:
    source = source_of(tmp_path / "source", family)
    expected = logits_of(source, weights=weights)
    assert not folder.exists()
    assert packed_bytes(source, weights=weights) > 0
    assert packed_bytes(source, weights=weights) == 0
    np.testing.assert_array_equal(logits_of(source, weights=weights, cache=True), expected)
    assert len(entries(folder)) == 1


def test_format_and_content_identify_an_entry(tmp_path: Path, folder: Path) -> None:
    """The format and the content of the source make another entry. Its name, and arguments that do not change
    the weights, do not."""
    source = source_of(tmp_path / "source")
    assert packed_bytes(source, weights="q4") > 0
    assert packed_bytes(source, weights="q8") > 0
    assert packed_bytes(source, weights="q4", embedding="q4") > 0
    assert packed_bytes(source, weights="q4", max_context=12) == 0
    source.rename(tmp_path / "renamed")
    assert packed_bytes(tmp_path / "renamed", weights="q4") == 0
    assert len(entries(folder)) == 3


def test_a_changed_source_is_packed_again(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    assert packed_bytes(source) > 0
    path = source / "model.safetensors"
    status = path.stat()
    tensors = weights_of(CONFIGS["gemma"])
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2
    source_of(source, tensors=tensors)
    # The file looks as if it changed within a tick of the clock.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    expected = logits_of(source)
    np.testing.assert_array_equal(logits_of(source, cache=True), expected)
    (source / "config.json").write_text(json.dumps(CONFIGS["gemma"] | {"rms_norm_eps": 1e-3}))
    assert packed_bytes(source) > 0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert packed_bytes(source) > 0


@pytest.mark.parametrize("expected", ["bf16", "f32"])
def test_float16_is_read_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, expected: str
) -> None:
    """The entry records the format that the values need. If the record is damaged, load() makes it again."""
    tensors = weights_of(CONFIGS["gemma"])
    for values in tensors.values():
        if expected == "bf16":
            values.view(np.uint32)[...] &= 0xFFFF0000
    half = {name: values.astype(np.float16) for name, values in tensors.items()}
    source = source_of(tmp_path / "source", tensors=half)
    scan, scanned = TensorFiles.fits_bf16, []
    monkeypatch.setattr(TensorFiles, "fits_bf16", lambda self, name: scanned.append(name) or scan(self, name))
    logits = logits_of(source)
    matrices = len(scanned)
    assert matrices > 10
    np.testing.assert_array_equal(logits_of(source, cache=True), logits)
    assert len(scanned) == 2 * matrices
    with gemlet.load(source, threads=1, cache=True) as model:
        assert model.weights == expected
    assert packed_bytes(source) == 0
    assert packed_bytes(source, weights="q4") > 0
    assert len(scanned) == 2 * matrices
    (kept,) = folder.glob("formats-*/formats.json")
    for damaged in ("{}", "[", "[1]", '{"a": 1}', kept.read_text().replace('16"', '8"').replace('32"', '8"')):
        kept.write_text(damaged)
        assert packed_bytes(source) == 0
    assert len(scanned) == 7 * matrices
    os.utime(source / "model.safetensors", ns=(0, 1))
    assert packed_bytes(source) > 0
    assert len(scanned) == 8 * matrices
    found = gemlet.inspect(source)
    assert (found.weights, found.kept_as) == ("f32", {"f16": "bf16 or f32"})
    assert " f16 as bf16 or f32" in str(found)
    assert len(scanned) == 8 * matrices


def test_a_byte_between_the_samples_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of modification is set back, as archives do."""
    monkeypatch.setattr(digest, "_SAMPLES", 2)
    monkeypatch.setattr(digest, "_SAMPLE_BYTES", 64)
    source = source_of(tmp_path / "source")
    assert packed_bytes(source) > 0
    path = source / "model.safetensors"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert packed_bytes(source) > 0


def test_a_cut_model_has_its_own_entry(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", "gemma3n_text")
    whole = packed_bytes(source)
    cut = {"matformer": 64}
    expected = logits_of(source, **cut)
    assert 0 < packed_bytes(source, **cut) < whole
    assert packed_bytes(source, **cut) == 0
    np.testing.assert_array_equal(logits_of(source, cache=True, **cut), expected)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "file", "link", "stamp", "version", "missing"])
def test_damaged_entries_are_made_again(tmp_path: Path, folder: Path, damage: str) -> None:
    source = source_of(tmp_path / "source")
    expected = logits_of(source, cache=True)
    (name,) = entries(folder)
    path = folder / name / "model.safetensors"
    data = path.read_bytes()
    if damage in ("file", "link"):
        shutil.rmtree(path.parent)
        path.parent.symlink_to("nowhere") if damage == "link" else path.parent.write_bytes(b"x")
    elif damage == "stamp":
        (path.parent / "stamp").write_text("12 x")
    elif damage == "missing":
        path.unlink()
    else:
        layout = f'"gemlet_layout":"{_core.LAYOUT_VERSION}"'
        changed = {
            "cut": data[:-64],
            "empty": b"",
            "garbage": b"\xff" * len(data),
            "version": data.replace(layout.encode(), b'"gemlet_layout":"0"'),
        }[damage]
        assert changed != data
        path.write_bytes(changed)
    assert packed_bytes(source) > 0
    assert packed_bytes(source) == 0
    np.testing.assert_array_equal(logits_of(source, cache=True), expected)


def test_a_wrong_source_is_still_an_error(tmp_path: Path, folder: Path) -> None:
    tensors = weights_of(CONFIGS["gemma"])
    tensors["model.norm.weight"][3] = np.inf
    source = source_of(tmp_path / "source", tensors=tensors)
    with pytest.raises(TensorError, match=r"source/model\.safetensors: tensor 'model\.norm\.weight'"):
        gemlet.load(source, threads=1, cache=True)
    assert entries(folder) == []


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "source")
    expected = logits_of(source)
    folder.parent.parent.mkdir()
    folder.parent.write_bytes(b"a file in its place")
    with pytest.warns(UserWarning, match=r"cache=True: .*packed cannot be used \(Not a directory\)") as told:
        np.testing.assert_array_equal(logits_of(source, cache=True), expected)
    assert told[0].filename == __file__  # the warning points to the call of load()
    folder.parent.unlink()

    def full(descriptor: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_write", full)
    with pytest.warns(UserWarning, match=r"cannot be used \(No space left on device\)"):
        np.testing.assert_array_equal(logits_of(source, cache=True), expected)
    assert entries(folder) == []


def test_the_entries_unused_for_longest_are_evicted_first(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [
        source_of(tmp_path / name, tensors=weights_of(CONFIGS["gemma"], seed=seed))
        for seed, name in enumerate("abcd")
    ]
    names = []
    for age, source in enumerate(sources[:3]):
        packed_bytes(source)
        (name,) = set(entries(folder)) - set(names)
        names.append(name)
        os.utime(folder / name, (time.time() - 1000 + age,) * 2)
        size = sum(file.stat().st_size for file in (folder / name).iterdir())
    with gemlet.load(
        sources[0], threads=1, cache=True
    ) as used:  # the oldest entry; it is used now, and still in use below
        before = used.logits(IDS)
        monkeypatch.setenv("GEMLET_CACHE_SIZE", str(2 * size + 100))
        assert packed_bytes(sources[3]) > 0
        kept = entries(folder)
        assert len(kept) == 2
        assert names[0] in kept
        monkeypatch.setenv("GEMLET_CACHE_SIZE", str(size + 100))
        assert packed_bytes(sources[1]) > 0
        assert len(entries(folder)) == 1
        np.testing.assert_array_equal(used.logits(IDS), before)  # its entry is gone, but its pages stay
    monkeypatch.setenv("GEMLET_CACHE_SIZE", str(size // 2))
    assert packed_bytes(sources[2]) > 0  # never fits, so it is loaded without the cache
    assert packed_bytes(sources[2]) > 0
    monkeypatch.setenv("GEMLET_CACHE_SIZE", "0")
    assert packed_bytes(sources[1]) > 0


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_limit() == 20 * 10**9
    for text, size in (("5GB", 5 * 10**9), ("0", 0), ("123456", 123456), ("1 MiB", 1 << 20)):
        monkeypatch.setenv("GEMLET_CACHE_SIZE", text)
        assert cache_limit() == size
    for text in ("-1", "much", "1e9"):
        monkeypatch.setenv("GEMLET_CACHE_SIZE", text)
        with pytest.raises(InvalidRequestError, match="GEMLET_CACHE_SIZE is"):
            cache_limit()
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == str(tmp_path / ".cache/gemlet/packed")


def test_processes_at_the_same_time_pack_once(tmp_path: Path, folder: Path) -> None:
    source = source_of(tmp_path / "source", "gemma3_text")
    assert sorted(run_program(programs.load_in_four_processes, source)) == [0, 0, 0, 1]
    assert len(entries(folder)) == 1


def test_remains_of_a_killed_process_do_no_harm(tmp_path: Path, folder: Path) -> None:
    source = source_of(tmp_path / "source")
    run_program(programs.kill_while_packing, source)
    assert [name.rpartition(".")[2] for name in entries(folder)] == ["tmp"]
    assert packed_bytes(source) > 0
    assert packed_bytes(source) == 0


def test_the_next_entry_removes_what_killed_processes_left(tmp_path: Path, folder: Path) -> None:
    """Writing an entry removes the remains of all entries, in any form, but not entries that a living process
    uses."""
    folder.mkdir(parents=True)
    (folder / "0.12.tmp").mkdir()
    (folder / "0.12.tmp" / "model.safetensors").write_bytes(b"x")
    (folder / "1.tmp").write_bytes(b"x")
    (folder / "2.tmp").symlink_to("nowhere")
    (folder / "3.lock").touch()
    (folder / "held.tmp").mkdir()
    with cache_entries.locked(str(folder / "held.lock")):
        packed_bytes(source_of(tmp_path / "source"))
        left = sorted(item.name for item in folder.iterdir())
    assert len(left) == 3
    assert left[1:] == ["held.lock", "held.tmp"]
    assert sorted(item.name for item in folder.iterdir())[1:] == ["held.tmp"]


def test_another_model_does_not_wait(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is packing a model. Meanwhile, this process packs another and evicts all that it may."""
    first = source_of(tmp_path / "first")
    second = source_of(tmp_path / "second", tensors=weights_of(CONFIGS["gemma"], seed=1))
    packed_bytes(second)
    size = sum(file.stat().st_size for file in (folder / entries(folder)[0]).iterdir())
    shutil.rmtree(folder)
    with subprocess.Popen(
        command_of(programs.wait_while_packing, first),
        env=environment_of(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "packing\n"
            monkeypatch.setenv("GEMLET_CACHE_SIZE", str(size + 100))
            in_fork(lambda: packed_bytes(second) > 0)
            assert len([name for name in entries(folder) if name.endswith(".tmp")]) == 1
        finally:
            other.stdin.close()
            other.wait(PATIENCE)
    assert other.returncode == 0
    assert packed_bytes(first) == 0
    assert [item.name for item in folder.iterdir() if not item.is_dir()] == []


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    """A lock's file is removed with the lock. Two threads must not get in with files of different times."""
    path, inside, problems = str(tmp_path / "a.lock"), tmp_path / "inside", []

    def work() -> None:
        try:
            for _ in range(150):
                with cache_entries.locked(path) as alone:
                    assert alone
                    inside.mkdir()
                    time.sleep(0)
                    inside.rmdir()
                with cache_entries.locked(path, wait=False) as alone:
                    if alone:
                        inside.mkdir()
                        inside.rmdir()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_changed_in_the_cache(tmp_path: Path, folder: Path) -> None:
    """If the file has another time, its bytes are read. If they are right, the entry is used, and otherwise
    it is made again."""
    source = source_of(tmp_path / "source")
    expected = logits_of(source, cache=True)
    (entry,) = folder.iterdir()
    path = entry / "model.safetensors"
    stamp = (entry / "stamp").read_text()
    os.utime(path, ns=(0, 1))
    assert packed_bytes(source) == 0
    assert (entry / "stamp").read_text().split()[1] == "1"
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert packed_bytes(source) == 0
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert packed_bytes(source) > 0
    np.testing.assert_array_equal(logits_of(source, cache=True), expected)
    assert (entry / "stamp").read_text().split()[::2] == stamp.split()[::2]
