"""``gemlet generate``: continue a text."""

from __future__ import annotations

import argparse
import json
import sys

from gemlet.cli.common import (
    MOST_INPUT,
    bold,
    for_terminal,
    load_adapter,
    note,
    open_model,
    print_stats,
    read_standard_input,
    report,
    sampling_options,
    write,
)
from gemlet.generation.stream import TextStream
from gemlet.model.model import Model

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; the exit code is 130 after Ctrl-C, with what was written by then kept."""
    prompt = _read_prompt(arguments.prompt)
    options = sampling_options(arguments)  # before the model: a wrong value should not cost the loading time
    with open_model(arguments) as model:
        _say_what_is_meant(model, prompt, is_demo=arguments.model is None)
        stream = model.stream(prompt, **load_adapter(model, arguments), **options)
        shown = prompt if sys.stdout.isatty() else ""
        interrupted = _follow(stream, shown, quiet=arguments.json)
        result = stream.result
        if arguments.json:
            print(json.dumps(report(model, result)))
        elif interrupted or not result.text.endswith("\n"):
            write("\n")
        if arguments.stats:
            print_stats(model, result)
    return 130 if interrupted else 0


def write_prompt(prompt: str) -> None:
    """Shows the prompt, so that a terminal reads as one text."""
    sys.stdout.write(bold(for_terminal(prompt)))
    sys.stdout.flush()


def _read_prompt(argument: str) -> str:
    if argument != "-":
        return argument
    prompt = read_standard_input("prompt", MOST_INPUT)
    # echo and editors add a newline at the end, which is not meant as part of the prompt.
    return prompt.removesuffix("\n").removesuffix("\r")


def _say_what_is_meant(model: Model, prompt: str, *, is_demo: bool) -> None:
    """Says that the model would also chat, unless the prompt is in its chat format already.

    The demo model says what it is, as in a chat, and only to a person at a terminal.
    """
    if is_demo and not sys.stderr.isatty():
        return
    chat_format = model.chat_format
    if chat_format is None or any(marker in prompt for marker in chat_format.ends):
        return
    demo = "this is the small demo model; choose a real model with --model NAME_OR_FILE. "
    meant = "generate only continues the text; gemlet chat answers it"
    note(demo + meant if is_demo else meant)


def _follow(stream: TextStream, prompt: str, *, quiet: bool) -> bool:
    """Writes ``prompt`` when it has been read, and the text as it comes; True if Ctrl-C cut it short."""
    stream.prompt_progress = None
    with stream:
        try:
            for chunk in stream:
                if prompt and not quiet:
                    write_prompt(prompt)
                    prompt = ""
                if chunk.text and not quiet:
                    write(chunk.text)
        except KeyboardInterrupt:
            return True
    return False
