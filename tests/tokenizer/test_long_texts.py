"""Long texts are cut at places that no token crosses. A text that would take too long is an error."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gemlet.errors import ContextLengthError, TokenizerError
from gemlet.tokenizer import Tokenizer
from gemlet.tokenizer.cutting import Cutter
from gemlet.tokenizer.files import read_vocabulary
from gemlet.tokenizer.vocabulary import Vocabulary
from support.pace import assert_quick
from support.texts import any_text, crafted_text, relaxed
from support.tokenizer_files import WORDS, save, trained_model

words = st.lists(st.sampled_from([*WORDS.split(), " ", "\n", "日", "xq", "thethe"]), max_size=40).map("".join)


vocabulary_of = cache(read_vocabulary)


@pytest.mark.slow
@relaxed
@given(text=words | any_text | crafted_text, part=st.integers(1, 12))
def test_the_parts_have_the_ids_of_the_whole(
    trained: Tokenizer,
    trained_json_tokenizer: Tokenizer,
    gemma4_tokenizer: Tokenizer,
    text: str,
    part: int,
) -> None:
    for tokenizer in (trained, trained_json_tokenizer, gemma4_tokenizer):
        parts = list(Cutter(vocabulary_of(tokenizer.source), part).parts(text))
        assert "".join(parts) == text
        ids = [i for p in parts for i in tokenizer.encode(p, add_bos=False, allow_control=False)]
        assert ids == tokenizer.encode(text, add_bos=False, allow_control=False)


def test_words_are_cut_without_newlines(trained: Tokenizer) -> None:
    parts = list(Cutter(read_vocabulary(trained.source), 50).parts(WORDS))
    assert [part[:1] for part in parts[1:]] == [" "] * (len(parts) - 1)
    assert max(map(len, parts)) < 70


@relaxed
@given(text=words | any_text, part=st.integers(1, 12))
def test_unknown_characters_in_a_row_are_one_token_without_bytes(text: str, part: int) -> None:
    tokenizer, vocabulary = without_bytes()
    parts = list(Cutter(vocabulary, part).parts(text))
    ids = [i for p in parts for i in tokenizer.encode(p, add_bos=False, allow_control=False)]
    assert ids == tokenizer.encode(text, add_bos=False, allow_control=False)
    assert tokenizer.most_characters(1) is None


@cache
def without_bytes() -> tuple[Tokenizer, Vocabulary]:
    with TemporaryDirectory() as folder:
        path = save(Path(folder), "tokenizer.model", trained_model(byte_fallback=False, vocab_size=200))
        return Tokenizer.from_file(path), read_vocabulary(path)


def test_long_text_is_split_without_changing_ids(trained: Tokenizer) -> None:
    rng = random.Random(3)
    parts = ["the door ", "\n", "\n\n", "\n\n\n\n", "   ", "日", "<b>", "rain"]
    text = "".join(rng.choices(parts, k=40000))
    original = sentencepiece.SentencePieceProcessor(model_proto=trained_model())
    assert trained.encode(text, add_bos=False) == original.encode(text)


def test_a_megabyte_takes_about_a_second(trained: Tokenizer) -> None:
    rng = random.Random(5)
    lines = "".join("the old man who kept the house " + "\n "[rng.random() < 0.9] for _ in range(33000))
    texts = (lines, lines.replace("\n", " "), "<" * 1_000_000)
    # A quadratic algorithm would take minutes.
    assert_quick(lambda: [trained.encode(text) for text in texts], 10)


@pytest.mark.parametrize("text", ["the door ", "\n", " ", "日", "<", "<unused", "abc\n"])
def test_the_first_ids_are_those_of_the_whole(trained: Tokenizer, text: str) -> None:
    text *= 100_000
    for count in (1, 7, 1000):
        assert trained.first_ids(text, count) == trained.encode(text)[:count]
    assert trained.first_ids("the", 1000) == trained.encode("the")
    assert trained.first_ids("<bos><bos>the", 2) == trained.encode("the")[:2]


def test_the_first_ids_take_no_time(trained: Tokenizer) -> None:
    text = "the door opened " * 1_000_000
    assert_quick(lambda: trained.first_ids(text, 1000), 0.5)  # encoding all texts would take ten seconds


def test_the_most_characters_of_tokens_are_counted(trained: Tokenizer) -> None:
    longest = max(len(trained.id_to_piece(i)) for i in range(trained.vocab_size))
    assert trained.most_characters(10) == 10 * longest
    trained.check_length(10_000 * longest, 10_000, "prompt")
    trained.check_length(100_000, 1, "prompt")  # soon encoded
    with pytest.raises(ContextLengthError, match=f"prompt: {10_000 * longest + 1} characters.* 10000 tokens"):
        trained.check_length(10_000 * longest + 1, 10_000, "prompt")


def test_a_text_that_cannot_be_cut_is_refused(trained: Tokenizer) -> None:
    text = "\n" * 5_000_000

    def refuse() -> None:
        with pytest.raises(TokenizerError, match=r"it has 5000000 characters .* that cannot be cut"):
            trained.encode(text)

    assert_quick(refuse, 5)
