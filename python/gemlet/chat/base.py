"""The base of all chat formats. It turns segments of text and markers into a prompt's text or token ids."""

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
    """The parts of a prompt in order: ``(text, is a marker)``. A marker is the name of one control token.

    >>> parts = Segments()
    >>> parts.marker("<start_of_turn>")
    >>> parts.text("user")
    >>> parts
    [('<start_of_turn>', True), ('user', False)]
    """

    @public
    def marker(self, name: str) -> None:
        """Appends the control token ``name``. An empty name only separates the texts around it."""
        self.append((name, True))

    @public
    def text(self, text: str) -> None:
        """Appends ``text``. It never becomes a control token, even if it spells one."""
        self.append((text, False))


@record(frozen=True)
class CallGrammar:
    """A grammar of replies that call functions.

    Attributes:
        lark: the text of the grammar; the rule of the whole reply is ``start``.
        control: the control tokens that it names.

    >>> CallGrammar('start: "[now()]"', ()).control
    ()
    """

    lark: str
    control: tuple[str, ...]


class ChatFormat(ABC):
    """The form in which a family of models writes a conversation, such as :data:`gemlet.chat.GEMMA`.

    Attributes:
        name: for messages.
        markers: the control tokens without which the format cannot be written.
        ends: the control tokens that end a reply, besides the end of the text.
        stops: texts that end a reply, in a format whose marks are not tokens of the vocabulary.

    Messages are mappings as in OpenAI's chat API: ``role`` is ``"user"``, ``"assistant"``, ``"system"`` or
    ``"developer"`` (and ``"tool"`` or ``"function"`` if the format has tools). ``content`` is a string, a
    list of ``{"type": "text", "text": ...}`` parts, or None for no text. A ``name`` of a user is ignored.

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
        """The parser of the reply to a prompt: it takes token ids and gives text, reasoning and tool calls.

        It begins in the state in which the prompt ends: after an empty thought, inside an open one, or after
        the result of a tool.

        Args:
            tokenizer: the tokenizer of the model.
            prompt_ids: the prompt, as :meth:`encode_chat` returns it.
            tools: the tools of the prompt. If the format has no tokens for calls, the reply's text is
                searched for calls.
            pieces: also give parts of calls while they are written (:class:`ToolCallPiece`).

        >>> import gemlet
        >>> from gemlet.chat import GEMMA
        >>> tokenizer = gemlet.load().tokenizer
        >>> prompt = GEMMA.encode_chat(tokenizer, [{"role": "user", "content": "Who is there?"}])
        >>> GEMMA.reply_parser(tokenizer, prompt).push(tokenizer.encode("Nobody", add_bos=False)[:1])
        [Content(text='No')]
        """

    @public
    def call_grammar(self, tools: Tools, names: Sequence[str] | None = None) -> CallGrammar:
        """A grammar of replies that call one or more of the functions ``names``. If there is only one
        function, it is called once.

        Args:
            tools: as in :meth:`render`.
            names: names of functions in ``tools``; None for all of them.

        Raises:
            UnsupportedError: the format has no calls.
            InvalidRequestError: a tool is malformed, or ``names`` has no name of a tool.

        >>> from gemlet.chat import GEMMA
        >>> GEMMA.call_grammar([{"name": "now"}, {"name": "then"}], ["now"]).lark.splitlines()[1:3]
        ['start: "[" call "]"', 'call: "now(" "" ")"']
        """
        raise UnsupportedError(f"tools: the chat format {self.name} has no calls of its own")

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

        In this text, a marker in a message looks like the format's own. :meth:`encode_chat`, which gives
        token ids, tells them apart.

        Args:
            messages: the conversation so far; at least one message.
            add_generation_prompt: end with the beginning of the model's turn.
            tools: functions the model may call: ``{"type": "function", "function": {...}}``, only the value
                of ``"function"``, or Python functions (:func:`gemlet.chat.describe_function`).
            thinking: let the model think before it answers.
            continue_final_message: the last message is the beginning of the model's reply, and the model
                continues it. White space at its end is removed, its turn stays open, and no other turn
                begins, whatever ``add_generation_prompt`` says.

        Raises:
            InvalidRequestError: a message is malformed, has a role that the format does not have, or contains
                something other than text; or the message to continue is not the assistant's, or calls tools.
                The error names the message.
            UnsupportedError: the format has no tools or no thinking, and they are asked for.

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
        """The prompt as token ids. Only the format's own markers become control tokens: whatever a message,
        a tool or its result contains is encoded as plain text, so that nothing in it can end its turn or
        speak for another role.

        Args:
            most_tokens: refuse, before encoding it, a conversation that must have more tokens than this. The
                other arguments are those of :meth:`render`.
            places: sentinel texts in the messages -> the segments of images and sounds that replace them.

        Raises:
            ContextLengthError: see ``most_tokens``.
            InvalidRequestError: as for :meth:`render`; or the vocabulary lacks the markers.
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
                f"messages: {len(messages)} of them, but the context holds {most_tokens} tokens; shorten it"
            )
        if most_tokens is not None:  # checked first, because writing them takes work
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
                text.append(segment)  # encoded as a whole, otherwise the ids could differ
                continue
            ids += encode()
            text.clear()
            if not segment:  # a cut between two texts
                continue
            marker = tokenizer.token_id(segment)
            if marker is None:
                raise InvalidRequestError(
                    f"chat: the vocabulary has no {segment}, which the format {self.name} needs; "
                    "this is probably a base model, for which there is generate()"
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
            found = "calls tools" if role in ("assistant", "model") else f"is of the role {role}"
            raise InvalidRequestError(
                f"{where} {found}; continue_final_message needs a text of the role assistant at the end"
            )
        if out[-2:] == [(self.ends[0], True), ("\n", False)]:
            del out[-2:]
        return out

    @public
    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The ids of the tokens that end a reply: those in :attr:`ends`, and the end of the text.

        >>> import gemlet
        >>> from gemlet.chat import GEMMA
        >>> tokenizer = gemlet.load().tokenizer
        >>> sorted(map(tokenizer.id_to_piece, GEMMA.end_ids(tokenizer)))
        ['<end_of_turn>', '<eos>']
        """
        found = (*(tokenizer.token_id(name) for name in self.ends), tokenizer.eos_id)
        return frozenset(identifier for identifier in found if identifier is not None)
