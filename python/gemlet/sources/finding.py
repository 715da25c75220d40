"""Finds the folder or the file of a model: :func:`find`."""

from __future__ import annotations

import os

from gemlet.base.files import check_links, checked_path, no_waiting
from gemlet.base.patterns import late_pattern
from gemlet.checkpoint.gguf_files import gguf_models
from gemlet.checkpoint.safetensors_files import INDEX_FILE, SINGLE_FILE
from gemlet.errors import ModelFileError
from gemlet.sources.hub_names import is_repository
from gemlet.sources.local import in_model_folders

__all__ = ["find", "find_in_folder", "holds_adapter"]

_SHARD = late_pattern(r"-\d{5}-of-\d{5}\.safetensors$")


def find(source: str | os.PathLike[str] | None, *, as_drafter: bool = False) -> str | None:
    """The folder or the GGUF file of the model ``source``; None for a model on the hub. With ``as_drafter``,
    a folder that has both a model and its draft model gives the file of the draft model."""
    if source is None:
        return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "demo")
    accepted = "expected a GGUF file, or a Hugging Face folder with config.json and safetensors weights"
    path = checked_path("source", source, f"{accepted.removeprefix('expected ')}, or None for the demo model")
    if os.path.isdir(path):
        check_links(path)
        return find_in_folder(path, as_drafter=as_drafter)
    if path.endswith((".safetensors", ".safetensors.index.json")) and os.path.isfile(path):
        check_links(os.path.dirname(path) or ".")
        return _folder_of_weights(path)
    if os.path.lexists(path):
        if path.lower().endswith(".gguf") or _begins_as_gguf(path):
            return path
        raise ModelFileError(f"{path}: is neither a folder nor a GGUF file; {accepted}")
    if (found := in_model_folders(path)) is not None:
        return find(found, as_drafter=as_drafter)
    if is_repository(path):
        return None
    raise ModelFileError(
        f"{path}: no such file or folder; {accepted}, or the name of a model on the hub, "
        'such as "google/gemma-3-1b-it"'
    )


def _folder_of_weights(path: str) -> str:
    """The folder of the model that the weights file ``path`` belongs to."""
    folder, name = os.path.split(path)
    read = SINGLE_FILE
    if not os.path.lexists(os.path.join(folder, SINGLE_FILE)):
        read = INDEX_FILE
        if _SHARD.search(name):
            return folder or "."
    if name != read:
        raise ModelFileError(
            f"{path}: in this folder, gemlet reads {read} and not this file; load {read}, or move this file "
            "with its config.json into another folder"
        )
    return folder or "."


def find_in_folder(folder: str, *, as_drafter: bool = False) -> str:
    """The path of the model in ``folder``: ``folder`` itself if it is a Hugging Face folder, otherwise the
    GGUF file in it. With ``as_drafter``, the draft model in the folder, if there is one. If ``folder`` is a
    file, it is returned unchanged."""
    if not os.path.isdir(folder):
        return folder
    has = {
        name
        for name in ("config.json", SINGLE_FILE, INDEX_FILE, "adapter_config.json")
        if os.path.lexists(os.path.join(folder, name))
    }
    if has == {"adapter_config.json"}:
        raise ModelFileError(
            f"{folder}: is a LoRA adapter; expected a model. Load the model for which the adapter was made, "
            "and then the adapter with load_adapter() or --adapter"
        )
    if "config.json" in has and not has.isdisjoint((SINGLE_FILE, INDEX_FILE)):
        return folder
    try:
        names = os.listdir(folder)
        models = gguf_models(names, as_drafter=as_drafter)
    except OSError as problem:
        raise ModelFileError(f"{folder}: cannot be read: {problem.strerror}") from None
    if len(models) > 1:
        listed = ", ".join(models[:8])
        raise ModelFileError(f"{folder}: has several GGUF models ({listed}); give the path of one")
    parts = sorted(name for name in names if name.lower().endswith(".gguf"))
    if parts and not models and not has:
        raise ModelFileError(
            f"{folder}: has no complete GGUF model, only files with towers, draft models, statistics or "
            f"later parts ({', '.join(parts[:8])}); add the file of the model"
        )
    return os.path.join(folder, models[0]) if models else folder


def holds_adapter(folder: str) -> bool:
    """Whether ``folder`` has an adapter in PEFT's format, with weights in safetensors or in a .bin file."""
    config, *weights = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    return os.path.lexists(os.path.join(folder, config)) and any(
        os.path.lexists(os.path.join(folder, name)) for name in weights
    )


def _begins_as_gguf(path: str) -> bool:
    """Whether a file begins like a GGUF file. Ollama's GGUF files do not end in ".gguf"."""
    try:
        with open(path, "rb", opener=no_waiting) as file:
            return os.pread(file.fileno(), 4, 0) == b"GGUF"
    except OSError:
        return False
