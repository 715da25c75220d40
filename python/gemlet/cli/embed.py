"""``gemlet embed``: texts as vectors."""

from __future__ import annotations

import argparse
import json

from gemlet.cli.common import load_adapter, open_model, read_standard_input, write

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: a line for each text, in their order."""
    texts = arguments.texts or _read_lines()
    with open_model(arguments) as model:
        vectors = model.embed(texts, arguments.prompt, arguments.dimensions, **load_adapter(model, arguments))
        for vector in vectors.tolist():
            write(json.dumps([round(number, 8) for number in vector]) + "\n")
    return 0


def _read_lines() -> list[str]:
    text = read_standard_input("texts")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
