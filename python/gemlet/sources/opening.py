"""Opening a model's files, wherever they are: :func:`open_model_files`."""

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
    """Opens what :func:`gemlet.load` accepts and checks all of it but the weights' values. With ``cache`` the
    vocabulary is kept as parsed. With ``headers_only`` the weights' values of a model on the hub are not
    fetched, and nothing can be read of them. ``mmproj`` is the file with the towers of a GGUF model: None
    looks for it, False leaves it out. ``as_drafter`` also takes what only drafts for another model, and
    prefers it in a folder that has both; None takes it too, and prefers the model. Where ``progress`` is
    False or a function, the hub shows no bars.

    Raises what :func:`gemlet.load` raises for a file that is missing or wrong.

    >>> with open_model_files(None) as demo:
    ...     demo.config.family, demo.stored_weights()
    ('gemma3', 'bf16')
    """
    check_access(revision, token)
    template = read_override(chat_template)
    drafts = as_drafter is True
    path = find(source, as_drafter=drafts)
    bars = progress is None or progress is True
    # Of a model on the hub no adapter is fetched: transformers adds that to the model it was made for.
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
    """The adapter to merge where a folder holds a model and an adapter: transformers adds it to the model."""
    folder = files.checkpoint.folder
    if files.packed is not None or not holds_adapter(folder):
        return merge_adapter
    if merge_adapter is None:
        log.warning(
            "%s: holds an adapter beside the model, which is merged into it, as transformers adds it. If the "
            "model has it already, move adapter_config.json elsewhere",
            folder,
        )
        return folder
    with contextlib.suppress(OSError, TypeError, ValueError):
        if os.path.samefile(folder, merge_adapter):
            return merge_adapter
    files.close()
    raise InvalidRequestError(
        f"merge_adapter: {folder} holds an adapter of its own, which is merged into the model; move "
        "adapter_config.json elsewhere to merge another one"
    )


def _check_use(files: ModelFiles, as_drafter: bool | None) -> None:
    if files.config.target_size and as_drafter is False:
        files.close()
        raise UnsupportedError(writes_nothing(files))


def writes_nothing(files: ModelFiles) -> str:
    """What to say of a drafter that somebody wants to write."""
    return (
        f"{files.name} is a drafter ({files.config.model_type}), which writes nothing alone; load the model "
        "that it is for with drafter= this one"
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
                f"mmproj is {show(mmproj)}, but {name} is no GGUF file; a folder has its own towers"
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
        raise UnsupportedError(f"chat_template: {opened.name} has no tokenizer to chat with")
    return opened


def _merge(files: ModelFiles, path: str | os.PathLike[str]) -> ModelFiles:
    if files.packed is not None:
        raise InvalidRequestError(f"merge_adapter: {files.name} is packed; give the original")
    with importing():
        from gemlet.adapters.opening import open_adapter
    adapter = open_adapter(path, files.config)
    if any(term.bias for term in adapter.terms.low_rank.values()):
        adapter.close()
        raise UnsupportedError(
            f"merge_adapter: {adapter.source} has biases (lora_bias), and the model has none to add them to; "
            "load it beside the model with load_adapter()"
        )
    changed = tower_kinds(adapter.terms.never_changed)
    if kinds := changed & files.config.towers:
        log.warning(
            "merge_adapter: %s changes the tower for %s, too, which gemlet does not merge; the model is "
            "loaded without it",
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
        if own is not None:  # it stays in its file
            files.checkpoint.replace_tensor(tensor, adapter.checkpoint, own.tensor)
            del merged[tensor]
    for tensor in merged:
        dtype = files.checkpoint.dtype(tensor)
        if dtype not in ("f32", "bf16", "f16"):
            adapter.close()
            raise UnsupportedError(
                f"merge_adapter: {files.name}: tensor {show(tensor)} is quantized ({dtype}); load the "
                "adapter beside it with load_adapter(), or merge it into the checkpoint that has floats"
            )
    return replace(files, adapter=adapter, merged=merged)


def _untied(files: ModelFiles) -> ModelFiles:
    """The model with an output head of its own, which has the values of the embedding table."""
    table = next(tensor for tensor, slot in files.slots.items() if slot == "embed_tokens")
    head = f"{table} as lm_head"
    files.checkpoint.add_alias(head, table)
    config = replace(files.config, tie_word_embeddings=False)
    return replace(files, config=config, slots={**files.slots, head: "lm_head"})
