"""Reads tokenizer files: ``tokenizer.model``, ``tokenizer.json``, GGUF, and gemlet's own stored form.

Each reader returns a :class:`~gemlet.tokenizer.vocabulary.Vocabulary`. It first checks that the file is like
Gemma's files, because anything else would silently give other ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemlet.base.files import MAX_VOCABULARY_BYTES, checked_path, is_there, read_file
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.checkpoint.gguf_files import gguf_models
from gemlet.checkpoint.gguf_format import read_gguf
from gemlet.errors import ModelFileError, TokenizerError
from gemlet.tokenizer.gguf_vocabulary import vocabulary_of_gguf
from gemlet.tokenizer.merges import merge_strings
from gemlet.tokenizer.sentencepiece_model import BYTE, NORMAL, UNKNOWN, parse_model, with_piece_types
from gemlet.tokenizer.stored import STORED_FILE, TOKENIZER_FILES, read_stored
from gemlet.tokenizer.vocabulary import SPACE, AddedTokens, Draft, Vocabulary

__all__ = ["read_contents", "read_vocabulary"]

MAX_MODEL_BYTES = 64 * 1024 * 1024  # Gemma 3's has 4.7 MB


def read_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Reads the tokenizer file at ``path``, or the one in the folder ``path``.

    Raises:
        ModelFileError: there is no such file, it cannot be read, or it is not a valid GGUF file.
        TokenizerError: gemlet cannot reproduce the tokenizer in the file exactly.
    """
    # A text that does not name a file is a ModelFileError below.
    if not isinstance(path, (str, Path)) or not str(path):
        path = checked_path("path", path, "the path of a tokenizer")
    try:
        file = _find(Path(path).expanduser())
        with open(file, "rb") as opened:
            magic = os.pread(opened.fileno(), 4, 0)
    except (OSError, ValueError, RuntimeError) as error:  # such as a null byte, or ~ of an unknown user
        if isinstance(error, ModelFileError | TokenizerError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(f"{path}: cannot be read: {reason}") from error
    if file.name == STORED_FILE:
        return read_stored(file)
    if magic == b"GGUF":
        return vocabulary_of_gguf(read_gguf(file))
    if file.suffix == ".json":
        return _from_json(file)
    return _from_model(file)


def read_contents(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """Path -> content of the files that :func:`read_vocabulary` reads in a Hugging Face folder. The file with
    the vocabulary comes first. Raises :class:`ModelFileError` if a file cannot be read.
    """
    path = Path(folder)
    found = _find(path)
    names = ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"]
    if found.name == "tokenizer.model":
        names.append("tokenizer.json")
    files = (found, *(path / name for name in names))
    return {str(file): read_file(file, MAX_VOCABULARY_BYTES) for file in files if is_there(file)}


def _find(path: Path) -> Path:
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path}: is not a regular file")
        return path
    for name in TOKENIZER_FILES:
        if is_there(path / name):
            return path / name
    found = [path / name for name in gguf_models(file.name for file in path.iterdir())]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise TokenizerError(f"{path}: has several GGUF files ({names}); name one of them")
    if not found:
        raise ModelFileError(
            f"{path}: has no tokenizer.model, tokenizer.json or *.gguf; expected one of them"
        )
    return found[0]


# --- tokenizer.model ----------------------------------------------------------------------------------------


def _from_model(file: Path) -> Vocabulary:
    if file.stat().st_size > MAX_MODEL_BYTES:
        raise TokenizerError(
            f"{file}: has {file.stat().st_size} bytes; expected a SentencePiece model of at most "
            f"{MAX_MODEL_BYTES}"
        )
    data = file.read_bytes()
    try:
        model = parse_model(data)
        pieces = [piece.decode() for piece in model.pieces]
    except TokenizerError as error:
        raise TokenizerError(f"{file}: is not a SentencePiece model: {error}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: is not a SentencePiece model: a piece is not valid UTF-8") from error
    draft = Draft(str(file), pieces, list(model.types))
    added = AddedTokens()
    json_file = file.parent / "tokenizer.json"
    base = None
    if is_there(json_file):  # transformers 5 writes added tokens only there
        beside = read_json_object(json_file, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)
        _read_added(json_file, beside, added)
        base = beside.get("model")
    added.read_siblings(file.parent)
    if isinstance(base, dict) and isinstance(base.get("vocab"), dict):
        _check_same_pieces(json_file, base["vocab"], file, pieces, added)
        if isinstance(base.get("merges"), list):
            # transformers cuts text by this file. It joins 32 spaces by merges, where SentencePiece would
            # take the longest piece first, and it uses the normalizer of this file.
            return _from_json(json_file, beside)
    draft.add(added)
    changed = {
        i: new for i, (old, new) in enumerate(zip(model.types, draft.types, strict=False)) if new != old
    }
    return draft.finish(
        draft.special_ids(added.names, model.special_names),
        with_piece_types(data, model, changed),
        add_dummy_prefix=model.add_dummy_prefix,
        plain=model.plain,
    )


# --- tokenizer.json -----------------------------------------------------------------------------------------

_SPACE_PATTERNS = ({"String": " "}, {"Regex": " "})
_NORMALIZERS = [[{"type": "Replace", "pattern": pattern, "content": SPACE}] for pattern in _SPACE_PATTERNS]
# The same replacement as a pre-tokenizer, and its decoder.
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
_DECODERS = (
    _METASPACE,
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)
# Other options of a BPE model. They must be off: null, false, 0 or "".
_MODEL_OFF = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def _steps(value: Any, key: str) -> list[Any]:
    """The steps of a normalizer or decoder, which is a Sequence, a single step, or null."""
    if value is None:
        return []
    if isinstance(value, dict) and value.get("type") == "Sequence" and isinstance(value.get(key), list):
        return list(value[key])
    return [value]


def _check_pipeline(file: Path, data: Mapping[str, Any]) -> None:
    """Checks that everything around the model is as in Gemma's tokenizers. Otherwise the ids would silently
    differ."""
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    if steps == [_METASPACE] and not _steps(data.get("normalizer"), "normalizers"):
        steps = []
    elif _steps(data.get("normalizer"), "normalizers") not in _NORMALIZERS:
        got = show(data.get("normalizer"))
        raise TokenizerError(f"{file}: normalizer is {got}; expected one Replace of a space by U+2581")
    for step in steps:
        # Splitting at spaces changes nothing: the normalizer has replaced all spaces.
        if (
            not isinstance(step, dict)
            or step.get("type") != "Split"
            or step.get("pattern") not in _SPACE_PATTERNS
            or step.get("invert")
        ):
            raise TokenizerError(f"{file}: pre_tokenizer is {show(step)}; expected none, or Split at a space")
    decoders = _steps(data.get("decoder"), "decoders")
    if any(step not in _DECODERS for step in decoders):
        raise TokenizerError(
            f"{file}: decoder is {show(decoders)}; expected Replace U+2581, ByteFallback, Fuse"
        )
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        got = show(model.get("type") if isinstance(model, dict) else model)
        raise TokenizerError(f"{file}: model.type is {got}; expected BPE")
    if model.get("byte_fallback") is not True:
        raise TokenizerError(
            f"{file}: model.byte_fallback is {show(model.get('byte_fallback'))}; expected true"
        )
    for key in _MODEL_OFF:
        if model.get(key):
            raise TokenizerError(
                f'{file}: model.{key} is {show(model[key])}; expected it to be off: null, false, 0 or ""'
            )


def _from_json(file: Path, data: dict[str, Any] | None = None) -> Vocabulary:
    if data is None:
        data = read_json_object(file, error=TokenizerError, max_bytes=MAX_VOCABULARY_BYTES)
    _check_pipeline(file, data)
    model = data["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise TokenizerError(
            f"{file}: model.vocab is a {type(vocab).__name__} and model.merges a {type(merges).__name__}; "
            "expected an object and a list"
        )
    added = AddedTokens()
    _read_added(file, data, added)
    unknown = model.get("unk_token")
    if isinstance(unknown, str):
        added.names["unk"] = unknown
    added.read_siblings(file.parent)
    pieces = _by_id(file, vocab, added)
    types = [BYTE if len(p) == 6 and p.startswith("<0x") and p.endswith(">") else NORMAL for p in pieces]
    if added.names.get("unk", "<unk>") in vocab:
        types[vocab[added.names.get("unk", "<unk>")]] = UNKNOWN
    draft = Draft(str(file), pieces, types)
    draft.add(added)
    return draft.build_from_merges(merge_strings(file, merges), draft.special_ids(added.names))


def _read_added(file: Path, data: Mapping[str, Any], added: AddedTokens) -> None:
    """Reads ``added_tokens``, and checks their ids. The library tokenizers ignores the ids in the file: it
    gives a token the id of the piece with its text, or else the next free id."""
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    pieces = vocab if isinstance(vocab, dict) else {}
    seen: set[str] = set()
    free = len(pieces)
    for entry in _list_of_objects(file, data, "added_tokens"):
        text, identifier = str(entry.get("content")), entry.get("id")
        if text in seen:  # only the first one counts
            continue
        added.add(f"{file}: added_tokens", identifier, entry)  # this checks both
        seen.add(text)
        given: int = pieces.get(text, free)
        if pieces and given != identifier:
            raise TokenizerError(
                f"{file}: added_tokens: {show(text)} has the id {show(identifier)}; expected {show(given)}, "
                "the id that the library tokenizers gives it. Save the tokenizer again with transformers, "
                "which writes the ids that it uses"
            )
        free = max(free, given + 1)


def _check_same_pieces(
    json_file: Path, vocab: Mapping[str, Any], file: Path, pieces: list[str], added: AddedTokens
) -> None:
    """Checks that both files of a folder give every piece the same id, unless an added token renames it."""
    for piece, identifier in vocab.items():
        if type(identifier) is not int or identifier in added.tokens:
            continue
        if 0 <= identifier < len(pieces) and pieces[identifier] != piece:
            raise TokenizerError(
                f"{json_file}: gives {show(piece)} the id {identifier}, which is {show(pieces[identifier])} "
                f"in {file.name}; expected both files to be of the same tokenizer. Remove the one that is "
                "not the model's"
            )


def _list_of_objects(file: Path, data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = data.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TokenizerError(f"{file}: {key} is {show(entries)}; expected a list of objects")
    return entries


def _by_id(file: Path, vocab: Mapping[str, Any], added: AddedTokens) -> list[str]:
    """The pieces in the order of their ids. If ``vocab`` has no piece for an id, an added token has to have
    it."""
    size = len(vocab) + sum(
        1 for i, (text, _) in added.tokens.items() if i < len(vocab) and vocab.get(text) != i
    )
    pieces = [""] * size
    for piece, identifier in vocab.items():
        if type(identifier) is not int or not 0 <= identifier < size:
            got = show(identifier)
            raise TokenizerError(
                f"{file}: model.vocab: {show(piece)} has the id {got}; expected 0 to {size - 1}"
            )
        if pieces[identifier]:
            both = f"{show(pieces[identifier])} and {show(piece)}"
            raise TokenizerError(
                f"{file}: model.vocab: {both} have the same id {identifier}; expected different ids"
            )
        pieces[identifier] = piece
    for identifier, piece in enumerate(pieces):
        if not piece and identifier in added.tokens:
            pieces[identifier] = added.tokens[identifier][0]
    return pieces
