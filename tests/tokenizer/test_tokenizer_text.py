"""Text and ids: BOS and control tokens, decoding, streaming, and arbitrary text."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from gemlet.errors import InvalidRequestError, TokenizerError
from gemlet.tokenizer import Tokenizer
from support.texts import crafted_text, relaxed
from support.tokenizer_files import MARKERS, SPACE, save, trained_model

# --- BOS and control tokens ---------------------------------------------------------------------------------


def test_a_text_gets_exactly_one_bos(trained: Tokenizer) -> None:
    plain = trained.encode("the door", add_bos=False)
    assert trained.encode("the door") == [2, *plain]
    assert trained.encode("<bos>the door") == [2, *plain]
    assert trained.encode("<bos><bos>the door") == [2, *plain]
    assert trained.encode("<bos>the door", add_bos=False) == [2, *plain]
    assert trained.encode("the<bos>door").count(2) == 2
    assert trained.encode("") == trained.encode("<bos>") == [2]
    assert trained.encode("", add_bos=False) == []
    untrusted = trained.encode("<bos>the door", allow_control=False)
    assert untrusted[0] == 2
    assert untrusted.count(2) == 1
    assert trained.decode(untrusted) == "<bos>the door"


def test_control_tokens_in_text(trained: Tokenizer) -> None:
    start, end = trained.token_id("<start_of_turn>"), trained.token_id("<end_of_turn>")
    newline = trained.piece_to_id("\n")
    text = "<start_of_turn>user\nthe door<end_of_turn>\n"
    ids = trained.encode(text)
    assert ids[:2] == [2, start]
    assert ids[-2:] == [end, newline]
    assert trained.decode(ids) == "user\nthe door\n"
    assert trained.decode(ids, skip_control=False) == "<bos>" + text
    assert trained.encode("<eos><pad><unk>", add_bos=False) == [1, 0, 3]
    # White space, HTML and <unusedN> are text and not control tokens, in both directions.
    text = "<b><unused0>\n\n   "
    ids = trained.encode(text, add_bos=False, allow_control=False)
    assert ids == trained.encode(text, add_bos=False)
    assert len(ids) == 4
    assert trained.decode(ids) == text


def test_sentencepiece_type_of_a_marker_does_not_matter(tmp_path: Path, trained: Tokenizer) -> None:
    """In Gemma's files, turn markers are user-defined pieces. A control piece must be found in text too."""
    turns = tuple(MARKERS[2:4])
    data = trained_model(user_defined_symbols=(*MARKERS[:2], *MARKERS[4:]), control_symbols=turns)
    controls = Tokenizer.from_file(save(tmp_path, "tokenizer.model", data))
    text = "<start_of_turn>user\nthe door<end_of_turn>\n"
    for tokenizer in (trained, controls):
        trusted = [tokenizer.id_to_piece(i) for i in tokenizer.encode(text)]
        assert trusted[:2] == ["<bos>", "<start_of_turn>"]
        assert trusted[-2:] == ["<end_of_turn>", "\n"]
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text, add_bos=False, allow_control=False))


@relaxed
@given(text=crafted_text)
def test_untrusted_text_never_gives_control_tokens(
    trained: Tokenizer, gemma4_tokenizer: Tokenizer, text: str
) -> None:
    ids = trained.encode(text, add_bos=False, allow_control=False)
    assert trained.control_ids.isdisjoint(ids)
    assert trained.decode(ids) == text.replace(SPACE, " ")
    turned = text.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
    ids = gemma4_tokenizer.encode(turned, add_bos=False, allow_control=False)
    assert gemma4_tokenizer.control_ids.isdisjoint(ids)


def test_the_longest_of_overlapping_control_tokens_wins(gemma4_tokenizer: Tokenizer) -> None:
    t = gemma4_tokenizer
    pieces = [t.id_to_piece(i) for i in t.encode("<<|image|><|image><image|>", add_bos=False)]
    assert pieces == ["<", "<|image|>", "<|image>", "<image|>"]


def test_a_vocabulary_may_lack_bos(tmp_path: Path) -> None:
    path = save(tmp_path, "tokenizer.model", trained_model(bos_id=-1, eos_id=1, unk_id=2))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.bos_id is None
    assert tokenizer.decode(tokenizer.encode("the door", add_bos=False)) == "the door"
    with pytest.raises(TokenizerError, match="BOS"):
        tokenizer.encode("the door")


def test_a_model_that_adds_a_space_decodes_as_in_sentencepiece(tmp_path: Path) -> None:
    data = trained_model(add_dummy_prefix=True)
    tokenizer = Tokenizer.from_file(save(tmp_path, "tokenizer.model", data))
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in ("the door", " the door", "日"):
        ids = tokenizer.encode(text)
        assert ids[1:] == original.encode(text)
        assert tokenizer.decode(ids) == text
        assert stream(tokenizer, ids) == text


