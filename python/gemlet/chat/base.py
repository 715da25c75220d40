"""The base class of all chat formats, :class:`ChatFormat`. It turns the segments of a prompt into text or
token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.chat.media_places import Place, with_places
from gemlet.chat.messages import check_flags, checked_tools, least_characters, named_surrogate
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import ContextLengthError, InvalidRequestError, TokenizerError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["CallGrammar", "ChatFormat", "Segments"]

Messages = Sequence[Mapping[str, Any]]
_SHORTEN = "shorten them"
Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]


class Segments(list[tuple[str, bool]]):
    """The parts of a prompt in order. Each part is a pair ``(text, is a marker)``. The text of a marker is
    the name of one control token.

    >>> parts = Segments()
    >>> parts.marker("<start_of_turn>")
    >>> parts.text("user")
    >>> parts
    [('<start_of_turn>', True), ('user', False)]
    """

    @public
    def marker(self, name: str) -> None:
        """Appends the control token ``name``. An empty name adds no token. It only separates the texts around
        it, which are then encoded separately."""
        self.append((name, True))

    @public
    def text(self, text: str) -> None:
        """Appends ``text``. It never becomes a control token, even if it spells one."""
        self.append((text, False))


@record(frozen=True)
class CallGrammar:
    """A grammar of replies that call functions.

    Attributes:
        lark: the grammar in llguidance's Lark syntax. Its rule ``start`` matches the whole reply.
        control: the control tokens that the grammar contains.

    >>> CallGrammar('start: "[now()]"', ()).control
    ()
    """

    lark: str
    control: tuple[str, ...]


class ChatFormat(ABC):
    """The form of conversations for one family of models, such as :data:`gemlet.chat.GEMMA`.

    Attributes:
        name: the name of the format in error messages.
        markers: the control tokens that the vocabulary must have.
        ends: the control tokens that end a reply, besides the end-of-text token.
        stops: the texts that end a reply, if the vocabulary has no token that ends a turn.

    Messages are mappings as in OpenAI's chat API: ``role`` is ``"user"``, ``"assistant"``, ``"system"`` or
    ``"developer"`` (and ``"tool"`` or ``"function"`` if the format has tools). ``content`` is a string, a
    list of ``{"type": "text", "text": ...}`` parts, or None for no text. The ``name`` of a user message is
    ignored.

    >>> from gemlet.chat import GEMMA
    >>> GEMMA.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi! "}])
    '<bos><start_of_turn>user\\nBe brief.\\n\\nHi!<end_of_turn>\\n<start_of_turn>model\\n'
    """

    name: str
    markers: tuple[str, ...]
    ends: tuple[str, ...]
    stops: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<gemlet.chat.{type(self).__name__} {self.name!r}>"

    @abstractmethod
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        """The parts of the prompt. The arguments and errors are those of :meth:`render`.

        >>> from gemlet.chat import GEMMA
        >>> GEMMA.segments([{"role": "user", "content": "Hi"}], None, False, False)[1:4]
        [('<start_of_turn>', True), ('user\\nHi', False), ('<end_of_turn>', True)]
        """

    @abstractmethod
    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        """Makes a parser for the reply to a prompt. The parser takes token ids and gives text, reasoning and
        tool calls.

        The parser begins in the state in which the prompt ends: after an empty thought, inside an open
        thought, or after the result of a tool.

        Args:
            tokenizer: the tokenizer of the model.
            prompt_ids: the prompt, as :meth:`encode_chat` returns it.
            tools: the tools of the prompt. If the format has no tokens for calls, the parser looks for calls
                in the text of the reply.
            pieces: also give parts of a call while the model is writing the call (:class:`ToolCallPiece`).

        >>> import gemlet
        >>> from gemlet.chat import GEMMA
        >>> tokenizer = gemlet.load().tokenizer
        >>> prompt = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "Who is there?"}])
        >>> GEMMA.reply_parser(tokenizer, prompt).push(tokenizer.encode("Nobody", add_bos=False)[:1])
        [Content(text='No')]
        """

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        """A grammar of replies that call one or more of the functions ``names``. If ``names`` has only one
        function, the reply calls this function exactly once.

        Args:
            tools: as in :meth:`render`.
            names: names of functions in ``tools``; None for all functions.

        Raises:
            UnsupportedError: the format has no notation for calls.
            InvalidRequestError: a tool is malformed, or a member of ``names`` is not the name of a tool.

        >>> from gemlet.chat import GEMMA
        >>> GEMMA.call_grammar([{"name": "now"}, {"name": "then"}], ["now"]).lark.splitlines()[1:3]
        ['start: "[" call "]"', 'call: "now(" "" ")"']
        """
        raise UnsupportedError(f"tools: the chat format {self.name} has no notation for calls")

    @public
    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        *,
        tools: Tools | None = None,
        thinking: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt as text, for reading and comparing.

        In this text, a marker that a message spells looks like a marker of the format. The token ids of
        :meth:`encode_chat` tell the two apart.

        Args:
            messages: the conversation so far; at least one message.
            add_generation_prompt: end with the beginning of the model's turn.
            tools: the functions that the model may call. Each is ``{"type": "function", "function": {...}}``,
                only the value of ``"function"``, or a Python function
                (:func:`gemlet.chat.describe_function`).
            thinking: let the model think before it answers.
            continue_final_message: the last message is the beginning of the model's reply, and the model
                continues this message. White space at the end of the message is removed, the turn stays open,
                and no other turn begins. ``add_generation_prompt`` then has no effect.

        Raises:
            InvalidRequestError: a message is malformed, has a role that the format does not have, or contains
                something other than text. Or the message to continue is not the assistant's, or calls tools.
                The error names the message.
            UnsupportedError: tools or thinking are asked for, and the format does not have them.

        >>> from gemlet.chat import gemma4_format
        >>> question = [{"role": "user", "content": "2 + 2?"}]
        >>> gemma4_format().render(question, thinking=True)
        '<bos><|turn>system\\n<|think|>\\n<turn|>\\n<|turn>user\\n2 + 2?<turn|>\\n<|turn>model\\n'
        >>> begun = [*question, {"role": "assistant", "content": "It is"}]
        >>> gemma4_format().render(begun, continue_final_message=True)
        '<bos><|turn>user\\n2 + 2?<turn|>\\n<|turn>model\\nIt is'
        """
        segments = self._prompt(messages, tools, thinking, add_generation_prompt, continue_final_message)
        return "".join(text for text, _ in segments)

    @public
    def encode_chat(
        self,
        tokenizer: Tokenizer,
        messages: Messages,
        add_generation_prompt: bool = True,
        *,
        tools: Tools | None = None,
        thinking: bool = False,
        continue_final_message: bool = False,
        most_tokens: int | None = None,
        places: Mapping[str, Place] | None = None,
    ) -> list[int]:
        """The prompt as token ids. Only the markers that the format writes become control tokens. The
        contents of messages, tools and results are encoded as plain text. So a message cannot end its turn or
        speak for another role.

        The arguments that are not listed here are those of :meth:`render`.

        Args:
            most_tokens: the most tokens that the context holds. A conversation that certainly has more tokens
                is refused before it is encoded.
            places: a mapping from each sentinel text in the messages to the segments of the image or sound
                that replace the sentinel.

        Raises:
            ContextLengthError: the conversation certainly has more than ``most_tokens`` tokens.
            InvalidRequestError: as for :meth:`render`; or the vocabulary lacks a marker.
            UnsupportedError: as for :meth:`render`.
            TokenizerError: a text has a lone surrogate.

        >>> import gemlet
        >>> from gemlet.chat import GEMMA
        >>> tokenizer = gemlet.load().tokenizer
        >>> ids = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "<end_of_turn>"}])
        >>> ids.count(tokenizer.end_of_turn_id)
        1
        """
        ids: list[int] = []
        text: list[str] = []
        if most_tokens is not None and isinstance(messages, Sequence) and len(messages) > most_tokens:
            raise ContextLengthError(
                f"messages: got {len(messages)} messages, but the context holds {most_tokens} tokens; "
                "send fewer messages"
            )
        if most_tokens is not None:  # this check comes first, because writing the messages takes time
            tokenizer.check_length(least_characters(self._told(messages)), most_tokens, "messages", _SHORTEN)
        segments = self._prompt(messages, tools, thinking, add_generation_prompt, continue_final_message)
        parts = with_places(segments, places or {})
        if most_tokens is not None:
            characters = sum(len(text) for text, is_marker in parts if not is_marker)
            tokenizer.check_length(characters, most_tokens, "messages", _SHORTEN)

        def encode() -> list[int]:
            try:
                return tokenizer.encode("".join(text), add_bos=False, allow_control=False)
            except TokenizerError as error:
                raise named_surrogate(error, messages=messages, tools=tools) from None

        for segment, is_marker in parts:
            if not is_marker:
                text.append(segment)  # adjacent texts are encoded as one text, because the ids could differ
                continue
            ids += encode()
            text.clear()
            if not segment:  # an empty marker only separates two texts
                continue
            marker = tokenizer.token_id(segment)
            if marker is None:
                raise InvalidRequestError(
                    f"chat: the vocabulary has no {segment}, which the format {self.name} needs; "
                    "this is probably a base model; use generate() with it"
                )
            ids.append(marker)
        return ids + encode()

    def _told(self, messages: Messages) -> Messages:
        """The members of ``messages`` whose content is always in the prompt."""
        return messages

    def _prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        thinking: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Segments:
        check_flags(
            thinking=thinking,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        tools = checked_tools(tools)
        if not continue_final_message:
            return self.segments(messages, tools, thinking, add_generation_prompt)
        out = self.segments(messages, tools, thinking, False)
        last, where = messages[-1], f"messages[{len(messages) - 1}]"
        role = last.get("role")
        if role not in ("assistant", "model") or any(
            last.get(key) for key in ("tool_calls", "function_call")
        ):
            found = "calls tools" if role in ("assistant", "model") else f"has the role {role}"
            raise InvalidRequestError(
                f"{where} {found}; continue_final_message needs a text of the role assistant at the end"
            )
        if out[-2:] == [(self.ends[0], True), ("\n", False)]:
            del out[-2:]
        return out

    @public
    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The ids of the tokens that end a reply: those in :attr:`ends`, and the end-of-text token.

        >>> import gemlet
        >>> from gemlet.chat import GEMMA
        >>> tokenizer = gemlet.load().tokenizer
        >>> sorted(map(tokenizer.id_to_piece, GEMMA.end_ids(tokenizer)))
        ['<end_of_turn>', '<eos>']
        """
        found = (*(tokenizer.token_id(name) for name in self.ends), tokenizer.eos_id)
        return frozenset(identifier for identifier in found if identifier is not None)
