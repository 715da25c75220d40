"""Opens a draft model for speculative decoding, checks it against the target model, and builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemlet.base.progress import Progress
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.loading.builder import filled_builder, make_builder
from gemlet.loading.options import LoadOptions
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.opening import open_model_files

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["Drafter", "attached", "open_drafter"]

_MOST_OTHERS = 1024  # the most tokens by which one vocabulary may be longer than the other


@record(frozen=True)
class Drafter:
    """The files of a draft model, and the options with which it is loaded. It is a context manager, which
    closes the files."""

    files: ModelFiles
    options: LoadOptions

    def bytes(self, max_context: int | None = None) -> int:
        """The bytes of memory that the draft model takes, including the keys and values of one text of
        ``max_context`` tokens."""
        most = self.files.config.max_position_embeddings
        options = replace(self.options, max_context=min(max_context or most, most))
        plan = make_builder(self.files.config, options, plan_only=True).plan(threads=options.threads or 0)
        return plan["weights"] + plan["embedding"] + plan["kv_cache"] + plan["activations"]

    def build(self, core: _core.Model) -> _core.Model:
        """Builds the draft model for the target model ``core``."""
        return filled_builder(self.files, self.options, beside=core).finish()

    def __enter__(self) -> Drafter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.files.close()


def open_drafter(
    options: LoadOptions, model: ModelFiles, *, token: str | bool | None = None, headers_only: bool = False
) -> Drafter | None:
    """Opens the draft model that ``options.drafter`` names, for the target model ``model``. Returns None if
    it is None. In ``options``, ``max_context`` is a number, and ``weights`` may still be "auto".

    Raises :class:`InvalidRequestError` if the two models have different vocabularies, and
    :class:`UnsupportedError` if one of them makes embeddings."""
    if options.drafter is None:
        return None
    progress: Progress = options.progress
    files = open_model_files(
        options.drafter,
        token=token,
        cache=options.cache,
        progress=progress,
        headers_only=headers_only,
        as_drafter=True,
        mmproj=False,
    )
    try:
        if headers_only:
            files = replace(files, unread=True)
        files = files.with_towers(vision=False, audio=False)
        _check(model, files)
        if files.config.target_size:
            said = f"drafter: {files.name} is not for {model.name}"
            files = replace(files, config=attached(files.config, model.config, said))
        return Drafter(files, _options(options, model, files))
    except BaseException:
        files.close()
        raise


def _options(options: LoadOptions, model: ModelFiles, files: ModelFiles) -> LoadOptions:
    most = model.config.max_position_embeddings
    longest = min(options.max_context or most, files.config.max_position_embeddings)
    own = replace(
        options,
        drafter=None,
        draft_tokens=None,
        max_context=longest,
        max_memory=None,
        embedding_on_disk=False,
        matformer=None,
        prefix_cache=False,
        prefix_cache_size=None,
        own_formats={},
    )
    if files.config.target_size:  # this draft model reads the target model's keys and values
        format_of_keys = options.with_formats(model).formats.kv_cache
        own = replace(own, kv_cache=format_of_keys, max_context=longest, cache=False)
    if files.packed is not None:  # packed weights keep their formats
        own = replace(own, weights="auto", embedding=None)
    return own.with_formats(files)


def attached(own: TextConfig, of: TextConfig, said: str = "drafter") -> TextConfig:
    """The configuration of a draft model whose layers read the keys and values of the target model ``of``.
    Each layer reads the target's last layer of the same type that computes its own keys and values. Raises
    :class:`InvalidRequestError` if the two models do not fit; the message begins with ``said``."""
    if own.target_size != of.hidden_size:
        raise InvalidRequestError(
            f"{said}: it is for a hidden size of {own.target_size} (backbone_hidden_size), expected "
            f"{of.hidden_size}"
        )
    if own.vocab_size != of.vocab_size:
        raise InvalidRequestError(
            f"{said}: it has another vocabulary, {own.vocab_size} tokens, expected {of.vocab_size}"
        )
    last = {bool(one.sliding_window): i for i, one in enumerate(of.layers) if one.kv_source < 0}
    layers = []
    for i, layer in enumerate(own.layers):
        source = last.get(bool(layer.sliding_window))
        kind = "sliding" if layer.sliding_window else "full"
        if source is None:
            raise InvalidRequestError(f"{said}: its layer {i} has {kind} attention, and no layer there has")
        there = of.layers[source]
        if (there.num_kv_heads, there.head_dim) != (layer.num_kv_heads, layer.head_dim):
            raise InvalidRequestError(
                f"{said}: its layer {i} reads {layer.num_kv_heads} heads of {layer.head_dim}, but the layers "
                f"with {kind} attention there have {there.num_kv_heads} heads of {there.head_dim}"
            )
        layers.append(replace(layer, kv_source=source))
    return replace(own, layers=tuple(layers))


def _check(model: ModelFiles, drafter: ModelFiles) -> None:
    for files, what in ((model, "the model"), (drafter, "the drafter")):
        if files.config.bidirectional:
            raise UnsupportedError(
                f"drafter: {what} {files.name} makes embeddings; expected two models that generate text"
            )
    said = f"drafter: {drafter.name} has another vocabulary than {model.name}"
    way_out = "take a draft model of the same generation of Gemma"
    if model.vocabulary is None or drafter.vocabulary is None:
        ours, theirs = model.config.vocab_size, drafter.config.vocab_size
        if ours != theirs:
            raise InvalidRequestError(f"{said}: {theirs} tokens, expected {ours}; {way_out}")
        return
    ours_, theirs_ = model.vocabulary.pieces, drafter.vocabulary.pieces
    common = min(len(ours_), len(theirs_))
    if abs(len(ours_) - len(theirs_)) > _MOST_OTHERS:
        raise InvalidRequestError(f"{said}: {len(theirs_)} tokens, expected {len(ours_)}; {way_out}")
    for i, (our, their) in enumerate(zip(ours_[:common], theirs_[:common], strict=True)):
        if our != their:
            raise InvalidRequestError(f"{said}: token {i} is {show(their)}, expected {show(our)}; {way_out}")
