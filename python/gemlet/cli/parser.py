"""The command line's grammar. What a command does is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gemlet.base.bench_defaults import PROMPT_LENGTHS, REPLY_LENGTHS
from gemlet.base.handlers import importing
from gemlet.base.sampling_options import OPTIONS
from gemlet.cli.arguments import ArgumentParser, add_tower_tests, checked
from gemlet.cli.common import CHAT_TOKENS
from gemlet.cli.serving import add_batch, add_keys, add_serve, add_top, add_usage
from gemlet.loading.options import LoadOptions, command_line

__all__ = ["build_parser", "run"]


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser. The namespace that it returns has ``run``, which takes the namespace. It knows only the
    options of ``command``, because adding those of all commands is slow; without ``command`` it knows all."""
    parser = ArgumentParser(
        prog="gemlet",
        description="Run Gemma models on the CPU. Without --model, a small demo model that comes with the "
        "package answers.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=lambda arguments: _version_or_help(parser, arguments))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, add in _COMMANDS.items():
        if command in (name, None):
            add(commands)
    return parser


def _version_or_help(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if not arguments.version:
        parser.print_help(sys.stderr)
        return 2
    from gemlet import _core

    print(f"gemlet {_core.__version__}")
    return 0


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue PROMPT. A terminal shows the prompt in bold and then the text as it is "
        "written; a pipe or a file gets only the continuation.",
    )
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help="text to continue; - reads it from standard input (one newline at its end is dropped)",
    )
    _add_model(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of the text"
    )
    parser.add_argument(
        "--stats", action="store_true", help="print timings and peak memory to standard error"
    )
    parser.set_defaults(run=_command("generate"))


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="answer a question, or hold a conversation",
        description="Answer QUESTION. Without it, hold a conversation: on a terminal (/help lists its "
        "commands), or line by line with a pipe, where the exit code is 1 if a line got no answer.",
    )
    parser.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="one message; - reads it from standard input, as a whole",
    )
    parser.add_argument(
        "--file",
        action="append",
        metavar="FILE",
        help="text file to add after the question, or to use instead of it; may be given several times",
    )
    about = "that the question is about; may be given several times"
    _add_files(parser, "--image", "images", f"a picture {about}")
    _add_files(parser, "--video", "videos", f"a video {about}")
    _add_files(parser, "--audio", "sounds", f"a recording {about}")
    heard = "let the model also hear the videos: the sound of each follows its pictures"
    parser.add_argument("--load-audio-from-video", action="store_true", help=heard)
    _add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions that precede the conversation")
    parser.add_argument(
        "--thinking",
        action="store_true",
        help="let the model think before it answers (Gemma 4); a terminal shows what it thinks",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja template for conversations, instead of the model's own",
    )
    parser.add_argument(
        "--context-full",
        choices=["drop", "error"],
        default="drop",
        help="what to do when the context is full: leave out the oldest turns, or stop with an error "
        "(default drop)",
    )
    _add_sampling(parser, f"{CHAT_TOKENS}, or with --thinking as many as fit in the context")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each reply")
    parser.add_argument("--stats", action="store_true", help="print timings of each reply to standard error")
    parser.set_defaults(run=_command("chat"))


def _add_files(parser: Any, option: str, dest: str, what: str) -> None:
    parser.add_argument(option, action="append", metavar="FILE", dest=dest, help=what)


def _add_embed(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="texts, pictures and recordings as vectors, by an embedding model",
        description="Print the embedding of every TEXT, then of every picture, video and recording, as a "
        "line of JSON, a list of numbers. Without any of them, every line of standard input is a TEXT.",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text")
    _add_files(parser, "--image", "images", "a picture; may be given several times")
    _add_files(parser, "--video", "videos", "a video; may be given several times")
    _add_files(parser, "--audio", "sounds", "a recording; may be given several times")
    parser.add_argument("--together", action="store_true", help="print one embedding of all of them")
    _add_model(parser)
    parser.add_argument(
        "--prompt", metavar="NAME", help="what the texts are: query, document, ... (default: nothing)"
    )
    parser.add_argument(
        "--no-truncate",
        action="store_true",
        help="refuse a text that is longer than the context (default: cut it, and say so)",
    )
    parser.add_argument(
        "--empty",
        choices=["error", "zero"],
        default="error",
        help="what to do with an empty text: stop, or print zeros (default error)",
    )
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep the first N numbers (default: all)")
    parser.set_defaults(run=_command("embed"))


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what is in a model, without loading it",
        description="Show the architecture layer by layer, the tokenizer, the formats, the memory it takes "
        "and whether it runs here (exit code 0) or why not (1).",
    )
    parser.add_argument(
        "model", nargs="?", metavar="DIR_OR_FILE", help="as for --model; without it, the demo model"
    )
    _add_access(parser)
    add_load_options(
        parser,
        *("weights", "embedding", "kv_cache", "max_context", "max_memory", "embedding_on_disk", "device"),
        *("prefix_cache", "prefix_cache_size", "vision", "audio", "mmproj", "drafter", "matformer"),
    )
    parser.add_argument("--for-memory", metavar="SIZE", help='recommend formats for a memory such as "1GB"')
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("inspect"))


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="pack a model, so that it starts at once",
        description="Write the model SOURCE as the folder DESTINATION with packed weights, which is mapped "
        "instead of read: it starts in milliseconds, and processes share its memory.",
    )
    parser.add_argument("source", metavar="SOURCE", help="as for --model, not yet packed")
    parser.add_argument("destination", metavar="DESTINATION", help="the folder to make")
    parser.add_argument("--adapter", metavar="DIR", help="LoRA adapter of PEFT, mlx-lm, llama.cpp to merge")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=True,
        metavar="TEXT",
        help="with --weights q4 or q5: round the weights by the inputs that this file gives, or without a "
        "file by text that the model writes; takes minutes",
    )
    parser.add_argument(
        "--for-memory",
        metavar="SIZE",
        help='choose the format with which the model runs in this much memory, for example "1GB"',
    )
    _add_access(parser)
    add_load_options(parser, "weights", "embedding", "threads", "vision", "audio", "mmproj", "matformer")
    parser.set_defaults(run=_command("convert"))


