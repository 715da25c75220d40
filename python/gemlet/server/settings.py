"""The settings of the server, from flags and from a file in TOML: :class:`Settings`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemlet.base.files import read_file
from gemlet.base.names import not_known
from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, metadata_of, record
from gemlet.base.sizes import parse_memory
from gemlet.base.text import show
from gemlet.errors import ConfigError, InvalidRequestError
from gemlet.loading.options import LoadOptions

__all__ = [
    "ModelSpec",
    "Settings",
    "check_specs",
    "checked_alias",
    "default_alias",
    "read_file_of_settings",
    "setting_fields",
]

_MOST_BYTES = 1 << 20
_ALIAS = late_pattern(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) else value
        if type(number) is not int or not low <= number <= high:
            raise InvalidRequestError(f"got {show(value)}, expected an integer from {low} to {high}")
        return number

    return check


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else -1.0
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if not low <= number <= high:
            raise InvalidRequestError(f"got {show(value)}, expected seconds from {low:g} to {high:g}")
        return number

    return check


def _probability(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 < number <= 1:
        raise InvalidRequestError(f"got {show(value)}, expected a number above 0 and up to 1")
    return number


def _size(value: Any) -> int:
    try:
        size = parse_memory(int(value) if isinstance(value, str) and value.isdigit() else value)
    except InvalidRequestError:
        size = 0
    if not 1024 <= size <= 1 << 32:
        raise InvalidRequestError(f'got {show(value)}, expected a size from 1 kB to 4 GB such as "32MB"')
    return size


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 4096 or "\0" in value:
        raise InvalidRequestError(f"got {show(value)}, expected text")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise InvalidRequestError(f"got {show(value)}, expected one of {', '.join(choices)}")
        return str(value)

    return check


def _flag(value: Any) -> bool:
    if value is not True and value is not False:
        raise InvalidRequestError(f"got {show(value)}, expected true or false")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > 256:
        raise InvalidRequestError(f"got {show(value)}, expected a list of texts")
    return tuple(map(_text, value))


def _origins(value: Any) -> tuple[str, ...]:
    found = _texts(value)
    for origin in found:
        if not re.fullmatch(r"https?://[^\s/*?#@\\]+", origin.rstrip("/")):
            raise InvalidRequestError(f"got {show(origin)}, expected an origin such as https://chat.example")
    return found


def _setting(default: Any, help: str, check: Callable[[Any], Any], metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "check": check, "metavar": metavar})


@record(frozen=True)
class Settings:
    """The settings of the server. Each is a flag of ``gemlet serve`` and a key of ``[server]`` in the file.

    Raises:
        InvalidRequestError: a value is out of range, or two values do not go together.

    >>> Settings(port=8080).port
    8080
    """

    host: str = _setting("127.0.0.1", "address to listen on (default 127.0.0.1)", _text, "ADDRESS")
    port: int = _setting(8000, "port; 0: any free one (default 8000)", _integer(0, 65535), "PORT")
    keys: str | None = _setting(
        None,
        "file of keys, as gemlet keys makes it; without it the server listens only on loopback",
        _text,
        "FILE",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (), "host names that requests may name; may be given several times", _texts, "NAME"
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        "origin of web pages that may send requests and read answers (CORS), such as https://chat.example; "
        "may be given several times",
        _origins,
        "ORIGIN",
    )
    data: str | None = _setting(
        None, "folder for files and batches of clients; without it the server keeps none", _text, "FOLDER"
    )
    max_file: int = _setting(200_000_000, "largest file of a client (default 200MB)", _size, "SIZE")
    max_storage: int = _setting(
        2_000_000_000,
        "all files of a key together; without keys, all files together (default 2GB)",
        _size,
        "SIZE",
    )
    batch_concurrent: int = _setting(
        16, "most requests of batches that are computed together (default 16)", _integer(1, 1024), "N"
    )
    unknown_fields: str = _setting(
        "refuse",
        "what to do with a field of a request that gemlet does not know: refuse or ignore (default refuse)",
        _one_of("refuse", "ignore"),
        "POLICY",
    )
    max_requests: int = _setting(
        256, "most requests at a time; others get 503 (default 256)", _integer(1, 100_000), "N"
    )
    max_body: int = _setting(32_000_000, "largest body of a request (default 32MB)", _size, "SIZE")
    max_bodies: int = _setting(
        256_000_000, "all bodies together that are being read or answered (default 256MB)", _size, "SIZE"
    )
    max_kept: int = _setting(
        64_000_000, "memory for responses that later requests may continue (default 64MB)", _size, "SIZE"
    )
    body_seconds: float = _setting(
        30.0, "how long a body may take to arrive (default 30)", _seconds(0.1, 3600), "S"
    )
    request_seconds: float = _setting(
        600.0, "how long a reply may take (default 600)", _seconds(0.1, 86400), "S"
    )
    ping_seconds: float = _setting(
        15.0, "pause after which a stream sends a ping (default 15)", _seconds(0.1, 600), "S"
    )
    stuck_seconds: float = _setting(
        60.0, "a client that takes nothing for so long counts as gone (default 60)", _seconds(0.1, 3600), "S"
    )
    idle_seconds: float = _setting(
        30.0, "how long a connection may stay open without a request (default 30)", _seconds(0.1, 3600), "S"
    )
    drain_seconds: float = _setting(
        30.0, "how long running replies may go on after SIGTERM (default 30)", _seconds(0, 3600), "S"
    )
    filter_prompts: str = _setting(
        "block",
        "what to do with prompts that break a rule of the content filter: off, report or block (default "
        "block; without rules nothing happens)",
        _one_of("off", "report", "block"),
        "ACTION",
    )
    filter_replies: str = _setting(
        "block", "the same for replies (default block)", _one_of("off", "report", "block"), "ACTION"
    )
    filter_words: str | None = _setting(
        None, "file of words that texts may not have, one on each line", _text, "FILE"
    )
    filter_patterns: str | None = _setting(
        None, "file of patterns in RE2's syntax that texts may not have, one on each line", _text, "FILE"
    )
    filter_window: int = _setting(
        200,
        "characters of a streamed reply that are held back, so that a word or match up to this length is "
        "never shown in part (default 200)",
        _integer(1, 100_000),
        "N",
    )
    filter_model: str | None = _setting(
        None,
        "alias of a ShieldGemma among the models; it judges texts or images, and requests cannot use it",
        _text,
        "ALIAS",
    )
    filter_policies: tuple[str, ...] = _setting(
        (),
        "policy of ShieldGemma (dangerous, harassment, hate or sexual) or of ShieldGemma 2 (dangerous, "
        "sexual or violence); may be given several times (default: all)",
        _texts,
        "POLICY",
    )
    filter_threshold: float = _setting(
        0.5, "lowest probability of ShieldGemma's yes that counts (default 0.5)", _probability, "P"
    )
    vllm_metrics: bool = _setting(False, "give the metrics under vLLM's names too", _flag)
    log_text: bool = _setting(
        False, "also write the texts of prompts and replies into the log, to find a fault", _flag
    )
    otel: bool = _setting(
        False,
        "send OpenTelemetry traces, without any text, to where the variables OTEL_EXPORTER_OTLP_* say",
        _flag,
    )

    def __post_init__(self) -> None:
        for name, how in setting_fields().items():
            value = getattr(self, name)
            if value is None and getattr(Settings, name) is None:
                continue
            try:
                value = how["check"](value)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"{name}: {error}") from None
            object.__setattr__(self, name, value)
        if self.keys is None and self.host not in LOOPBACK:
            raise InvalidRequestError(
                f"host: got {show(self.host)}, but without keys the server listens only on loopback; make a "
                "file of keys with gemlet keys create, and give it with --keys"
            )


@record(frozen=True)
class ModelSpec:
    """A model to load.

    Attributes:
        name: the alias.
        source: the source for :func:`gemlet.load`; None: the demo model.
        options: options of :func:`gemlet.load`.
        adapters: maps the alias of each adapter to its path.
    """

    name: str
    source: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)


def setting_fields() -> Mapping[str, Mapping[str, Any]]:
    """The settings by name: ``help``, ``check`` and ``metavar`` of each."""
    return metadata_of(Settings)


def checked_alias(name: str) -> str:
    """Returns ``name`` if it can be the alias of a model, else raises :class:`InvalidRequestError`."""
    if not _ALIAS.fullmatch(name):
        raise InvalidRequestError(
            f"models: got the alias {show(name)}, expected up to 200 letters, digits and . _ : / @ + -"
        )
    return name


def default_alias(source: str | None) -> str:
    """The alias of a model without a configured alias.

    >>> default_alias(None), default_alias("google/gemma-3-1b-it"), default_alias("/models/my model.gguf")
    ('demo', 'google/gemma-3-1b-it', 'my-model.gguf')
    """
    if source is None:
        return "demo"
    if _ALIAS.fullmatch(source) and not os.path.exists(source):
        return source
    return re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(source))).strip("-.") or "model"


def read_file_of_settings(path: str) -> tuple[dict[str, Any], list[ModelSpec]]:
    """The settings and the models of a file in TOML.

    Raises:
        ConfigError: the file is not TOML, or has a key that gemlet does not know.
        ModelFileError: the file cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = tomllib.loads(read_file(path, _MOST_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    _check_names(path, document, ("server", "models"), "the file")
    server, models = document.get("server", {}), document.get("models", {})
    if not isinstance(server, dict) or not isinstance(models, dict):
        raise ConfigError(f"{path}: server and models have to be tables")
    _check_names(path, server, tuple(setting_fields()), "[server]")
    try:
        return server, [_spec(path, name, table) for name, table in models.items()]
    except InvalidRequestError as error:
        raise ConfigError(f"{path}: {error}") from None


_NOT_FOR_FILES = ("progress", "own_formats")


def _spec(path: str, name: str, table: Any) -> ModelSpec:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [models.{name}] has to be a table")
    options = [name for name in LoadOptions.__annotations__ if name not in _NOT_FOR_FILES]
    _check_names(
        path, table, ("source", "adapters", "chat_template", "revision", *options), f"[models.{name}]"
    )
    adapters = table.get("adapters", {})
    if not isinstance(adapters, dict) or not all(isinstance(value, str) for value in adapters.values()):
        raise ConfigError(f"{path}: [models.{name}.adapters] has to be a table of names and paths")
    source = table.get("source")
    if source is not None and not isinstance(source, str):
        raise ConfigError(f"{path}: source of [models.{name}]: got {show(source)}, expected a text")
    given = {key: value for key, value in table.items() if key not in ("source", "adapters")}
    LoadOptions(**{key: value for key, value in given.items() if key in options})
    return ModelSpec(
        checked_alias(name), source, given, {checked_alias(alias): place for alias, place in adapters.items()}
    )


def _check_names(path: str, table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}: {where} has no key {show(name)}{not_known(name, known)}")


def check_specs(specs: Sequence[ModelSpec]) -> None:
    """Raises :class:`InvalidRequestError` if two models or adapters have the same alias."""
    seen: set[str] = set()
    for spec in specs:
        for name in (spec.name, *spec.adapters):
            if name in seen:
                raise InvalidRequestError(f"models: two have the alias {show(name)}; give each its own")
            seen.add(name)
