"""Files that change while a model uses them. A replaced or removed file does no harm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet import ModelFileError
from support.tiny_models import CONFIGS, weights_of, write_folder

IDS = [2, 5, 9, 30]
WEIGHTS = "model.safetensors"


@pytest.fixture(params=["mapped", "table"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Makes a model that uses its file until it is closed: it has packed weights, or a per-layer table."""
    if request.param == "table":
        return write_folder(tmp_path / "table", CONFIGS["gemma4_text"])
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"])
    gemlet.convert(source, tmp_path / "packed", weights="q8", threads=1)
    return tmp_path / "packed"


def change_last_byte(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


def set_time_back(path: Path) -> None:
    """A change that shows only in the time of the last status change (ctime)."""
    status = path.stat()
    change_last_byte(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [change_last_byte, append, set_time_back])
def test_a_change_in_place_is_an_error(folder: Path, change: Callable[[Path], None]) -> None:
    with gemlet.load(folder, threads=1) as model:
        before = model.logits(IDS)
        next(model.stream(IDS, max_tokens=8, ignore_eos=True))
        change(folder / WEIGHTS)
        for use in (
            lambda: model.logits(IDS),
            lambda: model.generate(IDS, max_tokens=1),
            lambda: list(model.stream(IDS, max_tokens=8)),
        ):
            with pytest.raises(ModelFileError, match=r"model\.safetensors: was changed while it was in use"):
                use()
    assert before.shape == (len(IDS), 96)


def test_a_file_cut_short_is_an_error(folder: Path) -> None:
    with gemlet.load(folder, threads=1) as model:
        os.truncate(folder / WEIGHTS, 1000)
        with pytest.raises(ModelFileError, match="was cut short while it was in use: 1000 bytes"):
            model.logits(IDS)


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
    os.replace(path.with_suffix(".new"), path)


def link(path: Path) -> None:
    os.link(path, path.with_suffix(".link"))


CHANGES = [
    replace,
    os.unlink,
    lambda path: shutil.rmtree(path.parent),
    lambda path: path.chmod(0o640),
    lambda path: path.rename(path.with_suffix(".moved")),
    link,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_replaced_moved_or_removed_stays_in_use(
    folder: Path, change: Callable[[Path], None]
) -> None:
    with gemlet.load(folder, threads=1) as model:
        before = model.logits(IDS)
        change(folder / WEIGHTS)
        np.testing.assert_array_equal(model.logits(IDS), before)


def test_the_table_comes_from_the_file_that_was_checked(tmp_path: Path) -> None:
    """Another file takes its place while the other weights are packed."""
    config = CONFIGS["gemma4_text"]
    folder = write_folder(tmp_path / "model", config)
    other = write_folder(tmp_path / "other", config, tensors=weights_of(config, seed=2))
    with gemlet.load(folder, threads=1) as model:
        expected = model.logits(IDS)

    def replace_it(done: int, total: int) -> None:
        if (other / WEIGHTS).exists():
            os.replace(other / WEIGHTS, folder / WEIGHTS)

    with gemlet.load(folder, threads=1, progress=replace_it) as model:
        np.testing.assert_array_equal(model.logits(IDS), expected)
    with gemlet.load(folder, threads=1) as model:
        assert np.abs(model.logits(IDS) - expected).max() > 1e-3


@pytest.mark.parametrize("change", [change_last_byte, append, set_time_back])
def test_a_change_while_it_is_loaded(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma4_text"])
    changed = []

    def change_it(done: int, total: int) -> None:
        if not changed:
            change(folder / WEIGHTS)
            changed.append(done)

    with pytest.raises(ModelFileError, match=r"model\.safetensors: was changed while gemlet was reading"):
        gemlet.load(folder, threads=1, progress=change_it)
    assert changed
