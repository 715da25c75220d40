"""``gemlet tokenize``: a text as token ids and pieces."""

from __future__ import annotations

import argparse
import json

from gemlet.cli.common import access_options, one_line, read_standard_input
from gemlet.errors import UnsupportedError
from gemlet.sources.opening import open_model_files

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: a line for each token, its id and its piece."""
    text = read_standard_input("text") if arguments.text == "-" else arguments.text
    with open_model_files(arguments.model, headers_only=True, **access_options(arguments)) as files:
        if files.tokenizer is None:
            raise UnsupportedError(f"{files.name} has no tokenizer")
        ids = files.tokenizer.encode(text, add_bos=not arguments.no_bos)
        pieces = [files.tokenizer.id_to_piece(token) for token in ids]
    if arguments.json:
        print(json.dumps({"count": len(ids), "ids": ids, "pieces": pieces}))
    elif arguments.count:
        print(len(ids))
    else:
        for token, piece in zip(ids, pieces, strict=True):
            print(f"{token:>6}  {one_line(piece)}")
    return 0