def _add_download(commands: Any) -> None:
    parser = commands.add_parser(
        "download",
        help="fetch a model from the hub",
        description="Fetch the files of a model that gemlet reads from the Hugging Face hub into its cache "
        "and print their folder, or the path of a GGUF file. Needs the extra 'hub'.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="as on the hub: google/gemma-3-1b-it, or OWNER/REPO:FILE.gguf"
    )
    _add_access(parser)
    parser.set_defaults(run=_command("download"))


def _add_models(commands: Any) -> None:
    parser = commands.add_parser(
        "models",
        help="the models on this machine, and whether they run here",
        description="List the models in the hub's cache, in the folders that GEMLET_MODELS names and in the "
        "cache of packed weights: their size, and whether they fit into this machine's memory.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("models"))


def _add_cache(commands: Any) -> None:
    parser = commands.add_parser(
        "cache",
        help="what --cache keeps: list or clear it",
        description="List the packed weights and vocabularies that --cache keeps, or remove them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    listing = actions.add_parser("list", help="show the entries, their size and last use")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    clear = actions.add_parser("clear", help="remove entries; processes that use them go on")
    clear.add_argument(
        "entries", nargs="*", metavar="ENTRY", help="beginning of an entry's name (default: all of them)"
    )
    parser.set_defaults(run=_command("cache"))


def _add_tokenize(commands: Any) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="a text as token ids",
        description="Print the tokens of TEXT, a line for each: its id and its piece. No weights are loaded.",
    )
    parser.add_argument("text", metavar="TEXT", help="a text; - reads it from standard input, as it is")
    _add_model_source(parser)
    _add_access(parser)
    parser.add_argument("--no-bos", action="store_true", help="without the token that begins a text")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--count", action="store_true", help="print only how many there are")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("tokenize"))


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="judge a model: perplexity, accuracy in multiple choice",
        description="Judge a model or an adapter. 'perplexity' reads a text file; 'choices' reads questions "
        "in the form of lm-evaluation-harness's data sets, one JSON object on a line: query, choices, gold.",
    )
    parser.add_argument("what", choices=("perplexity", "choices"))
    parser.add_argument("file", metavar="FILE")
    _add_model(parser)
    parser.add_argument(
        "--window", type=int, metavar="N", help="perplexity: tokens that are read at a time (default 2048)"
    )
    parser.add_argument(
        "--delimiter", default=" ", metavar="TEXT", help="choices: text before each choice (default: a space)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("eval"))


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="version, CPU and threads",
        description="Show the version, the CPU tiers found, the tier in use and why, the threads and why.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("info"))


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure prefill and decode speed",
        description="Measure prefill (pp) and decode (tg) speed. The column bandwidth is the share that the "
        "bytes read per token have of the machine's memory bandwidth, measured in the same run.",
    )
    source = parser.add_mutually_exclusive_group()
    _add_model_source(source)
    source.add_argument(
        "--random",
        metavar="NAME",
        help="random weights at a real shape, for example gemma3-1b or gemma3-270m",
    )
    _add_access(parser)
    add_load_options(parser)
    for flag, what, default in (
        ("-p", "prompt lengths for pp", PROMPT_LENGTHS),
        ("-n", "token counts for tg", REPLY_LENGTHS),
    ):
        shown = ",".join(map(str, default))
        parser.add_argument(
            flag,
            type=_counts,
            default=list(default),
            metavar="N[,N]",
            help=f"{what}; 0: none (default {shown})",
        )
    parser.add_argument(
        "-d", type=int, default=0, metavar="DEPTH", help="tokens already in the context (default 0)"
    )
    parser.add_argument("-r", type=int, default=5, metavar="N", help="repetitions of each test (default 5)")
    add_tower_tests(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_command("bench"))


