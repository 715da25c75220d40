"""Makes vocabularies in every file format, from the data in tests/data or by training a small one."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from support.paths import DATA

SPACE = "\u2581"

# The numbers of the value types in the GGUF format.
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}

WORDS = (
    "the door opened and a lamp was lit in the hall where nobody had been for many years said the old man "
    "who kept the house by the sea while the rain fell on the stones of the yard and the wind went round it"
)


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind: int, value: Any) -> bytes:
    """A value of the GGUF type ``kind``. For ARRAY, ``value`` is ``(element type, elements)``."""
    if kind == STRING:
        return gguf_string(value)
    if kind == ARRAY:
        inner, elements = value
        head = struct.pack("<IQ", inner, len(elements))
        if inner in _CODES:
            return head + struct.pack(f"<{len(elements)}{_CODES[inner]}", *elements)
        return head + b"".join(gguf_value(inner, element) for element in elements)
    return struct.pack("<" + _CODES[kind], value)


def gguf_entry(key: str | bytes, kind: int, value: Any) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)


def gguf_tensor(name: str, sizes: Iterable[int], kind: int, offset: int) -> bytes:
    sizes = list(sizes)
    return gguf_string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf_file(
    entries: Iterable[bytes], tensors: Iterable[bytes] = (), data: bytes = b"", *, alignment: int = 32
) -> bytes:
    entries, tensors = list(entries), list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
    return head + b"\0" * (-len(head) % alignment) + data


# --- the reduced vocabulary of Gemma 4 ----------------------------------------------------------------------


@cache
def gemma4() -> dict[str, Any]:
    """The reduced vocabulary as a dictionary: ``pieces`` and ``types`` of all 262,144 ids, ``merges``, and
    test ``vectors``. Ids that the reduced vocabulary leaves out have unused filler pieces."""
    import lzma  # imported here because some builds of Python have no lzma

    data = json.loads(lzma.decompress((DATA / "gemma4_vocab.json.xz").read_bytes()))
    pieces = [f"<left out {i}>".replace(" ", "_") for i in range(data["size"])]
    types = [5] * data["size"]
    for key, piece in data["pieces"].items():
        pieces[int(key)] = piece
        types[int(key)] = data["types"].get(key, 1)
    return {**data, "pieces": pieces, "types": types}


def gemma4_gguf() -> bytes:
    vocabulary = gemma4()
    return gguf_file(
        [
            gguf_entry("general.architecture", STRING, "gemma4"),
            gguf_entry("tokenizer.ggml.model", STRING, "gemma4"),
            gguf_entry("tokenizer.ggml.tokens", ARRAY, (STRING, vocabulary["pieces"])),
            gguf_entry("tokenizer.ggml.token_type", ARRAY, (I32, vocabulary["types"])),
            gguf_entry("tokenizer.ggml.merges", ARRAY, (STRING, vocabulary["merges"])),
            gguf_entry("tokenizer.ggml.bos_token_id", U32, 2),
            gguf_entry("tokenizer.ggml.eos_token_id", U32, 1),
            gguf_entry("tokenizer.ggml.unknown_token_id", U32, 3),
            gguf_entry("tokenizer.ggml.padding_token_id", U32, 0),
            gguf_entry("tokenizer.ggml.add_space_prefix", BOOL, False),
        ]
    )


def gemma4_json() -> dict[str, Any]:
    vocabulary = gemma4()
    return tokenizer_json(
        vocabulary["pieces"],
        [
            piece_type if piece_type not in (4, 5) else {4: 3, 5: 1}[piece_type]
            for piece_type in vocabulary["types"]
        ],
        vocabulary["merges"],
    )


def tokenizer_json(pieces: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    """A ``tokenizer.json`` like Gemma's. Control pieces are added tokens with ``special`` set, and
    user-defined pieces are other added tokens."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece_type != 4,
            }
            for i, (piece, piece_type) in enumerate(zip(pieces, types, strict=True))
            if piece_type in (2, 3, 4)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


# --- a small SentencePiece model of Gemma's shape -----------------------------------------------------------

MARKERS = [
    "<mask>",
    "<unused0>",
    "<start_of_turn>",
    "<end_of_turn>",
    "\n",
    "\n\n",
    SPACE * 2,
    SPACE * 3,
    "<b>",
]


