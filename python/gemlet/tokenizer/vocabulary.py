"""A vocabulary: its pieces, its control tokens, and a SentencePiece model for ordinary text.

:class:`Draft` makes one from the content of a file (:mod:`gemlet.tokenizer.files`). In the SentencePiece
model, every control token has the type CONTROL, which text never matches. :class:`gemlet.Tokenizer` finds
control tokens in text, and only if the caller trusts the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemlet.base.files import is_there
from gemlet.base.late import log
from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, record
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.errors import TokenizerError
from gemlet.tokenizer.merges import MergeEncoder, merges_are_complete
from gemlet.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    build_model,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONTROL_NAMES", "MAX_PIECE", "SPACE", "AddedTokens", "Draft", "Vocabulary"]

SPACE = "\u2581"  # stands for U+0020 in a piece

# The ways in which an added token is found: it takes the white space on its left, or on its right; it is
# found only between words; it is looked for after the others, in text that has U+2581 instead of spaces.
LSTRIP, RSTRIP, SINGLE_WORD, NORMALIZED = 1, 2, 4, 8

_FLAGS = {"lstrip": LSTRIP, "rstrip": RSTRIP, "single_word": SINGLE_WORD, "normalized": NORMALIZED}

# Keys with special tokens. If the vocabulary does not have the tokens, transformers adds them in this order.
# Other keys that end with "_token", such as "image_token", come between the two.
_SPECIAL_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")
# Classes of transformers for other models, which cut text in other ways.
_FOREIGN_CLASS = late_pattern(
    "(?:Albert|Bert|CLIP|CodeLlama|Cohere|DebertaV2|GPT2|GPTNeoX|Llama|MBart|Nllb|Pegasus|Qwen2|Roberta|Siglip|T5"
    "|XLMRoberta)Tokenizer(?:Fast)?"
)
# With these classes, transformers reads all tokens of tokenizer.json. With Gemma's own class, it reads only
# those of added_tokens_decoder if there is one.
_READS_ALL = ("PreTrainedTokenizerFast", "TokenizersBackend")
MAX_PIECES = 4 * 1024 * 1024
# The most characters of a piece; Gemma's longest have 31. SentencePiece recurses once for each when it loads.
MAX_PIECE = 1024
MAX_GAP = 65536  # the id of an added token may be this far beyond the vocabulary

# Control tokens by name. The reference tokenizers list them as special. Some vocabularies give them the type
# USER_DEFINED, and some GGUF files make them printable. <unusedN>, HTML tags and white space do not belong
# here.
_CONTROL_NAMES = """
    <pad> <eos> <bos> <unk> <mask>
    <start_of_turn> <end_of_turn>
    <start_of_image> <end_of_image> <image_soft_token> <start_of_audio> <end_of_audio> <audio_soft_token>
    <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|file_separator|>
    <start_function_declaration> <end_function_declaration> <start_function_call> <end_function_call>
    <start_function_response> <end_function_response> <escape>
    <|turn> <turn|> <|channel> <channel|> <|think|>
    <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|> <|"|>
    <|image> <image|> <|image|> <|audio> <audio|> <|audio|> <|video|>
