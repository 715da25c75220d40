"""Adapters by their names on the hub. A server on this machine stands in for the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import gemlet
from golden.folders import TOLERANCE
from support.adapter_forms import gguf_adapter, gguf_tensors, mlx_files
from support.adapters import ADAPTERS, base_of, read_golden
from support.feeding import difference
from support.hub_server import hub, settings
from support.processes import run_program
from support.programs import hub as programs
from support.tiny_models import safetensors_bytes

NAME = "gemma3-plain"
GGUF = gguf_adapter(gguf_tensors(NAME), 8.0)
PEFT = {
    name: (ADAPTERS / NAME / name).read_bytes()
    for name in ("adapter_config.json", "adapter_model.safetensors")
}
REPOSITORIES = {
    "some/lora": {
        **PEFT,
        "checkpoint-5/adapter_model.safetensors": b"not needed",
        "optimizer.pt": b"not needed",
    },
    "some/mlx": {
        "adapter_config.json": json.dumps(mlx_files(NAME)[0]).encode(),
        "adapters.safetensors": safetensors_bytes(mlx_files(NAME)[1]),
    },
    "some/gguf": {"lora-f32.gguf": GGUF, "README.md": b"not needed"},
    "some/ggufs": {"lora-F16.gguf": GGUF, "lora-F32.gguf": GGUF},
    "some/model": {"config.json": b"{}", "model.safetensors": b""},
}


@pytest.mark.extra("hub")
def test_adapters_by_their_names(tmp_path: Path) -> None:
    ids, golden = read_golden(NAME)
    good = ["some/lora", "some/mlx", "some/gguf", "some/ggufs:F16", "hf.co/some/ggufs:lora-F32.gguf"]
    wrong = {
        "some/ggufs": "InvalidRequestError: some/ggufs: is not an adapter: it has no adapter_config.json;",
        "some/ggufs:lora-Q8_0.gguf": "no file lora-Q8_0.gguf",
        "some/model": "InvalidRequestError: some/model: is not an adapter: it has no adapter_config.json",
        "some/nothing": "HubError: some/nothing",
    }
    with hub(REPOSITORIES) as server:
        found = run_program(
            programs.load_adapters,
            str(base_of(NAME)),
            ids,
            [*good, *wrong],
            environment=settings(server.url, tmp_path / "home"),
        )
    for name in good:
        np.testing.assert_array_equal(found[name], found["some/lora"], err_msg=name)
    assert difference(found["some/lora"], golden) < TOLERANCE
    assert difference(found["merged"], golden) < TOLERANCE
    assert found["name"] == "lora"
    for name, words in wrong.items():
        assert words in found[name], found[name]
    needed = [*PEFT, "adapter_config.json", "adapters.safetensors", "lora-f32.gguf", "lora-F16.gguf"]
    assert sorted(server.served) == sorted(needed)  # each file is fetched once, and no other file


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with gemlet.load(threads=1) as model, pytest.raises(gemlet.UnsupportedError, match="hub"):
        model.load_adapter("some/lora")
