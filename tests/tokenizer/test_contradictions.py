"""Vocabularies whose files contradict themselves or each other, as real tools write them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from gemlet import Tokenizer
from gemlet.errors import TokenizerError
from gemlet.tokenizer.files import read_vocabulary
from gemlet.tokenizer.stored import STORED_FILE, write_stored
from support.tokenizer_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    gguf_entry,
    gguf_file,
    save,
    trained_gguf,
    trained_json,
    trained_merges,
    trained_model,
    trained_pieces,
)

TEXTS = ["the door", "The  door\n\nopened.", "é ☂ naïve", "<start_of_turn>user\nHi<end_of_turn>", "   x\t"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def ollama(model: str, **changes: Any) -> bytes:
    """The trained vocabulary with its merges, scores that are ids, and bytes of type NORMAL."""
    pieces, _, types = trained_pieces()
    values: dict[str, Any] = {
        "tokens": (ARRAY, (STRING, pieces)),
        "token_type": (ARRAY, (I32, [NORMAL if kind == BYTE else kind for kind in types])),
        "scores": (ARRAY, (F32, [float(i) for i in range(len(pieces))])),
        "merges": (ARRAY, (STRING, [" ".join(m) if isinstance(m, list) else m for m in trained_merges()])),
        "bos_token_id": (U32, 2),
        "add_space_prefix": (BOOL, False),
    } | changes
    entries = [gguf_entry("tokenizer.ggml.model", STRING, model)]
    entries += [gguf_entry(f"tokenizer.ggml.{key}", *value) for key, value in values.items() if value]
    return gguf_file(entries)


@pytest.mark.parametrize("model", ["llama", "gemma4"])
@pytest.mark.parametrize("scores", ["ids", "zeros", "none"])
def test_merges_win(tmp_path: Path, model: str, scores: str) -> None:
    count = len(trained_pieces()[0])
    changes: dict[str, Any] = {
        "zeros": {"scores": (ARRAY, (F32, [0.0] * count))},
        "none": {"scores": None},
    }.get(scores, {})
    found = Tokenizer.from_file(save(tmp_path, "a.gguf", ollama(model, **changes)))
    expected = Tokenizer.from_file(save(tmp_path, "tokenizer.json", trained_json()))
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))


@pytest.mark.parametrize(
    "scores",
    [lambda i: float(i), lambda i: 0.0, lambda i: 7.0, lambda i: -1000.0 if i % 10 == 0 else float(i)],
)
def test_scores_that_do_not_fall_are_refused_without_merges(tmp_path: Path, scores: Any) -> None:
    count = len(trained_pieces()[0])
    changes = {"merges": None, "scores": (ARRAY, (F32, [scores(i) for i in range(count)]))}
    path = save(tmp_path, "a.gguf", ollama("llama", **changes))
    with pytest.raises(
        TokenizerError, match=r"not the scores of a SentencePiece model.*convert the model again"
    ):
        Tokenizer.from_file(path)


def test_bytes_are_bytes_beside_real_scores(tmp_path: Path) -> None:
    _, scores, _ = trained_pieces()
    changes = {"merges": None, "scores": (ARRAY, (F32, scores))}
    found = Tokenizer.from_file(save(tmp_path, "a.gguf", ollama("llama", **changes)))
    expected = Tokenizer.from_file(save(tmp_path, "b.gguf", trained_gguf()))
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == text.replace("<start_of_turn>", "").replace(
            "<end_of_turn>", ""
        )


def test_a_vocabulary_without_its_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="0 merges make none of the"):
        Tokenizer.from_file(save(tmp_path, "a.gguf", ollama("gemma4", merges=(ARRAY, (STRING, [])))))
    data = trained_json()
    data["model"]["merges"] = []
    with pytest.raises(TokenizerError, match="0 merges make none of the"):
        Tokenizer.from_file(save(tmp_path, "tokenizer.json", data))


def test_bytes_in_small_letters_are_bytes(tmp_path: Path) -> None:
    small = [piece.lower() if piece.startswith("<0x") else piece for piece in trained_pieces()[0]]
    found = Tokenizer.from_file(save(tmp_path, "a.gguf", ollama("llama", tokens=(ARRAY, (STRING, small)))))
    expected = Tokenizer.from_file(save(tmp_path, "b.gguf", ollama("llama")))
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)


@pytest.mark.parametrize("other", ["<left out>", "<0x42>"])
def test_an_incomplete_set_of_bytes_is_refused(tmp_path: Path, other: str) -> None:
    pieces = [other if piece == "<0x41>" else piece for piece in trained_pieces()[0]]
    with pytest.raises(TokenizerError, match="byte pieces for 255 different bytes"):
        Tokenizer.from_file(save(tmp_path, "a.gguf", ollama("llama", tokens=(ARRAY, (STRING, pieces)))))


# --- tokenizer.json beside tokenizer.model ------------------------------------------------------------------


def added(identifier: int, content: str, **flags: Any) -> dict[str, Any]:
    return {"id": identifier, "content": content, "special": False, "normalized": False} | flags


def folder_with(folder: Path, *tokens: dict[str, Any]) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    data = trained_json()
    data["added_tokens"] += list(tokens)
    save(folder, "tokenizer.json", data)
    save(folder, "tokenizer.model", trained_model())
    return Tokenizer.from_file(folder)


def test_added_tokens_of_the_json_count_beside_the_model(tmp_path: Path) -> None:
    tokenizer = folder_with(tmp_path, added(420, "<tool>", special=True), added(421, "[note]"))
    assert tokenizer.vocab_size == 422
    assert tokenizer.encode("the<tool>[note]", add_bos=False)[-2:] == [420, 421]
    assert 420 in tokenizer.control_ids
    assert tokenizer.decode([421]) == "[note]"


def test_files_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.model", trained_model())
    data = trained_json()
    vocab = data["model"]["vocab"]
    one, other = [piece for piece in vocab if len(piece) == 1 and piece.isalpha()][:2]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    save(tmp_path, "tokenizer.json", data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: gives .* which is .* in tokenizer\.model"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize(
    ("flags", "text", "parts"),
    [
        ({"lstrip": True}, "the \t <x> door", ["the", "<x>", " door"]),
        ({"rstrip": True}, "the <x> \t door", ["the ", "<x>", "door"]),
        ({"lstrip": True, "rstrip": True}, "the <x> <x>  door", ["the", "<x>", "<x>", "door"]),
        # A normalized token is searched in text whose spaces are already U+2581, which is not white space.
        ({"lstrip": True, "normalized": True}, "the\n <x> door", ["the\n ", "<x>", " door"]),
        ({"lstrip": True, "normalized": True}, "the \t<x> door", ["the ", "<x>", " door"]),
        ({"rstrip": True, "normalized": True}, "the <x>\t\t door", ["the ", "<x>", " door"]),
        ({"lstrip": True, "special": True}, "the\u00a0\u2003<x>", ["the", "<x>"]),
        ({"lstrip": True}, "the\x1c<x>", ["the\x1c", "<x>"]),
        ({"rstrip": True}, "<x>   ", ["<x>"]),
        # Several newlines are single tokens, which the reference finds first.
        ({"lstrip": True, "rstrip": True}, "the\n\n <x> \n door", ["the\n\n", "<x>", "\n door"]),
        ({"single_word": True}, "the<x> <x>, <x>1", ["the<x> ", "<x>", ", <x>1"]),
        ({"single_word": True, "lstrip": True}, "the <x>\u0301 <x>", ["the <x>\u0301", "<x>"]),
        ({}, "the <x> door", ["the ", "<x>", " door"]),
    ],
)
def test_tokens_that_take_white_space(
    tmp_path: Path, flags: dict[str, bool], text: str, parts: list[str]
) -> None:
    tokenizer = folder_with(tmp_path / "folder", added(420, "<x>", **flags))
    plain = Tokenizer.from_file(save(tmp_path, "tokenizer.model", trained_model()))
    expected = [[420] if part == "<x>" else plain.encode(part, add_bos=False) for part in parts]
    assert tokenizer.encode(text, add_bos=False) == list(itertools.chain.from_iterable(expected))
    write_stored(tmp_path / STORED_FILE, read_vocabulary(tmp_path / "folder"))
    stored = Tokenizer.from_file(tmp_path / STORED_FILE)
    assert stored.encode(text) == tokenizer.encode(text)


def test_tokens_that_are_normalized_are_found_after_the_others(tmp_path: Path) -> None:
    tokenizer = folder_with(
        tmp_path / "folder",
        added(420, "<<x", normalized=True),
        added(421, "<x>", special=True),
        added(422, " y z"),
    )
    plain = Tokenizer.from_file(save(tmp_path, "tokenizer.model", trained_model()))
    less = plain.encode("<", add_bos=False)
    assert tokenizer.encode("<<x><<x y z", add_bos=False) == [*less, 421, 420, 422]
    spaces = Tokenizer.from_file(
        save(
            tmp_path,
            "tokenizer.json",
            trained_json() | {"added_tokens": [added(420, " y z", normalized=True)]},
        )
    )
    assert spaces.encode("<\u2581y\u2581z", add_bos=False) == [*less, 420]


def test_a_piece_that_is_special_between_words_only_is_refused(tmp_path: Path) -> None:
    piece = next(piece for piece in trained_json()["model"]["vocab"] if len(piece) == 2 and piece.isalpha())
    identifier = trained_json()["model"]["vocab"][piece]
    with pytest.raises(TokenizerError, match=r"special only between words \(single_word\)"):
        folder_with(tmp_path, added(identifier, piece, special=True, single_word=True))


@pytest.mark.parametrize("model", ["llama", "gemma4"])
def test_unused_pieces_that_merges_make_are_used(tmp_path: Path, model: str) -> None:
    """llama.cpp looks a merged piece up by its text, whatever its type is."""
    count = len(trained_pieces()[0])
    data = ollama(model, token_type=(ARRAY, (I32, [UNUSED] * count)))
    found = Tokenizer.from_file(save(tmp_path, "a.gguf", data))
    expected = Tokenizer.from_file(save(tmp_path, "tokenizer.json", trained_json()))
    for text in TEXTS[:1] + TEXTS[2:4]:
        assert found.encode(text) == expected.encode(text)


@pytest.mark.parametrize(
    ("kind", "merges"),
    [(UNKNOWN, True), (CONTROL, True), (USER_DEFINED, True)]
    + [(kind, False) for kind in (UNKNOWN, CONTROL, USER_DEFINED, UNUSED)],
)
def test_types_without_an_ordinary_piece_are_refused(tmp_path: Path, kind: int, merges: bool) -> None:
    """All pieces have this type, or all pieces except single characters."""
    pieces, scores, _ = trained_pieces()
    for types in ([kind] * len(pieces), [NORMAL if len(piece) == 1 else kind for piece in pieces]):
        changes: dict[str, Any] = {"token_type": (ARRAY, (I32, types))}
        if not merges:
            changes |= {"merges": None, "scores": (ARRAY, (F32, scores))}
        path = save(tmp_path, "a.gguf", ollama("llama", **changes))
        with pytest.raises(TokenizerError, match=r"NORMAL.* none of the .*convert the model again"):
            Tokenizer.from_file(path)
