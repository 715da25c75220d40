"""``gemlet inspect``: what is in a model's files and what it would take to load it."""

from __future__ import annotations

import argparse
import json

from gemlet.cli.common import access_options, load_options, one_line
from gemlet.errors import GemletError
from gemlet.loading.inspect import inspect

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: 0 if the model would run here, else 1."""
    try:
        found = inspect(
            arguments.model,
            for_memory=arguments.for_memory,
            **load_options(arguments),
            **access_options(arguments),
        )
    except GemletError as error:
        if not arguments.json:
            raise
        print(json.dumps({"source": arguments.model, "problem": str(error), "error": type(error).__name__}))
        return 1
    if arguments.json:
        print(json.dumps(found.as_dict()))
    else:
        # A model file may say anything, so no control character of its reaches the terminal.
        print("\n".join(one_line(line) for line in str(found).splitlines()))
    return 0 if found.problem is None else 1
