"""Defines the arguments of the server commands: ``serve``, ``keys``, ``usage``, ``batch`` and ``top``. All of
them except ``top`` need the extra "serve"."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from gemlet.base.handlers import importing
from gemlet.cli.arguments import checked
from gemlet.errors import InvalidRequestError, missing_extra
from gemlet.server.settings import Settings, setting_fields

__all__ = ["add_batch", "add_keys", "add_serve", "add_top", "add_usage"]


def add_serve(commands: Any, add_load_options: Callable[..., None]) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer requests of other programs over HTTP",
        description="Serve models over HTTP, with the interfaces of OpenAI, Anthropic and Ollama. Without "
        "--keys, only programs on this machine may use it. Needs the extra 'serve'.",
    )
    _add_models(parser)
    parser.add_argument(
        "--check", action="store_true", help="print what would be served and what is wrong, and exit"
    )
    group = parser.add_argument_group("server")
    for name, how in setting_fields().items():
        flag, default = f"--{name.replace('_', '-')}", getattr(Settings, name)
        if default is False:
            group.add_argument(flag, action="store_true", default=None, help=how["help"])
        elif default == ():
            group.add_argument(flag, action="append", metavar=how["metavar"], help=how["help"])
        else:
            kind = checked(how["check"])
            group.add_argument(flag, type=kind, metavar=how["metavar"], help=how["help"])
    add_load_options(parser)
    parser.set_defaults(run=_command("serve"))


def add_keys(commands: Any) -> None:
    parser = commands.add_parser(
        "keys",
        help="who may use gemlet serve, and how much",
        description="Make, list and revoke the keys of gemlet serve.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    create = actions.add_parser("create", help="make a key, and print it: only its hash is kept")
    create.add_argument("name", metavar="NAME", help="whose it is")
    for flag, what in (
        ("--requests-per-minute", "most requests in 60 seconds"),
        ("--requests-per-hour", "most requests in an hour"),
        ("--tokens-per-minute", "most tokens, of prompts and replies, in 60 seconds"),
        ("--tokens-per-day", "most tokens in 24 hours"),
        ("--concurrent", "most requests at a time"),
        ("--max-prompt", "longest prompt in tokens"),
        ("--max-reply", "longest reply in tokens"),
    ):
        create.add_argument(flag, type=int, metavar="N", help=f"{what} (default: no limit)")
    create.add_argument(
        "--models",
        action="append",
        metavar="ALIAS",
        help="a model or adapter that it may use; may be given several times (default: all)",
    )
    create.add_argument(
        "--rights",
        action="append",
        metavar="RIGHT",
        help="use, or metrics to read /metrics; may be given several times (default: use)",
    )
    listing = actions.add_parser("list", help="show the keys and their limits")
    revoke = actions.add_parser("revoke", help="make a key worthless, at once")
    revoke.add_argument("name", metavar="NAME", help="its name or id")
    for action in (create, listing, revoke):
        action.add_argument("--db", metavar="FILE", required=True, help="the file of keys")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("keys"))


def add_usage(commands: Any) -> None:
    parser = commands.add_parser(
        "usage",
        help="what the keys of gemlet serve have used",
        description="Show requests and tokens by day, key and model, up to the last reply that has ended.",
    )
    parser.add_argument("--db", metavar="FILE", required=True, help="the file of keys")
    parser.add_argument("--key", metavar="NAME", help="only of this key, by its name or id")
    parser.add_argument(
        "--days", type=checked(_days), default=30, metavar="N", help="how far back (default 30)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("usage"))


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 36500):
        raise InvalidRequestError(f"got {text!r}, expected days from 1 to 36500")
    return int(text[:9])


def add_batch(commands: Any, add_load_options: Callable[..., None]) -> None:
    parser = commands.add_parser(
        "batch",
        help="answer the requests in a file, many at once",
        description="Answer requests from a file in OpenAI's batch form, and append the answers to another "
        "as they come. Run the same command again to go on after an interruption. Needs the extra 'serve'.",
    )
    parser.add_argument("input", metavar="IN.jsonl", help="a request on every line")
    parser.add_argument("output", metavar="OUT.jsonl", help="an answer on every line")
    _add_models(parser)
    parser.add_argument(
        "--concurrent", type=int, default=32, metavar="N", help="requests computed together (default 32)"
    )
    add_load_options(parser)
    parser.set_defaults(run=_command("batch"))


def add_top(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="show what a server is doing",
        description="Show what the gemlet serve at URL does: requests, tokens per second, times to the first "
        "token, memory, and usage by key if the key may see it. A terminal is kept up to date until "
        "Ctrl-C; a pipe or a file gets it once.",
    )
    parser.add_argument(
        "url", metavar="URL", help="address that gemlet serve prints, such as http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--key", metavar="KEY", help="a key of the server (default: that in the variable GEMLET_KEY)"
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two updates (default 2)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="show it once, over one interval")
    how.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.set_defaults(run=_command("top"))


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        metavar="[ALIAS=]SOURCE",
        help="a Hugging Face folder, a GGUF file, or a model's name on the hub; may be given several times; "
        "without it, the demo model",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="ALIAS=PATH",
        help="LoRA adapter of the first model, served as a model of this name; may be given several times",
    )
    parser.add_argument("--config", metavar="FILE", help="settings and models in TOML; flags replace them")


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Returns the function that runs a command. If its import fails, the extra is missing."""

    def run_command(arguments: argparse.Namespace) -> int:
        try:
            with importing():
                module = importlib.import_module(f"gemlet.cli.{name}")
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "gemlet":
                raise
            raise missing_extra(f"gemlet {name}", "serve") from None
        code: int = module.run(arguments)
        return code

    return run_command
