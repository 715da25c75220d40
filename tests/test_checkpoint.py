"""Reading safetensors, single and sharded, and the names of its tensors; what is refused, and how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CONFIGS,
    bf16_bits,
    safetensors_bytes,
    weights_of,
    with_header,
    write_folder,
    write_index,
    write_shards,
)

from gemlet import checkpoint as checkpoint_module
from gemlet.checkpoint import Checkpoint
from gemlet.config import parse_config
from gemlet.errors import GemletError, ModelClosedError, ModelFileError, TensorError
from gemlet.tensors import expected_slots, map_tensors

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1.5, -2.0], dtype=np.float32)


def write(folder: Path, data: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(data)
    return folder


def entry(begin: int, end: int, shape: object = (2,), dtype: object = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    }


# --- what is read ---------------------------------------------------------------------------------


def test_float32(tmp_path: Path) -> None:
    with Checkpoint(
        write(tmp_path, safetensors_bytes({"a": A, "b": B}, metadata={"format": "pt"}))
    ) as opened:
        assert list(opened.tensors) == ["a", "b"]
        assert opened.tensors["a"].shape == (3, 4)
        values, dtype = opened.read("a")
        assert dtype == "f32"
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, A)


def test_bfloat16_and_float16_are_given_as_bits(tmp_path: Path) -> None:
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": A}, bf16=True))) as opened:
        values, dtype = opened.read("a")
    assert (dtype, values.dtype) == ("bf16", np.uint16)
    np.testing.assert_array_equal(values, bf16_bits(A))
    half = A.astype(np.float16)
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": half}))) as opened:
        values, dtype = opened.read("a")
    assert (dtype, values.dtype) == ("f16", np.uint16)
    np.testing.assert_array_equal(values.view(np.float16), half)


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"b": B, "a": A, "none": np.zeros((0, 3), np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)
        np.testing.assert_array_equal(opened.read("b")[0], B)
        assert opened.read("none")[0].shape == (0, 3)


def test_scalar_and_empty_file(tmp_path: Path) -> None:
    with Checkpoint(write(tmp_path, safetensors_bytes({"s": np.array(2.5, np.float32)}))) as opened:
        assert opened.read("s")[0][()] == np.float32(2.5)
    with Checkpoint(write(tmp_path, with_header({}, b""))) as opened:
        assert not opened.tensors


def test_reads_larger_than_one_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_READ_BYTES", 7)
    with Checkpoint(write(tmp_path, safetensors_bytes({"b": B, "a": A}))) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)


def test_shards(tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": {"a": A}, "model-00002-of-00002.safetensors": {"b": B}}
    with Checkpoint(write_shards(tmp_path, shards)) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)
        np.testing.assert_array_equal(opened.read("b")[0], B)
        assert opened.tensors["b"].file == "model-00002-of-00002.safetensors"


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "feed").write_bytes(safetensors_bytes({"a": A}))
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "feed")
    with Checkpoint(snapshot) as opened:
        np.testing.assert_array_equal(opened.read("a")[0], A)


def test_arrays_outlive_the_checkpoint(tmp_path: Path) -> None:
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": A}))) as opened:
        values, _ = opened.read("a")
    np.testing.assert_array_equal(values, A)
    with pytest.raises(ModelClosedError, match=r"model\.safetensors: read after"):
        opened.read("a")
    opened.close()  # twice is harmless


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": A}))):
        assert len(os.listdir("/proc/self/fd")) == before + 1
    with pytest.raises(ModelFileError):
        Checkpoint(write(tmp_path, b"\xff" * 100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_unknown_tensor(tmp_path: Path) -> None:
    opened = Checkpoint(write(tmp_path, safetensors_bytes({"a": A})))
    with opened, pytest.raises(TensorError, match="has no tensor 'b'"):
        opened.read("b")


def test_wrong_type_is_refused(tmp_path: Path) -> None:
    with Checkpoint(write(tmp_path, safetensors_bytes({"ids": np.zeros(3, np.int64)}))) as opened:
        for use in (opened.dtype, opened.read):
            with pytest.raises(TensorError, match=r"safetensors: tensor 'ids' is I64; expected F32, BF16"):
                use("ids")


def test_a_header_larger_than_any_model_needs_is_not_parsed(tmp_path: Path) -> None:
    """Parsed, ten megabytes of brackets take a quarter of a gigabyte."""
    path = tmp_path / "model.safetensors"
    length = checkpoint_module.MAX_HEADER_BYTES + 1
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"a":[')
        file.truncate(length + 100)
    with pytest.raises(ModelFileError, match=f"header has {length} bytes.* at most {length - 1}"):
        Checkpoint(tmp_path)


# --- what is refused: a header's lies -------------------------------------------------------------

DATA = bytes(16)
REFUSED: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "has 0 bytes"),
    ("seven bytes", bytes(7), "has 7 bytes"),
    ("header beyond the file", (1000).to_bytes(8, "little") + b"{}", "says its header has 1000 bytes"),
    ("header of 2**64-1 bytes", b"\xff" * 8 + b"{}", "says its header has 18446744073709551615 bytes"),
    ("not safetensors at all", b"PK\x03\x04" + bytes(100), "says its header has"),
    ("Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("empty header", with_header(b"", DATA), "its header begins with b''"),
    ("not JSON", with_header(b"{]", DATA), r"\(header\): not valid JSON"),
    ("an array", with_header(b"[]", DATA), "expected a JSON object"),
    ("NaN", with_header(b'{"a": NaN}', DATA), "holds NaN"),
    ("not UTF-8", with_header(b'{"\xff": 1}', DATA), "not UTF-8"),
    ("deep", with_header(b'{"a":' + b"[" * 300000, DATA), "nested too deeply"),
    (
        "name twice",
        with_header(
            json.dumps({"a": entry(0, 8)})[:-1].encode() + b"," + json.dumps({"a": 1})[1:].encode(), DATA
        ),
        "'a' appears twice",
    ),
    ("metadata not an object", with_header({"__metadata__": [1]}, b""), r"__metadata__ is \[1\]"),
    ("metadata not of strings", with_header({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    ("entry not an object", with_header({"a": 3}, DATA), "'a' is 3"),
    ("missing field", with_header({"a": {"dtype": "F32", "shape": [2]}}, DATA), "'a' is"),
    ("extra field", with_header({"a": entry(0, 8) | {"x": 1}}, DATA), "'a' is"),
    ("unknown dtype", with_header({"a": entry(0, 8, dtype="F33")}, DATA), "'a' has dtype 'F33'"),
    ("dtype not a string", with_header({"a": entry(0, 8, dtype=["F32"])}, DATA), "'a' has dtype"),
    ("shape not a list", with_header({"a": entry(0, 8, shape="2")}, DATA), "'a' has shape '2'"),
    ("negative size", with_header({"a": entry(0, 8, shape=(-2, -1))}, DATA), "'a' has shape"),
    ("fractional size", with_header({"a": entry(0, 8, shape=(2.0,))}, DATA), "'a' has shape"),
    ("boolean size", with_header({"a": entry(0, 4, shape=(True,))}, DATA), "'a' has shape"),
    ("too many axes", with_header({"a": entry(0, 8, shape=(1,) * 8 + (2,))}, DATA), "'a' has shape"),
    ("size of 2**63", with_header({"a": entry(0, 8, shape=(1 << 63,))}, DATA), "'a' has shape"),
    (
        "product wraps to 8",
        with_header({"a": entry(0, 8, shape=((1 << 62) + 1, 4))}, DATA),
        "data_offsets give",
    ),
    ("shape larger than the bytes", with_header({"a": entry(0, 16, shape=(5,))}, DATA), "needs 20 bytes"),
    ("shape smaller than the bytes", with_header({"a": entry(0, 16, shape=(3,))}, DATA), "needs 12 bytes"),
    ("half a byte", with_header({"a": entry(0, 2, shape=(3,), dtype="F4")}, bytes(2)), "needs 2 bytes"),
    ("offsets not a pair", with_header({"a": entry(0, 8) | {"data_offsets": [0]}}, DATA), "data_offsets"),
    ("negative offset", with_header({"a": entry(-8, 0)}, DATA), "data_offsets"),
    ("offsets reversed", with_header({"a": entry(16, 8)}, DATA), r"data_offsets \[16, 8\]"),
    ("offset beyond the file", with_header({"a": entry(0, 24, (6,))}, DATA), "expected begin <= end <= 16"),
    (
        "offset of 2**62",
        with_header({"a": entry(1 << 62, (1 << 62) + 8)}, DATA),
        "expected begin <= end <= 16",
    ),
    ("hole at the start", with_header({"a": entry(8, 16)}, DATA), "'a' begins .* leaves a hole"),
    (
        "hole between",
        with_header({"a": entry(0, 4, (1,)), "b": entry(8, 16)}, DATA),
        "'b' begins .* leaves a hole",
    ),
    ("overlap", with_header({"a": entry(0, 12, (3,)), "b": entry(8, 16)}, DATA), "'b' .* overlaps"),
    (
        "two names of the same bytes",
        with_header({"a": entry(0, 16, (4,)), "b": entry(0, 16, (4,))}, DATA),
        "overlaps",
    ),
    ("bytes at the end", with_header({"a": entry(0, 8)}, DATA), "has .* bytes, but its tensors end at byte"),
    ("data without tensors", with_header({}, DATA), "expected nothing after them"),
    ("terminal escape in a name", with_header({"\x1b[2J": 1}, DATA), r"'\\x1b\[2J' is 1"),
]


@pytest.mark.parametrize(
    ("data", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises((ModelFileError, TensorError), match=message) as caught:
        Checkpoint(write(tmp_path, data))
    text = str(caught.value)
    assert "model.safetensors" in text
    assert len(text) < 1000
    text.encode()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": A, "b": B})
    for length in range(len(whole)):
        with pytest.raises(GemletError):
            Checkpoint(write(tmp_path, whole[:length]))


VALID = safetensors_bytes({"a": A, "b": B, "c": A.astype(np.float16)}, metadata={"format": "pt"})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(VALID)),
)
def test_damaged_files_end_in_a_typed_error_or_are_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    from safetensors import deserialize

    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    folder = tmp_path_factory.mktemp("damaged")
    for candidate in (bytes(data), bytes(data[:length])):
        write(folder, candidate)
        try:
            with Checkpoint(folder) as opened:
                for name, info in opened.tensors.items():
                    if info.dtype in ("F32", "F16", "BF16"):
                        assert opened.read(name)[0].shape == info.shape
                names = list(opened.tensors)
        except (ModelFileError, TensorError):
            continue
        # Never laxer than the reference reader: what gemlet opens, it opens too.
        assert sorted(name for name, _ in deserialize(candidate)) == sorted(names)


# --- what is refused: folders and indexes ---------------------------------------------------------


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"holds no weights .* model\.safetensors"):
        Checkpoint(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere"):
        Checkpoint(tmp_path / "nowhere")


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be opened"):
        Checkpoint(tmp_path)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        Checkpoint(tmp_path)


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: (cannot be opened|not a regular file)"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "c:model.safetensors",
        ".hidden.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        3,
        None,
    ],
)
def test_index_with_a_path(tmp_path: Path, file: object) -> None:
    write_index(tmp_path, {"a": file})
    with pytest.raises(
        ModelFileError, match=r"index\.json: weight_map puts tensor 'a' in .*; expected the plain"
    ):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFileError, match=r"index\.json: weight_map is"):
        Checkpoint(tmp_path)


def test_index_with_a_missing_shard(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "model-1.safetensors"})
    with pytest.raises(ModelFileError, match=r"model-1\.safetensors: cannot be opened: No such file"):
        Checkpoint(tmp_path)


def test_index_with_too_many_shards(tmp_path: Path) -> None:
    write_index(tmp_path, {f"t{i}": f"{i}.safetensors" for i in range(513)})
    with pytest.raises(ModelFileError, match="names more than 512 files"):
        Checkpoint(tmp_path)


SHARDS: dict[str, dict[str, Any]] = {"1.safetensors": {"a": A}, "2.safetensors": {"b": B}}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "1.safetensors", "b": "1.safetensors"},
            r"says that tensor 'b' is in '1.safetensors', which does not",
        ),
        (
            {"a": "2.safetensors", "b": "1.safetensors"},
            r"1\.safetensors: holds tensor 'a', but .* puts it in 2",
        ),
        (
            {"b": "2.safetensors", "x": "1.safetensors"},
            r"1\.safetensors: holds tensor 'a', but .* does not list it",
        ),
        ({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}, "says that tensor 'c' is in"),
    ],
)
def test_lying_index(tmp_path: Path, weight_map: Mapping[str, str], message: str) -> None:
    write_shards(tmp_path, SHARDS)
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFileError, match=message):
        Checkpoint(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1.safetensors": {"a": A, "c": A}, "2.safetensors": {"a": A, "b": B}})
    with pytest.raises(ModelFileError, match=r"1\.safetensors: holds tensor 'a', but .* puts it in 2"):
        Checkpoint(tmp_path)


# --- files that change while they are open --------------------------------------------------------


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    large = np.zeros((64, 1024), np.float32)
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": large}))) as opened:
        os.truncate(tmp_path / "model.safetensors", 5000)
        with pytest.raises(ModelFileError, match="was cut short while gemlet was reading 'a'"):
            opened.read("a")


def test_file_rewritten_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": A}))) as opened:
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(ModelFileError, match="was changed while gemlet was reading 'a'"):
            opened.read("a")


def test_file_replaced_after_opening_is_the_old_one(tmp_path: Path) -> None:
    with Checkpoint(write(tmp_path, safetensors_bytes({"a": A}))) as opened:
        other = tmp_path / "other"
        other.write_bytes(b"something else")
        other.replace(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(opened.read("a")[0], A)


# --- names ----------------------------------------------------------------------------------------


def shapes_of(family: str, prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in weights_of(CONFIGS[family], prefix).items()}


def map_of(family: str, shapes: Mapping[str, tuple[int, ...]], **changes: Any) -> dict[str, str]:
    return map_tensors(shapes, parse_config(CONFIGS[family] | changes, where="config.json"), where="folder")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_every_slot_is_filled_once(family: str, prefix: str) -> None:
    slots = map_of(family, shapes_of(family, prefix))
    assert sorted(slots.values()) == sorted(expected_slots(parse_config(CONFIGS[family], where="x")))
    assert slots[f"{prefix}layers.2.self_attn.o_proj.weight"] == "layers.2.o_proj"


def test_the_norm_whose_name_changed_its_meaning() -> None:
    name = "model.layers.0.post_attention_layernorm.weight"
    assert map_of("gemma", shapes_of("gemma"))[name] == "layers.0.pre_mlp_norm"
    assert map_of("gemma2", shapes_of("gemma2"))[name] == "layers.0.post_attention_norm"
    assert map_of("gemma3_text", shapes_of("gemma3_text"))[name] == "layers.0.post_attention_norm"


@pytest.mark.parametrize("family", CONFIGS)
def test_each_missing_tensor_is_named(family: str) -> None:
    shapes = shapes_of(family)
    for name in shapes.keys() - {"model.embed_tokens.weight"}:
        with pytest.raises(TensorError, match=f"^folder: tensor '{name}' is missing; expected"):
            map_of(family, {other: shape for other, shape in shapes.items() if other != name})


def test_missing_embedding() -> None:
    with pytest.raises(
        TensorError, match=r"the embedding table is missing; expected one of 'model\.embed_tokens"
    ):
        map_of("gemma", {})


def test_missing_layer_says_how_many() -> None:
    shapes = {name: shape for name, shape in shapes_of("gemma").items() if ".layers.2." not in name}
    with pytest.raises(TensorError, match=r"is missing \(9 tensors are missing in all\)"):
        map_of("gemma", shapes)


@pytest.mark.parametrize("shape", [(64, 128), (128,), (128, 64, 1), (128, 65)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(TensorError, match=rf"tensor '{name}' has shape \[{shape[0]}.*expected \[128, 64\]"):
        map_of("gemma", shapes_of("gemma") | {name: shape})


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "model.layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "vision_tower.x",
    ],
)
def test_unexpected_tensor(name: str) -> None:
    with pytest.raises(TensorError, match=f"unexpected tensor '{name}' of shape"):
        map_of("gemma", shapes_of("gemma") | {name: (64,)})


def test_image_towers_of_gemma3_are_left_out() -> None:
    for prefix, tower in (("language_model.model.", ""), ("model.language_model.", "model.")):
        shapes = shapes_of("gemma3_text", prefix)
        extra = {f"{tower}vision_tower.a.weight": (3,), f"{tower}multi_modal_projector.b": (1, 2)}
        assert map_of("gemma3_text", shapes | extra) == map_of("gemma3_text", shapes)


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model."])
def test_output_matrix(prefix: str) -> None:
    head = "language_model.lm_head.weight" if prefix.startswith("language_model.") else "lm_head.weight"
    shapes = shapes_of("gemma3_text", prefix)
    assert head not in map_of("gemma3_text", shapes | {head: (96, 64)})  # tied: a copy of the table
    untied = map_of("gemma3_text", shapes | {head: (96, 64)}, tie_word_embeddings=False)
    assert untied[head] == "lm_head"
    with pytest.raises(TensorError, match=f"'{head}' is missing"):
        map_of("gemma3_text", shapes, tie_word_embeddings=False)


def test_a_written_folder_maps(tmp_path: Path) -> None:
    with Checkpoint(write_folder(tmp_path, CONFIGS["gemma2"], bf16=True)) as opened:
        slots = map_of("gemma2", {name: info.shape for name, info in opened.tensors.items()})
        assert {opened.read(name)[1] for name in slots} == {"bf16"}
