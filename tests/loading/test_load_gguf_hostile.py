"""GGUF models that are refused. Each gets a typed error that names the key, the tensor or the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gemlet
from gemlet.checkpoint.gguf_format import read_gguf
from gemlet.errors import ConfigError, GemletError, ModelFileError, TensorError
from gemlet.sources.opening import open_model_files
from support.gguf_cases import split, tensors_of
from support.gguf_models import Typed, convert_tensors, metadata, typed, write_gguf
from support.tiny_models import CONFIGS, weights_of
from support.tokenizer_files import ARRAY, BOOL, F32, I32, STRING, U32, gguf_entry

CONFIG = CONFIGS["gemma3_text"]
COUNT = CONFIG["num_hidden_layers"]
Change = tuple[int, Any] | None


def write(folder: Path, family: str = "gemma3_text", tensors: Typed | None = None, **changes: Change) -> Path:
    found = tensors_of(family) if tensors is None else tensors
    return write_gguf(folder / "model.gguf", metadata(CONFIGS[family], **changes), found)


def refused(path: Path, error: type[GemletError], *words: str) -> None:
    with pytest.raises(error) as caught:
        gemlet.load(path, threads=1)
    for word in (str(path.parent), *words):
        assert word in str(caught.value)


# --- Metadata -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("llama", "'llama'"),
        ("clip", "images"),
        ("", "''"),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, words: str) -> None:
    entries = [gguf_entry("general.architecture", STRING, architecture)]
    refused(
        write_gguf(tmp_path / "m.gguf", entries, {}), ConfigError, "general.architecture", words, "gemma3n"
    )


def test_an_importance_matrix(tmp_path: Path) -> None:
    entries = [gguf_entry("general.type", STRING, "imatrix")]
    refused(write_gguf(tmp_path / "m.gguf", entries, {}), ModelFileError, "importance matrix", "model's file")


def test_a_file_without_an_architecture_is_refused(tmp_path: Path) -> None:
    refused(write_gguf(tmp_path / "m.gguf", [], {}), ModelFileError, "general.architecture is missing")


@pytest.mark.parametrize(
    "key",
    ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"],
)
@pytest.mark.parametrize(
    "value",
    [
        None,
        (U32, 0),
        (10, 1 << 63),
        (U32, 0xFFFFFFFF),
        (I32, -1),
        (F32, 2.0),
        (BOOL, True),
        (STRING, "3"),
        (ARRAY, (U32, [])),
        (ARRAY, (U32, [1, 2])),
        (ARRAY, (STRING, ["3"] * 3)),
        (ARRAY, (ARRAY, [(U32, [3])] * 3)),
    ],
)
def test_wrong_sizes_are_refused(tmp_path: Path, key: str, value: Change) -> None:
    path = write(tmp_path, **{key.replace(".", "__"): value})
    refused(path, ConfigError, f"gemma3.{key}")


NUMBERS: list[tuple[str, str, Change, str]] = [
    ("gemma3_text", "attention.head_count_kv", (U32, 3), "num_key_value_heads"),
    ("gemma3_text", "attention.head_count_kv", (ARRAY, (U32, [2, 2, 1])), "head_count_kv"),
    ("gemma3_text", "attention.key_length", (U32, 31), "attention.value_length"),
    ("gemma3_text", "attention.value_length", (U32, 16), "value_length"),
    ("gemma3_text", "attention.layer_norm_rms_epsilon", (F32, float("nan")), "layer_norm_rms_epsilon"),
    ("gemma3_text", "attention.layer_norm_rms_epsilon", (F32, -1.0), "rms_norm_eps"),
    ("gemma3_text", "attention.scale", (F32, 0.0), "attention.scale"),
    ("gemma2", "attention.sliding_window", (U32, 0), "sliding_window"),
    ("gemma3_text", "attention.sliding_window", (STRING, "8"), "sliding_window"),
    ("gemma3_text", "attention.sliding_window_pattern", (U32, 0), "sliding_window_pattern"),
    ("gemma3_text", "attention.sliding_window_pattern", (ARRAY, (BOOL, [True])), "sliding_window_pattern"),
    ("gemma3_text", "attention.sliding_window_pattern", (ARRAY, (U32, [1, 0, 2])), "sliding_window_pattern"),
    ("gemma3_text", "attention.causal", (BOOL, False), "attention.causal"),
    ("gemma3_text", "attn_logit_softcapping", (F32, 50.0), "attn_logit_softcapping"),
    ("gemma3_text", "final_logit_softcapping", (F32, float("inf")), "final_logit_softcapping"),
    ("gemma3_text", "rope.dimension_count", (U32, 8), "rope.dimension_count"),
    ("gemma3_text", "rope.freq_base", (F32, 0.5), "rope_theta"),
    ("gemma3_text", "rope.scaling.type", (STRING, "yarn"), "rope.scaling.type"),
    ("gemma3_text", "rope.scaling.attn_factor", (F32, 1.5), "rope.scaling.attn_factor"),
    ("gemma3_text", "expert_count", (U32, 4), "expert_count"),
    ("gemma2", "rope.freq_base_swa", (F32, 2e4), "rope.freq_base_swa"),
    ("gemma3n_text", "altup.active_idx", (U32, 1), "altup.active_idx"),
    ("gemma3n_text", "altup.num_inputs", (U32, 1 << 30), "altup_num_inputs"),
    ("gemma3n_text", "attention.shared_kv_layers", (U32, 3), "num_kv_shared_layers"),
    ("gemma3n_text", "activation_sparsity_scale", (ARRAY, (F32, [1.0])), "activation_sparsity_scale"),
    ("gemma3n_text", "activation_sparsity_scale", (ARRAY, (F32, [np.nan] * 3)), "activation_sparsity_scale"),
    ("gemma3n_text", "activation_sparsity_scale", (F32, 1.6), "activation_sparsity_scale"),
    ("gemma3n_text", "embedding_length_per_layer_input", (U32, 0), "hidden_size_per_layer_input"),
    ("gemma4_text", "attention.shared_kv_layers", (I32, -1), "num_kv_shared_layers"),
    ("gemma4_text", "attention.shared_kv_layers", (STRING, "x"), "num_kv_shared_layers"),
    ("gemma4_text", "attention.head_count_kv", (ARRAY, (U32, [2, 2])), "attention.head_count_kv"),
    ("gemma4_text", "attention.head_count_kv", (ARRAY, (U32, [2, 2, 1])), "per_layer_config"),
    ("gemma4_text", "embedding_length_per_layer_input", (U32, 1 << 31), "hidden_size_per_layer_input"),
    ("gemma4_text", "rope.dimension_count_swa", (U32, 8), "rope.dimension_count_swa"),
    ("gemma4_experts", "expert_used_count", (U32, 6), "top_k_experts"),
    ("gemma4_experts", "expert_count", (U32, 1 << 31), "num_experts"),
    ("gemma4_experts", "expert_feed_forward_length", None, "moe_intermediate_size"),
]


ODD_VALUES: list[Change] = [
    None,
    (U32, 0),
    (10, 1 << 63),
    (I32, -1),
    (12, 1e-200),
    (12, float("nan")),
    (STRING, ""),
    (ARRAY, (U32, [])),
    (ARRAY, (U32, [4096] * 3)),
    (ARRAY, (ARRAY, [(U32, [3])] * 3)),
]


@pytest.mark.parametrize(
    ("family", "absent"),
    [(family, "") for family in sorted(CONFIGS)]
    + [(family, "rope.freq_base") for family in sorted(CONFIGS)[::3]],
)
def test_any_value_of_any_key_opens_or_has_a_typed_error(tmp_path: Path, family: str, absent: str) -> None:
    always: dict[str, Change] = {absent.replace(".", "__"): None} if absent else {}
    tensors = tensors_of(family)
    found = read_gguf(write(tmp_path, family, tensors, **always)).metadata
    keys = [key.partition(".")[2] for key in found if not key.startswith("general.")]
    assert len(keys) >= 9
    refusals = 0
    for key in keys:
        for value in ODD_VALUES:
            path = write(tmp_path, family, tensors, **always, **{key.replace(".", "__"): value})
            try:
                with open_model_files(path):
                    pass
            except GemletError:
                refusals += 1
    assert refusals > 5 * len(keys)


@pytest.mark.parametrize(("family", "key", "value", "word"), NUMBERS)
def test_values(tmp_path: Path, family: str, key: str, value: Change, word: str) -> None:
    refused(write(tmp_path, family, **{key.replace(".", "__"): value}), ConfigError, word)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("tokenizer.ggml.eot_token_id", I32, -2),
        ("general.sampling.top_p", F32, 1.5),
        ("general.sampling.temp", F32, float("nan")),
        ("general.sampling.top_k", F32, 1.5),
    ],
)
def test_ids_and_sampling(tmp_path: Path, key: str, kind: int, value: Any) -> None:
    entries = [*metadata(CONFIG), gguf_entry(key, kind, value)]
    word = key if "sampling" in key else "eos_token_id"
    refused(write_gguf(tmp_path / "m.gguf", entries, tensors_of()), ConfigError, word)


def test_a_broken_tokenizer_is_a_typed_error(tmp_path: Path) -> None:
    entries = [*metadata(CONFIG), gguf_entry("tokenizer.ggml.model", STRING, "gpt2")]
    refused(
        write_gguf(tmp_path / "m.gguf", entries, tensors_of()), GemletError, "tokenizer.ggml.model", "gpt2"
    )


# --- Tensors ------------------------------------------------------------------------------------------------


def test_tensors_missing_unexpected_and_misshaped(tmp_path: Path) -> None:
    name = "blk.1.attn_q.weight"
    tensors = tensors_of()
    refused(
        write(tmp_path, tensors={k: v for k, v in tensors.items() if k != name}),
        TensorError,
        f"'{name}' is missing",
    )
    for extra in ("blk.1.attn_q.bias", "rope_freqs.weight", "blk.3.attn_q.weight"):
        changed = tensors | {extra: ("F32", np.ones(16, np.float32))}
        refused(write(tmp_path, tensors=changed), TensorError, f"unexpected tensor '{extra}'")
    for shape in ((64, 128), (128, 32), (128 * 64,), (1, 128, 64)):
        changed = tensors | {name: ("F32", np.ones(shape, np.float32))}
        refused(
            write(tmp_path, tensors=changed), TensorError, f"'{name}' has shape {list(shape)}", "[128, 64]"
        )
    no_table = {k: v for k, v in tensors.items() if k != "token_embd.weight"}
    refused(write(tmp_path, tensors=no_table), TensorError, "'token_embd.weight' is missing")


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ1_S", "TQ2_0", "MXFP4"])
def test_unsupported_types(tmp_path: Path, kind: str) -> None:
    config = CONFIG | {"hidden_size": 256}
    tensors = typed(convert_tensors(config, weights_of(config)), "F32")
    size = {"IQ2_XXS": 66, "IQ1_S": 50, "TQ2_0": 66, "MXFP4": 8 * 17}[kind]
    tensors["blk.0.attn_q.weight"] = (kind, np.zeros((128, size), np.uint8))
    path = write_gguf(tmp_path / "m.gguf", metadata(config), tensors)
    refused(path, TensorError, "'blk.0.attn_q.weight'", kind, "Q4_0")


def test_a_norm_in_integers(tmp_path: Path) -> None:
    tensors = tensors_of() | {"output_norm.weight": ("I8", np.ones(64, np.uint8))}
    refused(write(tmp_path, tensors=tensors), TensorError, "'output_norm.weight'", "I8")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("weights", ["auto", "f32", "q8", "q4"])
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_scales_that_are_not_finite(tmp_path: Path, kind: str, weights: str, bits: int) -> None:
    path = write(tmp_path, tensors=tensors_of(kind=kind))
    with open_model_files(path) as source:
        info = source.checkpoint.tensors["blk.2.ffn_down.weight"]
    data = bytearray(path.read_bytes())
    at = info.begin + 40 * (info.nbytes // 64)  # the scale of row 40's first block
    data[at : at + 2] = struct.pack("<H", bits)
    path.write_bytes(data)
    with pytest.raises(TensorError, match=r"model\.gguf: tensor 'blk\.2\.ffn_down\.weight'.* NaN, infinity"):
        gemlet.load(path, threads=1, weights=weights)


def test_a_row_of_the_per_layer_table_that_is_not_finite(tmp_path: Path) -> None:
    config = CONFIGS["gemma4_text"] | {"hidden_size_per_layer_input": 32}
    tensors = typed(convert_tensors(config, weights_of(config)), "Q8_0")
    path = write_gguf(tmp_path / "m.gguf", metadata(config), tensors)
    with open_model_files(path) as source:
        info = source.checkpoint.tensors["per_layer_token_embd.weight"]
    data = bytearray(path.read_bytes())
    at = info.begin + 5 * (info.nbytes // 96)
    data[at : at + 2] = b"\xff\x7f"
    path.write_bytes(data)
    with gemlet.load(path, threads=1) as model:
        assert np.isfinite(model.logits([2, 4, 6])).all()
        with pytest.raises(TensorError, match=r"row 5 .*NaN"):
            model.logits([2, 5])


@pytest.mark.parametrize(
    "freqs",
    [
        np.ones(23, np.float32),
        np.full(24, 2.0, np.float32),
        np.array([1.0] * 6 + [1e30] * 17 + [1.0], np.float32),
        np.array([1.0] * 6 + [np.nan] * 18, np.float32),
        np.ones((24, 1), np.float32),
    ],
)
def test_rope_freqs(tmp_path: Path, freqs: Any) -> None:
    tensors = tensors_of("gemma4_text") | {"rope_freqs.weight": ("F32", freqs)}
    with pytest.raises((ConfigError, TensorError), match=r"rope_freqs\.weight"):
        gemlet.load(write(tmp_path, "gemma4_text", tensors), threads=1)


# --- Split models -------------------------------------------------------------------------------------------


def test_any_part_of_a_split_model_loads_all(tmp_path: Path) -> None:
    whole = write(tmp_path)
    with gemlet.load(whole, threads=1) as model:
        expected = model.logits([2, 5, 7])
    for path in split(tmp_path):
        with gemlet.load(path, threads=1) as model:
            np.testing.assert_array_equal(model.logits([2, 5, 7]), expected)


def test_parts_of_a_split_model_that_do_not_belong_together(tmp_path: Path) -> None:
    for changes in ({"split_no": 1}, {"split_no": None}, {"split_count": 4}, {"split_count": None}):
        paths = split(tmp_path, **changes)
        refused(paths[0], ModelFileError, paths[2].name, next(iter(changes)).replace("_", "."))
    paths = split(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    refused(paths[0], ModelFileError, paths[2].name, "split.no is 1; expected 2")
    paths = split(tmp_path, more=[gguf_entry("general.architecture", STRING, "llama")])
    refused(paths[0], ModelFileError, paths[2].name, "'llama'; expected 'gemma3'", "another model")
    paths = split(tmp_path, split_tensors_count=7)
    refused(paths[0], ModelFileError, paths[2].name, "split.tensors.count is 7", "another model")
    data = split(tmp_path, 2, split_no=1)[1].read_bytes()
    (tmp_path / "model-00002-of-00002.gguf").write_bytes(
        data.replace(b"blk.1.attn_k.weight", b"blk.0.attn_k.weight")
    )
    first = tmp_path / "model-00001-of-00002.gguf"
    refused(first, ModelFileError, "'blk.0.attn_k.weight'", "also in")
    paths = split(tmp_path)
    paths[1].unlink()
    for path in (paths[0], paths[2]):
        refused(path, ModelFileError, f"{paths[1].name}: is missing", "3 files")


def test_a_wrong_number_of_tensors_in_a_split_model(tmp_path: Path) -> None:
    count = len(tensors_of())
    for part in split(tmp_path, 2):
        key = b"split.tensors.count" + struct.pack("<I", I32)
        part.write_bytes(
            part.read_bytes().replace(key + struct.pack("<i", count), key + struct.pack("<i", 7))
        )
    refused(part, ModelFileError, "split.tensors.count is 7", f"{count} tensors")


def test_wrong_names_of_parts_are_refused(tmp_path: Path) -> None:
    for name in (
        "m-00000-of-00002.gguf",
        "m-00003-of-00002.gguf",
        "m-00001-of-99999.gguf",
        "m-00000-of-00000.gguf",
    ):
        path = tmp_path / name
        path.write_bytes(b"GGUF" + bytes(40))
        refused(path, ModelFileError, name)
    alone = split(tmp_path, 2)[0].rename(tmp_path / "alone.gguf")
    refused(alone, ModelFileError, "split.count is 2; expected 1")


# --- Damage -------------------------------------------------------------------------------------------------


def test_cut_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path, tensors=tensors_of(kind="Q4_0"))
    data = path.read_bytes()
    for size in {*range(0, len(data), 997), len(data) - 40}:
        path.write_bytes(data[:size])
        refused(path, ModelFileError)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_typed_error_or_none(tmp_path: Path, data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["gemma2", "gemma3n_text", "gemma4_text", "gemma4_experts"]))
    path = tmp_path / f"{family}.gguf"
    if not path.exists():
        tensors = typed(convert_tensors(CONFIGS[family], weights_of(CONFIGS[family])), "Q4_0")
        write_gguf(path, metadata(CONFIGS[family]), tensors)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 6000))
        noise = [b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 40), b"\x01", b"\x7f\xff"]
        piece = data.draw(st.sampled_from(noise))
        damaged[at : at + len(piece)] = piece
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damaged)
    try:
        with gemlet.load(broken, threads=1, max_context=4) as model:
            model.logits([2, 3])
    except GemletError as error:
        message = str(error)
    else:
        message = str(broken)
    assert message
