"""Reads and writes SentencePiece model files: the parts of the protocol-buffer message ``ModelProto`` that
gemlet needs.

Writing turns a vocabulary with scores (from GGUF) or merges (from ``tokenizer.json`` and GGUF) into the bytes
that ``sentencepiece.SentencePieceProcessor(model_proto=...)`` loads. Reading finds each piece of a
``tokenizer.model`` and its place, so a piece's type can be changed without touching anything else.

Wire format (protocol buffers encoding, and ``sentencepiece_model.proto``)::

    ModelProto      1 repeated SentencePiece   2 TrainerSpec   3 NormalizerSpec
    SentencePiece   1 piece: string   2 score: float32   3 type: enum (1 when absent)
    TrainerSpec     3 model_type   35 byte_fallback   40-43 ids and 45-48 pieces of unk, bos, eos, pad
    NormalizerSpec  1 name   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces
                    5 escape_whitespaces
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.records import record
from gemlet.errors import TokenizerError
from gemlet.tokenizer.records import Runs

__all__ = [
    "BYTE",
    "CONTROL",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "ParsedModel",
    "build_model",
    "check_model",
    "model_type",
    "parse_model",
    "with_piece_types",
]

# Piece types; GGUF's tokenizer.ggml.token_type uses the same numbers.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6

_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5

# The most records in an unusual layout. They are read one by one, which takes microseconds for two bytes.
# Real files have a few hundred.
_MAX_UNUSUAL = 1 << 16

_SPECIAL_PIECE = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
_BPE = 2  # TrainerSpec.ModelType
_MODEL_TYPES = {1: "unigram", _BPE: "BPE", 3: "words", 4: "characters"}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at ``at``, and the offset after it. It must end before ``end`` and fit into 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise TokenizerError(f"broken protocol buffer: the number before byte {at} does not end")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Checks each field of the message ``data[at:end]``, and yields ``(field number, wire type, start,
    end)``."""
    count = 0
    while at < end:
        count += 1
        _check_unusual(count)
        key, at = _read_varint(data, at, end)
        wire = key & 7
        start = at
        if wire == _VARINT:
            _, at = _read_varint(data, at, end)
        elif wire == _BYTES:
            size, start = _read_varint(data, at, end)
            at = start + size
        elif wire == _FIXED32:
            at += 4
        elif wire == _FIXED64:
            at += 8
        else:
            raise TokenizerError(
                f"broken protocol buffer: wire type {wire} at byte {start}; expected 0, 1, 2 or 5"
            )
        if at > end:
            raise TokenizerError(
                f"broken protocol buffer: the field at byte {start} ends at byte {at}, but its message ends "
                f"at byte {end}"
            )
        yield key >> 3, wire, start, at


@record(frozen=True)
class ParsedModel:
    """The vocabulary of a ``tokenizer.model``.

    Attributes:
        pieces: the UTF-8 text of each piece.
        types: the type of each piece.
        tags: the offset of the tag of each piece's ``SentencePiece`` message.
        ends: the offset after each of these messages.
        special_names: ``"unk"``, ``"bos"``, ``"eos"`` and ``"pad"`` -> the text of their pieces.
        plain: whether text is encoded unchanged, except that U+0020 becomes U+2581, as in every Gemma
            vocabulary.
        add_dummy_prefix: whether the model puts a space before each text.
    """

    pieces: list[bytes]
    types: list[int]
    tags: list[int]
    ends: list[int]
    add_dummy_prefix: bool
    plain: bool
    special_names: dict[str, str]


