"""Tests of ``gemlet models`` and ``gemlet cache``, which list the models on this machine, and of
``gemlet tokenize``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import gemlet
from gemlet.cli import main
from support.commands import failed, run, run_here

DEMO = Path(gemlet.__file__).parent / "demo"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which all caches use during the test."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "GEMLET_MODELS", "GEMLET_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    return capsys.readouterr().out


def put_into_hub(home: Path, name: str, *, commit: str = "abc", main_branch: bool = True) -> Path:
    """Writes the demo model in the form in which huggingface_hub stores models: links to files with other
    names."""
    repository = home / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in DEMO.iterdir():
        shutil.copyfile(file, repository / "blobs" / f"{commit}-{file.name}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{commit}-{file.name}"))
    if main_branch:
        (repository / "refs" / "main").write_text(commit)
    return snapshot


# --- gemlet models


def test_models_of_every_place(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = put_into_hub(home, "someone/demo-it")
    mine = home / "mine"
    shutil.copytree(DEMO, mine / "someone" / "other")
    shutil.copytree(DEMO, mine / "plain")
    (mine / "broken.gguf").write_bytes(b"GGUF")
    (mine / "nothing").mkdir()
    monkeypatch.setenv("GEMLET_MODELS", f"/no/such/folder{os.pathsep}{mine}")
    gemlet.load(snapshot, weights="q4", threads=1, cache=True).close()
    found = json.loads(output(capsys, "models", "--json"))
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == ["someone/demo-it", "broken.gguf", "plain", "someone/other"]
    size = sum(file.stat().st_size for file in DEMO.iterdir() if file.is_file())
    assert {model["nbytes"] for name, model in models.items() if name != "broken.gguf"} == {size}
    assert models["someone/demo-it"]["place"] == "hub"
    assert models["plain"]["place"] == str(mine)
    assert models["plain"]["problem"] is None
    assert "broken.gguf" in models["broken.gguf"]["problem"]
    assert [(kept["name"], kept["weights"]) for kept in found["cache"]] == [(str(snapshot), "q4")]
    lines = output(capsys, "models").splitlines()
    assert lines[0].split() == ["model", "size", "where", "runs", "here"]
    assert lines[1].split() == ["someone/demo-it", f"{size / 1e6:.0f}", "MB", "hub", "yes"]
    assert lines[-1].endswith("packed weights q4")


def test_the_command_models_works_without_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "models").startswith("no models in ")
    assert json.loads(output(capsys, "models", "--json")) == {"models": [], "cache": []}


def test_without_a_main_branch_the_newest_snapshot_is_used(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = put_into_hub(home, "someone/demo", commit="old", main_branch=False)
    new = put_into_hub(home, "someone/demo", commit="new", main_branch=False)
    os.utime(old, (1, 1))
    (found,) = json.loads(output(capsys, "models", "--json"))["models"]
    assert found["path"] == str(new)


def test_the_command_models_says_which_models_fit(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_into_hub(home, "someone/demo")
    monkeypatch.setattr("gemlet._core.available_memory", lambda: 7_000_000)
    assert "hub    with " in output(capsys, "models")
    monkeypatch.setattr("gemlet._core.available_memory", lambda: 1000)
    assert "no: the memory this process may have is " in output(capsys, "models")


def test_load_looks_into_the_folders_of_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEMO, home / "mine" / "someone" / "other")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GEMLET_MODELS", "~/mine")
    assert gemlet.inspect("someone/other").source == str(home / "mine" / "someone" / "other")
    for name in ("someone/../someone/other", "/someone/other", "nobody.gguf"):
        with pytest.raises(gemlet.ModelFileError, match="no such file or folder"):
            gemlet.inspect(name)


# --- gemlet cache


def test_the_cache_is_listed_and_cleared(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "cache", "list").startswith("0 kB of at most 20.00 GB")
    for weights in ("q4", "q8"):
        gemlet.load(weights=weights, threads=1, cache=True).close()
    found = json.loads(output(capsys, "cache", "list", "--json"))
    assert found["folder"] == str(home / "gemlet" / "packed")
    assert found["bytes"] == sum(entry["nbytes"] for entry in found["entries"]) > 1_000_000
    kinds = {entry["what"]: entry for entry in found["entries"]}
    assert kinds.keys() == {"weights q4", "weights q8", "vocabulary"}
    assert kinds["weights q4"]["source"] == "demo"
    lines = output(capsys, "cache", "list").splitlines()
    assert len(lines) == 5
    assert any(line.endswith("weights q4 of demo") for line in lines)
    with gemlet.load(weights="q4", threads=1, cache=True) as model:
        before = model.generate("The door", max_tokens=4, temperature=0).text
        name = kinds["weights q4"]["name"]
        assert output(capsys, "cache", "clear", name[:9]).startswith("removed 1 entry with ")
        assert not (home / "gemlet" / "packed" / name).exists()
        # The model still has the deleted file mapped into memory.
        assert model.generate("The door", max_tokens=4, temperature=0).text == before
    assert output(capsys, "cache", "clear").startswith("removed 2 entries with ")
    assert os.listdir(home / "gemlet" / "packed") == []


def test_clearing_an_unknown_entry_is_an_error(home: Path) -> None:
    assert "there is no entry 'abc'" in failed(run("cache", "clear", "abc", XDG_CACHE_HOME=str(home)))
    assert "there is no entry ''" in failed(run("cache", "clear", "", XDG_CACHE_HOME=str(home)))


def test_damaged_entries(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "gemlet" / "packed"
    (folder / "damaged").mkdir(parents=True)
    (folder / "damaged" / "model.safetensors").write_bytes(b"\x1b[2J")
    (folder / "damaged" / "source").write_bytes(b"\x1b[2J\xff")
    (folder / "file").write_text("no entry")
    (folder / "link").symlink_to(DEMO)
    lines = output(capsys, "cache", "list").splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("damaged weights of \\x1b[2J\ufffd")
    output(capsys, "cache", "clear")
    assert sorted(os.listdir(folder)) == ["file", "link"]
    assert DEMO.exists()


# --- gemlet tokenize


def test_tokenize(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = gemlet.Tokenizer.from_file(DEMO)
    ids = tokenizer.encode("The door\n opened")
    lines = output(capsys, "tokenize", "The door\n opened").splitlines()
    assert [int(line.split()[0]) for line in lines] == ids
    assert lines[0].endswith("  <bos>")
    assert output(capsys, "tokenize", "The door\n opened", "--count") == f"{len(ids)}\n"
    found = json.loads(output(capsys, "tokenize", "The door\n opened", "--json", "--no-bos"))
    assert found == {"count": len(ids) - 1, "ids": ids[1:], "pieces": [*map(tokenizer.id_to_piece, ids[1:])]}


def test_tokenize_reads_standard_input_and_needs_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    piped = run("tokenize", "-", "--json", stdin=b"The door\n")
    assert json.loads(piped.stdout)["ids"] == gemlet.Tokenizer.from_file(DEMO).encode("The door\n")
    folder = Path(__file__).parents[1] / "golden" / "gemma3-270m"
    assert "has no tokenizer" in failed(run_here(capsys, "tokenize", "x", "--model", str(folder)))
    assert "not UTF-8" in failed(run_here(capsys, "tokenize", "-", stdin=b"\xff"))
    assert "surrogate" in failed(run_here(capsys, "tokenize", b"\xff".decode(errors="surrogateescape")))
