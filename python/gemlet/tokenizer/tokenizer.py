"""Turns text into token ids and back, exactly as the reference tokenizers of Gemma do.

Ordinary text is encoded as SentencePiece does it. Spaces become U+2581, and nothing is added or stripped.
User-defined pieces match first. Then come byte-pair encoding, and bytes for characters without a piece. This
module adds the rules that the vocabulary file does not have: there is exactly one BOS, control tokens are
found in text only if the caller trusts it, and the decoder never gives half a UTF-8 character.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from gemlet import _core
from gemlet.base.exit_waits import call_apart, exit_waits_for
from gemlet.base.front_door import public
from gemlet.base.handlers import importing
from gemlet.base.text import show
from gemlet.errors import ContextLengthError, InvalidRequestError, TokenizerError
from gemlet.tokenizer.cutting import Cutter
from gemlet.tokenizer.decoding import REPLACE, StreamDecoder, TokenBytes, checked_id
from gemlet.tokenizer.sentencepiece_model import check_model
from gemlet.tokenizer.splitter import Splitter
from gemlet.tokenizer.vocabulary import MAX_PIECE, SPACE, Vocabulary

__all__ = ["Tokenizer"]

# Characters that are encoded without a check for Ctrl-C; this takes at most 0.1 s. Longer parts are rare,
# because text is cut.
_SOON_DONE = 131072
_TURN_ENDS = ("<end_of_turn>", "<turn|>")


class Tokenizer:
    """A vocabulary with its rules; made by :meth:`from_file`. Several threads may use it at the same time.

    Attributes:
        vocab_size: the number of ids. The model's table may have more rows, which mean nothing.
        bos_id, eos_id, pad_id: the ids of these tokens; None if the vocabulary does not have the token.
        unk_id: the id of the token for characters that cannot be encoded. With byte fallback there are no
            such characters.
        control_ids: the ids that stand for structure instead of text: bos, turn markers, image placeholders
            and the like.
        source: the path of the file that was read.

    >>> import gemlet
    >>> tokenizer = gemlet.load().tokenizer
    >>> ids = tokenizer.encode("The door opened.")
    >>> ids[0] == tokenizer.bos_id, tokenizer.decode(ids)
    (True, 'The door opened.')
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.source = vocabulary.source
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.pad_id = vocabulary.pad_id
        self.unk_id = vocabulary.unk_id
        self.control_ids = frozenset(vocabulary.control.values())
        self._pieces = vocabulary.pieces
        self._control = vocabulary.control
        self._added = vocabulary.added
        self._ids: dict[str, int] | None = None
        self._strips_first_space = vocabulary.add_dummy_prefix
        self._bytes = TokenBytes(vocabulary)
        self._trusted = Splitter({**vocabulary.added, **vocabulary.control}, vocabulary.flags)
        self._untrusted = Splitter(vocabulary.added, vocabulary.flags)
        self._cutter = Cutter(vocabulary)
        self._encode_text = _encoder(vocabulary)

    @classmethod
    @public
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads the tokenizer in ``path``: a ``tokenizer.model``, a ``tokenizer.json``, a GGUF file, or a
        folder with one of them, which is looked for in this order. Tokens in ``tokenizer_config.json`` and
        ``added_tokens.json`` beside the first two are added. If a folder has both ``tokenizer.model`` and
        ``tokenizer.json``, text is cut by ``tokenizer.json``, as in transformers.

        Raises:
            ModelFileError: there is no such file, it cannot be read, or it is not a valid GGUF file.
            TokenizerError: gemlet cannot reproduce the tokenizer exactly; the message says why.

        >>> import os, gemlet
        >>> folder = os.path.join(os.path.dirname(gemlet.__file__), "demo")
        >>> gemlet.Tokenizer.from_file(folder).vocab_size
        4096
        """
        from gemlet.tokenizer.files import read_vocabulary

        return cls(read_vocabulary(path))

    def __repr__(self) -> str:
        return f"Tokenizer({self.source!r}, vocab_size={self.vocab_size})"

    # --- encoding -------------------------------------------------------------------------------------------

    @public
    def encode(self, text: str, add_bos: bool = True, *, allow_control: bool = True) -> list[int]:
        """The token ids of ``text``.

        Args:
            text: any Unicode text.
            add_bos: begin with exactly one BOS. A text that begins with ``<bos>``, such as a rendered chat
                template, gets no second one. False adds no BOS.
            allow_control: whether a control token written in the text (``<start_of_turn>``) becomes that
                token, as in the reference tokenizers. With False, it is read as plain characters, so the
                result has no control tokens. Use False for text from users.

        Raises:
            TypeError: ``text`` is not a ``str``.
            TokenizerError: the text has a lone surrogate, which UTF-8 cannot represent; or ``add_bos`` is
                True and the vocabulary has no BOS.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.encode("<bos>Yes") == tokenizer.encode("Yes")
        True
        >>> tokenizer.control_ids.isdisjoint(tokenizer.encode("<bos>", add_bos=False, allow_control=False))
        True
        """
        _check_text("text", text)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"the lone surrogate U+{ord(text[error.start]):04X}"
            raise TokenizerError(f"text: character {error.start} is {got}; expected valid Unicode") from None
        ids: list[int] = []
        for part in self._parts(text, allow_control):
            ids += part
        return self._with_bos(ids) if add_bos else ids

    @public
    def first_ids(self, text: str, count: int) -> list[int]:
        """The first ``count`` ids of :meth:`encode`. Only a little more of ``text`` is read than these ids
        need. The errors are the same.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.decode(tokenizer.first_ids("The door opened. " * 100000, 4))
        'The door opened'
        """
        if type(count) is not int or count < 0:
            raise InvalidRequestError(f"count: got {show(count)}, expected an integer of at least 0")
        most = self.most_characters(count + 1)
        if most is not None and len(text) > most:
            text = text[: self._cutter.place(text, most)]
        ids: list[int] = []
        for part in self._parts(text, allow_control=True):
            ids += part
            if len(ids) > count and len(self._with_bos(ids)) > count:
                break
        return self._with_bos(ids)[:count]

    @public
    def most_characters(self, tokens: int) -> int | None:
        """The most characters that a text of this many tokens can have. None if there is no limit, because
        the vocabulary drops white space, or makes one token of many unknown characters.

        >>> import gemlet
        >>> gemlet.load().tokenizer.most_characters(1024)
        16384
        """
        longest = self._cutter.longest
        return None if longest is None else tokens * longest

    @public
    def check_length(self, characters: int, tokens: int, name: str, remedy: str = "shorten it") -> None:
        """Raises :class:`ContextLengthError` about the argument ``name`` if a text of this many
        ``characters`` cannot fit into a context of this many ``tokens``. This takes no time, unlike encoding
        the text.

        >>> import gemlet
        >>> try:
        ...     gemlet.load().tokenizer.check_length(10_000_000, 1024, "prompt")
        ... except gemlet.ContextLengthError as error:
        ...     print(str(error).split(";")[0])
        prompt: 10000000 characters, but the context holds 1024 tokens, which are at most 16384 characters
        """
        if characters <= _SOON_DONE:  # encoding is fast; do not look for the longest piece
            return
        most = self.most_characters(tokens)
        if most is not None and characters > most:
            held = f"the context holds {show(tokens)} tokens, which are at most {show(most)} characters"
            raise ContextLengthError(f"{name}: {show(characters)} characters, but {held}; {remedy}")

    def _parts(self, text: str, allow_control: bool) -> Iterator[list[int]]:
        """The ids of ``text``, part by part. No BOS is added."""
        if not isinstance(text, str):
            raise TypeError(f"text has to be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"the lone surrogate U+{ord(text[error.start]):04X}"
            raise TokenizerError(f"text: character {error.start} is {got}; expected valid Unicode") from None
        splitter = self._trusted if allow_control else self._untrusted
        for piece in splitter.split(text):
            if isinstance(piece, int):
                yield [piece]
            else:
                yield from map(self._encode_text, self._cutter.parts(piece))

    def _with_bos(self, ids: list[int]) -> list[int]:
        """``ids`` with exactly one BOS at the beginning."""
        if self.bos_id is None:
            raise TokenizerError(f"{self.source}: the vocabulary has no BOS; encode with add_bos=False")
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        return [self.bos_id, *ids[start:]]

    @public
    def split(self, text: str) -> list[str | int]:
        """Cuts ``text`` at the control and added tokens that are written in it. Returns the texts between
        them, and their ids, in order.

        >>> import gemlet
        >>> gemlet.load().tokenizer.split("<bos>Yes")
        [2, 'Yes']
        """
        return list(self._trusted.split(text))

    # --- decoding -------------------------------------------------------------------------------------------

    @public
    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """The text of ``ids``.

        Args:
            ids: token ids.
            skip_control: leave control tokens (BOS, turn markers, ...) out; False writes them by name.

        Each byte that is not valid UTF-8 becomes U+FFFD, as in SentencePiece. The library tokenizers would
        also replace valid characters beside it, if these are written as bytes.

        Raises:
            InvalidRequestError: an id is not an integer from 0 to ``vocab_size - 1``.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> ids = tokenizer.encode("The door opened.")
        >>> tokenizer.decode(ids), tokenizer.decode(ids, skip_control=False)
        ('The door opened.', '<bos>The door opened.')
        """
        try:
            ids = iter(ids)
        except TypeError:
            raise InvalidRequestError(f"ids: got {show(ids)}, expected a list of token ids") from None
        decoder = self.stream_decoder(skip_control=skip_control)
        data = bytearray()  # a list of millions of pieces would take long to free after Ctrl-C
        for identifier in ids:
            data += decoder.next_bytes(identifier)
        return data.decode("utf-8", REPLACE)

    @public
    def stream_decoder(self, *, skip_control: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one at a time; see :class:`StreamDecoder`.

        ``skip_control`` is as in :meth:`decode`.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> decoder = tokenizer.stream_decoder()
        >>> [decoder.push(token_id) for token_id in tokenizer.encode("The door")]
        ['', 'The', ' door']
        """
        return StreamDecoder(
            self._bytes,
            {}
            if skip_control
            else {i: self._pieces[i].replace(SPACE, " ").encode() for i in self.control_ids},
            strips_first_space=self._strips_first_space,
        )

    # --- the vocabulary -------------------------------------------------------------------------------------

    @public
    def id_to_piece(self, token_id: int) -> str:
        """The piece of an id as the vocabulary writes it, with U+2581 for a space.

        Raises:
            InvalidRequestError: the id is not an integer from 0 to ``vocab_size - 1``.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> [tokenizer.id_to_piece(token_id) for token_id in tokenizer.encode("The door")]
        ['<bos>', 'The', '▁door']
        """
        return self._pieces[checked_id(token_id, self.vocab_size)]

    @public
    def piece_to_id(self, piece: str) -> int | None:
        """The id of a piece as the vocabulary writes it, with U+2581 for a space; None if there is no such
        piece.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.decode([tokenizer.piece_to_id("▁door")]), tokenizer.piece_to_id("no such piece")
        (' door', None)
        """
        _check_text("piece", piece)
        if self._ids is None:
            self._ids = {text: identifier for identifier, text in enumerate(self._pieces) if text}
        return self._control.get(piece, self._ids.get(piece))

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id adds to a text; no bytes for a control token.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.token_bytes()[tokenizer.piece_to_id("▁door")]
        b' door'
        """
        return [self._bytes[identifier] for identifier in range(self.vocab_size)]

    @property
    def end_of_turn_id(self) -> int | None:
        """The id of the token that ends a chat turn; None if the vocabulary has no such token."""
        return next((self._control[name] for name in _TURN_ENDS if name in self._control), None)

    @property
    def named_tokens(self) -> Mapping[str, int]:
        """The control and added tokens by their names.

        >>> import gemlet
        >>> gemlet.load().tokenizer.named_tokens["<bos>"]
        2
        """
        return {**self._added, **self._control}

    @public
    def token_id(self, name: str) -> int | None:
        """The id of the control or added token ``name``; None if there is no such token.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.token_id("<end_of_turn>") == tokenizer.end_of_turn_id, tokenizer.token_id("door")
        (True, None)
        """
        _check_text("name", name)
        return self._control.get(name, self._added.get(name))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} has to be a str, got {type(value).__name__}")


def _encoder(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """A function that encodes ordinary text. For vocabularies like Gemma's, the core encodes as SentencePiece
    does, because loading 262,144 pieces into SentencePiece would take a third of a start. For all others,
    SentencePiece encodes."""
    core = _core.piece_encoder(vocabulary.proto)
    if core is None:
        encode: Callable[[str], list[int]] = _SentencePiece(vocabulary)
    else:
        _check_size(vocabulary, len(core))
        encode = partial(_encode_by_core, core)
    return encode if vocabulary.merge_encoder is None else vocabulary.merge_encoder.encode


def _encode_by_core(core: _core.PieceEncoder, text: str) -> list[int]:
    return call_apart(core.encode, text) if len(text) > _SOON_DONE else core.encode(text)


def _check_size(vocabulary: Vocabulary, size: int) -> None:
    if size > len(vocabulary.pieces):
        problem = f"SentencePiece finds {size} pieces; expected at most {len(vocabulary.pieces)}"
        raise TokenizerError(f"{vocabulary.source}: {problem}")


class _SentencePiece:
    """Encodes ordinary text with SentencePiece itself. The model is checked here, unless it was checked when
    the vocabulary was made."""

    _processor: Any = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        with importing():
            import sentencepiece

        try:
            if vocabulary.checked:  # it was checked before the file was written
                check_model(vocabulary.proto, 4 * MAX_PIECE + 64)
            make = sentencepiece.SentencePieceProcessor
            self._processor = exit_waits_for(lambda: make(model_proto=vocabulary.proto))
            size = exit_waits_for(self._processor.get_piece_size)
        except TokenizerError as error:
            raise TokenizerError(f"{vocabulary.source}: is not a SentencePiece model: {error}") from None
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(
                f"{vocabulary.source}: SentencePiece refuses the vocabulary: {error}"
            ) from error
        _check_size(vocabulary, size)

    def __call__(self, text: str) -> list[int]:
        if len(text) > _SOON_DONE:
            return call_apart(self._processor.EncodeAsIds, text)
        ids: list[int] = exit_waits_for(self._processor.EncodeAsIds, text)
        return ids

    def __del__(
        self,
        is_finalizing: Callable[[], bool] = sys.is_finalizing,
        waits_for: Callable[..., object] = exit_waits_for,
    ) -> None:
        if not is_finalizing():  # otherwise this module may be partly gone
            last = [self._processor]  # freeing it is a call of SentencePiece, too
            self._processor = None
            waits_for(last.clear)