def parse_model(data: bytes) -> ParsedModel:
    """Reads the vocabulary from the bytes of a ``tokenizer.model``.

    Raises:
        TokenizerError: the bytes are not a ``ModelProto``, are cut short, or have no piece.
    """
    pieces: list[bytes] = []
    types: list[int] = []
    tags: list[int] = []
    piece_ends: list[int] = []
    add_dummy_prefix = remove_extra_whitespaces = True
    charsmap = False
    names = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}  # SentencePiece's defaults
    settings = set()
    at, size = 0, len(data)
    regular, texts, kinds = _regular_pieces(data)
    unusual = 0
    while at < size:
        run = regular.at(at)
        if run.stop:
            begins, ends = regular.begins[run], regular.ends[run]
            pieces += [data[begin + 4 : end] for begin, end in zip(begins, texts[run], strict=True)]
            types += kinds[run]
            tags += begins
            piece_ends += ends
            at = ends[-1]
            continue
        unusual += 1
        _check_unusual(unusual)
        number, wire, start, end = next(_fields(data, at, size))
        if number == 1 and wire == _BYTES:
            piece, kind = _parse_piece(data, start, end)
            pieces.append(piece)
            types.append(kind)
            tags.append(at)
            piece_ends.append(end)
        elif number == 2 and wire == _BYTES:
            settings.add(number)
            for inner, inner_wire, inner_at, stop in _fields(data, start, end):
                if inner in _SPECIAL_PIECE and inner_wire == _BYTES:
                    names[_SPECIAL_PIECE[inner]] = data[inner_at:stop].decode("utf-8", "replace")
        elif number == 3 and wire == _BYTES:
            settings.add(number)
            for inner, inner_wire, inner_at, stop in _fields(data, start, end):
                if inner == 2 and inner_wire == _BYTES:
                    charsmap = stop > inner_at
                elif inner == 3 and inner_wire == _VARINT:
                    add_dummy_prefix = _read_varint(data, inner_at, stop)[0] != 0
                elif inner == 4 and inner_wire == _VARINT:
                    remove_extra_whitespaces = _read_varint(data, inner_at, stop)[0] != 0
        at = end
    if not pieces:
        raise TokenizerError("it has no pieces")
    if settings != {2, 3}:  # they follow the pieces; without them SentencePiece would use its defaults
        raise TokenizerError(f"it was cut short after {len(pieces)} pieces: no settings follow")
    plain = not (add_dummy_prefix or remove_extra_whitespaces or charsmap)
    return ParsedModel(pieces, types, tags, piece_ends, add_dummy_prefix, plain, names)


def check_model(data: bytes, longest: int) -> None:
    """Raises :class:`TokenizerError` if the bytes are not a ``ModelProto``, or if the message of a piece has
    more than ``longest`` bytes, which could crash SentencePiece. It is much faster than reading the pieces.
    """
    for number, wire, start, end in _other_fields(data):
        if number == 1 and wire == _BYTES and end - start > longest:
            raise TokenizerError(f"it has a piece of {end - start} bytes; expected at most {longest}")


def model_type(data: bytes) -> str:
    """The algorithm by which the model ``data`` splits text into pieces: "BPE" in every Gemma. ``data`` must
    have been checked before."""
    found = 1
    for number, wire, start, end in _other_fields(data):
        if number == 2 and wire == _BYTES:
            for inner, inner_wire, inner_at, stop in _fields(data, start, end):
                if inner == 3 and inner_wire == _VARINT:
                    found = _read_varint(data, inner_at, stop)[0]
    return _MODEL_TYPES.get(found, "unknown")


