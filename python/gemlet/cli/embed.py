"""``gemlet embed``: texts, images and sounds as vectors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gemlet.cli.common import load_adapter, note, open_model, read_standard_input, write
from gemlet.errors import InvalidRequestError

__all__ = ["run"]

_SHOWN = 16


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: a line for each text, then for each image, video and sound, in their order; or one
    for all of them together."""
    texts = _texts(arguments)
    with open_model(arguments) as model:
        options = {"empty": arguments.empty, **load_adapter(model, arguments)}
        try:
            vectors = model.embed(texts, arguments.prompt, arguments.dimensions, **options)
        except InvalidRequestError as error:  # before anything is computed
            if arguments.no_truncate:
                raise
            vectors = model.embed(texts, arguments.prompt, arguments.dimensions, truncate=True, **options)
            _say_what_was_cut(error.indices, model.context_length)
        for vector in vectors.tolist():
            write(json.dumps([round(number, 8) for number in vector]) + "\n")
    return 0


def _texts(arguments: argparse.Namespace) -> list[Any]:
    media = [{"type": "image", "image": path} for path in arguments.images or ()]
    media += [{"type": "video", "video": path} for path in arguments.videos or ()]
    media += [{"type": "audio", "audio": path} for path in arguments.sounds or ()]
    if not media:
        if arguments.together:
            raise InvalidRequestError("--together: expected --image, --video or --audio too")
        return arguments.texts or _read_lines()
    if arguments.together:
        return [[*({"type": "text", "text": text} for text in arguments.texts), *media]]
    return [*arguments.texts, *([part] for part in media)]


def _say_what_was_cut(places: tuple[int, ...], context: int) -> None:
    listed = ", ".join(str(place + 1) for place in places[:_SHOWN])
    if len(places) > _SHOWN:
        listed += f" and {len(places) - _SHOWN} more"
    what = f"text {listed} is" if len(places) == 1 else f"texts {listed} are"
    note(f"{what} longer than the context of {context} tokens and cut there; --no-truncate refuses this")


def _read_lines() -> list[str]:
    text = read_standard_input("texts")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
