"""How a model is loaded, as one checked value: :class:`LoadOptions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gemlet.base.progress import Progress, check_progress
from gemlet.base.sizes import parse_memory
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.formats import PRESETS, Formats, check_weights, formats_of

__all__ = ["LoadOptions", "Matformer"]

MAX_THREADS = 1024

Matformer = str | int | Sequence[int] | Mapping[str, Any] | None


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of :func:`gemlet.load` that say how a model is loaded, not which one.

    An argument that is wrong for every model raises as the value is made. :meth:`with_context` and
    :meth:`with_formats` check the others against a model, and replace ``max_context=None`` and
    ``weights="auto"`` by what they mean there. ``own_formats`` are the formats of the matrices that have
    another one than ``weights`` says.

    >>> LoadOptions(weights="q4").formats
    Formats(matrices='q4', embedding='q8', kv_cache='bf16')
    """

    weights: str = "auto"
    threads: int | None = None
    decode_threads: int | None = None
    max_context: int | None = None
    embedding: str | None = None
    kv_cache: str | None = None
    max_memory: int | str | None = None
    embedding_on_disk: bool = False
    device: str = "cpu"
    matformer: Matformer = None
    cache: bool = False
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
                f"max_context is {given!r}; expected 1 to {longest} tokens, the model's limit, or None"
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
                    f"{name} is {wanted!r}, but {files.name} is packed as {has!r}; load the original, or "
                    "convert it again"
                )
        return replace(self, weights=packed.weights, embedding=packed.embedding, own_formats=packed.formats())


def _check_device(device: str) -> None:
    if device == "cuda":
        raise UnsupportedError("device is 'cuda', but this gemlet was built without CUDA; use device='cpu'")
    if device != "cpu":
        raise UnsupportedError(f"device is {device!r}; this gemlet runs on 'cpu' only")


def _check_threads(name: str, threads: int | None) -> None:
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise InvalidRequestError(f"{name} is {threads!r}; expected 1 to {MAX_THREADS}, or None")


def _check_flag(name: str, value: bool) -> None:
    if type(value) is not bool:
        raise InvalidRequestError(f"{name} is {value!r}; expected True or False")