def _other_fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The fields of ``data`` that are not in the runs of regular pieces."""
    unusual = 0
    at = _core.after_pieces(data, 0)
    while at < len(data):
        unusual += 1
        _check_unusual(unusual)
        field = next(_fields(data, at, len(data)))
        yield field
        at = _core.after_pieces(data, field[3])


def _check_unusual(count: int) -> None:
    if count > _MAX_UNUSUAL:
        raise TokenizerError(
            f"it has more than {_MAX_UNUSUAL} records in an unusual layout; expected pieces with scores"
        )


def _regular_pieces(data: bytes) -> tuple[Runs, list[int], list[int]]:
    """The places of pieces in the layout that every writer uses, the ends of their texts, and their types.
    The layout has tag and length (below 128), tag and length of the text, text, tag and score, and perhaps
    tag and type.
    """
    a: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    begins = np.flatnonzero((a[:-3] == 0x0A) & (a[1:-2] < 0x80) & (a[2:-1] == 0x0A) & (a[3:] < 0x80))
    ends = begins + 2 + a[begins + 1]
    texts = begins + 4 + a[begins + 3]
    fits = (ends <= len(a)) & ((ends - texts == 5) | (ends - texts == 7))
    begins, ends, texts = begins[fits], ends[fits], texts[fits]
    typed = ends - texts == 7
    scored = (a[texts] == 0x15) & (~typed | ((a[ends - 2] == 0x18) & (a[ends - 1] < 0x80)))
    begins, ends, texts, typed = begins[scored], ends[scored], texts[scored], typed[scored]
    kinds = np.where(typed, a[ends - 1], NORMAL)
    return Runs(begins, ends), texts.tolist(), kinds.tolist()


def _parse_piece(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Text and type of the ``SentencePiece`` message ``data[at:end]``."""
    piece, kind = b"", NORMAL
    for number, wire, start, stop in _fields(data, at, end):
        if number == 1 and wire == _BYTES:
            piece = data[start:stop]
        elif number == 3 and wire == _VARINT:
            kind = _read_varint(data, start, stop)[0]
    return piece, kind


def with_piece_types(data: bytes, model: ParsedModel, types: dict[int, int]) -> bytes:
    """The model file ``data`` (parsed as ``model``) with the types of the pieces ``{id: type}`` replaced."""
    out: list[bytes] = []
    copied = 0
    for index in sorted(types):
        end = model.ends[index]
        _, _, start, _ = next(_fields(data, model.tags[index], end))
        # The last value of a field counts, so it is enough to append the new type.
        message = data[start:end] + b"\x18" + _varint(types[index])
        out += [data[copied : model.tags[index]], b"\x0a", _varint(len(message)), message]
        copied = end
    out.append(data[copied:])
    return b"".join(out)


def build_model(
    pieces: Sequence[bytes],
    scores: Sequence[float] | NDArray[np.float32],
    types: Sequence[int],
    *,
    byte_fallback: bool,
    special: dict[str, tuple[int, bytes]],
) -> bytes:
    """The bytes of a SentencePiece BPE model that does not change text first (identity normalizer, no added
    space).

    Args:
        pieces: the UTF-8 text of each piece, with U+2581 for a space.
        scores: the score of each piece. Of two possible merges, the one with the higher score is done first.
        types: the type of each piece.
        byte_fallback: whether characters without a piece become ``<0xNN>`` pieces (all 256 must exist).
        special: ``{"unk" | "bos" | "eos" | "pad": (id, text)}``. One that is missing is switched off.

    >>> data = build_model([b"<unk>", b"a"], [0.0, 0.0], [UNKNOWN, NORMAL], byte_fallback=False,
    ...                    special={"unk": (0, b"<unk>")})
    >>> parse_model(data).pieces
    [b'<unk>', b'a']
    """
    packed = np.asarray(scores, dtype="<f4").tobytes()
    out: list[bytes] = []
    for index, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        size = len(piece)
        score = packed[4 * index : 4 * index + 4]
        if size < 119:  # nearly always: both lengths fit into one byte
            out.append(b"\x0a%c\x0a%c%b\x15%b\x18%c" % (size + 9, size, piece, score, kind))
        else:
            message = b"\x0a" + _varint(size) + piece + b"\x15" + score + b"\x18" + _varint(kind)
            out.append(b"\x0a" + _varint(len(message)) + message)
    trainer = _varint_field(3, _BPE) + _varint_field(24, 0) + _varint_field(35, int(byte_fallback))
    for offset, name in enumerate(("unk", "bos", "eos", "pad")):
        if name in special:
            identifier, text = special[name]
            trainer += _varint_field(40 + offset, identifier) + _bytes_field(45 + offset, text)
        else:
            trainer += _varint_field(40 + offset, (1 << 64) - 1)  # -1: there is no such token
    normalizer = _bytes_field(1, b"identity")
    normalizer += _varint_field(3, 0) + _varint_field(4, 0) + _varint_field(5, 1)
    return b"".join(out) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
