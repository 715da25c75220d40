"""Damaged and hostile files of all formats. tests/README.md lists the damage, and which test has the rest."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest

import gemlet
from fuzz.mutate import mutate_json, mutate_safetensors
from fuzz.readers import ADAPTER, EXTRAS, READERS
from gemlet.adapters.opening import open_adapter
from gemlet.checkpoint.gguf_format import read_gguf
from gemlet.config import parse_config
from gemlet.errors import GemletError, ModelFileError, TensorError, TokenizerError
from gemlet.tokenizer import Tokenizer
from golden.folders import HERE
from support.adapters import write_adapter
from support.gguf_cases import BLOCK_TYPES, BLOCKS
from support.gguf_models import NUMBERS, Typed, convert_tensors, metadata, read_folder, typed, write_gguf
from support.gguf_package import write_with_package
from support.tiny_models import CONFIGS, weights_of, with_header, write_folder, write_shards
from support.tokenizer_files import gguf_string, trained_model


def boundaries(name: str, data: bytes) -> set[int]:
    """The places where a header ends and where each tensor begins and ends."""
    if name.startswith("gguf"):
        with NamedTemporaryFile(suffix=".gguf") as file:
            file.write(data)
            file.flush()
            header = read_gguf(file.name)
        spans = [(tensor.offset, tensor.offset + tensor.nbytes) for tensor in header.tensors.values()]
        return {header.data_offset, *chain(*spans)}
    if READERS[name].mutate is not mutate_safetensors:
        return set()
    (length,) = struct.unpack("<Q", data[:8])
    entries = [entry for key, entry in json.loads(data[8 : 8 + length]).items() if key != "__metadata__"]
    return {8 + length + at for entry in entries for at in (0, *entry["data_offsets"])}


# For "media" and "senses", fuzzing does not write files. A video may lack its index and its last frames;
# test_videos.py cuts videos.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.extra(EXTRAS[name])] if name in EXTRAS else [])
        for name in READERS
        if name not in ("media", "senses", "video")
    ],
)
def test_cut_short(name: str) -> None:
    """A small file is cut at every byte. Large files are cut at each of the first hundred bytes, at a hundred
    later places and around every boundary. Padding at the end and the end mark of a GIF may be missing."""
    reader = READERS[name]
    for data in reader.seeds()[-2:]:
        padded = reader.mutate is mutate_json or name in ("gguf", "image")
        whole = len(data.rstrip(b"\0 \n;")) if padded else len(data)
        around = {at + near for at in boundaries(name, data) for near in (-1, 0, 1)}
        step = 1 if whole < 1300 else whole // 100
        for size in {*range(min(100, whole)), *range(100, whole, step), *around, whole - 1}:
            if 0 <= size < whole:
                with pytest.raises(GemletError):
                    reader.run(data[:size])


# --- Links, and paths that are not files --------------------------------------------------------------------

NO_FILES: dict[str, Callable[[Path], None]] = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a circle": lambda path: path.symlink_to(path),
    "nothing": lambda path: path.symlink_to("../nothing"),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "model.gguf"])
def test_a_model_path_that_is_not_a_file(tmp_path: Path, name: str, what: str) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["gemma"])
    (folder / name).unlink(missing_ok=True)
    NO_FILES[what](folder / name)
    path = folder / name if name == "model.gguf" else folder
    with pytest.raises(GemletError, match=name.replace(".", r"\.")):
        gemlet.load(path, threads=1)


def embedding_model(folder: Path) -> None:
    shutil.copytree(HERE / "embeddinggemma", folder, ignore=shutil.ignore_patterns("golden.*"))


def with_tokenizer(folder: Path) -> None:
    write_folder(folder, CONFIGS["gemma"] | {"vocab_size": 400})
    (folder / "tokenizer.model").write_bytes(trained_model())


def packed_model(folder: Path) -> None:
    write_folder(folder.with_name("source"), CONFIGS["gemma"])
    gemlet.convert(folder.with_name("source"), folder, threads=1)


def in_shards(folder: Path) -> None:
    write_folder(folder, CONFIGS["gemma"])
    (folder / "model.safetensors").unlink()
    names = list(weights_of(CONFIGS["gemma"]).items())
    write_shards(folder, {"a.safetensors": dict(names[:9]), "b.safetensors": dict(names[9:])})


def in_parts(folder: Path) -> None:
    folder.mkdir()
    write_with_package(*read_folder(HERE / "gemma3-270m"), folder / "m.gguf", split_max_tensors=40)


MODELS: dict[Callable[[Path], None], tuple[str, ...]] = {
    embedding_model: (
        *("modules.json", "1_Pooling/config.json", "2_Dense", "2_Dense/config.json"),
        *("2_Dense/model.safetensors", "config_sentence_transformers.json"),
    ),
    with_tokenizer: (
        *("tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
        "generation_config.json",
    ),
    packed_model: ("config.json", "model.safetensors"),
    in_shards: ("model.safetensors.index.json", "b.safetensors"),
    in_parts: ("m-00002-of-00003.gguf",),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(
            make,
            name,
            id=f"{make.__name__}-{name}",
            marks=pytest.mark.extra("test") if make is in_parts else (),
        )
        for make, names in MODELS.items()
        for name in names
    ],
)
def test_parts_of_a_model_that_are_not_files_are_refused(
    tmp_path: Path, make: Callable[[Path], None], name: str, what: str
) -> None:
    folder = tmp_path / "model"
    make(folder)
    gemlet.load(folder, threads=1).close()
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    NO_FILES[what](path)
    with pytest.raises(GemletError, match=re.escape(name)):
        gemlet.load(folder, threads=1)


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_part_that_is_not_a_file(tmp_path: Path, name: str, what: str) -> None:
    config = parse_config(CONFIGS["gemma3_text"], where="config.json")
    folder = write_adapter(tmp_path / "adapter")
    open_adapter(folder, config).close()
    (folder / name).unlink()
    NO_FILES[what](folder / name)
    with pytest.raises(ModelFileError, match=re.escape(name)):
        open_adapter(folder, config)


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_that_is_not_a_file(tmp_path: Path, name: str, what: str) -> None:
    NO_FILES[what](tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(GemletError, match=r"tokenizer\."):
            Tokenizer.from_file(path)


def linked(folder: Path, elsewhere: Path) -> Path:
    folder.mkdir(parents=True)
    for path in elsewhere.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_links_out_of_the_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Links are refused, except in the hub's cache or if the user allows them."""
    if kind == "model":
        blobs = write_folder(tmp_path / "repository" / "blobs", CONFIGS["gemma"])
    else:
        (tmp_path / "repository").mkdir()
        blobs = write_adapter(tmp_path / "repository" / "blobs")

    def read(folder: Path) -> None:
        if kind == "model":
            gemlet.load(folder, threads=1).close()
        else:
            open_adapter(folder, parse_config(CONFIGS["gemma3_text"], where="config.json")).close()

    read(linked(tmp_path / "repository" / "snapshots" / "main", blobs))
    (tmp_path / "link").symlink_to(blobs)
    read(tmp_path / "link")  # the user named this folder, which is itself a link
    outside = linked(tmp_path / "outside", blobs)
    message = r"outside/\S+: is a link out of its folder, to \S+blobs/\S+; .*GEMLET_FOLLOW_LINKS=1"
    with pytest.raises(ModelFileError, match=message):
        read(outside)
    if kind == "model":
        with pytest.raises(ModelFileError, match=message):
            read(outside / "model.safetensors")
    monkeypatch.setenv("GEMLET_FOLLOW_LINKS", "1")
    read(outside)


