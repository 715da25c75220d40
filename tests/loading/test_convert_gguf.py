"""Packed folders made from GGUF: each generates the same text as its file. Some files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.cli import main
from gemlet.config import parse_config
from gemlet.errors import ConfigError, ModelFileError, TensorError, UnsupportedError
from gemlet.weights.slots import PER_LAYER_TABLE
from golden.folders import ALL_NAMES, EMBEDDING_NAMES, HERE, read_golden
from support.adapters import write_adapter
from support.gguf_cases import BLOCKED, model_of, split
from support.gguf_models import convert_folder, metadata, read_folder, typed, write_gguf
from support.gguf_package import write_with_package
from support.templates import GEMMA_LIKE
from support.tiny_models import logits_of, read_header, with_header, write_folder
from support.tokenizer_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    gguf_entry,
    one_merge_each,
    trained_entries,
    trained_merges,
    trained_pieces,
)

pytestmark = pytest.mark.tier

TEXTS = (
    "the door",
    " the\n\nlamp  and\tthe old man<start_of_turn>user\n",
    "日本 é 😀",
    "<bos>x",
    "abcabc ab c",
)
MADE_UP = "\u4e02\u4e03\u4e04"  # the vocabulary of gguf_package has these pieces


def converted(source: Path, **arguments: Any) -> Path:
    folder = source.parent / f"{source.stem}-packed-{len(list(source.parent.iterdir()))}"
    gemlet.convert(source, folder, threads=1, **arguments)
    return folder


@pytest.mark.parametrize("family", BLOCKED)
@pytest.mark.parametrize("kind", ["BF16", "Q4_0"])
def test_the_folder_is_the_same_model_as_the_file(tmp_path: Path, family: str, kind: str) -> None:
    config, tensors = model_of(family)
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, kind))
    for weights in ("auto", "q8"):
        with gemlet.load(path, weights=weights, threads=1) as model:
            described = (model.config, model.end_ids, model.generation_config, model.weights)
            expected = model.logits([2, 17, 5, 80, 33, 9])
        folder = converted(path, weights=weights)
        with gemlet.load(folder, threads=1) as model:
            assert described == (model.config, model.end_ids, model.generation_config, model.weights)
            np.testing.assert_array_equal(model.logits([2, 17, 5, 80, 33, 9]), expected)


# GGUF has no architecture for VaultGemma.
@pytest.mark.parametrize("name", [name for name in ALL_NAMES if name != "vaultgemma"])
def test_every_configuration_is_restored(tmp_path: Path, name: str) -> None:
    path = convert_folder(HERE / name, tmp_path / "model.gguf")
    assert gemlet.inspect(converted(path)).config == gemlet.inspect(path).config


def test_a_split_model_and_a_folder_with_a_split_model(tmp_path: Path) -> None:
    paths = split(tmp_path)
    expected = logits_of(paths[0])
    np.testing.assert_array_equal(logits_of(converted(paths[1])), expected)
    gemlet.convert(tmp_path, tmp_path / "of-folder", threads=1)
    np.testing.assert_array_equal(logits_of(tmp_path / "of-folder"), expected)


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_the_per_layer_table_keeps_its_type(tmp_path: Path, family: str, kind: str) -> None:
    config, tensors = model_of(family)
    chosen = typed(tensors, "BF16")
    chosen["per_layer_token_embd.weight"] = (kind, tensors["per_layer_token_embd.weight"])
    path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
    folder = converted(path, weights="q4")
    found, original = gemlet.inspect(folder), gemlet.inspect(path, weights="q4")
    assert found.stored[kind.lower()] >= 1
    assert found.plan.on_disk == original.plan.on_disk
    assert (found.parameters, found.parameters_on_disk) == (original.parameters, original.parameters_on_disk)
    np.testing.assert_array_equal(logits_of(folder), logits_of(path, weights="q4"))


# --- embeddings and adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDING_NAMES)
@pytest.mark.parametrize("weights", ["f32", "bf16", "bf12", "q8", "q4"])
@pytest.mark.extra("test")
def test_the_folder_gives_the_embeddings_of_the_file(tmp_path: Path, name: str, weights: str) -> None:
    path = write_with_package(*read_folder(HERE / name), tmp_path / "model.gguf")
    folder = converted(path, weights=weights)
    texts = [MADE_UP, read_golden(name)["ids"].tolist(), [2]]
    with (
        gemlet.load(path, weights=weights, threads=1, exact_batches=True) as model,
        gemlet.load(folder, threads=1, exact_batches=True) as packed,
    ):
        assert packed.config == model.config
        assert packed.prompts == model.prompts
        np.testing.assert_array_equal(packed.embed(texts), model.embed(texts))
        np.testing.assert_array_equal(
            packed.embed(MADE_UP, prompt="query"), model.embed(MADE_UP, prompt="query")
        )


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_an_adapter_is_merged_into_floats(tmp_path: Path, kind: str) -> None:
    config = BLOCKED["gemma3_text"]
    base = write_folder(tmp_path / "base", config, bf16=True)
    path, adapter = convert_folder(base, tmp_path / "model.gguf", kind), write_adapter(tmp_path / "adapter")
    expected = logits_of(base, weights="q8", merge_adapter=adapter)
    assert not np.array_equal(logits_of(base, weights="q8"), expected)
    np.testing.assert_array_equal(logits_of(path, weights="q8", merge_adapter=adapter), expected)
    np.testing.assert_array_equal(logits_of(converted(path, weights="q8", merge_adapter=adapter)), expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_an_adapter_is_put_beside_blocks_and_not_merged_into_them(tmp_path: Path, kind: str) -> None:
    config, tensors = model_of("gemma3_text")
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, kind))
    adapter = write_adapter(tmp_path / "adapter")
    refusal = rf"model\.gguf: tensor 'blk\.0\..*is quantized \({kind.lower()}\); .*load_adapter\(\)"
    for weights in ("auto", "f32"):
        with pytest.raises(UnsupportedError, match=refusal):
            gemlet.load(path, weights=weights, threads=1, merge_adapter=adapter)
        with pytest.raises(UnsupportedError, match=refusal):
            converted(path, weights=weights, merge_adapter=adapter)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["adapter", "model.gguf"]
    logits = []
    for source in (path, converted(path)):
        with gemlet.load(source, threads=1) as model:
            alone = model.logits([2, 17, 5])
            model.load_adapter(adapter, "a")
            logits.append(model.logits([2, 17, 5], adapter="a"))
            assert np.abs(logits[0] - alone).max() > 0.1 * np.abs(alone).max()
    np.testing.assert_array_equal(*logits)


# --- text ---------------------------------------------------------------------------------------------------


def merge_entries(merges: list[str]) -> tuple[list[bytes], int]:
    """The metadata of a vocabulary with merges like Gemma 4's, and its number of pieces."""
    pieces, _, types = trained_pieces()
    return [
        gguf_entry("tokenizer.ggml.model", STRING, "gemma4"),
        gguf_entry("tokenizer.ggml.tokens", ARRAY, (STRING, pieces)),
        gguf_entry("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        gguf_entry("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        gguf_entry("tokenizer.ggml.bos_token_id", U32, 2),
        gguf_entry("tokenizer.ggml.add_space_prefix", BOOL, False),
    ], len(pieces)


@pytest.mark.parametrize("kind", ["scores", "merges", "a trainer's merges"])
def test_tokenizer_chat_format_ends_and_sampling(tmp_path: Path, kind: str) -> None:
    family = "gemma3_text" if kind == "scores" else "gemma4_text"
    config, tensors = model_of(family)
    if kind == "scores":
        entries, size = trained_entries()
    else:
        entries, size = merge_entries(trained_merges() if kind == "merges" else one_merge_each())
    template = f"{GEMMA_LIKE}{{# \r\né #}}"
    entries += [
        gguf_entry("tokenizer.ggml.eot_token_id", U32, 7),
        gguf_entry("tokenizer.chat_template", STRING, template),
        gguf_entry("general.sampling.top_k", I32, 64),
        gguf_entry("general.sampling.top_p", F32, 0.7),
    ]
    for name in ("token_embd.weight", "per_layer_token_embd.weight"):
        if name in tensors:
            tensors[name] = np.resize(tensors[name], (size, tensors[name].shape[1]))
    path = write_gguf(tmp_path / "model.gguf", [*metadata(config), *entries], typed(tensors, "F32"))
    folder = converted(path)
    assert (folder / "chat_template.jinja").read_bytes() == template.encode()
    with gemlet.load(path, threads=1) as model, gemlet.load(folder, threads=1) as packed:
        assert packed.end_ids == model.end_ids
        assert packed.generation_config == model.generation_config
        assert packed.chat_format == model.chat_format
        ours, theirs = packed.tokenizer, model.tokenizer
        assert ours is not None
        assert theirs is not None
        for text in TEXTS:
            for trusted in (True, False):
                ids = theirs.encode(text, allow_control=trusted)
                assert ours.encode(text, allow_control=trusted) == ids
                assert ours.decode(ids, skip_control=False) == theirs.decode(ids, skip_control=False)
        for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "unk_id", "control_ids", "end_of_turn_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
        pieces = [theirs.id_to_piece(i) for i in range(size)]
        assert [ours.id_to_piece(i) for i in range(size)] == pieces
        assert [ours.piece_to_id(piece) for piece in pieces] == [theirs.piece_to_id(p) for p in pieces]
        arguments: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
        assert packed.generate("the door", **arguments).text == model.generate("the door", **arguments).text


def test_the_cache_keeps_what_every_start_would_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMLET_CACHE_SIZE", raising=False)
    config, tensors = model_of("gemma3_text")
    entries, size = trained_entries()
    tensors["token_embd.weight"] = np.resize(tensors["token_embd.weight"], (size, config["hidden_size"]))
    path = write_gguf(tmp_path / "model.gguf", [*metadata(config), *entries], typed(tensors, "F32"))
    ids = []
    for number in range(3):
        if number == 2:
            monkeypatch.setattr("gemlet.sources.gguf_model.vocabulary_of_gguf", None)
        with gemlet.load(path, threads=1, cache=number > 0) as model:
            assert model.tokenizer is not None
            assert model.tokenizer.source == str(path)
            ids.append(model.tokenizer.encode("the door\n日本"))
    assert ids[0] == ids[1] == ids[2]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, tensors = model_of("gemma3_text")
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "Q8_0"))
    assert main(["convert", str(path), str(tmp_path / "packed"), "--weights", "q4"]) == 0
    capsys.readouterr()
    shown = []
    for source, arguments in ((path, ["--weights", "q4"]), (tmp_path / "packed", [])):
        assert main(["inspect", str(source), *arguments, "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    for key in ("config", "weights", "parameters", "max_context", "vocabulary", "chat_format"):
        assert shown[0][key] == shown[1][key], key
    assert shown[0]["memory"]["weights"] == shown[1]["memory"]["weights"]
    assert shown[1]["stored"]["q4"] == 21
    assert main(["inspect", str(tmp_path / "packed")]) == 0
    assert "family     gemma3 (gemma3), 3 layers" in capsys.readouterr().out


# --- what is refused ----------------------------------------------------------------------------------------


def test_facts_that_only_gguf_has_are_checked(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3n_text")
    folder = converted(write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "F32")))
    keys = json.loads((folder / "config.json").read_text())
    count = config["num_hidden_layers"]
    for change, message in (
        ({"intermediate_size": None}, r"gguf\.intermediate_size is None; expected a list of"),
        ({"intermediate_size": [96]}, r"gguf\.intermediate_size is \[96\]; expected a list of"),
        ({"intermediate_size": [True] * count}, r"gguf\.intermediate_size\[0\] is True"),
        ({"activation_sparsity": [1.0]}, r"gguf\.activation_sparsity is \[.*expected a list of"),
        ({"activation_sparsity": ["x"] * count}, r"gguf\.activation_sparsity\[0\] is 'x'; expected a number"),
        ({"activation_sparsity": [11.0] * count}, r"gguf\.activation_sparsity\[0\] is 11\.0"),
        ({"norm": 1}, "unknown key 'gguf.norm'"),
    ):
        changed = keys | {"gguf": keys["gguf"] | change}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=message):
            gemlet.load(folder, threads=1)
    (folder / "config.json").write_text(json.dumps(keys | {"gguf": 3}))
    with pytest.raises(ConfigError, match="gguf is 3; expected an object"):
        gemlet.load(folder, threads=1)
    keys = json.loads((HERE / "gemma3-1b" / "config.json").read_text())
    own = {"intermediate_size": [96], "activation_sparsity": [1.0]}
    with pytest.raises(ConfigError, match=r"unknown key 'gguf\.activation_sparsity'"):
        parse_config(keys | {"gguf": own}, where="config.json")


