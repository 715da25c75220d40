"""``gemlet eval``: how good a model is, in numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json

from gemlet.cli.common import load_adapter, open_model
from gemlet.errors import ModelFileError
from gemlet.evaluate import choices, perplexity, read_questions

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: a line for each number."""
    if arguments.what == "choices":
        questions = read_questions(arguments.file)
    else:
        try:
            with open(arguments.file, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelFileError(f"{arguments.file}: cannot be read: {reason}") from None
    with open_model(arguments) as model:
        more = load_adapter(model, arguments)
        if arguments.what == "choices":
            found: object = choices(model, questions, delimiter=arguments.delimiter, progress=None, **more)
        else:
            found = perplexity(model, text, window=arguments.window, progress=None, **more)
    values = dataclasses.asdict(found)  # type: ignore[call-overload]
    if arguments.json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name:<15} {value if isinstance(value, int) else format(value, '.4f')}")
    return 0
