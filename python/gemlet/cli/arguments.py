"""A parser of command lines that answers what it does not know with what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gemlet.base.names import did_you_mean
from gemlet.base.patterns import late_pattern
from gemlet.errors import GemletError

__all__ = ["ArgumentParser", "add_tower_tests", "checked", "image_size"]

# The short names of options in other tools -> their names in gemlet.
_SHORT_ELSEWHERE = {
    "-m": "--model",
    "-hf": "--model",
    "-c": "--max-context",
    "-n": "--max-tokens",
    "-s": "--seed",
    "-f": "--file",
    "-sys": "--system",
    "-p": "the text as an argument of its own",
    "--prompt": "the text as an argument of its own",
}
# The names of commands in other tools -> their names in gemlet.
_COMMANDS_ELSEWHERE = {
    "complete": "generate",
    "help": "--help",
    "list": "models",
    "ls": "models",
    "perplexity": "eval",
    "ps": "top",
    "pull": "download",
    "quantize": "convert",
    "rm": "cache clear",
    "run": "chat",
    "show": "inspect",
    "version": "--version",
}
_CHOICE = late_pattern(r"invalid choice: '([^']*)' \(choose from (.*)\)")


class ArgumentParser(argparse.ArgumentParser):
    """Takes an underscore for a hyphen in the name of an option, and names the nearest option or command in
    its errors."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = None if args is None else self._with_hyphens(args)
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.search(message)
        if choice is not None:
            known = [name.strip(" '") for name in choice[2].split(",")]
            near = difflib.get_close_matches(choice[1].lower(), known, 1)
            if "COMMAND" in message and (elsewhere := _COMMANDS_ELSEWHERE.get(choice[1].lower())):
                near = [elsewhere]
            if near:
                message += f"; did you mean {near[0]}?"
        super().error("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))

    def _with_hyphens(self, arguments: Sequence[str]) -> list[str]:
        """``--max_tokens`` as ``--max-tokens``, up to ``--``."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        return [*map(self._with_hyphen, arguments[:end]), *arguments[end:]]

    def _with_hyphen(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        hyphened = name.replace("_", "-")
        known = self._option_string_actions
        return hyphened + equals + value if name not in known and hyphened in known else argument

    def _meant(self, unknown: Sequence[str]) -> str:
        options = [name for name in self._option_string_actions if name.startswith("--")]
        by_name = {name[2:].replace("-", "_"): name for name in options}
        for argument in unknown:
            if argument.startswith("-"):
                name = argument.partition("=")[0]
                meant = _SHORT_ELSEWHERE.get(name)
                if meant is None or (meant.startswith("--") and meant not in options):
                    near = did_you_mean(name.lstrip("-").replace("source", "model"), by_name)
                    meant = None if near is None else by_name[near]
                return f"; did you mean {meant}?" if meant else "; --help lists the options"
        return "; put quotes around a text of several words" if len(unknown) > 1 or self._takes_text() else ""

    def _takes_text(self) -> bool:
        return any(not action.option_strings for action in self._actions)


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Turns a reader of gemlet into a ``type`` for argparse: errors of gemlet become errors of usage."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except GemletError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def image_size(text: str) -> tuple[int, int]:
    """A width and a height.

    >>> image_size("640x480")
    (640, 480)
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 16):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a width and a height such as 640x480")
    return int(width), int(height)


def add_tower_tests(parser: argparse.ArgumentParser) -> None:
    """Adds the options that make ``gemlet bench`` measure a tower instead of texts."""
    size: Any = {"dest": "image_size", "type": image_size, "nargs": "?", "const": (896, 896)}
    what = "time the tower on an image of this size (896x896) instead of texts"
    parser.add_argument("--image", **size, metavar="WxH", help=what)
    length: Any = {"dest": "sound_seconds", "type": float, "nargs": "?", "const": 30.0}
    what = "time the encoder on a sound of this length (30 s) instead of texts"
    parser.add_argument("--audio", **length, metavar="SECONDS", help=what)
