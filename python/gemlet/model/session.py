"""One conversation, or one text, that continues over several calls: :class:`Session`."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemlet.base.arrays import NDArray, np
from gemlet.base.front_door import public
from gemlet.base.text import show_argument
from gemlet.chat.messages import checked_messages
from gemlet.errors import InvalidRequestError
from gemlet.generation.answer import Prepared, Timing
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream, run_to_end
from gemlet.generation.tool_loop import reply_with_tools, runs_tools, without_own
from gemlet.model.call_options import ChatOptions, TextOptions, ToolOptions, takes_options
from gemlet.model.requests import Requests
from gemlet.model.session_file import SessionState, read_session, write_session
from gemlet.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Session"]

_Message = dict[str, Any]


class Session:
    """One conversation with a model, or one text, that continues over several calls; made by
    :meth:`gemlet.Model.session`.

    The session adds each message and its reply to :attr:`messages`, and can be saved. A turn computes only
    the new tokens, as long as the model's prefix cache has the turns before it. A session is either a
    conversation (:meth:`chat`) or a text (:meth:`generate`); the first call decides. Only one thread at a
    time may use a session.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     session = model.session([{"role": "system", "content": "Answer briefly."}])
    ...     first = session.chat("Who is there?", max_tokens=6, seed=1)
    ...     second = session.chat("Go on.", max_tokens=6, seed=1)
    >>> [message["role"] for message in session.messages]
    ['system', 'user', 'assistant', 'user', 'assistant']
    >>> second.cached_tokens >= first.prompt_tokens - 1
    True
    """

    def __init__(self, requests: Requests, messages: object, adapter: str | None) -> None:
        requests.adapters.find(adapter)  # raises if it is not loaded
        self._requests = requests
        self._adapter = adapter
        self._messages: list[_Message] = _taken(messages) if messages else []
        self._ids = array("i")  # token ids of the last prompt and its reply
        self._is_text = False
        # The last turn, until it is added to the session: its messages, its request and its stream. The
        # reference to the stream is weak, because a stream ends when the program drops it.
        self._turn: tuple[list[_Message], Prepared, weakref.ref[TextStream]] | None = None

    def __repr__(self) -> str:
        what = "text" if self._is_text else "conversation"
        size = f"{len(self._ids)} tokens" if self._is_text else f"{len(self._messages)} messages"
        return f"<gemlet.Session {what} of {size}>"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """A copy of the conversation so far, in OpenAI's form.

        Raises:
            InvalidRequestError: the model is still generating the last reply.
        """
        self._add_turn()
        return [dict(message) for message in self._messages]

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the last prompt and its continuation. In a text, a stop string is left out.

        Raises:
            InvalidRequestError: the model is still generating the last reply.
        """
        self._add_turn()
        return self._ids.tolist()

    @takes_options
    @public
    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ToolOptions],
    ) -> Generation:
        """Replies to ``message``: a text of the user, a message, or several messages, such as results of
        tools. The message and the reply become part of the conversation. With ``run_tools``, the messages
        between them become part of it, too.

        ``config``, ``options`` and the errors are as in :meth:`gemlet.Model.chat`, but there is no option
        ``adapter``. A call that raises leaves the conversation as it was.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     session = model.session()
        ...     reply = session.chat("Who is there?", max_tokens=6)
        >>> session.messages[-1] == reply.message
        True
        """

        def ask(added: Any, options: Mapping[str, Any]) -> Generation:
            (reply,) = run_to_end(self.stream_chat(added, config, **options))
            self._add_turn()
            return reply

        if not runs_tools(options):
            return ask(message, without_own(options))
        return reply_with_tools(ask, [message] if isinstance(message, Mapping) else message, options)

    @takes_options
    @public
    def stream_chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> TextStream:
        """Replies step by step. When the stream ends, the message and the reply so far become part of the
        conversation, unless the stream was cancelled before the first token. A stream also ends when the
        program drops it, for example after a ``break``.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     session = model.session()
        ...     chunks = list(session.stream_chat("Who is there?", max_tokens=4))
        >>> len(session.messages)
        2
        """
        self._add_turn()
        if self._is_text:
            raise InvalidRequestError(
                "chat: this session is a text; continue it with generate(), or begin another session"
            )
        if options.get("continue_final_message"):
            raise InvalidRequestError(
                "continue_final_message: a session adds only whole replies; use Model.chat()"
            )
        added = _taken([{"role": "user", "content": message}] if isinstance(message, str) else message)
        prepared = self._requests.reply([*self._messages, *added], config, self._with_adapter(options))
        return self._begin(added, prepared)

    @takes_options
    @public
    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[TextOptions],
    ) -> Generation:
        """Adds ``prompt`` to the text so far, and continues the text. ``prompt`` is a text, or token ids,
        which are used unchanged. The text so far is the prompts and the texts of the results. So it has
        neither a stop string nor the characters that the last token had after a stop string.

        ``config``, ``options`` and the errors are as in :meth:`gemlet.Model.generate`, but there is no option
        ``adapter``.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     session = model.session()
        ...     first = session.generate("The door opened", max_tokens=4)
        ...     second = session.generate(" and then", max_tokens=4)
        >>> second.prompt_tokens > first.prompt_tokens + 4
        True
        """
        (result,) = run_to_end(self.stream(prompt, config, **options))
        self._add_turn()
        return result

    @takes_options
    @public
    def stream(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[TextOptions],
    ) -> TextStream:
        """Continues the text as :meth:`generate` does, step by step.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     len(list(model.session().stream("The door opened", max_tokens=4)))
        4
        """
        self._add_turn()
        if self._messages:
            raise InvalidRequestError(
                "generate: this session is a conversation; continue it with chat(), or begin another session"
            )
        reader = self._requests.reader
        ids = prompt
        if len(self._ids) or not isinstance(prompt, str):
            if isinstance(prompt, str):
                allow_control = options.get("allow_control", True)
                ids = reader.encode(prompt, add_bos=False, allow_control=allow_control)
            ids = self._ids + reader.raw(ids)
        (prepared,) = self._requests.texts(ids, config, self._with_adapter(options))
        stream = self._begin([], prepared)
        self._is_text = True
        return stream

    @public
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session to the file ``path``. The file also has the keys and values that the prefix
        cache still has, up to the first image, video or sound. Only this user may read the file. An existing
        file is replaced when the new file is complete.

        :meth:`gemlet.Model.load_session` reads the file. Another model, or another version of gemlet, uses
        only the messages.

        Raises:
            InvalidRequestError: the model is still generating the last reply, ``path`` is not a path, or a
                message has an image or a sound as an object.
            ModelFileError: the file cannot be written.

        >>> import gemlet, os, tempfile
        >>> with gemlet.load() as model, tempfile.TemporaryDirectory() as folder:
        ...     session = model.session()
        ...     reply = session.chat("Who is there?", max_tokens=6)
        ...     session.save(f"{folder}/talk.session")
        ...     again = model.load_session(f"{folder}/talk.session")
        ...     again.messages == session.messages
        True
        """
        self._add_turn()
        write_session(path, self._requests, self._state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], requests: Requests) -> Session:
        """Reads the session in ``path``; errors are as in :meth:`gemlet.Model.load_session`."""
        state = read_session(path, requests)
        session = cls(requests, None, state.adapter)
        session._messages, session._ids, session._is_text = state.messages, state.ids, state.is_text
        return session

    @property
    def _state(self) -> SessionState:
        return SessionState(self._messages, self._ids, self._is_text, self._adapter)

    def _with_adapter(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("adapter") is not None:
            raise InvalidRequestError(
                "adapter: a session has one adapter for all turns; give the adapter to session() instead"
            )
        return {**options, "adapter": self._adapter}

    def _begin(self, added: list[_Message], prepared: Prepared) -> TextStream:
        stream = self._requests.stream([prepared])
        self._turn = added, prepared, weakref.ref(stream)
        return stream

    def _add_turn(self) -> None:
        """Adds the last turn to the session."""
        if self._turn is None:
            return
        added, prepared, stream = self._turn
        result = prepared.answer.result
        if result is None:
            if stream() is not None:
                raise InvalidRequestError(
                    "the model is still generating the session's last reply; first read the stream of this "
                    "reply to the end, or close() the stream"
                )
            # The program has dropped the stream before its end.
            _, result = prepared.answer.end("cancelled", Timing())
        self._turn = None
        if not result.token_ids and result.finish_reason in ("cancelled", "timeout"):
            return
        written, tokenizer = result.token_ids, self._requests.reader.tokenizer
        if self._is_text and prepared.answer.met_stop_string and tokenizer is not None:
            written = _ids_of_shown(tokenizer, written, result.text[len(prepared.answer.echo) :])
        self._ids = prepared.ids + array("i", written)
        if not self._is_text:
            self._messages += [*added, result.message]


def _ids_of_shown(tokenizer: Tokenizer, ids: list[int], shown: str) -> list[int]:
    """Token ids of the text ``shown``, which is the beginning of the text of ``ids``. They are first the
    ``ids`` whose text lies wholly in ``shown``. The next token may have both the last characters of ``shown``
    and the beginning of a stop string. New ids stand for these last characters."""
    decoder, rest, count = tokenizer.stream_decoder(), shown.encode("utf-8", "surrogatepass"), 0
    for token in ids:
        data = decoder.bytes_of(token)
        if not rest or not rest.startswith(data):
            break
        rest, count = rest[len(data) :], count + 1
    try:
        left = rest.decode()
    except UnicodeDecodeError:  # a token ends within a character, so the whole text is encoded again
        return tokenizer.encode(shown, add_bos=False, allow_control=False)
    return ids[:count] + tokenizer.encode(left, add_bos=False, allow_control=False)


def _taken(messages: object) -> list[_Message]:
    """Checks messages in OpenAI's form, and copies them."""
    given = [messages] if isinstance(messages, Mapping) else messages
    if isinstance(given, str):
        raise InvalidRequestError(f"messages: got {show_argument(given)}, expected a list of messages")
    return [dict(message) for message in checked_messages(given)]
