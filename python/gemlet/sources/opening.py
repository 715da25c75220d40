"""Opens a model's files, on this machine or on the hub: :func:`open_model_files`."""

from __future__ import annotations

import contextlib
import os

from gemlet.base.handlers import importing
from gemlet.base.late import log
from gemlet.base.progress import Progress
from gemlet.base.records import replace
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.sources.adapters import find_adapter
from gemlet.sources.finding import find, find_in_folder, holds_adapter
from gemlet.sources.hf_folder import open_folder
from gemlet.sources.hub_names import check_access
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.tokenizers import read_override
from gemlet.weights.hf_names import tower_kinds
from gemlet.weights.slots import PER_LAYER_TABLE

__all__ = ["open_model_files", "writes_nothing"]


def open_model_files(
    source: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    merge_adapter: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    mmproj: str | bool | None = None,
    cache: bool = False,
    headers_only: bool = False,
    progress: Progress = None,
    as_drafter: bool | None = False,
) -> ModelFiles:
    """Opens a model that :func:`gemlet.load` accepts, and checks everything but the values of the weights.

    Args:
        source, revision, token, merge_adapter, chat_template: as in :func:`gemlet.load`.
        cache: whether to keep the parsed vocabulary in the cache.
        headers_only: for a model on the hub, do not download the values of the weights. Then they cannot be
            read.
        mmproj: the file with the towers of a GGUF model; None looks for the file, and False leaves it out.
        as_drafter: True or None accepts a draft model, and False refuses it. If a folder has both a model and
            its draft model, True opens the draft model, and None opens the model.
        progress: if it is False or a function, the hub shows no progress bars.

    Raises the errors of :func:`gemlet.load` for files that are missing or wrong.

    >>> with open_model_files(None) as demo:
    ...     demo.config.family, demo.stored_weights()
    ('gemma3', 'bf16')
    """
    check_access(revision, token)
    template = read_override(chat_template)
    drafts = as_drafter is True
    path = find(source, as_drafter=drafts)
    bars = progress is None or progress is True
    # Only a local folder can have its own adapter. The adapter files of a model on the hub are not
    # downloaded.
    own = path is not None and os.path.isdir(path)
    if path is None:
        name = os.fspath(source or "")
        if headers_only:
            with importing():
                from gemlet.sources.hub_headers import outline
            with outline(
                name, revision=revision, token=token, mmproj=mmproj is None, as_drafter=drafts
            ) as found:
                path = find_in_folder(found, as_drafter=drafts)
                opened = _open(path, name, template, mmproj=mmproj, cache=False, headers_only=True)
                _check_use(opened, as_drafter)
                return replace(opened, name=name)
        with importing():
            from gemlet.sources.hub import choose, fetch
        choice = choose(name, revision, token, mmproj=mmproj is None, as_drafter=drafts)
        path = find_in_folder(fetch(choice, token, progress=bars), as_drafter=drafts)
    opened = _open(path, "demo" if source is None else path, template, mmproj=mmproj, cache=cache)
    _check_use(opened, as_drafter)
    if own:
        merge_adapter = _own_adapter(opened, merge_adapter)
    if merge_adapter is None:
        return opened
    try:
        return _merge(opened, find_adapter(merge_adapter, token=token, progress=bars))
    except BaseException:
        opened.close()
        raise


