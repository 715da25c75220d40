"""Tokenizer files: reference vectors, every format, added tokens, and bad files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemlet.errors import GemletError, ModelFileError, TokenizerError
from gemlet.tokenizer import Tokenizer
from gemlet.tokenizer.sentencepiece_model import build_model
from support.texts import crafted_text, relaxed
from support.tokenizer_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    SPACE,
    STRING,
    U32,
    gemma4,
    gemma4_json,
    gguf_entry,
    gguf_file,
    save,
    tokenizer_json,
    trained_gguf,
    trained_json,
    trained_model,
    trained_pieces,
)

# --- the reference ------------------------------------------------------------------------------------------


def test_the_46_vectors_of_gemma_4(gemma4_tokenizer: Tokenizer) -> None:
    vectors = gemma4()["vectors"]
    assert len(vectors) == 46
    for text, ids in vectors:
        assert gemma4_tokenizer.encode(text, add_bos=False) == ids, text
        assert gemma4_tokenizer.decode(ids) == text


def test_more_texts_get_the_ids_of_hugging_face(gemma4_tokenizer: Tokenizer) -> None:
    for text, ids in gemma4()["more"]:
        assert gemma4_tokenizer.encode(text, add_bos=False) == ids, text
        assert gemma4_tokenizer.decode(ids, skip_control=False) == text.replace(SPACE, " ")


def test_gemma_4_from_tokenizer_json(tmp_path: Path, gemma4_tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.json", gemma4_json()))
    for text, ids in gemma4()["vectors"] + gemma4()["more"]:
        assert tokenizer.encode(text, add_bos=False) == ids
    assert tokenizer.control_ids == gemma4_tokenizer.control_ids
    assert tokenizer.vocab_size == 262144


def test_a_merge_has_two_forms(tmp_path: Path, trained: Tokenizer) -> None:
    """``"a b"``, which other tests read, and ``["a", "b"]``."""
    data = trained_json()
    listed = [merge.split(" ") for merge in data["model"]["merges"]]
    assert len(listed) > 100
    content = {**data, "model": {**data["model"], "merges": listed}}
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.json", content))
    text = "The door opened, and the captain went in."
    assert tokenizer.encode(text) == trained.encode(text)


def test_gemma_4_ids(gemma4_tokenizer: Tokenizer) -> None:
    t = gemma4_tokenizer
    assert (t.vocab_size, t.pad_id, t.eos_id, t.bos_id, t.unk_id) == (262144, 0, 1, 2, 3)
    assert (t.token_id("<|turn>"), t.end_of_turn_id) == (105, 106)
    assert t.token_id("<start_of_turn>") is None
    assert (t.id_to_piece(107), t.piece_to_id(SPACE * 2), t.piece_to_id("no such piece")) == ("\n", 138, None)
    assert {0, 1, 2, 3, 46, 48, 50, 52, 98, 100, 105, 106, 255999} <= t.control_ids
    assert 107 not in t.control_ids


# --- all formats agree --------------------------------------------------------------------------------------


@relaxed
@given(text=crafted_text, allow_control=st.booleans())
@example(text=" " * 40 + "the", allow_control=True)
@example(text="<start_of_turn>user\nthe door<end_of_turn>\n", allow_control=False)
def test_all_formats_give_the_same_ids(
    trained: Tokenizer,
    trained_json_tokenizer: Tokenizer,
    trained_gguf_tokenizer: Tokenizer,
    text: str,
    allow_control: bool,
) -> None:
    ids = trained.encode(text, allow_control=allow_control)
    assert trained_json_tokenizer.encode(text, allow_control=allow_control) == ids
    assert trained_gguf_tokenizer.encode(text, allow_control=allow_control) == ids
    assert trained_json_tokenizer.decode(ids) == trained.decode(ids) == trained_gguf_tokenizer.decode(ids)


@relaxed
@given(text=crafted_text)
def test_tokenizer_model_is_sentencepiece_between_control_tokens(trained: Tokenizer, text: str) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=trained_model())
    plain = text.replace("<", "(")  # without control tokens, SentencePiece encodes the whole text
    assert trained.encode(plain, add_bos=False) == original.encode(plain)
    assert trained.decode(original.encode(plain)) == plain.replace(SPACE, " ")


@relaxed
@given(ids=st.lists(st.integers(4, 419), max_size=30))
def test_broken_utf8_is_decoded_as_in_sentencepiece(trained: Tokenizer, ids: list[int]) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=trained_model())
    assert trained.decode(ids, skip_control=False) == original.decode(ids)


def test_tokenizer_json_decides_how_text_is_split(tmp_path: Path, trained: Tokenizer) -> None:
    save(tmp_path, "model.gguf", trained_gguf())
    assert Tokenizer.from_file(tmp_path).source.endswith("model.gguf")
    save(tmp_path, "tokenizer.json", trained_json())
    assert Tokenizer.from_file(tmp_path).source.endswith("tokenizer.json")
    save(tmp_path, "tokenizer.model", trained_model())
    folder = Tokenizer.from_file(str(tmp_path))
    assert folder.source.endswith("tokenizer.json")
    assert folder.encode("the door") == trained.encode("the door")


def test_merges_that_a_trainer_writes(tmp_path: Path) -> None:
    """There is one merge for each piece. A SentencePiece model would also join ``a`` and ``bc``."""
    data = trained_json()
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["a", "b", "c", "ab", "bc", "abc", SPACE, "\n", "<x>"]
    types = [3, 3, 3, 2, *[6] * 256, *[1] * 8, 4]
    data = tokenizer_json(pieces, types, ["b c", "a b", "ab c"])
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.json", data))

    def text(ids: list[int]) -> list[str]:
        return [tokenizer.id_to_piece(i) for i in ids]

    assert text(tokenizer.encode("abc", add_bos=False)) == ["a", "bc"]
    assert text(tokenizer.encode("ab c", add_bos=False)) == ["ab", SPACE, "c"]
    assert text(tokenizer.encode("<x>é<bos>\n", add_bos=False)) == ["<x>", "<0xC3>", "<0xA9>", "<bos>", "\n"]
    assert tokenizer.decode(tokenizer.encode("abcabc <x>é")) == "abcabc <x>é"


# --- added tokens -------------------------------------------------------------------------------------------


def test_added_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    """Gemma 3 has <image_soft_token> at 262144, after the last piece. Fine-tuned models have their own."""
    config = {
        "bos_token": "<bos>",
        "added_tokens_decoder": {
            "420": {"content": "<image_soft_token>", "special": True},
            "423": {"content": "[note]", "special": False, "lstrip": False},
        },
    }
    save(tmp_path, "tokenizer_config.json", config)
    for name, data in (("tokenizer.json", trained_json()), ("tokenizer.model", trained_model())):
        tokenizer = Tokenizer.from_file(save(tmp_path, name, data))
        assert tokenizer.vocab_size == 424
        ids = tokenizer.encode("the<image_soft_token>[note]", add_bos=False)
        assert ids[-2:] == [420, 423]
        assert tokenizer.decode(ids) == "the[note]"
        assert tokenizer.decode([421, 422]) == ""
        untrusted = tokenizer.encode("<image_soft_token>[note]", add_bos=False, allow_control=False)
        assert 420 not in untrusted
        assert untrusted[-1] == 423


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("vocabulary", ["tokenizer.model", "tokenizer.json"])
def test_an_added_token_keeps_its_id_after_a_gap(tmp_path: Path, file: str, vocabulary: str) -> None:
    save(tmp_path, vocabulary, trained_model() if vocabulary.endswith("model") else trained_json())
    size = Tokenizer.from_file(tmp_path).vocab_size
    entry = {"content": "<extra>", "special": True}
    entries = {"<extra>": size + 3} if file == "added_tokens.json" else {str(size + 3): entry}
    save(tmp_path, file, entries if file == "added_tokens.json" else {"added_tokens_decoder": entries})
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.vocab_size == size + 4
    assert tokenizer.encode("<extra>", add_bos=False) == [size + 3]
    assert tokenizer.decode([size, size + 1]) == ""


def test_added_tokens_of_tokenizer_json_and_added_tokens_json(tmp_path: Path) -> None:
    data = trained_json()
    data["added_tokens"].append({"id": 420, "content": "<image_soft_token>", "special": True})
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.json", data))
    assert tokenizer.encode("<image_soft_token>") == [2, 420]
    folder = tmp_path / "other"
    folder.mkdir()
    save(folder, "added_tokens.json", {"<image_soft_token>": 420})
    save(folder, "tokenizer.model", trained_model())
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.encode("<image_soft_token>") == [2, 420]
    assert 420 in tokenizer.control_ids


def test_a_piece_renamed_by_a_fine_tuned_model(tmp_path: Path) -> None:
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}},  # <unused0> in the model
    }
    save(tmp_path, "tokenizer_config.json", config)
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.model", trained_model()))
    assert tokenizer.eos_id == 5
    assert tokenizer.encode("<|im_end|>") == [2, 5]
    assert tokenizer.decode([5], skip_control=False) == "<|im_end|>"
    assert 5 not in tokenizer.encode("<unused0>")


# --- bad files ----------------------------------------------------------------------------------------------


def refused(path: Path, *words: str, error: type[GemletError] = TokenizerError) -> None:
    with pytest.raises(error) as caught:
        Tokenizer.from_file(path)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.model", "absent.model", error=ModelFileError)
    refused(tmp_path, "tokenizer.model, tokenizer.json or *.gguf", error=ModelFileError)
    refused(tmp_path / "nul\0", "nul", error=ModelFileError)
    save(tmp_path, "a.gguf", trained_gguf())
    save(tmp_path, "b.gguf", trained_gguf())
    refused(tmp_path, "a.gguf, b.gguf")


def test_tokenizer_model_cut_anywhere(tmp_path: Path) -> None:
    data = trained_model()
    path = tmp_path / "tokenizer.model"
    for size in [*range(300), *range(300, len(data), 37), *range(len(data) - 200, len(data))]:
        path.write_bytes(data[:size])
        refused(path, "tokenizer.model")


@settings(relaxed, max_examples=300)
@given(data=st.data())
def test_damaged_tokenizer_model_is_a_typed_error_or_works(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(trained_model())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = save(tmp_path, "tokenizer.model", bytes(damaged))
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.decode(tokenizer.encode("the door 日<end_of_turn>", add_bos=False))
    except GemletError as error:
        message = str(error)
    else:
        message = "tokenizer.model"
    assert "tokenizer.model" in message


@pytest.mark.parametrize("size", [1025, 150_000, 2_000_000])
def test_a_piece_long_enough_to_exhaust_the_stack(tmp_path: Path, size: int) -> None:
    pieces, scores, types = trained_pieces()
    piece = "a" * size
    special = {"unk": (3, b"<unk>")}
    encoded = [p.encode() for p in [*pieces, piece]]
    data = build_model(encoded, [*scores, 0.0], [*types, 4], byte_fallback=True, special=special)
    refused(save(tmp_path, "tokenizer.model", data), f"a piece of {size} characters")
    refused(
        save(tmp_path, "tokenizer.json", changed("model.vocab", {"<unk>": 0, piece: 1})), f"{size} characters"
    )


def changed(key: str, value: Any) -> dict[str, Any]:
    """The good tokenizer.json with one (dotted) key set, or removed if the value is ``...``."""
    data: dict[str, Any] = json.loads(json.dumps(trained_json()))
    if key == "model.vocab":
        data["model"]["merges"] = data["added_tokens"] = []
    inner = data
    *path, last = key.split(".")
    for step in path:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("normalizer", None, "normalizer"),
        ("normalizer", {"type": "NFKC"}, "normalizer"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Strip"}]}, "normalizer"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "pre_tokenizer"),
        ("decoder", {"type": "ByteLevel"}, "decoder"),
        ("model", None, "model.type"),
        ("model.type", "Unigram", "model.type"),
        ("model.byte_fallback", False, "model.byte_fallback"),
        ("model.dropout", 0.1, "model.dropout"),
        ("model.end_of_word_suffix", "</w>", "model.end_of_word_suffix"),
        ("model.ignore_merges", True, "model.ignore_merges"),
        ("model.vocab", ..., "model.vocab"),
        ("model.vocab", {"a": 0, "b": 7}, "'b'"),
        ("model.vocab", {"a": 0, "b": 0}, "have the same id 0"),
        ("model.vocab", {"a": 0, "b": True}, "'b'"),
        ("model.vocab", {"a": 0, "b": 1}, "<unk>"),
        ("model.vocab", {}, "0 pieces"),
        ("model.vocab", {"": 0, "<unk>": 1}, "empty"),
        ("model.vocab", {"<unk>": 0, "<0x41>": 1}, "byte pieces"),
        ("model.vocab", {"<unk>": 0, "<0xZZ>": 1}, "byte piece"),
        ("model.vocab", {"<unk>": 0, "\ud800": 1}, r"surrogate U+D800"),
        ("model.merges", None, "model.merges"),
        ("model.merges", ["ab"], "merge 0"),
        ("model.merges", ["a b c"], "expected a piece of the vocabulary"),
        ("model.merges", [["a", "b", "c"]], "merge 0"),
        ("model.merges", [["a", 1]], "merge 0"),
        ("model.merges", [["x", "yz"], "h e"], "'xyz'"),
        ("added_tokens", {"id": 0}, "added_tokens"),
        ("added_tokens", [{"id": -1, "content": "<x>"}], "added_tokens"),
        ("added_tokens", [{"id": 1 << 40, "content": "<x>"}], "added_tokens"),
        ("added_tokens", [{"id": 400000, "content": "<x>"}], "400000"),
        ("added_tokens", [{"id": 500, "content": ""}], "500"),
        ("added_tokens", [{"id": 500, "content": "\udfff"}], "surrogate U+DFFF"),
        ("added_tokens", [{"id": 500, "content": "<x>", "lstrip": 1}], "lstrip"),
        ("added_tokens", [{"id": 500, "content": "<x>", "single_word": "no"}], "single_word"),
    ],
)
def test_tokenizer_json_of_another_kind(tmp_path: Path, key: str, value: Any, word: str) -> None:
    refused(save(tmp_path, "tokenizer.json", changed(key, value)), "tokenizer.json", word)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff\xfe", b'{"a":' * 100000, b'{"a": 1, "a": 2}', b'{"a": NaN}']
)
def test_tokenizer_json_that_is_not_json(tmp_path: Path, data: bytes) -> None:
    refused(save(tmp_path, "tokenizer.json", data), "tokenizer.json")


def gguf_vocabulary(**changes: tuple[int, Any] | None) -> bytes:
    """A vocabulary of three pieces. ``changes`` are keys without ``tokenizer.ggml.``, with type and value."""
    entries: dict[str, tuple[int, Any] | None] = {
        "model": (STRING, "llama"),
        "tokens": (ARRAY, (STRING, ["<unk>", "<bos>", "a"])),
        "scores": (ARRAY, (F32, [0, 0, 0])),
        "token_type": (ARRAY, (I32, [2, 3, 1])),
        **changes,
    }
    return gguf_file([gguf_entry(f"tokenizer.ggml.{key}", *e) for key, e in entries.items() if e is not None])


def test_the_smallest_gguf_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(save(tmp_path, "v.gguf", gguf_vocabulary()))
    assert tokenizer.encode("ab") == [1, 2, 0]


@pytest.mark.parametrize(
    ("changes", "word", "error"),
    [
        ({"model": None}, "tokenizer.ggml.model", ModelFileError),
        ({"model": (STRING, "gpt2")}, "gpt2", TokenizerError),
        ({"model": (STRING, "gemma4")}, "tokenizer.ggml.merges", ModelFileError),
        ({"tokens": None}, "tokenizer.ggml.tokens", ModelFileError),
        ({"tokens": (ARRAY, (I32, [1]))}, "tokens", ModelFileError),
        ({"tokens": (ARRAY, (ARRAY, [(I32, [])] * 3))}, "tokens", TokenizerError),
        ({"tokens": (ARRAY, (STRING, ["<unk>", "a", "a"]))}, "already defined", TokenizerError),
        ({"tokens": (ARRAY, (STRING, ["<unk>", "", "a"]))}, "piece 1 is empty", TokenizerError),
        ({"scores": None}, "tokenizer.ggml.scores", ModelFileError),
        ({"scores": (ARRAY, (F32, [0]))}, "scores", TokenizerError),
        ({"scores": (ARRAY, (F32, [0, float("nan"), 0]))}, "scores", TokenizerError),
        ({"token_type": None}, "tokenizer.ggml.token_type", ModelFileError),
        ({"token_type": (ARRAY, (I32, [2, 3]))}, "token_type", TokenizerError),
        ({"token_type": (ARRAY, (I32, [2, 3, 9]))}, "token_type", TokenizerError),
        (
            {"tokens": (ARRAY, (STRING, ["b", "c", "a"])), "token_type": (ARRAY, (I32, [3, 3, 1]))},
            "<unk>",
            TokenizerError,
        ),
        ({"bos_token_id": (U32, 3)}, "bos_token_id", TokenizerError),
        ({"add_space_prefix": (BOOL, True)}, "add_space_prefix", TokenizerError),
    ],
)
def test_gguf_vocabularies_of_another_kind(
    tmp_path: Path, changes: dict[str, tuple[int, Any] | None], word: str, error: type[GemletError]
) -> None:
    refused(save(tmp_path, "v.gguf", gguf_vocabulary(**changes)), "v.gguf", word, error=error)


def test_gguf_is_recognised_by_its_content(tmp_path: Path) -> None:
    assert Tokenizer.from_file(save(tmp_path, "vocabulary.bin", trained_gguf())).vocab_size == 420
    refused(save(tmp_path, "x.bin", b"GGUF" + struct.pack("<I", 9)), "x.bin", error=ModelFileError)


def test_a_folder_of_gguf_files_has_one_model(tmp_path: Path, trained: Tokenizer) -> None:
    """Files beside a model for images, draft tokens or a quantization are not models themselves."""
    for name in ("mmproj-model.gguf", "mtp-model.gguf", "imatrix.gguf", "model-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    save(tmp_path, "model-00001-of-00002.gguf", trained_gguf())
    assert Tokenizer.from_file(tmp_path).encode("the door") == trained.encode("the door")
    save(tmp_path, "other.gguf", trained_gguf())
    with pytest.raises(TokenizerError, match="several GGUF files"):
        Tokenizer.from_file(tmp_path)
