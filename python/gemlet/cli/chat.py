"""``gemlet chat``: answers one question, answers each line of a pipe, or holds a conversation on a
terminal."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import Any

from gemlet.base.sizes import size_text
from gemlet.chat.gemma4 import THINK
from gemlet.cli.common import (
    CHAT_TOKENS,
    MOST_INPUT,
    load_adapter,
    note,
    one_line,
    open_model,
    print_error,
    read_standard_input,
    sampling_options,
)
from gemlet.cli.conversation import Conversation
from gemlet.cli.keyboard import Keyboard
from gemlet.errors import ContextLengthError, GemletError, InvalidRequestError

__all__ = ["run"]

_COMMANDS = {
    "/help": "shows this",
    "/reset": "forgets the conversation",
    "/undo": "takes the last turn back",
    "/image FILE": "shows a picture with the next message",
    "/video FILE": "shows a video with the next message",
    "/audio FILE": "plays a recording with the next message",
    "/save [FILE]": "writes the conversation as JSON",
    "/exit": "leaves, as exit, quit and Ctrl-D do",
}
_HINT = "/help lists the commands, /exit or Ctrl-D leaves, Ctrl-C cuts a reply short."
_HELP = "\n".join(
    [
        *(f"{name:<14}{meaning}" for name, meaning in _COMMANDS.items()),
        f"{'Ctrl-C':<14}cuts a reply short",
        'A pasted text is one message. To type a message of several lines, begin and end it with """.',
    ]
)
_LEAVES = ("/exit", "/quit", "/bye")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if a line of a pipe got no answer."""
    question = _question(arguments)
    options = _options(arguments)
    interactive = question is None and sys.stdin.isatty() and sys.stdout.isatty()
    if interactive and arguments.json:
        raise InvalidRequestError("--json: give the question on the command line, or in a file or a pipe")
    with open_model(arguments) as model:
        chat = Conversation(
            model,
            system=arguments.system,
            options=options | load_adapter(model, arguments),
            drops=arguments.context_full == "drop",
            as_json=arguments.json,
            stats=arguments.stats,
        )
        for path in arguments.images or ():
            chat.attach("image", path)
        for path in arguments.videos or ():
            chat.attach("video", path)
        for path in arguments.sounds or ():
            chat.attach("audio", path)
        if question is not None:
            reply = chat.ask(question)
            return 130 if reply.finish_reason == "cancelled" else 0
        if not interactive:
            return _answer_lines(chat)
        with Keyboard() as keyboard:
            if arguments.model is None:
                print("This is the small demo model. Choose a real model with --model NAME_OR_FILE.")
            else:
                print(one_line(f"This is {model.source} ({model.weights})."))
            print(_HINT)
            _converse(chat, keyboard)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of :meth:`gemlet.Model.stream_chat`. A model that thinks may generate more
    tokens."""
    options = {**sampling_options(arguments), "thinking": arguments.thinking}
    options["load_audio_from_video"] = arguments.load_audio_from_video
    if not arguments.thinking and THINK not in (arguments.system or ""):
        options.setdefault("max_tokens", CHAT_TOKENS)
    return options


def _question(arguments: argparse.Namespace) -> str | None:
    """Returns the message on the command line: the question, then the files. None if the command line has
    none."""
    parts = []
    if arguments.question == "-":
        parts.append(read_standard_input("question", MOST_INPUT).strip())
    elif arguments.question is not None:
        parts.append(arguments.question)
    for name in arguments.file or ():
        path = os.path.expanduser(name)
        with open(path, "rb") as file:
            data = file.read(MOST_INPUT + 1)
        if len(data) > MOST_INPUT:
            raise ContextLengthError(
                f"--file {path}: has more than {size_text(MOST_INPUT)}, and no context holds that; shorten it"
            )
        try:
            parts.append(data.decode("utf-8-sig").strip())
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"--file {path}: byte {error.start} is not UTF-8; give a text file, or convert it first "
                "(iconv -t UTF-8)"
            ) from None
    if parts and not any(part.strip() for part in parts):
        raise InvalidRequestError("question: it is empty, expected at least one character")
    return "\n\n".join(part for part in parts if part) if parts else None


def _answer_lines(chat: Conversation) -> int:
    """Answers each line of standard input, with the conversation so far."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="surrogateescape")
    code = 0
    for number, line in enumerate(sys.stdin, 1):
        text = line.strip()
        try:
            if text.startswith("/"):
                if not _command(chat, text):
                    break
            elif text:
                if any("\udc80" <= character <= "\udcff" for character in text):
                    raise InvalidRequestError("the line is not UTF-8; convert it first (iconv -t UTF-8)")
                chat.ask(text)
        except (GemletError, OSError) as error:
            print_error(f"line {number}: {error}")
            code = 1
    return code


def _converse(chat: Conversation, keyboard: Keyboard) -> None:
    while (text := keyboard.read()) is not None:
        try:
            if text.startswith("/") and "\n" not in text:
                if not _command(chat, text):
                    break
            elif text.lower() in ("exit", "quit"):
                break
            elif text:
                chat.ask(text, keep_after_ctrl_c=True)
        except InvalidRequestError as error:
            is_command = text.startswith("/") and "\n" not in text
            print_error(str(error) if is_command else f"{error} (/reset starts afresh)")
        except OSError as error:
            print_error(f"{error.filename}: {error.strerror}")
        except KeyboardInterrupt:  # before the reply began, for example while a video was read
            print("\n(the message and its files are forgotten)")


def _command(chat: Conversation, text: str) -> bool:
    """Does what a line that begins with "/" says; False to leave. Raises :class:`InvalidRequestError` for
    a line that is not a command, OSError for a file that cannot be written."""
    name, _, rest = text.partition(" ")
    if name in _LEAVES:
        return False
    if name == "/reset":
        chat.reset()
        note("the conversation is forgotten")
    elif name == "/undo":
        note("the last turn is taken back" if chat.undo() else "there is no turn to take back")
    elif name == "/save":
        note(f"saved as {chat.save(rest.strip() or None)}")
    elif name in ("/image", "/video", "/audio"):
        if not rest.strip():
            raise InvalidRequestError(f"{name} needs a file: {name} FILE")
        chat.attach(name[1:], rest.strip())
        note("it comes with the next message")
    elif name in ("/help", "/?"):
        print(_HELP)
    else:
        known = [*_LEAVES, *(command.split()[0] for command in _COMMANDS)]
        close = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]}?" if close else "; /help lists the commands"
        raise InvalidRequestError(f"{name} is not a command{meant}")
    return True
