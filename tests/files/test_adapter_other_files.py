"""Adapters of mlx-lm and of llama.cpp that are damaged or of a kind that gemlet does not compute."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.adapters.opening import open_adapter
from gemlet.config import parse_config
from support.adapter_forms import gguf_adapter, gguf_tensors, mlx_files, write_mlx
from support.adapters import base_of
from support.tokenizer_files import F32, STRING, U32, gguf_entry

CONFIG = parse_config(json.loads((base_of("gemma3-plain") / "config.json").read_text()), where="config.json")


def refuse(path: Path, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        open_adapter(path, CONFIG)
    for word in words:
        assert word in str(caught.value), caught.value


# --- mlx-lm -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"fine_tune_type": "full"}, "mlx_lm.fuse"),
        ({"fine_tune_type": 5}, "fine_tune_type"),
        ({"lora_parameters": None}, "lora_parameters.rank"),
        ({"lora_parameters": {"rank": 4}}, "lora_parameters.scale"),
        ({"lora_parameters": {"rank": 4, "scale": 2.0, "alpha": 16}}, "lora_parameters.alpha"),
        ({"lora_parameters": {"rank": 4, "scale": 2.0, "rslora": True}}, "rslora"),
        ({"lora_parameters": {"rank": 0, "scale": 2.0}}, "lora_parameters.rank"),
        ({"lora_parameters": {"rank": 4, "scale": "2"}}, "lora_parameters.scale"),
        ({"lora_parameters": [4]}, "lora_parameters"),
    ],
)
def test_every_setting_of_mlx_is_followed_or_named(
    changes: Mapping[str, Any], word: str, tmp_path: Path
) -> None:
    described, tensors = mlx_files("gemma3-plain")
    refuse(write_mlx(tmp_path / "a", {**described, **changes}, tensors), gemlet.ConfigError, word)


def test_nulls_of_mlx_count_as_missing(tmp_path: Path) -> None:
    described, tensors = mlx_files("gemma3-plain")
    nulls = {"fine_tune_type": None, "use_dora": None, "model": None}
    parameters = described["lora_parameters"] | {"alpha": None, "keys": None}
    path = write_mlx(tmp_path / "a", {**described, **nulls, "lora_parameters": parameters}, tensors)
    with open_adapter(path, CONFIG) as opened:
        assert len(opened.terms.low_rank) == len(tensors) // 2


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_c",
        "model.layers.0.self_attn.q_proj.m",
        "model.layers.9.self_attn.q_proj.lora_a",
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a",
        "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.lora_a",
    ],
)
def test_every_tensor_of_mlx_is_used_or_named(name: str, tmp_path: Path) -> None:
    described, tensors = mlx_files("gemma3-plain")
    tensors[name] = np.ones((64, 4), np.float32)
    refuse(write_mlx(tmp_path / "a", described, tensors), gemlet.TensorError, name.rpartition(".")[0])


def test_shapes_of_mlx_must_fit(tmp_path: Path) -> None:
    described, tensors = mlx_files("gemma3-plain")
    name = "model.layers.1.mlp.up_proj.lora_b"
    tensors[name] = tensors[name].T.copy()
    refuse(write_mlx(tmp_path / "a", described, tensors), gemlet.TensorError, name, "[4, 52]")
    del tensors[name]
    refuse(write_mlx(tmp_path / "b", described, tensors), gemlet.TensorError, name, "missing")
    refuse(write_mlx(tmp_path / "c", described, {}), gemlet.TensorError, "has no tensors")


def test_errors_about_old_forms_say_what_to_do(tmp_path: Path) -> None:
    path = write_mlx(tmp_path / "a", *mlx_files("gemma3-plain"))
    (path / "adapters.safetensors").rename(path / "adapters.npz")
    with pytest.raises(gemlet.GemletError):
        open_adapter(path, CONFIG)


# --- llama.cpp ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "entry", "error"),
    [
        ("general.type", None, gemlet.ModelFileError),
        ("general.type", gguf_entry("general.type", STRING, "model"), gemlet.ModelFileError),
        ("adapter.type", gguf_entry("adapter.type", STRING, "control_vector"), gemlet.ConfigError),
        ("adapter.type", None, gemlet.ConfigError),
        ("adapter.lora.alpha", None, gemlet.ModelFileError),
        ("adapter.lora.alpha", gguf_entry("adapter.lora.alpha", STRING, "8"), gemlet.ModelFileError),
        ("adapter.lora.alpha", gguf_entry("adapter.lora.alpha", F32, float("nan")), gemlet.ConfigError),
        (
            "adapter.alora.invocation_tokens",
            gguf_entry("adapter.alora.invocation_tokens", U32, 5),
            gemlet.ConfigError,
        ),
    ],
)
def test_every_setting_of_a_gguf_adapter_is_followed_or_named(
    key: str, entry: bytes | None, error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_adapter(gguf_tensors("gemma3-plain"), 8.0, {key: entry}))
    refuse(path, error, "a.gguf", "" if key == "general.type" else key)


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q.weight.lora_c",
        "blk.9.attn_q.weight.lora_a",
        "blk.0.attn_norm.weight.lora_a",
        "token_embd.weight.lora_a",
        "output.weight.lora_a",
        "blk.0.attn_q.weight",
    ],
)
def test_every_tensor_of_a_gguf_adapter_is_used_or_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = {**gguf_tensors("gemma3-plain"), name: np.ones((4, 40), np.float32)}
    path.write_bytes(gguf_adapter(tensors, 8.0))
    refuse(path, gemlet.TensorError, repr(name))


def test_shapes_of_a_gguf_adapter_must_fit(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.gguf", gguf_tensors("gemma3-plain")
    name = "blk.1.ffn_up.weight.lora_b"
    tensors[name] = tensors[name].T.copy()
    path.write_bytes(gguf_adapter(tensors, 8.0))
    refuse(path, gemlet.TensorError, "blk.1.ffn_up.weight.lora_a", "[52, rank]")
    del tensors[name]
    path.write_bytes(gguf_adapter(tensors, 8.0))
    refuse(path, gemlet.TensorError, name, "missing")
    path.write_bytes(gguf_adapter({}, 8.0))
    refuse(path, gemlet.TensorError, "has no tensors of an adapter")


def test_a_gguf_adapter_cut_short_is_refused(tmp_path: Path) -> None:
    whole, path = gguf_adapter(gguf_tensors("gemma3-plain"), 8.0), tmp_path / "a.gguf"
    for length in [*range(0, 3000, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(gemlet.GemletError):
            open_adapter(path, CONFIG)
    for place in range(0, 3000, 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with contextlib.suppress(gemlet.GemletError):
            open_adapter(path, CONFIG).close()


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_adapter(gguf_tensors("gemma3-plain"), 8.0))
    with pytest.raises(gemlet.ModelFileError, match=r"is an adapter; .* load_adapter\(\)"):
        gemlet.load(path)


def test_a_folder_without_an_adapter_says_what_is_expected(tmp_path: Path) -> None:
    refuse(tmp_path, gemlet.ModelFileError, "adapter_config.json", "GGUF")
    (tmp_path / "a.txt").write_text("nothing")
    refuse(tmp_path / "a.txt", gemlet.ModelFileError, "not a folder")