@cache
def trained_model(**options: Any) -> bytes:
    """Trains a ``tokenizer.model`` of type BPE. The ids 0 to 3 are pad, eos, bos and unk, then follow MARKERS
    and the 256 bytes."""
    import sentencepiece

    out = io.BytesIO()
    rng = random.Random(7)
    lines = (" ".join(rng.choices(WORDS.split(), k=12)) for _ in range(300))
    arguments: dict[str, Any] = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "user_defined_symbols": MARKERS,
        "num_threads": 1,
        "minloglevel": 2,
    }
    for (
        name,
        value,
    ) in options.items():  # the cache of this function needs tuples, and the trainer needs lists
        arguments[name] = list(value) if isinstance(value, tuple) else value
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=out, **arguments)
    return out.getvalue()


def trained_pieces() -> tuple[list[str], list[float], list[int]]:
    """The pieces, scores and types of :func:`trained_model`, as SentencePiece reads them."""
    return _pieces(trained_model(), MARKERS)


def _pieces(proto: bytes, markers: Collection[str]) -> tuple[list[str], list[float], list[int]]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ids = range(model.get_piece_size())
    types = []
    for i in ids:
        if model.is_unknown(i):
            types.append(2)
        elif model.is_control(i):
            types.append(3)
        elif model.is_byte(i):
            types.append(6)
        else:
            types.append(4 if model.id_to_piece(i) in markers else 1)
    return [model.id_to_piece(i) for i in ids], [model.get_score(i) for i in ids], types


def trained_merges() -> list[str]:
    """The merges that are equivalent to the scores: for each piece, every pair of pieces that joins to it.
    The pieces are in the order of falling scores."""
    return _merges(*trained_pieces())


def pieces_of(proto: bytes, markers: Collection[str]) -> tuple[list[str], list[int], list[str]]:
    """The pieces, types and merges of a model that :func:`trained_model` trained with these markers."""
    pieces, scores, types = _pieces(proto, markers)
    return pieces, types, _merges(pieces, scores, types)


def _merges(pieces: list[str], scores: list[float], types: list[int]) -> list[str]:
    normal = {piece: score for piece, score, kind in zip(pieces, scores, types, strict=True) if kind == 1}
    merges = []
    for piece in sorted(normal, key=lambda piece: -normal[piece]):
        for cut in range(1, len(piece)):
            if piece[:cut] in normal and piece[cut:] in normal:
                merges.append(f"{piece[:cut]} {piece[cut:]}")
    return merges


def one_merge_each() -> list[str]:
    """One merge for each piece, as a trainer of BPE writes them. With these, fewer pieces are joined than in
    SentencePiece."""
    return list({merge.replace(" ", ""): merge for merge in trained_merges()}.values())


def trained_entries() -> tuple[list[bytes], int]:
    """The GGUF metadata entries for :func:`trained_model`, and the number of its pieces."""
    pieces, scores, types = trained_pieces()
    # Converters write user-defined pieces with real spaces.
    tokens = [p.replace(SPACE, " ") if kind == 4 else p for p, kind in zip(pieces, types, strict=True)]
    return [
        gguf_entry("tokenizer.ggml.model", STRING, "llama"),
        gguf_entry("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        gguf_entry("tokenizer.ggml.scores", ARRAY, (F32, scores)),
        gguf_entry("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        gguf_entry("tokenizer.ggml.bos_token_id", U32, 2),
        gguf_entry("tokenizer.ggml.add_space_prefix", BOOL, False),
    ], len(pieces)


def trained_gguf() -> bytes:
    return gguf_file(trained_entries()[0])


def trained_json() -> dict[str, Any]:
    """The ``tokenizer.json`` for :func:`trained_model`. Its merges do not make runs of spaces. As in the
    other formats, the longest run is found first."""
    pieces, _, types = trained_pieces()
    data = tokenizer_json(pieces, types, trained_merges())
    for entry in data["added_tokens"]:
        entry["normalized"] = SPACE in entry["content"]
    return data


def save(folder: Path, name: str, data: bytes | dict[str, Any]) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path
