"""Turns token ids into text. The bytes of the ids are joined, and only whole characters are shown."""

from __future__ import annotations

import codecs
import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence

from gemlet.base.front_door import public
from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError, TokenizerError
from gemlet.tokenizer.sentencepiece_model import BYTE
from gemlet.tokenizer.vocabulary import SPACE, Vocabulary

__all__ = ["REPLACE", "StreamDecoder", "TokenBytes", "checked_id"]

_BYTE_PIECE = late_pattern(r"<0x([0-9A-F]{2})>")


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """An error handler that gives U+FFFD for each byte that is not valid UTF-8, as SentencePiece does.
    Python's gives one for several bytes."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


REPLACE = "gemlet-replace-each-byte"
codecs.register_error(REPLACE, _replace_each_byte)
_incremental_decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Turns ids that arrive one at a time into text, as soon as the text is certain.

    The results of ``push`` and of the ``finish`` at the end, joined, are the result of
    :meth:`Tokenizer.decode` for the same ids. The bytes of an incomplete character wait for the next id.

    >>> import gemlet
    >>> tokenizer = gemlet.load().tokenizer
    >>> decoder = tokenizer.stream_decoder()
    >>> parts = [decoder.push(token_id) for token_id in tokenizer.encode("Yes ☂")]
    >>> "".join(parts) + decoder.finish()
    'Yes ☂'
    """

    def __init__(
        self, table: TokenBytes, control: Mapping[int, bytes], *, strips_first_space: bool = False
    ) -> None:
        self._table = table
        self._control = control
        self._strips = self._strips_first_space = strips_first_space
        self._decoder = _incremental_decoder(errors=REPLACE)

    @public
    def push(self, token_id: int) -> str:
        """The text that becomes certain with this id. It may be empty.

        Raises:
            InvalidRequestError: the id is not an integer from 0 to ``vocab_size - 1``.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> decoder = tokenizer.stream_decoder()
        >>> [decoder.push(token_id) for token_id in tokenizer.encode("☂", add_bos=False)[-3:]]
        ['', '', '☂']
        """
        return self.next_text(token_id)

    def next_text(self, token_id: int) -> str:
        """Like :meth:`push`, but faster: it runs for every token of every stream, so it does not have the
        wrapper of public methods.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.stream_decoder().next_text(tokenizer.piece_to_id("▁door"))
        ' door'
        """
        return self._decoder.decode(self.next_bytes(token_id))

    def finish(self) -> str:
        """The rest of the text, with an incomplete character as U+FFFD. After this, the decoder can be used
        for other ids.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> decoder = tokenizer.stream_decoder()
        >>> decoder.push(tokenizer.piece_to_id("<0xE2>")), decoder.finish()
        ('', '\ufffd')
        """
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._strips = self._strips_first_space
        return rest

    @public
    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that ``token_id`` adds to the text; errors are as in :meth:`push`.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.stream_decoder().bytes_of(tokenizer.piece_to_id("▁door"))
        b' door'
        """
        return self.next_bytes(token_id)

    def next_bytes(self, token_id: int) -> bytes:
        """Like :meth:`bytes_of`, but faster for many ids: it does not have the wrapper of public methods,
        which takes longer than the look-up.

        >>> import gemlet
        >>> tokenizer = gemlet.load().tokenizer
        >>> tokenizer.stream_decoder().next_bytes(tokenizer.piece_to_id("▁door"))
        b' door'
        """
        token_id = checked_id(token_id, len(self._table))
        if self._control:
            rendered = self._control.get(token_id)
            if rendered is not None:
                return rendered
        data = self._table[token_id]
        if self._strips and data:
            self._strips = False
            return data[1:] if data[:1] == b" " else data
        return data


class TokenBytes:
    """The bytes that each id adds to the text: one byte for a byte piece, no bytes for a control token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._pieces = vocabulary.pieces
        self._known: dict[int, bytes] = {}
        for identifier in _places(vocabulary.types, BYTE):
            piece = vocabulary.pieces[identifier]
            match = _BYTE_PIECE.fullmatch(piece)
            if match is None:
                problem = f"byte piece {identifier} is {show(piece)}; expected <0x00> to <0xFF>"
                raise TokenizerError(f"{vocabulary.source}: {problem}")
            self._known[identifier] = bytes.fromhex(match[1])
        self._known |= dict.fromkeys(vocabulary.control.values(), b"")

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, identifier: int) -> bytes:
        known = self._known.get(identifier)
        return self._pieces[identifier].replace(SPACE, " ").encode() if known is None else known


def _places(values: Sequence[int], value: int) -> Iterator[int]:
    at = -1
    with contextlib.suppress(ValueError):
        while True:
            at = values.index(value, at + 1)
            yield at


def checked_id(token_id: int, vocab_size: int) -> int:
    """``token_id`` as a plain int; raises :class:`InvalidRequestError` if the vocabulary has no such id."""
    try:
        value = operator.index(token_id)
        if token_id is True or token_id is False:  # Python counts them as numbers, but the caller does not
            raise TypeError
    except TypeError:
        kind = type(token_id).__name__
        raise InvalidRequestError(f"token id {show(token_id)} is a {kind}; expected an integer") from None
    if not 0 <= value < vocab_size:
        message = (
            f"token id {show(value)} is out of range; the vocabulary has {vocab_size} ids (0 to "
            f"{vocab_size - 1})"
        )
        raise InvalidRequestError(message)
    return value
