"""Lists the models on this machine, in the hub's cache and in the folders of ``GEMLET_MODELS``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from gemlet.checkpoint.gguf_files import gguf_models, split_names
from gemlet.errors import ModelFileError

__all__ = ["LocalModel", "hub_cache", "in_model_folders", "local_models", "model_folders"]

_PREFIX = "models--"


class LocalModel(NamedTuple):
    """A model on this machine.

    Attributes:
        name: its name for :func:`gemlet.load`.
        path: its folder or (first) GGUF file.
        place: "hub", or the folder of ``GEMLET_MODELS``.
        nbytes: its size on the disk in bytes.
    """

    name: str
    path: str
    place: str
    nbytes: int


def model_folders() -> list[str]:
    """The folders in the environment variable ``GEMLET_MODELS``, separated as in PATH. "~" is expanded."""
    value = os.environ.get("GEMLET_MODELS", "")
    return [os.path.expanduser(folder) for folder in value.split(os.pathsep) if folder]


def in_model_folders(name: str) -> str | None:
    """The path of the model ``name`` in a folder of ``GEMLET_MODELS``; None if there is none."""
    parts = name.split("/")
    if os.path.isabs(name) or not all(parts) or not {".", ".."}.isdisjoint(parts):
        return None
    for folder in model_folders():
        for found in (os.path.join(folder, *parts), os.path.join(folder, *parts) + ".gguf"):
            if os.path.exists(found):
                return found
    return None


def hub_cache() -> str:
    """The folder of the hub's cache, found as huggingface_hub does."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(base, "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return os.path.expanduser(os.path.expandvars(folder or os.path.join(home, "hub")))


def local_models() -> list[LocalModel]:
    """All models on this machine, sorted by place and name. Folders that cannot be read are left out."""
    found = list(_of_the_hub(hub_cache()))
    for folder in model_folders():
        for relative in ("", *_folders(folder)):
            path = os.path.join(folder, relative) if relative else folder
            for file in _models_in(path):
                name = "/".join(part for part in (relative, file) if part) or path
                found.append(_model(name, path, file, folder))
    return found


def _of_the_hub(cache: str) -> Iterator[LocalModel]:
    for entry in _listed(cache):
        owner, _, name = entry.removeprefix(_PREFIX).partition("--")
        if not entry.startswith(_PREFIX) or not name:
            continue
        snapshot = _snapshot(os.path.join(cache, entry))
        if snapshot is not None:
            for file in _models_in(snapshot):
                repository = f"{owner}/{name}"
                yield _model(f"{repository}:{file}" if file else repository, snapshot, file, "hub")


def _snapshot(repository: str) -> str | None:
    """The folder with the files of the main branch, or if this branch is not in the cache, of the revision
    that was downloaded last. None if the cache has no revision."""
    snapshots = os.path.join(repository, "snapshots")
    try:
        with open(os.path.join(repository, "refs", "main"), encoding="ascii") as file:
            main = os.path.join(snapshots, os.path.basename(file.read(99).strip()))
        if os.path.isdir(main):
            return main
    except (OSError, ValueError):
        pass
    others = [os.path.join(snapshots, name) for name in _listed(snapshots)]
    return max(others, key=os.path.getmtime, default=None)


def _folders(folder: str) -> list[str]:
    """The paths, relative to ``folder``, of its folders (NAME) and their subfolders (OWNER/NAME). The
    subfolders of a folder that is itself a model are left out."""

    def inside(path: str) -> list[str]:
        names = [name for name in _listed(path) if os.path.isdir(os.path.join(path, name))]
        return [name for name in names if not name.startswith(".")] if "" not in _models_in(path) else []

    return [
        relative
        for name in inside(folder)
        for relative in (name, *(f"{name}/{below}" for below in inside(os.path.join(folder, name))))
    ]


def _models_in(folder: str) -> list[str]:
    """The GGUF models in a folder; "" means that the folder itself is a model."""
    names = _listed(folder)
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return [""]
    return gguf_models(names)


def _model(name: str, folder: str, file: str, place: str) -> LocalModel:
    path = os.path.join(folder, file) if file else folder
    try:
        files = split_names(folder, file) if file else _listed(folder)
    except ModelFileError:
        files = [file]
    paths = [os.path.join(folder, one) for one in files]
    return LocalModel(name, path, place, sum(os.path.getsize(one) for one in paths if os.path.isfile(one)))


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
