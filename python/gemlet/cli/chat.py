"""``gemlet chat``: a conversation, a line at a time."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from gemlet.chat.reply import Reasoning
from gemlet.cli.common import (
    dim,
    for_terminal,
    load_adapter,
    one_line,
    open_model,
    print_stats,
    sampling_options,
    write,
)
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.model.model import Model

__all__ = ["run"]

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C cuts a reply short."


def run(arguments: argparse.Namespace) -> int:
    """Runs the command until /exit or the end of standard input."""
    options = {**sampling_options(arguments), "thinking": arguments.thinking}
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history for input()
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
    with open_model(arguments) as model:
        if model.chat_format is None or model.tokenizer is None:
            raise UnsupportedError(f"{model.source} has no chat format; use gemlet generate")
        model.chat_format.render(
            [{"role": "user", "content": ""}], thinking=arguments.thinking
        )  # or says why
        options |= load_adapter(model, arguments)
        if interactive:
            print(_HELP)
        messages = list(opening)
        while (line := _read_line(interactive)) is not None:
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(opening)
            elif line.startswith("/"):
                print(f"{line.split()[0]} is not a command. {_HELP}", file=sys.stderr)
            elif line:
                messages.append({"role": "user", "content": line})
                if not _reply(model, messages, options, interactive, stats=arguments.stats):
                    messages.pop()  # a turn without an answer is as if it had not been
    return 0


def _read_line(interactive: bool) -> str | None:
    """The next line without surrounding blanks; None at the end of the input."""
    while True:
        try:
            return input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(/exit or Ctrl-D leaves)")


def _reply(
    model: Model, messages: list[dict[str, Any]], options: dict[str, Any], interactive: bool, *, stats: bool
) -> bool:
    """Streams a reply and adds it to ``messages``; False if there was none. Reasoning is for terminals, and
    so is a Ctrl-C that ends the reply and not the program."""
    try:
        stream = model.stream_chat(messages, **options)
    except InvalidRequestError as error:  # most likely: the conversation has outgrown the context
        print(f"gemlet: error: {one_line(str(error))} (/reset starts afresh)", file=sys.stderr)
        return False
    with stream, contextlib.suppress(*([KeyboardInterrupt] if interactive else [])):
        is_thinking = False
        for chunk in stream:
            for event in chunk.events if sys.stdout.isatty() else ():
                if isinstance(event, Reasoning):
                    is_thinking = True
                    sys.stdout.write(dim(for_terminal(event.text)))
                    sys.stdout.flush()
            if chunk.text:
                write("\n\n" + chunk.text if is_thinking else chunk.text)
                is_thinking = False
    text = stream.result.text
    write("\n")
    if stats:
        print_stats(model, stream.result)
    if text:
        messages.append(stream.result.message)
    return bool(text)
