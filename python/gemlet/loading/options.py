"""The options of loading a model, as one checked value: :class:`LoadOptions`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemlet import _core
from gemlet.base.files import checked_path
from gemlet.base.progress import Progress, check_progress
from gemlet.base.records import field, metadata_of, record, replace
from gemlet.base.sizes import parse_memory
from gemlet.base.text import show, show_argument
from gemlet.config.matformer import check_matformer
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.model.prefix_cache import PrefixCacheOptions, folder_for_texts
from gemlet.weights.formats import EVERY, KV_CACHES, PRESETS, STORED, Formats, format_named, formats_of

if TYPE_CHECKING:
    from gemlet.sources.model_files import ModelFiles

__all__ = ["CommandLine", "LoadOptions", "Matformer", "command_line"]

_FOLDER_SIZE = "10GB"  # the default limit of a prefix cache on disk
Matformer = str | int | Sequence[int] | Mapping[str, Any] | None


@record(frozen=True)
class CommandLine:
    """How an option of :class:`LoadOptions` appears on the command line.

    Attributes:
        help: the help text.
        kind: the type to which the text of the value is converted; None for a flag.
        metavar: the name of the value in the help.
        choices: the possible values; None if there is no list.
        short: the short name, such as "-t"; None if there is none.
    """

    help: str
    kind: type[Any] | None = str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    short: str | None = None


def _shown(help: str, **how: Any) -> dict[str, Any]:
    return {"command_line": CommandLine(help, **how)}


@record(frozen=True)
class LoadOptions:
    """The arguments of :func:`gemlet.load` that say how a model is loaded, but not which model.

    The constructor raises an error for a value that is wrong for every model. :meth:`with_context` and
    :meth:`with_formats` check the options against one model, and replace ``max_context=None`` and
    ``weights="auto"`` by that model's values. ``own_formats`` has the formats of the matrices whose format
    differs from ``weights``. :func:`command_line` returns the options that are also on the command line.

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
    prefix_cache: bool | str | os.PathLike[str] = field(
        default=True,
        metadata=_shown(
            "folder that keeps the keys and values of texts for the next start", metavar="FOLDER"
        ),
    )
    prefix_cache_size: int | str | None = field(
        default=None,
        metadata=_shown("the most it keeps there, or without a folder in memory", metavar="SIZE"),
    )
    exact_batches: bool = field(
        default=False,
        metadata=_shown(
            "write the same text alone and in a batch, also on CPUs with a matrix unit", kind=None
        ),
    )
    device: str = field(
        default="cpu",
        metadata=_shown(
            "device that computes: cpu, cuda, or auto for cuda if it can be used", metavar="NAME"
        ),
    )
    audio: bool = field(
        default=True,
        metadata=_shown("leave out the encoder for sound, which takes memory", kind=None),
    )
    vision: bool = field(
        default=True,
        metadata=_shown("leave out the tower for images, which takes memory", kind=None),
    )
    mmproj: str | os.PathLike[str] | bool | None = field(
        default=None,
        metadata=_shown(
            "GGUF file with the towers for images and sound of a GGUF model (default: the one beside it)",
            metavar="FILE",
        ),
    )
    drafter: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_shown("smaller model of the same vocabulary that guesses ahead", metavar="DIR_OR_FILE"),
    )
    draft_tokens: int | None = field(
        default=None,
        metadata=_shown(
            "the most tokens it guesses at a time (default: as many as save time)",
            kind=int,
            metavar="N",
        ),
    )
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
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        # None means that the option is not given, even if its default is another value.
        # with_formats() checks formats that only files can have.
        weights = "auto" if self.weights is None else self.weights
        put("weights", weights if _is_stored(weights) else _format("weights", weights, "auto"))
        if self.embedding is not None and not _is_stored(self.embedding):
            put("embedding", _format("embedding", self.embedding))
        if self.kv_cache is not None:
            put("kv_cache", format_named("kv_cache", self.kv_cache, KV_CACHES))
        put("device", _device(self.device))
        _check_threads("threads", self.threads)
        _check_threads("decode_threads", self.decode_threads)
        if self.max_context is not None and (type(self.max_context) is not int or self.max_context < 1):
            raise InvalidRequestError(
                f"max_context is {show_argument(self.max_context)}; expected 1 token or more, or None"
            )
        if self.max_memory is not None:
            parse_memory(self.max_memory)
        put("prefix_cache", _prefix_cache(self.prefix_cache, self.prefix_cache_size))
        put("embedding_on_disk", _flag("embedding_on_disk", self.embedding_on_disk))
        put("exact_batches", _flag("exact_batches", self.exact_batches))
        put("cache", _flag("cache", self.cache))
        put("mmproj", _checked_mmproj(self.mmproj))
        put("vision", True if self.vision is None else _flag("vision", self.vision))
        put("audio", True if self.audio is None else _flag("audio", self.audio))
        check_progress(self.progress)
        check_matformer(self.matformer)
        _check_drafter(self.drafter, self.draft_tokens)

    @property
    def formats(self) -> Formats:
        """The formats in memory. ``weights`` must not be "auto"."""
        return formats_of(self.weights, self.embedding, self.kv_cache)

    @property
    def towers_file(self) -> str | bool | None:
        """The file with the towers of a GGUF model; None to look for it, False for none."""
        if not self.vision and not self.audio:
            return False
        return _checked_mmproj(self.mmproj)

    @property
    def kept_texts(self) -> int | None:
        """The most bytes of memory for the keys and values of texts that have ended; None for the engine's
        default.

        >>> LoadOptions(prefix_cache_size="1GB").kept_texts, LoadOptions(prefix_cache=False).kept_texts
        (1000000000, 0)
        """
        if self.prefix_cache is False:
            return 0
        in_memory = self.prefix_cache is True and self.prefix_cache_size is not None
        return self._prefix_cache_size if in_memory else None

    def prefix_cache_options(self, model_digest: bytes = b"") -> PrefixCacheOptions:
        """The options of the prefix cache for the core. Creates the folder of the prefix cache if there is
        one.

        Raises :class:`InvalidRequestError` for a folder that cannot be used.
        """
        if isinstance(self.prefix_cache, bool):
            return PrefixCacheOptions(self.kept_texts, model_digest=model_digest)
        folder = folder_for_texts(os.fspath(self.prefix_cache))
        return PrefixCacheOptions(None, folder, self._prefix_cache_size, model_digest)

    @property
    def _prefix_cache_size(self) -> int:
        size = _FOLDER_SIZE if self.prefix_cache_size is None else self.prefix_cache_size
        return parse_memory(size, "prefix_cache_size")

    def with_context(self, longest: int) -> LoadOptions:
        """These options for a model whose context has at most ``longest`` tokens. In the result,
        ``max_context`` is a number.

        Raises :class:`InvalidRequestError` if ``max_context`` is larger than ``longest``.
        """
        given = self.max_context
        if given is None:
            return replace(self, max_context=longest)
        if given > longest:
            raise InvalidRequestError(
                f"max_context is {show(given)}; expected 1 to {longest} tokens, the model's limit, or None"
            )
        return self

    def with_formats(self, files: ModelFiles) -> LoadOptions:
        """These options for the model in ``files``. In the result, ``weights`` is not "auto". Packed weights
        keep their formats.

        Raises :class:`InvalidRequestError` for formats that a packed model does not have.
        """
        packed = files.packed
        if packed is None:
            if self.weights in STORED:
                _format("weights", self.weights, "auto")
            if self.embedding in STORED:
                _format("embedding", self.embedding)
            if self.weights != "auto":
                return self
            weights = files.stored_weights()
            preset = EVERY[weights]
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
        own = {slot: name for slot, name in packed.formats().items() if slot in files.slots}
        return replace(self, weights=packed.weights, embedding=packed.embedding, own_formats=own)