def _add_model_source(parser: Any) -> None:
    parser.add_argument(
        "--model",
        metavar="DIR_OR_FILE",
        help="a Hugging Face folder, a GGUF file, or a model's name on the hub; without it, the demo model",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REVISION", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--token", metavar="TOKEN", help="access token for the hub (default: that of `hf auth login`)"
    )


def add_load_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """The options ``names`` of :class:`LoadOptions`; without names all that the command line has."""
    options = command_line()
    for name in names or options:
        how, default = options[name], getattr(LoadOptions, name)
        flags = [f"--{name.replace('_', '-')}", *([how.short] if how.short else [])]
        if how.kind is None and default is True:
            parser.add_argument(f"--no-{name}", action="store_false", dest=name, help=how.help)
        elif how.kind is None:
            parser.add_argument(*flags, action="store_true", help=how.help)
        else:
            # LoadOptions checks the choices, because it also knows the names that other tools use.
            kind: Any = checked(partial(_option_named, name)) if how.choices else how.kind
            metavar = f"{{{','.join(how.choices)}}}" if how.choices else how.metavar
            parser.add_argument(*flags, type=kind, metavar=metavar, default=default, help=how.help)


def _option_named(name: str, text: str) -> Any:
    given: dict[str, Any] = {name: text}
    return getattr(LoadOptions(**given), name)


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_model_source(parser)
    _add_access(parser)
    parser.add_argument("--adapter", metavar="DIR", help="LoRA adapter of PEFT, mlx-lm, llama.cpp to use")
    add_load_options(parser)


def _add_sampling(parser: argparse.ArgumentParser, max_tokens: str = "") -> None:
    # No defaults here: the model's generation_config.json gives them.
    group = parser.add_argument_group("sampling")
    for name, option in OPTIONS.items():
        more = f" (default {max_tokens or option.default})" if name == "max_tokens" else ""
        group.add_argument(
            f"--{name.replace('_', '-')}", type=option.kind, metavar=option.metavar, help=option.help + more
        )
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same text (default: a new one)")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given several times"
    )
    group.add_argument(
        "--stop-token-ids", type=_counts, metavar="ID[,ID]", help="end before these tokens too"
    )
    group.add_argument("--suppress-tokens", type=_counts, metavar="ID[,ID]", help="never write these tokens")
    group.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="ID=NUMBER",
        help="add to the logit of a token; may be given several times",
    )
    group.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: log probabilities of tokens, and of N likely ones",
    )
    group.add_argument(
        "--dry-sequence-breakers",
        action="append",
        metavar="TEXT",
        help="no repetition reaches across this text; may be given several times",
    )


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


def _bias(text: str) -> tuple[int, float]:
    token_id, _, number = text.partition("=")
    try:
        return int(token_id), float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a token id and a number, such as 5=-2.5, got {text!r}"
        ) from None


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Gives the function that runs a command: ``run`` of the module of that name, imported when it is
    called."""

    def run_command(arguments: argparse.Namespace) -> int:
        with importing():
            module = importlib.import_module(f"gemlet.cli.{name}")
        code: int = module.run(arguments)
        return code

    return run_command


_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": _add_generate,
    "chat": _add_chat,
    "embed": _add_embed,
    "serve": partial(add_serve, add_load_options=add_load_options),
    "batch": partial(add_batch, add_load_options=add_load_options),
    "keys": add_keys,
    "usage": add_usage,
    "top": add_top,
    "inspect": _add_inspect,
    "convert": _add_convert,
    "download": _add_download,
    "models": _add_models,
    "cache": _add_cache,
    "tokenize": _add_tokenize,
    "info": _add_info,
    "bench": _add_bench,
    "eval": _add_eval,
}


def run(argv: Sequence[str] | None) -> int:
    """Parses and runs a command line; errors of gemlet become one line on standard error and exit code 1."""
    from gemlet.cli.common import prepare_streams, print_error, silence_stdout, warnings_in_a_line
    from gemlet.errors import GemletError

    prepare_streams()
    given = sys.argv[1:] if argv is None else argv
    command = given[0] if given and given[0] in _COMMANDS else None
    arguments = build_parser(command).parse_args(argv)
    try:
        with warnings_in_a_line():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        silence_stdout()
        return 0
    except OSError as error:  # errors about model files are GemletErrors
        silence_stdout()
        message = f"{error.filename or 'standard output or input'}: {error.strerror or error}"
    except GemletError as error:
        message = str(error)
    except MemoryError as error:
        message = f"out of memory: {error}"
    print_error(message)
    return 1
