"""Which files somebody means who names a model."""

from __future__ import annotations

import contextlib
import os
import re

from gemlet._json import no_waiting
from gemlet.errors import InvalidRequestError, ModelFileError

__all__ = ["check_links", "find", "find_in_folder"]

_READ = (".json", ".safetensors", ".model", ".gguf", ".jinja")  # how the names of files that may be read end
_MODULE = re.compile(r"\d+_")  # a folder in that of an embedding model
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def find(source: str | os.PathLike[str] | None) -> str | None:
    """The folder or the GGUF file that is meant; None for a model on the hub."""
    from gemlet.hub import is_repository

    if source is None:
        return os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo")
    accepted = "expected a GGUF file, or a Hugging Face folder with config.json and safetensors weights"
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidRequestError(f"source is {path!r}; {accepted}, or None for the demo model")
    if os.path.isdir(path):
        check_links(path)
        return find_in_folder(path)
    if path.endswith((".safetensors", ".safetensors.index.json")) and os.path.isfile(path):
        check_links(os.path.dirname(path) or ".")
        return _folder_of_weights(path)
    if os.path.lexists(path):
        if path.lower().endswith(".gguf") or _begins_as_gguf(path):
            return path
        raise ModelFileError(f"{path}: is neither a folder nor a GGUF file; {accepted}")
    if is_repository(path):
        return None
    raise ModelFileError(
        f"{path}: no such file or folder; {accepted}, or the name of a model on the hub, "
        'like "google/gemma-3-1b-it"'
    )


def check_links(folder: str) -> None:
    """Raises :class:`ModelFileError` if a file of ``folder`` is a link to somewhere else: what came in an
    archive must not have this user's other files read. Links of the hub's cache lead to its ``blobs``, which
    is inside; ``GEMLET_FOLLOW_LINKS=1`` says that links elsewhere are meant."""
    if os.environ.get("GEMLET_FOLLOW_LINKS") == "1":
        return
    root = os.path.realpath(folder)
    parent, above = os.path.split(os.path.dirname(root))
    inside = os.path.join(parent if above == "snapshots" else root, "")
    read = []
    with contextlib.suppress(OSError):  # of a folder that cannot be read others speak
        for name in os.listdir(folder):
            if _MODULE.match(name) and os.path.isdir(os.path.join(folder, name)):
                read += [name, *(os.path.join(name, file) for file in os.listdir(os.path.join(folder, name)))]
            elif name.endswith(_READ):
                read.append(name)
    for name in read:
        path = os.path.join(folder, name)
        if os.path.islink(path) and not (target := os.path.realpath(path)).startswith(inside):
            raise ModelFileError(
                f"{path}: is a link out of its folder, to {target}; copy the file, or set "
                "GEMLET_FOLLOW_LINKS=1 if you trust the folder"
            )


def _folder_of_weights(path: str) -> str:
    """The folder that the weights of a model stand for: the rest of it lies beside them."""
    from gemlet.checkpoint import INDEX_FILE, SINGLE_FILE

    folder, name = os.path.split(path)
    read = SINGLE_FILE
    if not os.path.lexists(os.path.join(folder, SINGLE_FILE)):
        read = INDEX_FILE
        if _SHARD.search(name):
            return folder or "."
    if name != read:
        raise ModelFileError(
            f"{path}: of its folder gemlet reads {read}; load that, or give this file a folder of its own"
        )
    return folder or "."


def find_in_folder(folder: str) -> str:
    """The folder itself, or the GGUF model in it where it is no Hugging Face folder; a file is what it is."""
    from gemlet.checkpoint import INDEX_FILE, SINGLE_FILE
    from gemlet.gguf_checkpoint import model_files

    if not os.path.isdir(folder):
        return folder
    has = {
        name
        for name in ("config.json", SINGLE_FILE, INDEX_FILE, "adapter_config.json")
        if os.path.lexists(os.path.join(folder, name))
    }
    if has == {"adapter_config.json"}:
        raise ModelFileError(
            f"{folder}: is a LoRA adapter; load the model it was made for, and then this with load_adapter() "
            "or --adapter"
        )
    if "config.json" in has and not has.isdisjoint((SINGLE_FILE, INDEX_FILE)):
        return folder
    try:
        models = model_files(os.listdir(folder))
    except OSError as problem:
        raise ModelFileError(f"{folder}: cannot be read: {problem.strerror}") from None
    if len(models) > 1:
        listed = ", ".join(models[:8])
        raise ModelFileError(f"{folder}: holds several GGUF models ({listed}); give the path of one")
    return os.path.join(folder, models[0]) if models else folder


def _begins_as_gguf(path: str) -> bool:
    """Ollama keeps its files under names without an ending."""
    try:
        with open(path, "rb", opener=no_waiting) as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
