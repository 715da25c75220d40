"""The prefix cache on disk: an engine continues from keys and values that another engine saved.

A file with any fault is treated as missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.engine_reader import Reader, alone
from support.waiting import until

IDS = np.random.default_rng(4).integers(0, 96, 4000).astype(np.int32)
MODEL = bytes(range(32))

pytestmark = pytest.mark.tier

tiles = "amx" in _core.cpu_info()["tier"]  # tiles round activations, so each pass may round differently


def small_core(**changes: object) -> _core.Model:
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=1400), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir(mode=0o700)
    return path


class Engines:
    """Engines of one model over one folder, each as if it were in a new process."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.core = small_core(**changes)
        self.folder = folder

    def cached(
        self, ids: NDArray[np.int32], size: int = 1 << 30, model: bytes = MODEL, **options: int
    ) -> int:
        """The number of tokens that a new engine found in the cache. The engine ends with the text. The reply
        has to be right."""
        engine = _core.Engine(
            self.core,
            prefix_cache_bytes=1 << 24,
            prefix_cache_folder=str(self.folder),
            prefix_cache_folder_bytes=size,
            model_digest=model,
        )
        reader = Reader(engine)
        request = reader.submit(ids, max_tokens=5, **options)
        ((reply, _),) = reader.read(request)
        assert tiles or reply == alone(self.core, ids, 1, 5)
        engine.close()
        return request.cached_tokens

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("length", [1, 20, 64, 65, 700])
@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
def test_another_engine_goes_on(folder: Path, length: int, kv_cache: str) -> None:
    engines = Engines(folder, kv_cache=kv_cache)
    assert engines.cached(IDS[:length]) == 0
    assert engines.cached(IDS[:length]) == length - 1
    assert [path.stat().st_mode & 0o777 for path in engines.files()] == [0o600] * len(engines.files())


@pytest.mark.parametrize("common", [3, 64, 100, 399, 512])
def test_blocks_are_taken_in_part(folder: Path, common: int) -> None:
    engines = Engines(folder)
    engines.cached(IDS[:600])
    assert engines.cached(np.concatenate([IDS[:common], (IDS[common : common + 40] + 1) % 96])) == common


def test_stats_count_waiting_and_the_disk(folder: Path) -> None:
    core = Engines(folder).core
    options: dict[str, Any] = {
        "most_running": 1,
        "prefix_cache_bytes": 1 << 24,
        "prefix_cache_folder": str(folder),
        "prefix_cache_folder_bytes": 1 << 28,
        "model_digest": bytes(range(32)),
    }
    reader = Reader(_core.Engine(core, **options))
    first, second = reader.submit(IDS[:600], max_tokens=200), reader.submit(IDS[700:900], max_tokens=2)
    until(lambda: reader.engine.stats()["waiting"])
    assert reader.engine.stats()["longest_wait"] > 0
    reader.read(first, second)
    stats = reader.engine.stats()
    assert (stats["begun"], stats["longest_wait"], stats["disk_read_bytes"]) == (2, 0, 0)
    assert stats["waiting_seconds"] >= second.times[0] > 0
    reader.engine.close()
    written = sum(path.stat().st_size for path in Engines(folder).files())
    assert 0 < written <= reader.engine.stats()["disk_written_bytes"] < 1.1 * written
    again = Reader(_core.Engine(core, **options))
    again.read(again.submit(IDS[:600]))
    assert 0 < again.engine.stats()["disk_read_bytes"] < written
    again.engine.close()


def test_only_the_same_model_and_salt(folder: Path) -> None:
    engines = Engines(folder)
    engines.cached(IDS[:300])
    assert engines.cached(IDS[:300], model=MODEL[::-1]) == 0
    assert engines.cached(IDS[:300], cache_salt=3) == 0
    assert engines.cached(IDS[:300]) == 299
    # Without an identity of the model, the engine writes nothing to the disk.
    before = engines.files()
    assert engines.cached(IDS[1000:1300], model=b"") == 0
    assert engines.files() == before