def _format(what: str, name: object, *also: str) -> str:
    return format_named(what, name, (*also, *PRESETS))


def _is_stored(name: object) -> bool:
    return isinstance(name, str) and name in STORED


def _device(device: object) -> str:
    if device is None:
        return "cpu"
    if not isinstance(device, str) or not device.isprintable():
        raise UnsupportedError(f"device is {show_argument(device)}; expected a name, like 'cpu'")
    if device == "auto":
        return "cuda" if _has_device("cuda") else "cpu"
    if device not in ("cpu", "cuda") and not _has_device("cuda"):
        raise UnsupportedError(
            f"device is {show_argument(device)}, but this gemlet computes on CPUs only; use device='cpu'"
        )
    _core.check_device(device)
    return device


def _has_device(name: str) -> bool:
    try:
        _core.check_device(name)
    except UnsupportedError:
        return False
    return True


def _prefix_cache(where: object, size: int | str | None) -> bool | str:
    if size is not None:
        parse_memory(size, "prefix_cache_size")
        if where is False:
            raise InvalidRequestError("prefix_cache_size needs a prefix cache, but prefix_cache is False")
    if where is None or isinstance(where, bool):
        return where is not False
    return checked_path("prefix_cache", where, "True, False or the path of a folder")


def _checked_mmproj(value: object) -> str | bool | None:
    """The argument ``mmproj`` of :func:`gemlet.load`: a path, None or False; True means None."""
    if value is None or value is True:
        return None
    if value is False:
        return False
    return checked_path("mmproj", value, "the path of a GGUF file, None to look for it, or False")


def _check_threads(name: str, threads: int | None) -> None:
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _core.MAX_THREADS):
        raise InvalidRequestError(
            f"{name} is {show_argument(threads)}; expected 1 to {_core.MAX_THREADS}, or None"
        )


def _check_drafter(drafter: object, draft_tokens: object) -> None:
    if drafter is not None:
        checked_path("drafter", drafter, "a folder, a file, a name on the hub, or None")
    if draft_tokens is None:
        return
    most = _core.MAX_DRAFT_TOKENS
    if type(draft_tokens) is not int or not 1 <= draft_tokens <= most:
        raise InvalidRequestError(
            f"draft_tokens is {show_argument(draft_tokens)}; expected 1 to {most}, or None"
        )
    if drafter is None:
        raise InvalidRequestError("draft_tokens needs a drafter, but drafter is None")


def _flag(name: str, value: object) -> bool:
    if value is not None and type(value) is not bool:
        raise InvalidRequestError(f"{name} is {show_argument(value)}; expected True or False")
    return bool(value)


def command_line() -> dict[str, CommandLine]:
    """The options that are also on the command line, by name.

    >>> command_line()["max_memory"].metavar
    'SIZE'
    """
    return {name: known["command_line"] for name, known in metadata_of(LoadOptions).items()}