# --- Files that are too large -------------------------------------------------------------------------------


def test_json_larger_than_any_real_file_is_refused(tmp_path: Path) -> None:
    """The size alone is the reason, so gemlet does not read the file."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    for path in (tmp_path / "tokenizer.json", folder / "adapter_config.json"):
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: has more than"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(ModelFileError, match=r"adapter_config\.json: has more than"):
        open_adapter(folder, parse_config(CONFIGS["gemma"], where="config.json"))


# --- Adapters -----------------------------------------------------------------------------------------------

A, B = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight".format("A"), "b"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({A: ["F32", [2, 64], [0, 512]], B: ["F32", [2, 64], [256, 768]]}, "overlaps"),
        ({A: ["F32", [(1 << 62) + 1, 4], [0, 768]]}, "data_offsets"),
        ({A: ["F32", [2, 64], [1 << 62, (1 << 62) + 512]]}, "data_offsets"),
        ({A: ["F32", [1 << 40, 64], [0, 768]]}, "data_offsets"),
        ({A: ["F32", [0, 64], [0, 0]]}, "after them"),
    ],
)
def test_an_adapter_with_a_false_header(
    tmp_path: Path, header: dict[str, list[object]], message: str
) -> None:
    entries = {
        name: dict(zip(("dtype", "shape", "data_offsets"), e, strict=True)) for name, e in header.items()
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (tmp_path / "adapter_model.safetensors").write_bytes(with_header(entries, bytes(768)))
    with pytest.raises((ModelFileError, TensorError), match=rf"adapter_model\.safetensors.*{message}"):
        open_adapter(tmp_path, parse_config(CONFIGS["gemma"], where="config.json"))


# --- GGUF, from load() to the forward pass ------------------------------------------------------------------

CONFIG = CONFIGS["gemma2"] | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
TENSOR = "blk.0.ffn_down.weight"


def gguf_tensors(kind: str = "F32", blocks: np.ndarray | None = None) -> Typed:
    """A model whose TENSOR has the type ``kind``, with random ``blocks`` if there are any."""
    tensors = typed(convert_tensors(CONFIG, weights_of(CONFIG)), "F32")
    if blocks is not None:
        pick = np.random.default_rng(0).integers(0, len(blocks), 256)
        tensors[TENSOR] = (kind, blocks[pick].reshape(256, -1))
    elif kind != "F32":
        tensors[TENSOR] = typed({TENSOR: tensors[TENSOR][1]}, kind)[TENSOR]
    return tensors


@pytest.mark.parametrize(
    ("sizes", "number", "offset", "message"),
    [
        ([256, 0], "F32", 0, "expected all above 0"),
        ([0, 256], "F32", 0, "expected all above 0"),
        ([1 << 63, 1 << 63], "F32", 0, "ends at byte"),
        ([256, 256], "F32", 1 << 40, "ends at byte"),
        ([256, 256], "F32", (1 << 64) - 32, "ends at byte"),
        ([256, 256], "F32", 32, "overlap"),
        ([256, 256], "F32", 7, "multiple"),
        ([256, 256], "F64", 0, "overlap|ends at byte|expected"),
        ([256, 255], "F32", None, r"\[255, 256\]"),
        ([65536], "F32", None, r"\[65536\]"),
    ],
)
def test_a_tensor_at_a_wrong_place(
    tmp_path: Path, sizes: list[int], number: str, offset: int | None, message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", metadata(CONFIG), gguf_tensors())
    data = path.read_bytes()
    name = gguf_string(TENSOR)
    at = data.index(name) + len(name)
    file = read_gguf(path)
    if offset is None:
        offset = file.tensors[TENSOR].offset - file.data_offset
    entry = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, NUMBERS[number], offset)
    head = data[:at] + entry + data[at + 32 : file.data_offset]
    path.write_bytes(head.rstrip(b"\0") + bytes(-len(head.rstrip(b"\0")) % 32) + data[file.data_offset :])
    with pytest.raises((ModelFileError, TensorError), match=rf"model\.gguf.*({message})"):
        gemlet.load(path, threads=1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *BLOCK_TYPES])
def test_values_that_are_not_finite_in_every_type(tmp_path: Path, kind: str) -> None:
    """Bytes of ones are NaN in the floats of every type. They are in one row of the matrix, or in a norm."""
    blocks = np.array(BLOCKS[f"{kind}.blocks"]) if kind in BLOCK_TYPES else None
    for name in (TENSOR, "output_norm.weight"):
        path = write_gguf(tmp_path / "model.gguf", metadata(CONFIG), gguf_tensors(kind, blocks))
        tensor = read_gguf(path).tensors[name]
        data = bytearray(path.read_bytes())
        at = tensor.offset + tensor.nbytes // 256 * 77
        data[at : at + 256] = b"\xff" * 256
        path.write_bytes(data)
        for weights in ("auto", "q4"):
            with pytest.raises(TensorError, match=rf"'{name}'.* NaN, infinity"):
                gemlet.load(path, threads=1, weights=weights)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_any_bytes_as_blocks(tmp_path: Path, kind: str) -> None:
    """The file is refused, or the model computes finite numbers, or a pass ends in a typed error."""
    random = np.random.default_rng(3)
    size = BLOCKS[f"{kind}.blocks"].shape[1]
    refused = 0
    for i in range(4):
        # Finite half-precision numbers at every even byte, or any bytes.
        blocks = random.integers(0, 256 if i % 2 else 0x7C, (256, size), np.uint8)
        path = write_gguf(tmp_path / "model.gguf", metadata(CONFIG), gguf_tensors(kind, blocks))
        message = ""
        try:
            with gemlet.load(path, threads=1, weights="auto" if i < 2 else "q8") as model:
                assert np.isfinite(model.logits([2, 5, 7])).all()
        except TensorError as error:
            message = str(error)
        assert not message or TENSOR in message
        refused += bool(message)
    assert refused


def test_a_gguf_vocabulary_beside_broken_weights(tmp_path: Path) -> None:
    """Vocabulary and weights are one file, so the tokenizer of a file with truncated weights is an error
    too."""
    path = write_gguf(tmp_path / "model.gguf", metadata(CONFIG), gguf_tensors())
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises((ModelFileError, TokenizerError), match=r"model\.gguf"):
        Tokenizer.from_file(path)
