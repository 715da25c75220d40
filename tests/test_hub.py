"""Models by their names on the hub, against a stand-in of it on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import COMMIT, TOKEN, hub
from processes import run_python
from tiny_models import CONFIGS, safetensors_bytes, weights_of, write_folder

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.hub import is_repository

NAME = "someone/gemma-tiny"
WEIGHTS = safetensors_bytes(weights_of(CONFIGS["gemma"]))
FILES = {
    "config.json": json.dumps(CONFIGS["gemma"]).encode(),
    "generation_config.json": b'{"top_k": 7}',
    "model.safetensors": WEIGHTS,
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
    "gemma.gguf": b"not needed",
    "onnx/model.safetensors": b"not needed",
    "onnx/config.json": b"not needed",
    "2_Dense/pytorch_model.bin": b"not needed",
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": b"of an embedding model",
    "consolidated.safetensors": b"not needed",
}
PARTS = [f"q4/gemma-{part:05}-of-00002.gguf" for part in (1, 2)]


def repository(*names: str) -> dict[str, bytes]:
    """Files that begin as GGUF does and end soon, each another."""
    return {name: b"GGUF" + bytes(100) + name.encode() for name in names}


REPOSITORIES = {
    NAME: FILES,
    "someone/one-gguf": repository("gemma.gguf", "mmproj.gguf", "config.json", "imatrix.gguf"),
    "someone/split-gguf": repository(*PARTS, "README.md"),
    "someone/many-gguf": repository("b-Q4_0.gguf", "b-Q8_0.gguf", *PARTS, "mmproj-f16.gguf", "README.md"),
    "someone/gated": FILES,
    "someone/private": FILES,
    "some/weights-missing": {"config.json": FILES["config.json"]},
}
NEEDED = [
    *("2_Dense/config.json", "2_Dense/model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors"),
]


def files_in(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file())


def run_with_hub(code: str, url: str, home: Path, **environment: str) -> str:
    """The settings of huggingface_hub are read when it is imported, so it is in a process of its own."""
    return run_python(
        code,
        HF_ENDPOINT=url,
        HF_HOME=str(home),
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_XET="1",
        HF_TOKEN="",
        **environment,
    )


def test_a_model_by_its_name(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        printed = run_with_hub(
            f"""
            import os, sys
            import gemlet, numpy as np
            with gemlet.load("{NAME}", threads=1) as model:
                assert model.generation_config.top_k == 7
                np.save("{tmp_path}/logits.npy", model.logits([1, 2, 3]))
                folder = model.source
            assert gemlet.download("{NAME}") == folder
            assert gemlet.download("{NAME}", revision="{COMMIT}") == folder
            print(folder)
            gated = gemlet.download("someone/gated", token="{TOKEN}")
            assert sorted(os.listdir(gated)) == sorted(os.listdir(folder))
            """,
            server.url,
            tmp_path / "home",
        )
    assert sorted(server.served) == sorted(NEEDED * 2)  # each once for a model, and nothing else
    folder = Path(printed.strip())
    assert folder.parts[-2:] == ("snapshots", COMMIT)
    assert files_in(folder) == NEEDED
    with gemlet.load(write_folder(tmp_path / "same", CONFIGS["gemma"]), threads=1) as model:
        np.testing.assert_array_equal(model.logits([1, 2, 3]), np.load(tmp_path / "logits.npy"))


def test_gguf_models(tmp_path: Path) -> None:
    """The one of a repository, or the one that is named; all of its parts, and nothing else."""
    cases = {
        "someone/one-gguf": ["gemma.gguf"],
        "someone/split-gguf": PARTS,
        "someone/many-gguf:b-Q8_0.gguf": ["b-Q8_0.gguf"],
        f"someone/many-gguf:{PARTS[1]}": PARTS[::-1],
        f"{NAME}:gemma.gguf": ["gemma.gguf"],
    }
    wrong = {
        "someone/many-gguf": "name one, as someone/many-gguf:b-Q4_0.gguf. They are b-Q4_0.gguf, b-Q8",
        "someone/many-gguf:b-Q5_0.gguf": "has no file b-Q5_0.gguf; its GGUF models are b-Q4_0.gguf, ",
        "some/weights-missing:a.gguf": "has no file a.gguf; its GGUF models are none",
    }
    code = f"""
        import gemlet
        for name in {list(cases)!r}:
            print(gemlet.download(name))
        try:
            gemlet.load("someone/many-gguf:b-Q8_0.gguf")
        except gemlet.ModelFileError as error:
            assert "b-Q8_0.gguf: GGUF version 0" in str(error), error
        """
    with hub(REPOSITORIES) as server:
        printed = run_with_hub(code, server.url, tmp_path)
        assert sorted(server.served) == sorted(file for files in cases.values() for file in files)
        run_with_hub(
            f"""
            import gemlet
            for name, message in {wrong!r}.items():
                try:
                    gemlet.load(name)
                except gemlet.InvalidRequestError as error:
                    assert message in str(error), error
                    assert "mmproj" not in str(error) and "00002-of" not in str(error)
                else:
                    raise SystemExit(name)
            """,
            server.url,
            tmp_path,
        )
    for path, files in zip(printed.split(), cases.values(), strict=True):
        assert path.endswith(f"{COMMIT}/{files[0]}")
    assert run_with_hub(code, server.url, tmp_path, HF_HUB_OFFLINE="1") == printed


def test_what_can_go_wrong(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        cases = {
            ("no/such-model", None, None): "no/such-model: no such folder, and no such model on the hub",
            ("someone/private", None, None): "no such model on the hub, or a private one; check the name, or",
            (
                "someone/gated",
                None,
                None,
            ): f"licence has to be accepted first, at {server.url}/someone/gated; .*pass token=",
            ("someone/gated", None, "hf_wrong"): "licence has to be accepted first",
            (NAME, "v9", None): "gemma-tiny: has no revision 'v9'; expected a branch",
            ("someone/down", None, None): r"someone/down: .*cannot be reached|answered with HTTP 500",
            ("someone/garbage", None, None): "someone/garbage: ",
        }
        run_with_hub(
            f"""
            import re
            import gemlet
            for (name, revision, token), message in {cases!r}.items():
                try:
                    gemlet.load(name, revision=revision, token=token)
                except gemlet.HubError as error:
                    assert re.search(message, str(error)), str(error)
                    assert "\\n" not in str(error), str(error)
                else:
                    raise SystemExit(name)
            try:
                gemlet.load("some/weights-missing")
            except gemlet.ModelFileError as error:
                assert "holds no weights that gemlet reads" in str(error)
            """,
            server.url,
            tmp_path / "home",
        )
    assert set(server.served) == {"config.json"}


def test_without_a_network(tmp_path: Path) -> None:
    """What is there is used; what is not is an error that says why, and at once."""
    with hub(REPOSITORIES) as server:
        run_with_hub(f"import gemlet; gemlet.download('{NAME}')", server.url, tmp_path)
    code = f"""
        import gemlet
        gemlet.load("{NAME}", threads=1).close()
        try:
            gemlet.load("someone/gated")
        except gemlet.HubError as error:
            print(error)
    """
    started = time.monotonic()
    gone = run_with_hub(code, server.url, tmp_path)  # nobody listens there any more
    assert f"someone/gated: is not in the cache, and the hub ({server.url}) cannot be reached" in gone
    offline = run_with_hub(code, server.url, tmp_path, HF_HUB_OFFLINE="1")
    assert "someone/gated: is not in the cache, and HF_HUB_OFFLINE forbids downloading" in offline
    assert time.monotonic() - started < 30


def test_command_line(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        printed = run_with_hub(
            f"""
            from gemlet.cli import main
            assert main(["download", "{NAME}", "--revision", "main"]) == 0
            assert main(["download", "no/such-model"]) == 1
            """,
            server.url,
            tmp_path,
        )
    assert files_in(Path(printed.strip())) == NEEDED


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"google/gemma-3-1b-it: .*pip install 'gemlet\[hub\]'"):
        gemlet.load("google/gemma-3-1b-it")
    assert main(["download", "google/gemma-3-1b-it"]) == 1
    assert "pip install 'gemlet[hub]'" in capsys.readouterr().err


def test_names() -> None:
    for name in ("google/gemma-3-1b-it", "a/b", "some_one/x.y-z", "a/b:c.gguf", "a/b:q4 0/c-1.gguf"):
        assert is_repository(name)
    for name in (
        "",
        "gemma",
        "/a/b",
        "./a/b",
        "../b",
        "a/..",
        "a/b/c",
        "~/a",
        "a/b\n",
        "ä/b",
        "a/b:c",
        "a/b:../c.gguf",
        "a/b:/c.gguf",
        "a/b:c.gguf\n",
        "a/b:*.gguf",
        "a/b:.gguf",
        "a" * 200 + "/b",
    ):
        assert not is_repository(name)
        with pytest.raises(InvalidRequestError, match="expected a model on the hub"):
            gemlet.download(name)
    with pytest.raises(InvalidRequestError, match="revision is ''"):
        gemlet.download("a/b", revision="")
    with pytest.raises(InvalidRequestError, match="expected an access token"):
        gemlet.download("a/b", token=3)  # type: ignore[arg-type]


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "google" / "gemma", CONFIGS["gemma"])
    monkeypatch.chdir(tmp_path)
    gemlet.load("google/gemma", threads=1).close()
    with pytest.raises(
        ModelFileError, match=r"no such file or folder; expected .*, or the name of a model on the hub"
    ):
        gemlet.load("./google/other")
