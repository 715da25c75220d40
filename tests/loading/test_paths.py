"""Names of files that are not UTF-8, and values that are not file names."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gemlet
from golden.folders import HERE
from support.commands import run
from support.gguf_models import convert_folder

ADAPTER = HERE / "adapters" / "gemma3-plain"
NAME = os.fsdecode(b"m\xff\xe9 \xf0odel")


@pytest.fixture(params=[str, Path])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder of such a name, as text and as a path."""
    return request.param(shutil.copytree(HERE / "gemma3-270m", tmp_path / NAME))


def first(model: gemlet.Model) -> list[int]:
    with model:
        return model.generate([2, 5, 7], max_tokens=3, temperature=0, ignore_eos=True).token_ids


def test_load_convert_and_cache(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = first(gemlet.load(HERE / "gemma3-270m"))
    assert first(gemlet.load(folder)) == expected
    assert gemlet.inspect(folder).problem is None
    packed = type(folder)(tmp_path / f"{NAME} packed")
    gemlet.convert(folder, packed)
    assert first(gemlet.load(packed)) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{NAME} cache"))
    for _ in range(2):
        assert first(gemlet.load(folder, cache=True)) == expected


def test_the_prefix_cache(folder: Any, tmp_path: Path) -> None:
    for _ in range(2):  # the second load reads the files that the first load wrote
        kept = tmp_path / f"{NAME} texts"
        assert first(gemlet.load(folder, prefix_cache=str(kept))) == first(gemlet.load(folder))
        assert any(kept.rglob("*"))


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.gguf"
    convert_folder(HERE / "gemma3-270m", path)
    assert len(first(gemlet.load(path))) == 3


def test_the_table_of_per_layer_embeddings(tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "gemma4-e2b", tmp_path / NAME)
    assert first(gemlet.load(folder)) == first(gemlet.load(HERE / "gemma4-e2b"))


def test_adapters(folder: Any, tmp_path: Path) -> None:
    adapter = type(folder)(shutil.copytree(ADAPTER, tmp_path / f"{NAME} adapter"))
    with gemlet.load(folder) as model:
        assert model.load_adapter(adapter, name="mine").name == "mine"
        with pytest.raises(gemlet.InvalidRequestError, match=r"name: got 'm\\udcff.* printable characters"):
            model.load_adapter(adapter)
    with gemlet.load(folder, merge_adapter=adapter) as merged:
        assert merged.weights == "f32"


def test_tokenizers(tmp_path: Path) -> None:
    demo = Path(gemlet.__file__).parent / "demo"
    folder = shutil.copytree(demo, tmp_path / NAME)
    for path in (folder, folder / "tokenizer.model", str(folder)):
        assert gemlet.Tokenizer.from_file(path).vocab_size == 4096


def test_commands(folder: Any) -> None:
    path = os.fsdecode(folder)
    assert run("inspect", path).returncode == 0
    assert run("convert", path, f"{path} packed").returncode == 0
    done = run("generate", "x", "--model", f"{path} not there")
    assert done.returncode == 1
    assert b"not there: no such file or folder" in done.stderr


@pytest.mark.parametrize("path", [b"model", "", "a\0b", "\ud800", "x/" * 5000, 3, ["a"]], ids=ascii)
def test_values_that_are_not_paths_are_refused(path: Any, tmp_path: Path) -> None:
    with pytest.raises((gemlet.InvalidRequestError, gemlet.ModelFileError)):
        gemlet.Tokenizer.from_file(path)
    calls: dict[str, Callable[[], object]] = {
        "source": lambda: gemlet.load(path),
        "destination": lambda: gemlet.convert(None, path),
        "adapter": lambda: gemlet.load(HERE / "gemma3-270m", merge_adapter=path),
    }
    for name, call in calls.items():
        with pytest.raises(gemlet.InvalidRequestError, match=f"^{name} is .*; expected "):
            call()


def test_errors_can_be_printed(folder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(gemlet.ModelFileError) as error:
        gemlet.load(f"{folder}/not there")
    print(error.value, file=sys.stderr)
    assert "m\\udcff\\udce9 \\udcf0odel/not there" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: os.symlink("nowhere", path), "leads nowhere"),
    ],
    ids=["pipe", "folder", "link to nothing"],
)
def test_an_unreadable_optional_file_is_an_error(
    name: str, make: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    """If a download was lost, the cache of the hub has such links. The lost file contained tokens."""
    folder = shutil.copytree(Path(gemlet.__file__).parent / "demo", tmp_path / "demo")
    make(folder / name)
    for read in (gemlet.load, gemlet.Tokenizer.from_file):
        with pytest.raises(gemlet.ModelFileError, match=f"{name}.*{why}"):
            read(folder)
