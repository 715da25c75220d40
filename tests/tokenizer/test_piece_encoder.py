"""The core's encoder gives the ids of SentencePiece, or refuses a model that it does not support."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray

from gemlet import _core
from gemlet.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    build_model,
    parse_model,
    with_piece_types,
)
from support.tokenizer_files import SPACE, gemma4, trained_model

LETTERS = "abdehinorst \n\tAÄß漢☂🎉\u0301\u2581\u00a0<>\0"


def texts_for(pieces: Sequence[bytes], chance: random.Random, count: int) -> list[str]:
    """Pieces, words and characters in a row, with spaces where the pieces have U+2581."""
    found = ["", " ", "\n", "the door", "  \n\n the  door", "\u2581", "a" * 300, " " * 100, "<b>x</b>"]
    while len(found) < count:
        parts = []
        for _ in range(chance.randrange(1, 30)):
            if chance.random() < 0.6:
                parts.append(chance.choice(pieces).decode("utf-8", "replace"))
            else:
                parts.append("".join(chance.choices(LETTERS, k=chance.randrange(1, 6))))
        text = "".join(parts)
        found.append(text.replace(SPACE, " ") if chance.random() < 0.8 else text)
    return found


def assert_the_same_ids(model: bytes, seed: int, count: int = 150) -> None:
    ours, theirs = _core.piece_encoder(model), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert ours is not None
    assert len(ours) == theirs.get_piece_size()
    for text in texts_for(parse_model(model).pieces, random.Random(seed), count):
        assert ours.encode(text) == theirs.EncodeAsIds(text), (seed, text)


def model_of(byte_fallback: bool) -> bytes:
    return trained_model() if byte_fallback else trained_model(byte_fallback=False, vocab_size=220)


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_a_trained_model(byte_fallback: bool) -> None:
    assert_the_same_ids(model_of(byte_fallback), 1, 600)


@pytest.mark.parametrize("kind", [UNUSED, USER_DEFINED])
@pytest.mark.parametrize("seed", range(6))
def test_pieces_that_text_must_not_become_and_pieces_that_are_found_first(kind: int, seed: int) -> None:
    """Unused pieces are split again into the pieces from which they were merged, which may be unused too."""
    model, chance = model_of(byte_fallback=seed % 2 == 0), random.Random(seed)
    parsed = parse_model(model)
    normal = [at for at, of in enumerate(parsed.types) if of == NORMAL]
    changed = dict.fromkeys(chance.sample(normal, len(normal) // 3), kind)
    assert_the_same_ids(with_piece_types(model, parsed, changed), seed)


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_random_texts_and_scores(seed: int) -> None:
    """Many pieces have the same score. Among equal scores, the leftmost pair is merged first."""
    chance = random.Random(seed)
    texts = {"".join(chance.choices(f"ab{SPACE}漢", k=chance.randrange(1, 6))).encode() for _ in range(200)}
    kinds = [chance.choice([NORMAL] * 6 + [UNUSED, USER_DEFINED]) for _ in texts]
    model = build_model(
        [b"<unk>", *texts],
        [0.0, *(chance.randrange(-9, 0) for _ in texts)],
        [UNKNOWN, *kinds],
        byte_fallback=False,
        special={"unk": (0, b"<unk>")},
    )
    assert_the_same_ids(model, seed)


def test_the_vocabulary_of_gemma_4() -> None:
    vocabulary = gemma4()
    pieces = [piece.encode() for piece in vocabulary["pieces"]]
    scores = [-float(at) for at in range(len(pieces))]
    special = {"unk": (3, pieces[3])}
    types = [*vocabulary["types"][:3], UNKNOWN, *vocabulary["types"][4:]]
    model = build_model(pieces, scores, types, byte_fallback=True, special=special)
    assert_the_same_ids(model, 1, 1000)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "char"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=repr,
)
def test_models_unlike_gemmas(options: dict[str, Any]) -> None:
    size = {"vocab_size": 300} if options.get("model_type") == "char" else {}
    assert _core.piece_encoder(trained_model(hard_vocab_limit=False, **size, **options)) is None


def built(*pieces: tuple[bytes, int]) -> bytes:
    texts, kinds = [b"<unk>", *(text for text, _ in pieces)], [UNKNOWN, *(kind for _, kind in pieces)]
    special = {"unk": (0, b"<unk>")}
    return build_model(texts, [0.0] * len(texts), kinds, byte_fallback=False, special=special)


@pytest.mark.parametrize(
    "pieces",
    [
        [(b"a", NORMAL), (b"a", NORMAL)],
        [(b"<s>", CONTROL), (b"<s>", CONTROL)],
        [(b"<s>", CONTROL), (b"<s>", NORMAL)],  # SentencePiece would find the control token in text
        [("\u2581".encode(), CONTROL)],
        [(b"<x>", UNKNOWN)],
        [(b"<0x41>", BYTE)],
        [(b"a\0b", USER_DEFINED)],
        [(b"", NORMAL)],
        [(b"a", 7)],
    ],
    ids=repr,
)
def test_pieces_that_are_refused(pieces: list[tuple[bytes, int]]) -> None:
    assert _core.piece_encoder(built((b"b", NORMAL))) is not None
    assert _core.piece_encoder(built(*pieces)) is None


def places(texts: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The places of pieces of eight bytes in a table for ``count`` pieces."""
    odd = np.uint64(0x9E3779B97F4A7C15)
    hashes = (np.uint64(8) ^ texts) * odd
    hashes ^= hashes >> np.uint64(32)
    hashes = hashes * odd >> np.uint64(32)
    return hashes & np.uint64((1 << (2 * count - 1).bit_length()) - 1)


@pytest.mark.parametrize(("count", "known"), [(200, True), (400, False)])
def test_too_many_pieces_with_the_same_place_are_refused(count: int, known: bool) -> None:
    """With thousands of them, every search would take as long as a search through all pieces."""
    letters = np.random.default_rng(1).integers(97, 123, (1_000_000, 8), np.uint8)
    texts = letters.view("<u8")[:, 0]
    pieces = [text.tobytes() for text in letters[places(texts, count + 1) == 5][:count]]
    assert len(pieces) == count
    model = built(*[(piece, NORMAL) for piece in pieces])
    assert (_core.piece_encoder(model) is not None) == known
    if known:
        assert_the_same_ids(model, 1)


@pytest.mark.parametrize(("lengths", "known"), [(64, True), (65, False)])
def test_user_defined_pieces_that_begin_alike(lengths: int, known: bool) -> None:
    """Many pieces may have the same length. Each other length needs one more search at every place of a
    text."""
    pieces = [b"abcd" + b"e" * more for more in range(lengths)] + [
        b"abcd%03d" % number for number in range(900)
    ]
    model = built(*[(piece, USER_DEFINED) for piece in pieces])
    assert (_core.piece_encoder(model) is not None) == known
    if known:
        assert_the_same_ids(model, 1)


def test_damaged_models() -> None:
    """Whatever the bytes say, SentencePiece gives the same ids, or the model is refused."""
    whole, chance, known = trained_model(), random.Random(3), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        model = bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
        if (ours := _core.piece_encoder(model)) is None:
            continue
        known += 1
        theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
        for text in texts_for(parse_model(model).pieces, chance, 12):
            assert ours.encode(text) == theirs.EncodeAsIds(text), model
    assert known > 20


def test_a_model_with_samples_of_its_own() -> None:
    """SentencePiece compares its ids with these, and refuses a model with different ones."""
    assert _core.piece_encoder(trained_model() + b"\x22\x02\x0a\x00") is None