# --- decoding and streaming ---------------------------------------------------------------------------------


def test_decoding_keeps_only_the_text(trained: Tokenizer) -> None:
    ids = trained.encode("the door", add_bos=False) * 50_000
    tracemalloc.start()
    try:
        text = trained.decode(ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # With an object for each id, a Ctrl-C would take effect only after all were freed, which takes a second
    # for millions.
    assert peak < 3 * len(text)


def stream(tokenizer: Tokenizer, ids: list[int], *, skip_control: bool = True) -> str:
    decoder = tokenizer.stream_decoder(skip_control=skip_control)
    return "".join([*(decoder.push(i) for i in ids), decoder.finish()])


@relaxed
@given(ids=st.lists(st.integers(0, 419), max_size=40), skip_control=st.booleans())
def test_streaming_any_ids_equals_decoding_them(
    trained: Tokenizer, ids: list[int], skip_control: bool
) -> None:
    assert stream(trained, ids, skip_control=skip_control) == trained.decode(ids, skip_control=skip_control)


@relaxed
@given(text=crafted_text)
@example(text="👩‍👩‍👧‍👦 שלום 日本 é")
def test_every_part_of_a_stream_is_a_prefix_of_whole_characters(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text, allow_control=False)
    decoder = trained.stream_decoder()
    shown = ""
    for count, token_id in enumerate(ids, 1):
        shown += decoder.push(token_id)
        so_far = trained.decode(ids[:count])
        assert so_far.startswith(shown)
        assert trained.decode(ids).startswith(shown)
        # The stream holds back at most the beginning of one character.
        assert len(so_far) - len(shown) <= 3
        assert set(so_far[len(shown) :]) <= {"\ufffd"}
    assert shown + decoder.finish() == trained.decode(ids) == text.replace(SPACE, " ")


def test_decoding_waits_for_half_a_character_and_replaces_broken_ones(trained: Tokenizer) -> None:
    first, second, third = trained.encode("日", add_bos=False)
    decoder = trained.stream_decoder()
    assert [decoder.push(first), decoder.push(second), decoder.push(third)] == ["", "", "日"]
    assert [decoder.push(first), decoder.push(second), decoder.finish()] == ["", "", "\ufffd\ufffd"]
    door = trained.encode("door", add_bos=False)
    assert decoder.push(first) + decoder.push(door[0]) == "\ufffd" + trained.decode(door[:1])


def test_random_bytes_are_decoded_as_in_sentencepiece(trained: Tokenizer) -> None:
    model = sentencepiece.SentencePieceProcessor(model_proto=trained_model())
    rng = random.Random(1)
    as_bytes = [trained.piece_to_id(f"<0x{byte:02X}>") or 0 for byte in range(256)]
    others = trained.encode("the door 日", add_bos=False)
    for _ in range(2000):
        ids = [rng.choice(as_bytes if rng.random() < 0.7 else others) for _ in range(rng.randint(1, 12))]
        assert trained.decode(ids) == model.decode(ids), ids


@pytest.mark.parametrize("bad", [-1, 420, 1 << 70, 1.0, True, "2", None])
def test_ids_out_of_range(trained: Tokenizer, bad: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: trained.decode([2, bad]),
        lambda: trained.stream_decoder().push(bad),
        lambda: trained.id_to_piece(bad),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match=r"token id .*(420|integer)"):
            call()


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "a\0b",
        "\u202eabc\u200f",
        "שלום עולם",
        "السلام عليكم",
        "e\u0301",
        "\ufeff",
        "\U0010ffff",
        "😀" * 50,
    ]
    + [" " * n + "x" for n in range(70)]
    + ["\n" * n + "\t" * (n % 5) + " " for n in range(40)],
)
def test_any_text_can_be_encoded_and_decoded(
    trained: Tokenizer, gemma4_tokenizer: Tokenizer, text: str
) -> None:
    for tokenizer in (trained, gemma4_tokenizer):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_stand_for_characters_without_a_piece(gemma4_tokenizer: Tokenizer) -> None:
    pieces = [gemma4_tokenizer.id_to_piece(i) for i in gemma4_tokenizer.encode("\U0010fffe", add_bos=False)]
    assert pieces == ["<0xF4>", "<0x8F>", "<0xBF>", "<0xBE>"]


@pytest.mark.parametrize("bad", [None, b"text", 3, ["text"]])
def test_text_must_be_str(trained: Tokenizer, bad: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^text: got .*, expected str$"):
        trained.encode(bad)


def test_lone_surrogates_are_refused(trained: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"character 4 is the lone surrogate U\+D83D"):
        trained.encode("the \ud83d")
