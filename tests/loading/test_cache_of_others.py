"""A cache that somebody else could have written to, or that has files that gemlet does not write: the model
loads without the cache, and nothing waits forever."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import gemlet
from gemlet.base import cache_entries
from support.tiny_models import CONFIGS, write_folder

IDS = [2, 17, 5]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMLET_CACHE_SIZE", raising=False)
    return tmp_path / "cache" / "gemlet" / "packed"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", CONFIGS["gemma"])


def load(source: Path, *, packs: bool) -> None:
    """Loads with the cache, and checks whether the model had to be packed again."""
    seen = [0]
    gemlet.load(source, threads=1, cache=True, progress=lambda done, total: seen.append(done)).close()
    assert (seen[-1] > 0) == packs


def refuse(source: Path, why: str) -> None:
    with pytest.warns(UserWarning, match=f"cache=True: .* cannot be used .*{why}"):
        load(source, packs=True)


def test_only_this_user_can_read_the_folders(source: Path, folder: Path) -> None:
    previous = os.umask(0)
    try:
        load(source, packs=True)
    finally:
        os.umask(previous)
    for path in (folder.parent, folder, *(item for item in folder.iterdir() if item.is_dir())):
        assert path.stat().st_mode & 0o777 == 0o700
    load(source, packs=False)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_folders_that_others_may_write_to(source: Path, folder: Path, mode: int) -> None:
    load(source, packs=True)
    for path in (folder, folder.parent):
        path.chmod(mode)
        refuse(source, f"others may write to it: chmod go-w {path}")
        path.chmod(0o755)
        load(source, packs=False)


def test_a_folder_of_another_user(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(source, packs=True)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refuse(source, f"{folder.parent} belongs to another user")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user(source: Path, folder: Path) -> None:
    load(source, packs=True)
    (entry,) = (item for item in folder.iterdir() if item.is_dir())
    os.chown(entry / "model.safetensors", 12345, -1)
    load(source, packs=True)
    load(source, packs=False)


def link(path: Path) -> None:
    target = path.rename(path.with_name("elsewhere"))
    path.symlink_to(target)


def fifo(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("what", ["", "model.safetensors", "stamp"])
@pytest.mark.parametrize("make", [link, fifo])
def test_entries_that_are_not_files_are_made_again(
    source: Path, folder: Path, make: Callable[[Path], None], what: str
) -> None:
    load(source, packs=True)
    (entry,) = (item for item in folder.iterdir() if item.is_dir())
    make(entry / what)
    load(source, packs=True)
    load(source, packs=False)


@pytest.mark.parametrize("make", ["link", "fifo", "folder"])
def test_locks_that_are_not_files_are_refused(source: Path, folder: Path, tmp_path: Path, make: str) -> None:
    load(source, packs=True)
    (entry,) = (item for item in folder.iterdir() if item.is_dir())
    lock = entry.with_name(entry.name + ".lock")
    shutil.rmtree(entry)
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    if make == "link":
        lock.symlink_to(victim)
    elif make == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    refuse(source, "")
    assert victim.read_text() == "keep me"


def test_a_lock_that_is_never_released_is_not_waited_for(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(source, packs=True)
    (entry,) = (item for item in folder.iterdir() if item.is_dir())
    shutil.rmtree(entry)
    monkeypatch.setattr(cache_entries, "_PATIENCE", 0.2)
    with open(entry.with_name(entry.name + ".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refuse(source, "another process has held .*lock for")
    load(source, packs=True)


def test_vocabularies_of_others_are_not_read(tmp_path: Path, folder: Path) -> None:
    demo = Path(gemlet.__file__).parent / "demo"
    model = shutil.copytree(demo, tmp_path / "model")
    gemlet.load(model, cache=True).close()
    (entry,) = folder.glob("tokenizer-*[0-9a-f]")
    fifo(entry / "tokenizer.safetensors")
    gemlet.load(model, cache=True).close()  # opening the pipe would wait forever
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write"):
        gemlet.load(model, cache=True).close()
