"""The arguments of load, inspect and convert: names of other tools, None, a home directory. A wrong
argument is refused before gemlet fetches or reads a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.loading.options import LoadOptions
from gemlet.sources.tokenizers import read_override
from gemlet.weights.formats import PRESETS
from golden.folders import HERE
from support.processes import environment_of


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("float32", "f32"),
        ("fp32", "f32"),
        ("int8", "q8"),
        ("Q8_0", "q8"),
        ("q8_0", "q8"),
        ("int4", "q4"),
        ("Q4_0", "q4"),
        ("Auto", "auto"),
        (None, "auto"),
    ],
)
def test_formats_are_known_by_the_names_of_other_tools(name: Any, weights: str) -> None:
    assert LoadOptions(weights=name).weights == weights
    if weights != "auto":
        assert LoadOptions(embedding=name).embedding == weights
        assert gemlet.inspect(weights=name).weights == weights
        with gemlet.load(weights=name, threads=1) as model:
            assert model.weights == weights


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("float16", "bf16"),
        ("fp16", "bf16"),
        ("F16", "bf16"),
        ("Q4_K_M", "q4k"),
        ("q5_1", "q5"),
        ("nf4", "q4"),
        ("8bit", "q8"),
        ("q7", None),
    ],
)
def test_an_unknown_format_is_refused_with_a_suggestion(name: str, meant: str | None) -> None:
    with pytest.raises(gemlet.InvalidRequestError) as caught:
        gemlet.load(weights=name)
    choices = ", ".join(map(repr, ("auto", *PRESETS)))
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert str(caught.value) == f"weights is {name!r}; expected one of {choices}{hint}"


@pytest.mark.parametrize("device", ["auto", "cpu", None])
def test_the_available_device_is_used(device: Any) -> None:
    with gemlet.load(device=device, threads=1) as model:
        assert model.generate("The door", max_tokens=1).completion_tokens == 1


@pytest.mark.parametrize("device", ["cuda:0", "gpu", "mps"])
def test_devices_of_other_tools(device: str) -> None:
    with pytest.raises(gemlet.UnsupportedError) as caught:
        gemlet.load(device=device)
    assert (
        str(caught.value) == f"device is {device!r}, but this gemlet computes on CPUs only; use device='cpu'"
    )


def test_none_counts_as_not_given() -> None:
    names = [name for name in LoadOptions.__dataclass_fields__ if name != "own_formats"]
    assert LoadOptions(**dict.fromkeys(names)) == LoadOptions()
    with gemlet.load(**dict.fromkeys(name for name in names), token=None, revision=None) as model:
        assert model.weights == "bf16"


WRONG: list[dict[str, Any]] = [
    {"weights": "q7"},
    {"weights": 4},
    {"embedding": "f64"},
    {"embedding": "auto"},
    {"kv_cache": "q8"},
    {"kv_cache": ["int8"]},
    {"max_context": 0},
    {"max_context": "4k"},
    {"max_context": 2.5},
    {"max_memory": "lots"},
    {"threads": 0},
    {"threads": "4"},
    {"device": "mps"},
    {"matformer": "E3B"},
    {"matformer": [1.5]},
    {"matformer": {"width": 3}},
    {"matformer": {"skip_layers": "20"}},
    {"embedding_on_disk": "yes"},
    {"cache": 1},
    {"progress": 5},
    {"revision": 3},
    {"n_ctx": 4096},
    {"torch_dtype": "bfloat16"},
]
SMALL = {"weights", "embedding", "matformer", "threads", "progress", "revision", "n_ctx", "torch_dtype"}


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_argument_is_refused_before_anything_is_fetched(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fetch(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("this would have asked the hub")

    monkeypatch.setattr("gemlet.sources.hub.choose", fetch)
    monkeypatch.setattr("gemlet.sources.hub_headers.outline", fetch)
    name = next(iter(wrong))
    functions: list[Any] = [gemlet.load]
    if name not in ("threads", "device", "cache", "progress"):
        functions.append(gemlet.inspect)
    if name in SMALL:
        functions.append(lambda source, **options: gemlet.convert(source, tmp_path / "new", **options))
    for function in functions:
        with pytest.raises((gemlet.InvalidRequestError, gemlet.UnsupportedError), match=name) as caught:
            function("google/gemma-3-1b-it", **wrong)
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert len(frames) <= 3


@pytest.mark.parametrize(
    ("name", "meant"), [("n_ctx", "max_context"), ("dtype", "weights"), ("torch_dtype", "weights"),
                        ("n_threads", "threads"), ("max_contxt", "max_context"), ("device_map", "device")],
)  # fmt: skip
def test_another_name_of_an_argument_is_answered_with_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(
        gemlet.InvalidRequestError, match=rf"load\(\) has no argument.*did you mean {meant}\?"
    ):
        gemlet.load(**{name: 1})


def test_a_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(HERE / "gemma3-270m", tmp_path / "model")
    shutil.copytree(HERE / "adapters" / "gemma3-plain", tmp_path / "lora")
    for source in ("~/model", Path("~/model"), "~/model/model.safetensors"):
        with gemlet.load(source, threads=1, weights="f32") as model:
            assert model.load_adapter("~/lora").name == "lora"
    gemlet.inspect("~/model")
    gemlet.convert("~/model", "~/packed", merge_adapter="~/lora", weights="q8")
    assert sorted(os.listdir(tmp_path)) == ["lora", "model", "packed"]
    demo = Path(gemlet.__file__).parent / "demo"
    shutil.copytree(demo, tmp_path / "demo")
    assert gemlet.Tokenizer.from_file("~/demo").vocab_size == gemlet.Tokenizer.from_file(demo).vocab_size
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert read_override("~/own.jinja") == "{{ messages }}"
    with pytest.raises(gemlet.ModelFileError, match="no such file or folder"):
        gemlet.load("~/nothing")


@pytest.mark.extra("hub")
def test_without_network_the_traceback_is_short(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import gemlet\ngemlet.load('google/gemma-3-1b-it')"],
        capture_output=True,
        text=True,
        env=environment_of() | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
    )
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("gemlet.errors.HubError: google/gemma-3-1b-it: ")
    assert sum(line.startswith("  File ") for line in lines) <= 3
    assert len(lines) < 25
