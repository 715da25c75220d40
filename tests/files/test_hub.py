"""Models by their names on the hub. A server on this machine stands in for the hub."""

from __future__ import annotations

import json
import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.sources.hub_names import is_repository
from support.gguf_models import convert_tensors, metadata, typed, write_gguf
from support.hub_server import COMMIT, TOKEN, hub, settings
from support.processes import run_program
from support.programs import hub as programs
from support.tiny_models import CONFIGS, safetensors_bytes, weights_of, write_folder, write_shards
from support.tokenizer_files import STRING, gguf_entry

NAME = "someone/gemma-tiny"
WEIGHTS = safetensors_bytes(weights_of(CONFIGS["gemma"]))
FILES = {
    "config.json": json.dumps(CONFIGS["gemma"]).encode(),
    "generation_config.json": b'{"top_k": 7}',
    "model.safetensors": WEIGHTS,
    "preprocessor_config.json": b'{"do_resize": true}',
    "processor_config.json": b'{"image_processor": {}}',
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
TOWERS = "b-mmproj-Q8_0.gguf"


def repository(*names: str) -> dict[str, bytes]:
    """Short files that begin like GGUF. No two have the same contents."""
    return {name: b"GGUF" + bytes(100) + name.encode() for name in names}


REPOSITORIES = {
    NAME: FILES,
    "someone/one-gguf": repository("gemma.gguf", "mmproj.gguf", "config.json", "imatrix.gguf"),
    "someone/split-gguf": repository(*PARTS, "README.md"),
    "someone/many-gguf": repository(
        *(
            "b-Q4_0.gguf",
            "b-Q8_0.gguf",
            "mmproj-f16.gguf",
            TOWERS,
            "mtp-b-Q8_0.gguf",
            "README.md",
        ),
        *PARTS,
    ),
    "someone/gated": FILES,
    "someone/private": FILES,
    "some/tokenizers": dict.fromkeys(
        ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tokenizer.txt"), b"{}"
    ),
    "some/weights-missing": {"config.json": FILES["config.json"]},
}
NEEDED = [
    *("2_Dense/config.json", "2_Dense/model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors"),
    *("preprocessor_config.json", "processor_config.json"),
]


def files_in(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file())


@pytest.mark.extra("hub")
def test_a_model_by_its_name(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        environment = settings(server.url, tmp_path / "home")
        source, logits = run_program(programs.load_and_download, NAME, environment=environment)
    assert sorted(server.served) == sorted(NEEDED * 2)  # one fetch of each file per model
    folder = Path(source)
    assert folder.parts[-2:] == ("snapshots", COMMIT)
    assert files_in(folder) == NEEDED
    with gemlet.load(write_folder(tmp_path / "same", CONFIGS["gemma"]), threads=1) as model:
        np.testing.assert_array_equal(model.logits([1, 2, 3]), logits)


@pytest.mark.extra("hub")
@pytest.mark.slow
def test_the_bars_of_the_hub(tmp_path: Path) -> None:
    """In this test, None stands for a function."""
    with hub(REPOSITORIES) as server:
        for progress in (True, False, None):
            environment = settings(server.url, tmp_path / str(progress))
            shown = run_program(programs.bars, NAME, progress, environment=environment)
            assert ("Fetching" in shown or "Download" in shown) is (progress is True), shown
            assert bool(shown) is (progress is True)


def repository_of(name: str) -> str:
    owner, rest = (
        name.split("huggingface.co/")[-1].removeprefix("hf.co/").removeprefix("hf://").split("/")[:2]
    )
    return f"{owner}/{rest.partition(':')[0]}"


@pytest.mark.extra("hub")
def test_gguf_models(tmp_path: Path) -> None:
    """The only model of a repository, or the one in the name. gemlet fetches all parts of the model and
    its towers, and no other file."""
    cases = {
        "someone/one-gguf": ["gemma.gguf", "mmproj.gguf"],
        "someone/split-gguf": PARTS,
        "someone/many-gguf:b-Q8_0.gguf": ["b-Q8_0.gguf", TOWERS],
        f"someone/many-gguf:{PARTS[1]}": PARTS[::-1],
        f"{NAME}:gemma.gguf": ["gemma.gguf"],
        "someone/many-gguf:Q8_0": ["b-Q8_0.gguf", TOWERS],
        "someone/many-gguf:q4_0": ["b-Q4_0.gguf", TOWERS],
        "hf.co/someone/many-gguf:Q8_0": ["b-Q8_0.gguf", TOWERS],
        "https://huggingface.co/someone/many-gguf/blob/main/b-Q8_0.gguf": ["b-Q8_0.gguf", TOWERS],
        "https://huggingface.co/someone/many-gguf/resolve/main/b-Q8_0.gguf?download=true": [
            *("b-Q8_0.gguf", TOWERS)
        ],
        "https://huggingface.co/someone/one-gguf/tree/main": ["gemma.gguf", "mmproj.gguf"],
        "hf://someone/one-gguf": ["gemma.gguf", "mmproj.gguf"],
    }
    wrong = {
        "someone/many-gguf": "name one, as in someone/many-gguf:b-Q4_0.gguf. They are b-Q4_0.gguf, b-Q8",
        "someone/many-gguf:b-Q5_0.gguf": "has no file b-Q5_0.gguf; its GGUF models are b-Q4_0.gguf, ",
        "someone/many-gguf:Q5_K_M": "has no GGUF model called Q5_K_M; name one of b-Q4_0.gguf, b-Q8_0.gguf",
        "someone/many-gguf:b": "has 2 GGUF models called b; name one of b-Q4_0.gguf, b-Q8_0.gguf",
        "some/weights-missing:a.gguf": "has no file a.gguf; its GGUF models are none",
    }
    with hub(REPOSITORIES) as server:
        environment = settings(server.url, tmp_path)
        names = ["someone/many-gguf", "someone/many-gguf:Q8_0", "someone/one-gguf"]
        drafters = run_program(programs.drafters, names, environment=environment)
        assert drafters == ["mtp-b-Q8_0.gguf", "mtp-b-Q8_0.gguf", "gemma.gguf"]
        paths = run_program(programs.download, list(cases), environment=environment)
        files = [(repository_of(name), file) for name, files in cases.items() for file in files]
        assert sorted(server.served) == sorted(
            file for _, file in set(files)
        )  # each file is fetched once, and later read from the cache
        requests = [(name, None, None) for name in ("someone/many-gguf:b-Q8_0.gguf", *wrong)]
        (broken, *errors) = run_program(programs.load_errors, requests, environment=environment)
    assert broken[0] == "ModelFileError"
    assert "b-Q8_0.gguf: GGUF version 0" in broken[1]
    for (kind, said), message in zip(errors, wrong.values(), strict=True):
        assert kind == "InvalidRequestError"
        assert message in said
        assert "mmproj" not in said
        assert "00002-of" not in said
    for path, files in zip(paths, cases.values(), strict=True):
        assert path.endswith(f"{COMMIT}/{files[0]}")
    offline = settings(server.url, tmp_path, HF_HUB_OFFLINE="1")
    assert run_program(programs.download, list(cases), environment=offline) == paths


@pytest.mark.extra("hub")
def test_errors_of_the_hub_say_what_to_do(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        cases = {
            (
                "no/such-model",
                None,
                None,
            ): "no/such-model: there is no such folder, and the hub has no such model",
            (
                "someone/private",
                None,
                None,
            ): "the hub has no such model, or it is private; check the name, or",
            (
                "someone/gated",
                None,
                None,
            ): f"licence has to be accepted first; accept it at {server.url}/someone/gated, .*pass token=",
            ("someone/gated", None, "hf_wrong"): "licence has to be accepted first",
            (NAME, "v9", None): "gemma-tiny: has no revision 'v9'; expected a branch",
            ("someone/down", None, None): r"someone/down: .*cannot be reached|answered with HTTP 500",
            ("someone/garbage", None, None): "someone/garbage: ",
        }
        errors = run_program(
            programs.load_errors,
            [*cases, ("some/weights-missing", None, None)],
            environment=settings(server.url, tmp_path / "home"),
        )
    for (kind, said), message in zip(errors, cases.values(), strict=False):
        assert kind == "HubError"
        assert re.search(message, said), said
        assert "\n" not in said
    assert errors[-1][0] == "ModelFileError"
    assert "has no weights that gemlet reads" in errors[-1][1]
    assert set(server.served) == {"config.json"}


def large(family: str, **changes: object) -> dict[str, Any]:
    """A configuration with an embedding of several megabytes."""
    return CONFIGS[family] | {"vocab_size": 40_000, **changes}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def inspect_here(path: Path) -> dict[str, Any]:
    (described,) = programs.inspect_all({str(path): {}})
    return described


@pytest.mark.extra("hub")
def test_inspecting_fetches_no_weights(tmp_path: Path) -> None:
    """Inspecting reads a small part of the files, keeps nothing, and gives the same result as for the whole
    model."""
    config = large("gemma")
    single = write_folder(tmp_path / "single", config)
    tensors = weights_of(config)
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    shards = {file: {name: tensors[name] for name in list(tensors)[i::2]} for i, file in enumerate(names)}
    sharded = write_shards(tmp_path / "sharded", shards)
    (sharded / "config.json").write_text(json.dumps(config))
    gguf = tmp_path / "gemma4.gguf"
    config = large("gemma4_text", hidden_size_per_layer_input=0, vocab_size_per_layer_input=0)
    entries = [gguf_entry("general.description", STRING, "x" * 1_500_000), *metadata(config)]
    write_gguf(gguf, entries, typed(convert_tensors(config, weights_of(config)), "Q8_0"))
    repositories = {
        "some/single-lfs": contents(single),
        "some/sharded-private": contents(sharded),
        "some/gguf": {"gemma4.gguf": gguf.read_bytes()},
    }
    cases = {
        "some/single-lfs": (single, {"revision": COMMIT, "token": TOKEN}, 1 << 17),
        "some/sharded-private": (sharded, {"token": TOKEN}, 1 << 18),
        "some/gguf": (gguf, {}, 1 << 21),
    }
    with hub(repositories) as server:
        described = run_program(
            programs.inspect_all,
            {name: arguments for name, (_, arguments, _) in cases.items()},
            environment=settings(server.url, tmp_path / "home", TMPDIR=str(tmp_path)),
        )
    for found, (name, (path, _, most)) in zip(described, cases.items(), strict=True):
        assert found == inspect_here(path)
        large_files = [file for file in repositories[name] if not file.endswith(".json")]
        sent = sum(server.sent[f"{name}/{file}"] for file in large_files)
        assert 0 < sent < most + 2000 < sum(len(repositories[name][file]) for file in large_files) / 2
    cached = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in cached) < 100_000
    offline = settings(server.url, tmp_path / "home", HF_HUB_OFFLINE="1")
    _, said = run_program(programs.load_error, "some/single-lfs", environment=offline)
    assert said.startswith("some/single-lfs: is not in the cache, and HF_HUB_OFFLINE forbids")
    assert list(tmp_path.glob("gemlet-*")) == []


@pytest.mark.extra("hub")
def test_inspecting_what_is_in_the_cache(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma"])
    with hub({"some/model": contents(source)}) as server:
        environment = settings(server.url, tmp_path)
        online = run_program(programs.download_and_inspect, "some/model", environment=environment)
        assert sorted(server.served) == ["config.json", "model.safetensors"]
        assert server.sent["some/model/model.safetensors"] == len(contents(source)["model.safetensors"])
    assert online == [inspect_here(source)]
    offline = settings(server.url, tmp_path, HF_HUB_OFFLINE="1")
    assert run_program(programs.inspect_all, {"some/model": {}}, environment=offline) == online


@pytest.mark.extra("hub")
def test_inspecting_a_broken_model_or_server(tmp_path: Path) -> None:
    """An error names the fault. gemlet reads only the bytes that it asked for, and uses little memory."""
    files = contents(write_folder(tmp_path / "source", large("gemma")))
    weights, config = files["model.safetensors"], files["config.json"]
    whole = {"config.json": config, "model.safetensors": weights}
    huge = {"config.json": config, "model.safetensors": (1 << 40).to_bytes(8, "little") + weights[8:]}
    long = (90_000_000).to_bytes(8, "little") + weights[8:]
    array = gguf_entry("x", STRING, "y" * 100) + bytes(3 << 20)
    gguf = b"GGUF" + struct.pack("<IQQ", 3, 0, 5) + array
    cases = {
        "a/rangeless": (
            whole,
            r"a/rangeless/model\.safetensors: the server does not send parts of files .HTTP 200",
        ),
        "a/endless": (whole, "asked for 131072 bytes, but the server sent more"),
        "a/short": (whole, "asked for 131072 bytes, but the server sent 131071"),
        "a/moving": ({"a.gguf": gguf}, r"a/moving/a\.gguf: has \d+ bytes, but had \d+ before"),
        "a/huge": (huge, r"a/huge/model\.safetensors: says that its header has 1099511627776 bytes"),
        "a/long": (
            {"config.json": config, "model.safetensors": long},
            r"a/long/model\.safetensors: says that its",
        ),
        "a/gguf": ({"a.gguf": gguf}, r"a/gguf/a\.gguf: the metadata key  appears twice"),
        "a/unending": (
            {"a.gguf": gguf[:24] + gguf_entry("x", STRING, "y" * (3 << 20))},
            "a/unending/a.gguf: the metadata has more than 2097152 bytes",
        ),
        "a/other": ({"a.gguf": bytes(1 << 23)}, "a/other/a.gguf: is not a GGUF file"),
        "a/config": ({"config.json": b"{}"}, r"a/config/config\.json: "),
        "a/empty": (
            {"config.json": config, "model.safetensors": b""},
            "answered with HTTP 416|not send parts",
        ),
    }
    errors = dict.fromkeys(("a/huge", "a/long", "a/gguf", "a/other"), "ModelFileError")
    errors["a/config"] = "ConfigError"
    with hub({name: files for name, (files, _) in cases.items()}) as server:
        found = run_program(
            programs.inspect_errors,
            ["no/such", *cases],
            1 << 21,
            environment=settings(server.url, tmp_path, TMPDIR=str(tmp_path)),
        )
        sent = server.sent
    for (kind, said), (name, (_, message)) in zip(found[1:], cases.items(), strict=True):
        assert re.search(message, said), (name, said)
        assert kind == errors.get(name, "HubError"), (name, said)
        assert str(tmp_path) not in said
    assert sent["a/huge/model.safetensors"] == sent["a/long/model.safetensors"] == 1 << 17
    assert sent["a/other/a.gguf"] == 1 << 21
    assert list(tmp_path.glob("gemlet-*")) == []


@pytest.mark.extra("hub")
def test_a_path_out_of_the_repository_writes_no_file(tmp_path: Path) -> None:
    """Such a path may raise an error or not, but no file is written outside."""
    folders = tmp_path / "deep" / "down"
    folders.mkdir(parents=True)
    files = {"config.json": FILES["config.json"], "model.safetensors": WEIGHTS}
    files |= {f"1/{'../' * up}model.safetensors": WEIGHTS for up in range(2, 5)}
    with hub({"a/b": files, "a/c": {f"../../c{up}.gguf": b"GGUF" for up in range(2)}}) as server:
        environment = settings(server.url, folders / "home", TMPDIR=str(folders))
        run_program(programs.inspect_and_load, ["a/b", "a/c"], environment=environment)
    allowed = re.compile("deep|deep/down|deep/down/home(/.*)?")
    assert [
        path for path in tmp_path.rglob("*") if not allowed.fullmatch(str(path.relative_to(tmp_path)))
    ] == []
    found = [path for path in tmp_path.rglob("*.safetensors") if "snapshots" not in path.parts]
    assert found == []


@pytest.mark.extra("hub")
def test_without_a_network(tmp_path: Path) -> None:
    """A model in the cache is used. If the cache lacks the model, an error says why at once."""
    started = time.monotonic()
    with hub(REPOSITORIES) as server:
        online = settings(server.url, tmp_path)
        run_program(programs.download, [NAME], environment=online)
    with_network = time.monotonic() - started
    started = time.monotonic()
    arguments = (NAME, "someone/gated")
    kind, gone = run_program(programs.load_with_and_without, *arguments, environment=online)
    assert kind == "HubError"  # the server has stopped
    assert f"someone/gated: is not in the cache, and the hub ({server.url}) cannot be reached" in gone
    offline = settings(server.url, tmp_path, HF_HUB_OFFLINE="1")
    _, said = run_program(programs.load_with_and_without, *arguments, environment=offline)
    assert "someone/gated: is not in the cache, and HF_HUB_OFFLINE forbids downloading" in said
    assert time.monotonic() - started < 20 + 5 * with_network


@pytest.mark.extra("hub")
def test_command_line(tmp_path: Path) -> None:
    with hub(REPOSITORIES) as server:
        environment = settings(server.url, tmp_path)
        printed = run_program(programs.run_commands, NAME, tmp_path / "x", environment=environment)
    folder, tokenizers, *described = printed.splitlines()
    assert files_in(Path(folder)) == NEEDED
    both = ["tokenizer.json", "tokenizer.model"]  # only the first may have added tokens
    assert files_in(Path(tokenizers)) == ["config.json", *both, "tokenizer_config.json"]
    assert described[0] == "model      someone/private"
    assert server.served.count("model.safetensors") == 2


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"google/gemma-3-1b-it: .*pip install '\.\[hub\]'"):
        gemlet.load("google/gemma-3-1b-it")
    assert main(["download", "google/gemma-3-1b-it"]) == 1
    assert "pip install '.[hub]'" in capsys.readouterr().err


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
        "a/b:c d",
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


def test_a_folder_takes_precedence_over_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "google" / "gemma", CONFIGS["gemma"])
    monkeypatch.chdir(tmp_path)
    gemlet.load("google/gemma", threads=1).close()
    with pytest.raises(
        ModelFileError, match=r"no such file or folder; expected .*, or the name of a model on the hub"
    ):
        gemlet.load("./google/other")
