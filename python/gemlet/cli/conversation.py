"""The conversation that ``gemlet chat`` holds: :class:`Conversation`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

from gemlet.base.text import show_argument
from gemlet.chat.reply import Reasoning
from gemlet.cli.common import dim, for_terminal, note, print_stats, report, write
from gemlet.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.model.model import Model

__all__ = ["Conversation"]

_Message = dict[str, Any]


class Conversation:
    """The turns of a conversation; each is a question and its reply.

    Args:
        system: instructions that precede all turns; None: none.
        options: the options of :meth:`gemlet.Model.stream_chat`.
        drops: leave out the oldest turns when the context is full; otherwise a full context is an error.
        as_json: replies are written as JSON objects.
        stats: the timings of each reply are written too.

    Raises :class:`UnsupportedError` for a model that does not chat, or not with these options.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        options: dict[str, Any],
        drops: bool = True,
        as_json: bool = False,
        stats: bool = False,
    ) -> None:
        if model.chat_format is None or model.tokenizer is None:
            raise UnsupportedError(f"{model.source} has no chat format; use gemlet generate")
        self._model = model
        self._opening = [{"role": "system", "content": system}] if system else []
        self._options = options
        self._drops = drops
        self._as_json = as_json
        self._stats = stats
        self._turns: list[list[_Message]] = []
        self._dropped = 0  # turns that the model does not see any more
        self._attached: list[_Message] = []  # parts of the next question
        self._count_tokens([{"role": "user", "content": ""}])  # raises if the options do not fit the model

    def reset(self) -> None:
        """Forgets all turns."""
        self._turns.clear()
        self._dropped = 0

    def undo(self) -> bool:
        """Takes the last turn back; False if there is none."""
        if not self._turns:
            return False
        self._turns.pop()
        self._dropped = min(self._dropped, len(self._turns))
        return True

    def save(self, path: str | None) -> str:
        """Writes the messages as JSON into a new file, and returns its path; None: a name with the time. Only
        the user may read it. Raises OSError."""
        path = os.path.expanduser(path or time.strftime("chat-%Y%m%d-%H%M%S.json"))
        messages = [*self._opening, *(message for turn in self._turns for message in turn)]
        text = json.dumps(messages, ensure_ascii=False, indent=2) + "\n"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        return path

    def attach(self, kind: str, path: str) -> None:
        """Puts a file, an "image", a "video" or "audio", in front of the next question.

        Raises :class:`InvalidRequestError` for a file that is not there.
        """
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            what = "it is not a file" if os.path.exists(path) else "there is no such file"
            raise InvalidRequestError(f"{path or show_argument(path)}: {what}")
        self._attached.append({"type": kind, kind: path})

    def ask(self, text: str, *, keep_after_ctrl_c: bool = False) -> Generation:
        """Writes the reply to the attached files and ``text`` as it comes, and adds both to the conversation.
        Without a reply it adds nothing. With ``keep_after_ctrl_c``, Ctrl-C ends the reply instead of the
        program.

        Raises what :meth:`gemlet.Model.stream_chat` raises.
        """
        question: _Message = {"role": "user", "content": text}
        if self._attached:
            question["content"] = [*self._attached, {"type": "text", "text": text}]
            self._attached = []
        stream = self._begun(question)
        with stream, contextlib.suppress(*([KeyboardInterrupt] if keep_after_ctrl_c else [])):
            self._show(stream)
        result = stream.result
        if self._as_json:
            print(json.dumps(report(self._model, result)), flush=True)
        else:
            write("\n")
            self._mark_cut(result)
        if self._stats:
            print_stats(self._model, result)
        if result.text:
            self._turns.append([question, result.message])
        elif result.finish_reason != "cancelled":
            note("the reply is empty, so the turn does not count")
        return result

    def _begun(self, question: _Message) -> TextStream:
        """The stream of the reply. If the messages and a reply would not fit, the oldest turns are left out.
        Files that fit are read only once, because a video takes seconds."""
        context = self._model.context_length
        room = min(self._most_tokens, context // 8)  # this is at least enough for a short reply
        try:
            stream = self._stream(question)
            if not self._drops or stream.prompt_tokens + room <= context:
                return stream
            stream.close()
        except ContextLengthError:
            if not self._drops:
                raise
        self._drop_turns(question, context)
        return self._stream(question)

    def _stream(self, question: _Message) -> TextStream:
        return self._model.stream_chat(self._sent(question), **self._options)

    def _sent(self, question: _Message) -> list[_Message]:
        kept = self._turns[self._dropped :]
        return [*self._opening, *(message for turn in kept for message in turn), question]

    def _drop_turns(self, question: _Message, context: int) -> None:
        """Leaves out the oldest turns: several at once, because the remaining turns are computed again."""
        count = self._count_tokens(self._sent(question))
        before = self._dropped
        while self._dropped < len(self._turns) and count > context * 3 // 4:
            self._dropped += 1
            count = self._count_tokens(self._sent(question))
        if (gone := self._dropped - before) and count <= context:
            what = "the oldest turn is" if gone == 1 else f"the oldest {gone} turns are"
            note(f"the context of {context} tokens is full: {what} left out from here on")
        elif count > context:
            self._dropped = before
            raise ContextLengthError(
                f"the message has {count} tokens with what goes before it, but the context holds {context}; "
                "shorten it"
            )

    @property
    def _most_tokens(self) -> int:
        return int(self._options.get("max_tokens") or self._model.generation_config.max_tokens)

    def _count_tokens(self, messages: list[_Message]) -> int:
        return self._model.count_tokens(
            messages,
            thinking=bool(self._options.get("thinking")),
            load_audio_from_video=bool(self._options.get("load_audio_from_video")),
        )

    def _show(self, stream: TextStream) -> None:
        """Writes the reply. Only a terminal shows the model's thoughts."""
        stream.prompt_progress = None
        is_thinking = False
        for chunk in stream:
            if self._as_json:
                continue
            for event in chunk.events if sys.stdout.isatty() else ():
                if isinstance(event, Reasoning):
                    is_thinking = True
                    sys.stdout.write(dim(for_terminal(event.text)))
                    sys.stdout.flush()
            if chunk.text:
                write("\n\n" + chunk.text if is_thinking else chunk.text)
                is_thinking = False

    def _mark_cut(self, result: Generation) -> None:
        """Says that a reply was cut: after the reply on a terminal, otherwise on standard error."""
        if result.finish_reason in ("stop", "cancelled"):
            return
        mark = f"cut at {result.completion_tokens} tokens"
        if full := result.finish_reason == "context":
            mark += ", the context is full"
        if sys.stdout.isatty():
            print(dim(f"[{mark}]"), flush=True)
        else:
            note(mark if full else f"{mark}; --max-tokens allows more")