"""
CONTROL_NAMES = frozenset(_CONTROL_NAMES.split())


@record(frozen=True)
class Vocabulary:
    """The content of a tokenizer file.

    Attributes:
        source: the file, for messages.
        pieces: the text of each id, with U+2581 for a space; ``""`` for an id without a token.
        types: the piece type of each id (:mod:`gemlet.tokenizer.sentencepiece_model`).
        control: text -> id of the control tokens.
        added: text -> id of other tokens that match text literally. They are ordinary text when decoded.
        flags: text of a control or added token -> how it is found: the sum of ``LSTRIP``, ``RSTRIP``,
            ``SINGLE_WORD`` and ``NORMALIZED``. Most tokens have no flags.
        bos_id, eos_id, pad_id: the ids of these tokens; None if there is no such token.
        unk_id: the id of the token for unknown characters.
        proto: the SentencePiece model for ordinary text.
        merge_encoder: used instead of ``proto`` if scores cannot express the list of merges.
        add_dummy_prefix: whether the model puts a space before each text. Gemma's own files never do.
        may_cut: whether text may be cut after a newline without a change of its ids. This needs two things:
            text reaches the pieces unchanged except for spaces, and no piece has a newline and other
            characters.
        checked: whether SentencePiece has accepted ``proto`` before.
    """

    source: str
    pieces: Sequence[str]
    types: Sequence[int]
    control: dict[str, int]
    added: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int
    proto: bytes
    merge_encoder: MergeEncoder | None = None
    add_dummy_prefix: bool = False
    may_cut: bool = True
    checked: bool = False
    flags: dict[str, int] = field(default_factory=dict)

    @property
    def loses_text(self) -> bool:
        """Whether a token takes white space beside it, which no id stands for."""
        return any(flags & (LSTRIP | RSTRIP) for flags in self.flags.values())


@record
class AddedTokens:
    """Tokens that files name in addition to the vocabulary.

    Attributes:
        tokens: id -> (text, whether it is special).
        names: "bos", "eos", "pad" and "unk" -> the text of the token.
        special: the texts of special tokens without an id. If the vocabulary does not have one, it gets the
            next free id.
        flags: how tokens are found (``Vocabulary.flags``).
    """

    tokens: dict[int, tuple[str, bool]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)

    def add(self, where: str, identifier: Any, entry: Any) -> None:
        if isinstance(entry, dict):
            text, special = entry.get("content"), entry.get("special", False)
        else:
            text, special = entry, False
        if type(identifier) is not int or not 0 <= identifier < MAX_PIECES:
            raise TokenizerError(
                f"{where}: {show(text)} has the id {show(identifier)}; expected 0 to {MAX_PIECES - 1}"
            )
        if not isinstance(text, str) or not text or not isinstance(special, bool):
            raise TokenizerError(
                f"{where}: id {identifier} has the content {show(text)} and special {show(special)}; "
                "expected a text that is not empty, and true or false"
            )
        _check_unicode(where, text)
        self.tokens[identifier] = (text, special)
        self._read_flags(where, text, entry if isinstance(entry, dict) else {}, special)

    def _read_flags(self, where: str, text: str, entry: Mapping[str, Any], special: bool) -> None:
        flags = 0
        for key, flag in _FLAGS.items():
            value = entry.get(key)
            if value is None:
                value = key == "normalized" and not special
            if value is not True and value is not False:
                raise TokenizerError(
                    f"{where}: {key} of {show(text)} is {show(value)}; expected true or false"
                )
            flags += flag * value
        self.flags.pop(text, None)
        if flags:
            self.flags[text] = flags

    def read_siblings(self, folder: Path) -> None:
        """Reads ``tokenizer_config.json``, ``added_tokens.json`` and ``special_tokens_map.json`` of a Hugging
        Face folder, if they exist."""
        path = folder / "added_tokens.json"
        if is_there(path):
            for text, identifier in read_json_object(path, error=TokenizerError).items():
                if type(identifier) is not int or identifier not in self.tokens:
                    self.add(str(path), identifier, {"content": text, "special": text in CONTROL_NAMES})
        path = folder / "tokenizer_config.json"
        if is_there(path):
            config = read_json_object(path, error=TokenizerError)
            tokens = config.get("added_tokens_decoder")
            if isinstance(tokens, dict) and config.get("tokenizer_class") not in _READS_ALL:
                self._compare(path, tokens)
            for key, entry in (tokens if isinstance(tokens, dict) else {}).items():
                identifier = int(key) if len(key) < 10 and key.isdecimal() else key
                self.add(f"{path}: added_tokens_decoder", identifier, entry)
            _check_class(path, config.get("tokenizer_class"))
            if config.get("split_special_tokens") not in (None, False):
                raise TokenizerError(
                    f"{path}: split_special_tokens is {show(config['split_special_tokens'])}, which makes "
                    "special tokens plain text, also those of a chat; expected false. Change it, and use "
                    "allow_control=False for texts in which special tokens should be plain text"
                )
            self._read_special(config, "__type")
        path = folder / "special_tokens_map.json"
        if is_there(path):
            self._read_special(read_json_object(path, error=TokenizerError), "content")

    def _compare(self, path: Path, tokens: Mapping[str, Any]) -> None:
        """Logs tokens of ``tokenizer.json`` that ``added_tokens_decoder`` lacks."""
        listed = {text for entry in tokens.values() for text in _texts(entry)}
        if lacking := [text for text, _ in self.tokens.values() if text not in listed]:
            log.warning(
                "%s: added_tokens_decoder lacks %d tokens that other files add, the first is %s. gemlet "
                "reads them as tokens, and transformers 5 as plain text. If they are tokens, remove "
                "added_tokens_decoder from the file, so that both do the same",
                path,
                len(lacking),
                show(lacking[0]),
            )

    def _read_special(self, config: Mapping[str, Any], mark: str) -> None:
        """Reads the keys with special tokens. Under other keys, transformers takes only objects with the key
        ``mark`` for tokens."""
        for name in ("bos", "eos", "pad", "unk"):
            for text in _texts(config.get(f"{name}_token")):
                self.names[name] = text
        others = [
            key
            for key, value in config.items()
            if key.endswith("_token")
            and key not in _SPECIAL_KEYS
            and (isinstance(value, str) or (isinstance(value, dict) and mark in value))
        ]
        for key in (*_SPECIAL_KEYS, *others, *_SPECIAL_LISTS):
            self.special += _texts(config.get(key))


def _texts(value: Any) -> list[str]:
    """The texts of special tokens, in any of the forms that transformers writes."""
    if isinstance(value, dict) and "content" not in value:
        value = list(value.values())  # name -> token
    entries = value if isinstance(value, list) else [value]
    found = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
    return [text for text in found if isinstance(text, str) and text]


def _check_class(path: Path, name: Any) -> None:
    if isinstance(name, str) and _FOREIGN_CLASS.fullmatch(name):
        raise TokenizerError(
            f"{path}: tokenizer_class is {show(name)}; with this class, transformers 5 cuts text in another "
            "way than the files of the tokenizer say. Expected 'GemmaTokenizer'; write that if the files are "
            "Gemma's"
        )


def _check_unicode(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write surrogates, which UTF-8 cannot represent
        code = ord(text[error.start])
        raise TokenizerError(
            f"{where}: a piece has the lone surrogate U+{code:04X}; expected valid Unicode"
        ) from None


class Draft:
    """A vocabulary that is being made: the pieces and types of the file, and then the added tokens."""

    def __init__(self, source: str, pieces: list[str], types: list[int]) -> None:
        if not 1 <= len(pieces) <= MAX_PIECES:
            raise TokenizerError(f"{source}: has {len(pieces)} pieces; expected 1 to {MAX_PIECES}")
        if "" in pieces:
            raise TokenizerError(
                f"{source}: piece {pieces.index('')} is empty; expected at least one character"
            )
        longest = max(pieces, key=len)
        if len(longest) > MAX_PIECE:
            raise TokenizerError(
                f"{source}: has a piece of {len(longest)} characters; expected at most {MAX_PIECE}"
            )
        _check_unicode(source, "".join(pieces))
        self.source = source
        self.pieces = pieces
        self.types = types
        self.base = len(pieces)
        self.control: dict[str, int] = {}
        self.literal: dict[str, int] = {}
        self.flags: dict[str, int] = {}
        # Added tokens with U+2581. The reference looks for them in the text before its spaces become U+2581.
        self.raw: list[int] = []
        for identifier, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
            if kind in (UNKNOWN, CONTROL) or (piece in CONTROL_NAMES and kind != BYTE):
                self.make_control(piece, identifier)

    def make_control(self, text: str, identifier: int) -> None:
        self.control[text] = identifier
        if self.types[identifier] != UNKNOWN:
            self.types[identifier] = CONTROL

    def add(self, added: AddedTokens) -> None:
        self.flags |= added.flags
        # If tokens take white space or consist of it, the order of the reference matters: it first finds all
        # tokens that are not normalized, also those of the vocabulary, such as several newlines.
        ordered = any(
            flags != NORMALIZED or any(map(str.isspace, text)) for text, flags in added.flags.items()
        )
        for identifier, (text, special) in sorted(added.tokens.items()):
            if identifier >= self.base + MAX_GAP:
                last = self.base - 1
                raise TokenizerError(
                    f"{self.source}: {show(text)} has the id {identifier}; expected at most "
                    f"{last + MAX_GAP}, because the vocabulary ends at {last}"
                )
            # A gap before the token stays, as the file says. There are gaps between the ids that Gemma 3n's
            # config.json gives its tokens for images and sound (262145, 262272). transformers 5 gives such a
            # token the next free id without a word, which is the row of another token.
            missing = identifier + 1 - len(self.pieces)
            self.pieces += [""] * missing
            self.types += [UNUSED] * missing
            known = self.pieces[identifier] == text.replace(" ", SPACE)
            if not known:  # it is beyond the vocabulary, or a fine-tuned model renames a piece
                self.control.pop(self.pieces[identifier], None)
                self.pieces[identifier] = text
            if known and self.types[identifier] == BYTE:
                continue  # a byte piece stays a byte piece
            if special or text in CONTROL_NAMES:
                if known and self.types[identifier] == NORMAL and self.flags.get(text, 0) & SINGLE_WORD:
                    raise TokenizerError(
                        f"{self.source}: {show(text)} is special only between words (single_word), but it is "
                        "also a piece of words; save it with special or single_word set to false"
                    )
                self.make_control(text, identifier)
            elif known and self.flags.get(text, 0) & SINGLE_WORD:
                self.literal[text] = identifier  # in a word it is an ordinary piece
            elif not known or text in self.flags or (ordered and SPACE not in text):
                self.literal[text] = identifier
                self.types[identifier] = CONTROL  # SentencePiece must not find it under its old name
                self.raw += [identifier] * (known and SPACE in text)
            elif self.types[identifier] in (NORMAL, UNUSED):
                self.types[identifier] = USER_DEFINED
                self.raw += [identifier] * (SPACE in text)
        self._add_special(added.special)

    def _add_special(self, texts: list[str]) -> None:
        """Gives an id to special tokens that have none."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.control | self.literal]
        known = set(self.pieces) if missing else set()
        for text in missing:
            if text.replace(" ", SPACE) not in known:
                _check_unicode(self.source, text)
                self.pieces.append(text)
                self.types.append(CONTROL)
                self.make_control(text, len(self.pieces) - 1)

    def special_id(self, *names: str | None) -> int | None:
        """The id of the first of ``names`` that is a control token."""
        return next((self.control[name] for name in names if name in self.control), None)

    def special_ids(self, *name_tables: Mapping[str, str]) -> dict[str, int | None]:
        kinds = ("bos", "eos", "pad", "unk")
        return {kind: self.special_id(*(t.get(kind) for t in name_tables), f"<{kind}>") for kind in kinds}

    def unknown(self, ids: Mapping[str, int | None]) -> int:
        unknown = ids["unk"]
        if unknown is None:
            raise TokenizerError(
                f"{self.source}: has no piece for unknown characters; expected a piece <unk>"
            )
        return unknown

    def finish(
        self, ids: Mapping[str, int | None], proto: bytes, *, plain: bool = True, **rest: Any
    ) -> Vocabulary:
        """The finished vocabulary. ``plain``: whether text reaches the pieces unchanged except for spaces."""
        spans = any("\n" in piece and piece.strip("\n") for piece in self.pieces)
        return Vocabulary(
            source=self.source,
            pieces=self.pieces,
            types=self.types,
            control=self.control,
            added=self.literal,
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            pad_id=ids["pad"],
            unk_id=self.unknown(ids),
            proto=proto,
            may_cut=plain and not spans,
            flags=self.flags,
            **rest,
        )

    def build(self, scores: Sequence[float], ids: Mapping[str, int | None]) -> bytes:
        """The SentencePiece model of the pieces with these scores."""
        self.types[self.unknown(ids)] = UNKNOWN
        byte_pieces = self.types.count(BYTE)
        if byte_pieces not in (0, 256):
            raise TokenizerError(f"{self.source}: has {byte_pieces} byte pieces; expected all 256, or none")
        special = {
            kind: (i, self.pieces[i].encode()) for kind, i in ids.items() if i is not None and i < self.base
        }
        return build_model(
            [piece.encode() for piece in self.pieces[: self.base]],
            scores,
            self.types[: self.base],
            byte_fallback=byte_pieces == 256,
            special=special,
        )

    def build_from_merges(self, merges: list[str], ids: Mapping[str, int | None]) -> Vocabulary:
        """The vocabulary with these merges ``"left right"``, in the order of their rank. They become scores
        if scores can express them exactly."""
        joined = [merge.replace(" ", "", 1) for merge in merges]
        if sum(map(len, joined)) != sum(map(len, merges)) - len(merges):
            rank = next(rank for rank, merge in enumerate(merges) if " " not in merge)
            raise TokenizerError(f"{self.source}: merge {rank} is {show(merges[rank])}; expected two pieces")
        # In reverse order: if several merges make the same piece, the first one counts.
        ranks = dict(zip(reversed(joined), range(len(joined) - 1, -1, -1), strict=True))
        piece_ids = {piece: i for i, piece in enumerate(self.pieces[: self.base])}
        strays = ranks.keys() - piece_ids.keys()
        if strays:
            stray = min(strays, key=ranks.__getitem__)
            raise TokenizerError(
                f"{self.source}: merge {ranks[stray]} makes {show(stray)}; expected a piece of the vocabulary"
            )
        if made := next((text for text in self.control if SPACE in text and text in ranks), None):
            raise TokenizerError(
                f"{self.source}: {show(made)} is special, but the merges make it of spaces; save the "
                "tokenizer with special set to false for it"
            )
        for i in self.raw:
            self.types[i] = NORMAL  # only merges join several spaces
            self.literal[self.pieces[i]] = i
        joinable = [i for i in range(self.base) if self.types[i] == NORMAL and len(self.pieces[i]) > 1]
        unmade = [i for i in joinable if self.pieces[i] not in ranks]
        if joinable and len(unmade) == len(joinable):
            raise TokenizerError(
                f"{self.source}: its {len(merges)} merges make none of the {len(joinable)} pieces with "
                "several characters. The list of merges is empty, or belongs to another vocabulary; convert "
                "the model again"
            )
        for i in unmade:
            self.types[i] = UNUSED  # no merge makes it, so text must never become it
        # SentencePiece also joins such a piece, and takes it apart at the end. With the lowest score, it is
        # joined after all merges. The merges are the same if none of them has it as a half.
        proto = self.build([-float(ranks.get(piece, len(merges))) for piece in piece_ids], ids)
        encoder = None
        loose = {self.pieces[i] for i in unmade}
        halves = loose and {half for merge in merges for half in merge.split(" ", 1)}
        if loose & halves or not merges_are_complete(piece_ids, ranks, frozenset(merges)):
            encoder = self.merge_encoder(piece_ids, merges, ids["unk"] or 0)
        return self.finish(ids, proto, merge_encoder=encoder)

    def merge_encoder(self, piece_ids: Mapping[str, int], merges: list[str], unk_id: int) -> MergeEncoder:
        """An encoder that uses exactly these merges. User-defined pieces become literal tokens."""
        for text, i in piece_ids.items():
            if self.types[i] == USER_DEFINED:
                self.literal[text.replace(SPACE, " ")] = i
        byte_ids = [piece_ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
        return MergeEncoder(
            {piece: i for piece, i in piece_ids.items() if self.types[i] == NORMAL},
            {merge: rank for rank, merge in enumerate(merges)},
            unk_id=unk_id,
            byte_ids=byte_ids if all(i >= 0 and self.types[i] == BYTE for i in byte_ids) else None,
        )
