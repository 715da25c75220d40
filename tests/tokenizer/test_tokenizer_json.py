"""tokenizer.json is read as the library tokenizers and transformers 5 read it, also if it is unusual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemlet import Tokenizer
from gemlet.errors import TokenizerError
from gemlet.tokenizer.merges import MergeEncoder
from support.tokenizer_files import WORDS, save, trained_json, trained_model

TEXTS = ["the door", "The  door\n\nopened.", "é ☂ naïve", "<start_of_turn>user\nHi<end_of_turn>", "   x\t"]


def added(identifier: int, content: str, **flags: Any) -> dict[str, Any]:
    return {"id": identifier, "content": content, "special": False, "normalized": False} | flags


def folder_with(folder: Path, *tokens: dict[str, Any]) -> Tokenizer:
    data = trained_json()
    data["added_tokens"] += list(tokens)
    save(folder, "tokenizer.json", data)
    save(folder, "tokenizer.model", trained_model())
    return Tokenizer.from_file(folder)


def json_folder(folder: Path, data: dict[str, Any], **config: Any) -> Tokenizer:
    save(folder, "tokenizer.json", data)
    save(folder, "tokenizer_config.json", config)
    return Tokenizer.from_file(folder)


@pytest.mark.parametrize("normalized", [False, True])
def test_added_runs_of_spaces_without_merges(tmp_path: Path, normalized: bool) -> None:
    """The library tokenizers finds them in the text as it is, before spaces become U+2581, or, if they are
    normalized, after that. No merge makes them."""
    data = trained_json()
    pieces = data["model"]["vocab"]
    one, two, three = (pieces["\u2581" * count] for count in (1, 2, 3))
    runs = {"\u2581" * count for count in range(2, 20)}
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] not in runs]
    data["added_tokens"] += [added(i, run, normalized=normalized) for run, i in pieces.items() if run in runs]
    made = [merge for merge in data["model"]["merges"] if merge.replace(" ", "") not in runs]
    data["model"]["merges"] = made
    tokenizer = json_folder(tmp_path, data)
    assert tokenizer.encode("  ", add_bos=False) == ([two] if normalized else [one, one])
    assert tokenizer.encode("\u2581\u2581\u2581 ", add_bos=False)[0] == three
    assert tokenizer.decode([two, three]) == " " * 5


def test_a_special_run_of_spaces_that_merges_make_is_refused(tmp_path: Path) -> None:
    data = trained_json()
    two = data["model"]["vocab"]["\u2581\u2581"]
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["id"] != two]
    data["added_tokens"].append(added(two, "\u2581\u2581", special=True))
    data["model"]["merges"] = ["\u2581 \u2581", *data["model"]["merges"]]
    with pytest.raises(TokenizerError, match="special, but the merges make it of spaces"):
        json_folder(tmp_path, data)


def test_pieces_that_no_merge_makes_change_no_other_merge(tmp_path: Path) -> None:
    data = trained_json()
    pieces, merges = data["model"]["vocab"], data["model"]["merges"]
    for count in (len(merges) // 3, len(merges) // 2):
        data["model"]["merges"] = merges[:count]
        made = {merge.replace(" ", "") for merge in merges[:count]}
        normal = {piece: i for piece, i in pieces.items() if len(piece) == 1 or piece in made}
        literal = MergeEncoder(
            normal, {merge: rank for rank, merge in enumerate(merges[:count])}, unk_id=3, byte_ids=None
        )
        found = Tokenizer.from_file(save(tmp_path, "tokenizer.json", data))
        assert found.encode(WORDS, add_bos=False) == literal.encode(WORDS)


def test_spaces_in_a_row_follow_the_merges(tmp_path: Path) -> None:
    data = trained_json()
    pieces = data["model"]["vocab"]
    one, two, three = (pieces["\u2581" * count] for count in (1, 2, 3))
    data["model"]["merges"] = ["\u2581 \u2581", "\u2581\u2581 \u2581", *data["model"]["merges"]]
    for entry in data["added_tokens"]:
        entry["normalized"] = False
    tokenizer = json_folder(tmp_path, data)
    assert tokenizer.encode(" " * 7, add_bos=False) == [two, two, three]
    assert tokenizer.encode(" \u2581\u2581 ", add_bos=False) == [one, two, one]  # found before normalization
    assert tokenizer.decode([two, three]) == " " * 5
    save(tmp_path, "tokenizer.model", trained_model())
    both = Tokenizer.from_file(tmp_path)  # SentencePiece would take the longest piece first
    assert both.encode(" " * 7, add_bos=False) == [two, two, three]


def test_a_normalizer_counts_beside_tokenizer_model(tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.model", trained_model())
    with pytest.raises(TokenizerError, match="normalizer is"):
        json_folder(tmp_path, trained_json() | {"normalizer": {"type": "Lowercase"}})


def test_a_control_token_is_written_with_its_spaces(tmp_path: Path) -> None:
    data = trained_json()
    data["added_tokens"].append(added(420, "x\u2581y", special=True))
    tokenizer = json_folder(tmp_path, data)
    assert tokenizer.encode("x\u2581y", add_bos=False) == [420]
    assert tokenizer.decode([420], skip_control=False) == "x y"


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (added(430, "<far>"), "'<far>' has the id 430; expected 420, the id that"),
        (added(5, "<new>"), "'<new>' has the id 5; expected 420, the id that"),
        (added(420, "e"), "'e' has the id 420; expected [34]"),
    ],
)
def test_ids_that_tokenizers_would_not_give_are_refused(
    tmp_path: Path, token: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TokenizerError, match=problem):
        folder_with(tmp_path, token)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=problem):
        Tokenizer.from_file(tmp_path)


def test_the_first_of_two_added_tokens_with_one_text_counts(tmp_path: Path) -> None:
    tokenizer = folder_with(tmp_path, added(420, "<x>"), added(421, "<x>"), added(421, "<y>"))
    assert tokenizer.encode("<x><y>", add_bos=False) == [420, 421]


def test_special_tokens_without_an_id_get_the_next_ones(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "bos_token": "<bos>",
        "pad_token": {"content": "<|pad|>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "extra_special_tokens": {"image_token": "<mask>", "other_token": "<|x|>"},
    }
    tokenizer = json_folder(tmp_path, trained_json(), **config)
    assert tokenizer.encode("<|im_end|><|pad|><|x|>", add_bos=False) == [420, 421, 422]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (420, 421)
    assert {420, 421, 422} <= tokenizer.control_ids
    save(
        tmp_path,
        "special_tokens_map.json",
        {"eos_token": "<end_of_turn>", "additional_special_tokens": ["<y>"]},
    )
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.encode("<y>", add_bos=False) == [423]
    assert tokenizer.eos_id == tokenizer.token_id("<end_of_turn>")


ADDED_TOKEN = {"__type": "AddedToken", "content": "<x>", "lstrip": False, "special": True}


@pytest.mark.parametrize(
    ("config", "special", "ids"),
    [
        ({"image_token": "<x>", "audio_token": "<y>"}, {}, [420, 421]),
        ({"audio_token": "<y>", "image_token": "<x>"}, {}, [421, 420]),
        ({"extra_special_tokens": ["<y>"], "image_token": "<x>"}, {}, [420, 421]),
        ({"extra_special_tokens": {"a": "<y>"}, "image_token": "<x>"}, {}, [420, 421]),
        ({"image_token": "<x>", "mask_token": "<y>"}, {}, [421, 420]),
        ({"image_token": ADDED_TOKEN, "mask_token": "<y>"}, {}, [421, 420]),
        ({"mask_token": "<y>"}, {"image_token": {"content": "<x>"}}, [421, 420]),
    ],
)
def test_tokens_under_keys_of_one_model_are_special(
    tmp_path: Path, config: dict[str, Any], special: dict[str, Any], ids: list[int]
) -> None:
    """The ids are those of AutoTokenizer in transformers 5.24."""
    save(tmp_path, "special_tokens_map.json", special)
    tokenizer = json_folder(tmp_path, trained_json(), **config)
    assert tokenizer.encode("<x><y>", add_bos=False) == ids
    assert set(ids) <= tokenizer.control_ids


@pytest.mark.parametrize("value", [True, None, 3, ["<x>"], {"content": "<x>"}])
def test_other_values_under_such_keys_are_no_tokens(tmp_path: Path, value: object) -> None:
    tokenizer = json_folder(tmp_path, trained_json(), image_token=value)
    assert tokenizer.encode("<x>") == json_folder(tmp_path, trained_json()).encode("<x>")


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_classes_that_cut_text_in_their_own_way_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=rf"tokenizer_class is '{name}'.*Expected 'GemmaTokenizer'"):
        json_folder(tmp_path, trained_json(), tokenizer_class=name)
    for other in ("GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", None):
        json_folder(tmp_path, trained_json(), tokenizer_class=other)


def test_special_tokens_that_would_be_plain_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"split_special_tokens is True.*expected false.*allow_control"):
        json_folder(tmp_path, trained_json(), split_special_tokens=True)
    json_folder(tmp_path, trained_json(), split_special_tokens=False)


def test_other_spellings_of_the_same_pipeline(tmp_path: Path) -> None:
    plain = Tokenizer.from_file(save(tmp_path, "tokenizer.json", trained_json()))
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
    replace = {"type": "Replace", "pattern": {"Regex": " "}, "content": "\u2581"}
    split = {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Isolated", "invert": False}
    for changes in (
        {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace},
        {"normalizer": replace, "pre_tokenizer": split},
    ):
        found = Tokenizer.from_file(save(tmp_path, "tokenizer.json", trained_json() | changes))
        for text in TEXTS:
            assert found.encode(text) == plain.encode(text)
    for changes in (
        {"normalizer": None, "pre_tokenizer": metaspace | {"split": True}},
        {"normalizer": None, "pre_tokenizer": metaspace | {"prepend_scheme": "first"}},
        {"pre_tokenizer": split | {"invert": True}},
    ):
        with pytest.raises(TokenizerError, match=r"normalizer is|pre_tokenizer is"):
            Tokenizer.from_file(save(tmp_path, "tokenizer.json", trained_json() | changes))


@pytest.mark.parametrize("name", [None, "GemmaTokenizer", "PreTrainedTokenizerFast"])
def test_tokens_that_the_configuration_lacks_count(
    tmp_path: Path, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The library tokenizers and the class PreTrainedTokenizerFast read them. For Gemma's own class,
    transformers 5 reads only the tokens of added_tokens_decoder, if the file has it."""
    data = trained_json()
    data["added_tokens"].append(added(420, "[note]"))
    entries = {str(entry["id"]): entry for entry in data["added_tokens"][:-1]}
    named = {} if name is None else {"tokenizer_class": name}
    tokenizer = json_folder(tmp_path, data, added_tokens_decoder=entries, **named)
    assert tokenizer.encode("the[note]", add_bos=False)[-1] == 420
    assert ("lacks 1 tokens" in caplog.text and "'[note]'" in caplog.text) == (
        name != "PreTrainedTokenizerFast"
    )
    caplog.clear()
    entries["420"] = added(420, "[note]")
    json_folder(tmp_path, data, added_tokens_decoder=entries, **named)
    assert not caplog.text