def test_a_wrong_table_of_blocks_is_refused(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3n_text")
    folder = converted(write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "Q8_0")))
    path = folder / "model.safetensors"
    header, data = read_header(path)
    described = json.loads(header["__metadata__"]["gemlet_tensors"])
    rows, cols = described[PER_LAYER_TABLE][1]
    for dtype, shape, error, message in (
        ("q4_0", [rows, cols], TensorError, rf"is U8 .*does not fit q4_0 \[{rows}, {cols}\]"),
        ("q8_0", [rows, cols + 32], TensorError, "does not fit q8_0"),
        ("q8_0", [rows, cols - 1], TensorError, "does not fit q8_0"),
        ("q8_0", [rows], TensorError, "does not fit q8_0"),
        ("q8_0", [str(rows), cols], TensorError, "does not fit q8_0"),
        ("q8_0", [cols, rows], TensorError, "does not fit q8_0"),
        ("q8", [rows, cols], ModelFileError, "gives 'embed_tokens_per_layer' the format 'q8'"),
        (["q8_0"], [rows, cols], ModelFileError, r"the format \['q8_0'\]"),
        (None, None, TensorError, "is U8; expected F32, BF16, F16 or F64"),
    ):
        lie = {name: value for name, value in described.items() if name != PER_LAYER_TABLE or dtype}
        if dtype:
            lie[PER_LAYER_TABLE] = [dtype, shape]
        header["__metadata__"]["gemlet_tensors"] = json.dumps(lie)
        text = json.dumps(header).encode()
        path.write_bytes(with_header(text + b" " * (-(8 + len(text)) % 64), data))
        with pytest.raises(error, match=message):
            gemlet.load(folder, threads=1)
