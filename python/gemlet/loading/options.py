"""How a model is loaded, as one checked value: :class:`LoadOptions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from gemlet import _core
from gemlet.base.progress import Progress, check_progress
from gemlet.base.sizes import parse_memory
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.weights.formats import KV_CACHES, PRESETS, Formats, check_weights, formats_of

if TYPE_CHECKING:
    from gemlet.sources.model_files import ModelFiles

__all__ = ["CommandLine", "LoadOptions", "Matformer", "command_line"]

Matformer = str | int | Sequence[int] | Mapping[str, Any] | None


@dataclass(frozen=True)
class CommandLine:
    """How the command line shows an option of :class:`LoadOptions`.

    Attributes:
        help: one sentence.
        kind: what the text of the value is made into; None for a flag.
        metavar, choices: what a value looks like, or which there are.
        short: a second, short name.
    """

    help: str
    kind: type[Any] | None = str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    short: str | None = None


def _shown(help: str, **how: Any) -> dict[str, Any]:
    return {"command_line": CommandLine(help, **how)}


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of :func:`gemlet.load` that say how a model is loaded, not which one.

    An argument that is wrong for every model raises as the value is made. :meth:`with_context` and
    :meth:`with_formats` check the others against a model, and replace ``max_context=None`` and
    ``weights="auto"`` by what they mean there. ``own_formats`` are the formats of the matrices that have
    another one than ``weights`` says. :func:`command_line` has the options that are also on the command line.

    >>> LoadOptions(weights="q4").formats
    Formats(matrices='q4', embedding='q8', kv_cache='bf16')
    """

    weights: str = field(
        default="auto",
        metadata=_shown("format of the weights in memory (default auto)", choices=("auto", *PRESETS)),
    )
    threads: int | None = field(
        default=None,
        metadata=_shown("threads (default: see gemlet info)", kind=int, metavar="N", short="-t"),
    )
    decode_threads: int | None = field(
        default=None,
        metadata=_shown("threads once the prompt is read (default: as before)", kind=int, metavar="N"),
    )
    max_context: int | None = field(
        default=None,
        metadata=_shown("longest text in tokens (default: the model's limit)", kind=int, metavar="N"),
    )
    embedding: str | None = field(
        default=None,
        metadata=_shown(
            "format of the embedding in memory (default: as the weights, but q8 for q4)",
            choices=tuple(PRESETS),
        ),
    )
    kv_cache: str | None = field(
        default=None,
        metadata=_shown(
            "format of the KV cache (default: bf16, but f32 for weights in f32)", choices=KV_CACHES
        ),
    )
    max_memory: int | str | None = field(
        default=None,
        metadata=_shown('refuse a model that needs more, for example "2GB"', metavar="SIZE"),
    )
    embedding_on_disk: bool = field(
        default=False,
        metadata=_shown(
            "keep the embedding out of memory; the model has to be packed, or --cache given", kind=None
        ),
    )
    device: str = "cpu"
    matformer: Matformer = field(
        default=None,
        metadata=_shown(
            "smaller model to cut out of a Gemma 3n: E2B, MLP widths N[,N], or a JSON object as for load()",
            metavar="CUT",
        ),
    )
    cache: bool = field(
        default=False,
        metadata=_shown("keep the packed weights for the next start, which is faster", kind=None),
    )
    progress: Progress = None
    own_formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weights(self.weights)
        _check_device(self.device)
        _check_threads("threads", self.threads)
        _check_threads("decode_threads", self.decode_threads)
        if self.max_memory is not None:
            parse_memory(self.max_memory)
        _check_flag("embedding_on_disk", self.embedding_on_disk)
        _check_flag("cache", self.cache)
        check_progress(self.progress)

    @property
    def formats(self) -> Formats:
        """The formats in memory, once ``weights`` is not "auto" any more.

        Raises :class:`InvalidRequestError` for an unknown ``embedding`` or ``kv_cache``.
        """
        return formats_of(self.weights, self.embedding, self.kv_cache)

    def with_context(self, longest: int) -> LoadOptions:
        """These options for a model whose texts have at most ``longest`` tokens: ``max_context`` is a number.

        Raises :class:`InvalidRequestError` for a larger one.
        """
        given = self.max_context
        if given is None:
            return replace(self, max_context=longest)
        if type(given) is not int or not 1 <= given <= longest:
            raise InvalidRequestError(
                f"max_context is {show(given)}; expected 1 to {longest} tokens, the model's limit, or None"
            )
        return self

    def with_formats(self, files: ModelFiles) -> LoadOptions:
        """These options for the model in ``files``: "auto" is resolved, and what is packed is taken as it is.

        Raises :class:`InvalidRequestError` for formats that a packed model does not have.
        """
        packed = files.packed
        if packed is None:
            if self.weights != "auto":
                return self
            weights = files.stored_weights()
            preset = PRESETS[weights]
            own = files.stored_formats()
            tables = {slot: own.pop(slot) for slot in ("embed_tokens", "lm_head") if slot in own}
            own = {slot: name for slot, name in own.items() if name != preset.matrices}
            if self.embedding is None:
                own |= {slot: name for slot, name in tables.items() if name != preset.embedding}
            return replace(self, weights=weights, own_formats=own)
        for name, wanted, has in (
            ("weights", self.weights, packed.weights),
            ("embedding", self.embedding, packed.embedding),
        ):
            if wanted not in (None, "auto", has):
                raise InvalidRequestError(
                    f"{name} is {show(wanted)}, but {files.name} is packed as {has!r}; load the original, or "
                    "convert it again"
                )
        return replace(self, weights=packed.weights, embedding=packed.embedding, own_formats=packed.formats())


def _check_device(device: str) -> None:
    if not isinstance(device, str):
        raise UnsupportedError(f"device is {show(device)}; expected a name, like 'cpu'")
    _core.check_device(device)


def _check_threads(name: str, threads: int | None) -> None:
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _core.MAX_THREADS):
        raise InvalidRequestError(f"{name} is {show(threads)}; expected 1 to {_core.MAX_THREADS}, or None")


def _check_flag(name: str, value: bool) -> None:
    if type(value) is not bool:
        raise InvalidRequestError(f"{name} is {show(value)}; expected True or False")


def command_line() -> dict[str, tuple[Field[Any], CommandLine]]:
    """The options that are also on the command line, by name.

    >>> command_line()["max_memory"][1].metavar
    'SIZE'
    """
    return {
        one.name: (one, one.metadata["command_line"])
        for one in fields(LoadOptions)
        if "command_line" in one.metadata
    }