def damages() -> dict[str, object]:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def longer(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"\0")

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def link(path: Path) -> None:
        other = path.with_suffix(".other")
        path.rename(other)
        path.symlink_to(other)

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def inside(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def gone(path: Path) -> None:
        path.unlink()

    return {
        "cut": cut,
        "longer": longer,
        "empty": empty,
        "link": link,
        "pipe": pipe,
        "folder": inside,
        "gone": gone,
    }


@pytest.mark.parametrize("damage", list(damages()))
def test_a_file_that_is_not_whole_is_not_there(folder: Path, damage: str) -> None:
    """The text begins before it, and the file is written again."""
    engines = Engines(folder)
    engines.cached(IDS[:300])
    third = next(path for path in engines.files() if path.name.endswith(f"-{192:08x}.kv"))
    damages()[damage](third)  # type: ignore[operator]
    assert engines.cached(IDS[:300]) == 128
    if damage != "folder":
        assert engines.cached(IDS[:300]) == 299


def test_any_changed_byte_is_found(folder: Path) -> None:
    engines = Engines(folder)
    engines.cached(IDS[:64])
    (path,) = (path for path in engines.files() if path.name.endswith(f"-{64:08x}.kv"))
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    places = [*range(0, 400, 7), *random.integers(0, len(whole), 20).tolist()]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        for other in engines.files():
            other.unlink()
        path.write_bytes(changed)
        assert engines.cached(np.concatenate([IDS[:64], IDS[500:503]])) == 0, place


def test_the_folder_keeps_its_size(folder: Path) -> None:
    """Entries that have not been used for the longest time go first, and the beginnings of a text go last."""
    engines = Engines(folder)
    engines.cached(IDS[:300])
    size = sum(path.stat().st_size for path in engines.files())
    for start in (400, 800, 1200, 1600, 2000):
        engines.cached(IDS[:300], 3 * size)
        engines.cached(IDS[start : start + 300], 3 * size)
        assert sum(path.stat().st_size for path in engines.files()) <= 3 * size
    assert engines.cached(IDS[:300]) == 299
    assert engines.cached(IDS[400:700]) < 299


def test_foreign_files_stay(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "3f").mkdir(mode=0o700)
    old = folder / "3f" / ".gemlet-1-2.tmp"  # left by a process that was killed
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    engines = Engines(folder)
    engines.cached(IDS[:300], size=1)
    assert engines.files() == [old, folder / "notes.txt"]  # no file fits into the folder's limit
    engines.cached(IDS[:300])
    assert (folder / "notes.txt").read_text() == "mine"
    assert not old.exists()


def test_folders_that_are_refused(folder: Path) -> None:
    core = small_core()

    def engine(path: Path) -> None:
        _core.Engine(
            core,
            prefix_cache_bytes=1,
            prefix_cache_folder=str(path),
            prefix_cache_folder_bytes=1,
            model_digest=MODEL,
        )

    with pytest.raises(gemlet.InvalidRequestError, match="cannot be opened"):
        engine(folder / "missing")
    (folder / "file").write_text("")
    with pytest.raises(gemlet.InvalidRequestError, match="cannot be opened"):
        engine(folder / "file")
    folder.chmod(0o770)
    with pytest.raises(gemlet.InvalidRequestError, match="others may write"):
        engine(folder)


def test_a_folder_that_cannot_be_written_is_ignored(folder: Path) -> None:
    engines = Engines(folder)
    engines.cached(IDS[:300])
    folder.chmod(0o500)
    try:
        assert engines.cached(np.concatenate([IDS[:300], IDS[1000:1200]])) == 300
    finally:
        folder.chmod(0o700)


def test_processes_that_are_killed(folder: Path) -> None:
    """Several processes write the same texts at a time and are killed at any moment. All files are whole."""
    program = [sys.executable, "-m", "support.programs.disk_texts", str(folder)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    processes = [subprocess.Popen(program, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    for delay, process in zip((0.0, 0.15, 0.3), processes, strict=True):
        assert process.stdout is not None
        process.stdout.readline()  # the process has started to write
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    engines = Engines(folder)
    assert engines.cached(IDS[:600]) > 0
    assert engines.cached(IDS[:600]) == 599


def test_a_forked_child_has_a_cache_of_its_own(folder: Path) -> None:
    engines = Engines(folder)
    options = {
        "prefix_cache_folder": str(folder),
        "prefix_cache_folder_bytes": 1 << 30,
        "model_digest": MODEL,
    }
    engine = _core.Engine(engines.core, prefix_cache_bytes=1 << 24, **options)  # type: ignore[arg-type]
    reader = Reader(engine)
    reader.read(reader.submit(IDS[:300]))
    while len(engines.files()) < 4:  # the files are written in the background
        time.sleep(0.01)
    if (child := os.fork()) == 0:
        try:
            request = reader.submit(np.concatenate([IDS[:300], IDS[1000:1300]]))
            reader.read(request)
            engine.close()
            os._exit(0 if request.cached_tokens >= 256 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.close()
    assert engines.cached(np.concatenate([IDS[:300], IDS[1000:1300]])) == 599


def test_folders_that_others_may_change_count_as_missing(folder: Path) -> None:
    """A link, or a file that others may write to, is treated as missing."""
    engines = Engines(folder)
    engines.cached(IDS[:40])
    (path,) = engines.files()
    inside = path.parent
    inside.chmod(0o777)
    assert engines.cached(IDS[:40]) == 0
    inside.chmod(0o700)
    assert engines.cached(IDS[:40]) == 39
    elsewhere = folder.parent / "elsewhere"
    inside.rename(elsewhere)
    inside.symlink_to(elsewhere)
    assert engines.cached(IDS[:40]) == 0
