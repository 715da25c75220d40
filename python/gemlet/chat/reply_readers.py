"""Reads replies. :class:`TokenReplyParser` reads token ids, and :class:`TextReplyParser` reads text in which
the control tokens are written out.

Both first read the last turn of the prompt, because the reply continues this turn. The prompt may end inside
an open thought, after an empty thought, after the result of a tool, or inside a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.chat.reply import GEMMA4_MARKERS, THOUGHT_HEADER, AsideKind, ReplyEvent, ReplyParser
from gemlet.errors import InvalidRequestError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Aside", "TextReplyParser", "TokenReplyParser"]


@record(frozen=True)
class Aside:
    """A kind of part that a reply may have besides the answer.

    Attributes:
        kind: "thought" or "call".
        start, end: the ids of the control tokens that begin and end the part.
        inside: the ids of the control tokens that may occur inside the part.
        header: the ids of the tokens that follow ``start`` and name the part.
    """

    kind: AsideKind
    start: int
    end: int
    inside: tuple[int, ...] = ()
    header: tuple[int, ...] = ()


class TokenReplyParser:
    """Reads the token ids of a reply. If ordinary tokens spell a control token, they stay text.

    Args:
        tokenizer: the tokenizer of the model.
        markers: the meaning of each control token, as in :data:`GEMMA4_MARKERS`.
        prompt_ids: the prompt. Its last turn is read to find the state in which the reply begins.
        thought_end, pieces: as in :class:`ReplyParser`.

    Attributes:
        asides: the kinds of parts that a reply may have besides the answer.
        begins_in: the kind of the part in which the reply begins; None for the answer.

    >>> import gemlet
    >>> from gemlet.chat import GEMMA, collect
    >>> tokenizer = gemlet.load().tokenizer
    >>> prompt = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "Who is there?"}])
    >>> parser = GEMMA.reply_parser(tokenizer, prompt)
    >>> reply = tokenizer.encode("Nobody.<end_of_turn>", add_bos=False)
    >>> collect(parser.push(reply) + parser.finish()).content
    'Nobody.'
    """

    @public
    def __init__(
        self,
        tokenizer: Tokenizer,
        markers: Mapping[str, str],
        prompt_ids: Sequence[int] = (),
        *,
        thought_end: str = "\n",
        pieces: bool = False,
    ) -> None:
        self._parser = ReplyParser(markers, thought_end=thought_end, pieces=pieces)
        self._control = tokenizer.control_ids
        self._name = tokenizer.id_to_piece
        self._decoder = tokenizer.stream_decoder()
        turns = [tokenizer.token_id(name) for name, kind in markers.items() if kind == "turn_start"]
        start = next((i for i in range(len(prompt_ids) - 1, -1, -1) if prompt_ids[i] in turns), 0)
        self.push(prompt_ids[start:])
        self._decoder.finish()
        self._parser.begin()
        self.begins_in = self._parser.aside
        self.asides = _asides(tokenizer, markers)

    @public
    def push(self, ids: Iterable[int]) -> list[ReplyEvent]:
        """Takes ``ids``, the next tokens of the reply, and returns the events that they make certain.

        Raises:
            InvalidRequestError: an id is not an integer from 0 to ``vocab_size - 1``.
        """
        events: list[ReplyEvent] = []
        for token_id in ids:
            if token_id in self._control:
                events += self._parser.text(self._decoder.finish())
                events += self._parser.marker(self._name(token_id))
            else:
                events += self._parser.text(self._decoder.next_text(token_id))
        return events

    @public
    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        """Ends the reply and returns the events that were held back. For ``ended`` see
        :meth:`ReplyParser.finish`."""
        return self._parser.text(self._decoder.finish()) + self._parser.finish(ended=ended)


def _asides(tokenizer: Tokenizer, markers: Mapping[str, str]) -> list[Aside]:
    """The kinds of parts for which the vocabulary has the tokens."""
    ids = {kind: tokenizer.token_id(name) for name, kind in markers.items()}
    quote = ids.get("quote")
    found = []
    start, end = ids.get("thought_start"), ids.get("thought_end")
    if start is not None and end is not None:
        header = tokenizer.encode(THOUGHT_HEADER, add_bos=False)
        found.append(Aside("thought", start, end, header=tuple(header)))
    start, end = ids.get("call_start"), ids.get("call_end")
    if start is not None and end is not None:
        found.append(Aside("call", start, end, inside=() if quote is None else (quote,)))
    return found


class TextReplyParser:
    """Reads the text of a reply with the control tokens written out, as ``decode(ids, skip_control=False)``
    writes them. In this text, a control token looks the same as ordinary text that spells the token. Token
    ids do not have this problem.

    Args:
        markers: the meaning of each control token, as in :data:`GEMMA4_MARKERS`.
        prompt: the text of the prompt in the same form.
        thought_end, pieces: as in :class:`ReplyParser`.

    >>> parser = TextReplyParser(GEMMA4_MARKERS, "<|turn>model\\n<|channel>thought\\n")
    >>> parser.push("Easy.\\n<chan") + parser.push("nel|>4") + parser.finish()
    [Reasoning(text='Easy.'), Content(text='4')]
    """

    @public
    def __init__(
        self,
        markers: Mapping[str, str] = GEMMA4_MARKERS,
        prompt: str = "",
        *,
        thought_end: str = "\n",
        pieces: bool = False,
    ) -> None:
        self._parser = ReplyParser(markers, thought_end=thought_end, pieces=pieces)
        if not markers or not all(markers):
            raise InvalidRequestError(
                f"markers: got {show(markers)}, expected a mapping from names of markers to their meanings"
            )
        self._pattern = re.compile("|".join(re.escape(name) for name in markers))
        self._beginnings = {name[:n] for name in markers for n in range(1, len(name))}
        self._longest = max(map(len, markers))
        self._pending = ""
        starts = [prompt.rfind(name) for name, kind in markers.items() if kind == "turn_start"]
        self.push(prompt[max(0, *starts) :])
        self._parser.text(self._take_pending())
        self._parser.begin()

    @public
    def push(self, text: str) -> list[ReplyEvent]:
        """Takes ``text`` and returns the events that it makes certain. If the end of the text may be the
        beginning of a marker, this end is held back."""
        text = self._pending + text
        events: list[ReplyEvent] = []
        start = 0
        for match in self._pattern.finditer(text):
            events += self._parser.text(text[start : match.start()])
            events += self._parser.marker(match[0])
            start = match.end()
        keep = max(start, len(text) - self._longest + 1)
        while keep < len(text) and text[keep:] not in self._beginnings:
            keep += 1
        self._pending = text[keep:]
        return events + self._parser.text(text[start:keep])

    @public
    def finish(self, *, ended: bool = False) -> list[ReplyEvent]:
        """Ends the reply and returns the events that were held back. For ``ended`` see
        :meth:`ReplyParser.finish`."""
        return self._parser.text(self._take_pending()) + self._parser.finish(ended=ended)

    def _take_pending(self) -> str:
        pending, self._pending = self._pending, ""
        return pending