def _own_adapter(
    files: ModelFiles, merge_adapter: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """The adapter to merge into the model. If the model's folder also contains an adapter, this adapter is
    merged, because transformers does the same."""
    folder = files.checkpoint.folder
    if files.packed is not None or not holds_adapter(folder):
        return merge_adapter
    if merge_adapter is None:
        log.warning(
            "%s: has an adapter beside the model. The adapter is merged into the model, as transformers "
            "does. If the model already includes the adapter, move adapter_config.json elsewhere",
            folder,
        )
        return folder
    with contextlib.suppress(OSError, TypeError, ValueError):
        if os.path.samefile(folder, merge_adapter):
            return merge_adapter
    files.close()
    raise InvalidRequestError(
        f"merge_adapter: {folder} has its own adapter, which is merged into the model; to merge another "
        "adapter, move adapter_config.json elsewhere"
    )


def _check_use(files: ModelFiles, as_drafter: bool | None) -> None:
    if files.config.target_size and as_drafter is False:
        files.close()
        raise UnsupportedError(writes_nothing(files))


def writes_nothing(files: ModelFiles) -> str:
    """The error message for a draft model that is loaded as a model."""
    return (
        f"{files.name} is a draft model ({files.config.model_type}), which cannot generate text by itself; "
        "load its target model, and pass this one as drafter="
    )


def _open(
    path: str,
    name: str,
    chat_template: str | None,
    *,
    mmproj: str | bool | None,
    cache: bool,
    headers_only: bool = False,
) -> ModelFiles:
    if os.path.isdir(path):
        if isinstance(mmproj, str):
            raise InvalidRequestError(
                f"mmproj is {show(mmproj)}, but {name} is not a GGUF file; leave mmproj out, because a "
                "folder has its own towers"
            )
        opened = open_folder(
            path, name=name, cache=cache, headers_only=headers_only, chat_template=chat_template
        )
    else:
        with importing():
            from gemlet.sources.gguf_model import open_gguf
        opened = open_gguf(path, cache=cache, chat_template=chat_template, mmproj=mmproj)
    if chat_template is not None and opened.chat_format is None:
        opened.close()
        raise UnsupportedError(
            f"chat_template: {opened.name} has no tokenizer, or makes embeddings, so it cannot chat; leave "
            "chat_template out"
        )
    return opened


def _merge(files: ModelFiles, path: str | os.PathLike[str]) -> ModelFiles:
    if files.packed is not None:
        raise InvalidRequestError(
            f"merge_adapter: {files.name} is packed and cannot be changed; give the original model, or load "
            "the adapter beside this one with load_adapter()"
        )
    with importing():
        from gemlet.adapters.opening import open_adapter
    adapter = open_adapter(path, files.config)
    if any(term.bias for term in adapter.terms.low_rank.values()):
        adapter.close()
        raise UnsupportedError(
            f"merge_adapter: {adapter.source} has biases (lora_bias), but the model has no biases to add "
            "them to; load the adapter beside the model with load_adapter()"
        )
    changed = tower_kinds(adapter.terms.never_changed)
    if kinds := changed & files.config.towers:
        log.warning(
            "merge_adapter: %s also changes the %s tower, which gemlet cannot merge; the model is loaded "
            "without it",
            adapter.source,
            " and ".join(sorted(kinds)),
        )
    files = files.with_towers(vision="vision" not in changed, audio="audio" not in changed)
    one = files.config.tie_word_embeddings and not files.config.bidirectional
    if one and adapter.changes("lm_head") != adapter.changes("embed_tokens"):
        files = _untied(files)
    merged = {tensor: slot for tensor, slot in files.slots.items() if any(adapter.changes(slot))}
    for tensor in [tensor for tensor, slot in merged.items() if slot == PER_LAYER_TABLE]:
        own, _ = adapter.changes(PER_LAYER_TABLE)
        # If the adapter has the whole table, the table is used from the adapter's file.
        if own is not None and not own.ids:
            files.checkpoint.replace_tensor(tensor, adapter.checkpoint, own.tensor)
            del merged[tensor]
    for tensor in merged:
        dtype = files.checkpoint.dtype(tensor)
        if dtype not in ("f32", "bf16", "f16"):
            adapter.close()
            raise UnsupportedError(
                f"merge_adapter: {files.name}: tensor {show(tensor)} is quantized ({dtype}); load the "
                "adapter beside the model with load_adapter(), or merge it into the checkpoint with float "
                "weights"
            )
    return replace(files, adapter=adapter, merged=merged)


def _untied(files: ModelFiles) -> ModelFiles:
    """The model with a separate output head. The head has the same values as the embedding table."""
    table = next(tensor for tensor, slot in files.slots.items() if slot == "embed_tokens")
    head = f"{table} as lm_head"
    files.checkpoint.add_alias(head, table)
    config = replace(files.config, tie_word_embeddings=False)
    return replace(files, config=config, slots={**files.slots, head: "lm_head"})
