"""The methods of :class:`gemlet.Model` that reply to conversations: :class:`Chatting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.chat.base import Tools
from gemlet.generation.answer import Prepared
from gemlet.generation.async_stream import AsyncTextStream, run_async
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.generation.tool_loop import Conversation, areply_with_tools, reply_with_tools, runs_tools
from gemlet.model.batch import arranged
from gemlet.model.call_options import ManyChatOptions, ManyToolOptions, ToolOptions, takes_options
from gemlet.model.off_loop import off_loop
from gemlet.model.requests import Requests

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Chatting"]


@record(frozen=True)
class Chatting:
    """Replies to conversations. A reply comes complete or step by step."""

    requests: Requests

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ToolOptions],
    ) -> Generation: ...
    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        n: int,
        best_of: int | None = None,
        **options: Unpack[ToolOptions],
    ) -> list[Generation]: ...
    @takes_options
    @public
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ManyToolOptions],
    ) -> Generation | list[Generation]:
        """Replies to a conversation in OpenAI's form, ``[{"role": "user", "content": "Hello"}, ...]``.

        Args:
            messages: the conversation. The roles are system (or developer), user, assistant, and tool for the
                result of a call. If the format has no system role, a system message becomes a part of the
                first user turn. A string is one message of the user. :attr:`Generation.message` is the reply
                as a message.
            config: the options of the call, as in :meth:`generate`. Stop strings end only the answer, not a
                thought.
            adapter, timeout, n, best_of: as in :meth:`generate`. With ``n`` the result is a list.
            tools: functions that the model may call: JSON schemas in OpenAI's form, ``{"type": "function",
                "function": {"name": ..., "description": ..., "parameters": JSON schema}}``, or Python
                functions (:func:`gemlet.chat.describe_function`). :attr:`Generation.tool_calls` has the
                calls. The functions are run only with ``run_tools``.
            tool_choice: "auto": the model decides. "none": the model gets no tools. "required": the reply
                calls at least one tool. A mapping ``{"type": "function", "function": {"name": ...}}``: the
                reply calls this function. "required" and a mapping need the extra ``grammar``. With
                ``run_tools``, they apply only to the first reply.
            thinking: let the model think first. :attr:`Generation.reasoning` has the thoughts.
            thinking_budget: the most tokens of the thoughts; 0 for no thoughts. When these tokens are used
                up, the thought ends and the model answers. None: only ``max_tokens`` limits the thoughts.
            continue_final_message: the last message is the beginning of the assistant's reply, and the model
                continues this message. The text of the result is only the continuation.
            load_audio_from_video: let the model also hear the videos in the messages. The sound of a video
                follows the frames. Raises :class:`UnsupportedError` for a model that does not hear.
            run_tools: run the Python functions in ``tools`` that the model calls, give the results to the
                model, and let it reply again. If a call fails, the model gets the reason as the result.
                :attr:`Generation.messages` has all messages.
            max_tool_rounds: the most replies whose calls are run. The last reply may call tools again.
            approve: a Python function that gets each :class:`gemlet.chat.ToolCall` before the call is run.
                The call is run only if ``approve`` returns True.
            (the options of GenerationConfig)

        Raises:
            UnsupportedError: the model has no chat format. Or the call asks for tools or thinking, and the
                format does not have them.
            InvalidRequestError: messages or tools are malformed. The errors of :meth:`generate` apply, too.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     reply = model.chat("Who is there?", max_tokens=6)
        >>> reply.completion_tokens <= 6
        True
        """
        if not runs_tools(options):
            replies = self.requests.run(self.requests.replies(messages, config, options))
            return arranged("", options, replies)
        conversation: list[Mapping[str, Any]] = []

        def ask(added: Conversation, options: Mapping[str, Any]) -> Generation:
            conversation.extend(_messages_of(added))
            reply = self.requests.run([self.requests.reply(conversation, config, options)])[0]
            conversation.append(reply.message)
            return reply

        return reply_with_tools(ask, messages, options)

    @public
    def count_tokens(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Tools | None = None,
        thinking: bool = False,
        continue_final_message: bool = False,
        load_audio_from_video: bool = False,
        pan_and_scan: bool | Mapping[str, Any] | None = None,
        image_tokens: int | None = None,
    ) -> int:
        """Counts the tokens of the prompt of a conversation, including images and sounds. The model does not
        run.

        The arguments and errors are as in :meth:`chat`.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.count_tokens("Who is there?") == model.chat("Who is there?", max_tokens=1).prompt_tokens
        True
        """
        options = {
            "tools": tools,
            "thinking": thinking,
            "continue_final_message": continue_final_message,
            "load_audio_from_video": load_audio_from_video,
            "pan_and_scan": pan_and_scan,
            "image_tokens": image_tokens,
        }
        return len(self.requests.encode(messages, options)[0])

    @takes_options
    @public
    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ManyChatOptions],
    ) -> TextStream:
        """Replies to a conversation step by step; arguments and errors are as in :meth:`chat`. With ``n``,
        :attr:`Chunk.index` says to which reply a chunk belongs.

        Reasoning and complete tool calls come as :attr:`Chunk.events`. While the model is writing a call, the
        parts of the call come as :attr:`Chunk.call_pieces`, the name first. No function is run.

        Args:
            (the options of GenerationConfig)

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     len(list(model.stream_chat("Who is there?", max_tokens=4, ignore_eos=True)))
        4
        """
        return self.requests.stream(self.requests.replies(messages, config, options))

    @overload
    async def achat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ToolOptions],
    ) -> Generation: ...
    @overload
    async def achat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        n: int,
        best_of: int | None = None,
        **options: Unpack[ToolOptions],
    ) -> list[Generation]: ...
    @takes_options
    @public
    async def achat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ManyToolOptions],
    ) -> Generation | list[Generation]:
        """:meth:`chat` for programs with an event loop. Cancelling the task ends its request. Images, sounds,
        grammars and long texts are read in a thread. With ``run_tools``, the functions and ``approve`` run in
        a thread, one after the other. A cancelled task does not wait for a function that is running.

        >>> import asyncio, gemlet
        >>> with gemlet.load() as model:
        ...     asyncio.run(model.achat("Who is there?", max_tokens=6)).completion_tokens <= 6
        True
        """
        if not runs_tools(options):
            prepare = partial(self.requests.replies, messages, config, options)
            return arranged("", options, await self._run(await off_loop(prepare, messages, options)))
        conversation: list[Mapping[str, Any]] = []

        async def ask(added: Conversation, options: Mapping[str, Any]) -> Generation:
            conversation.extend(_messages_of(added))
            prepare = partial(self.requests.replies, conversation, config, options)
            (reply,) = await self._run(await off_loop(prepare, conversation, options))
            conversation.append(reply.message)
            return reply

        return await areply_with_tools(ask, messages, options)

    async def _run(self, prepared: Sequence[Prepared]) -> list[Generation]:
        return await run_async(AsyncTextStream(self.requests.stream(prepared, readable=True)))

    @takes_options
    @public
    def astream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ManyChatOptions],
    ) -> AsyncTextStream:
        """:meth:`stream_chat` for programs with an event loop. Images, sounds, grammars and long texts are
        read in the event loop, as :meth:`astream` does.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.astream_chat("Who is there?")
        <gemlet.AsyncTextStream not begun>
        """
        prepared = self.requests.replies(messages, config, options)
        return AsyncTextStream(self.requests.stream(prepared, readable=True))


def _messages_of(added: Conversation) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": added}] if isinstance(added, str) else added
