"""Models by their names on the Hugging Face hub: :func:`download`.

What reaches for the network is huggingface_hub, an extra (``pip install 'gemlet[hub]'``), with its cache, its
settings and its login.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from typing import Any

from gemlet.errors import HubError, InvalidRequestError, UnsupportedError

__all__ = ["download", "is_repository"]

# What gemlet reads of a repository; a folder inside it holds something else (original weights, ONNX, ...),
# but for the numbered ones of sentence-transformers, which hold an embedding model's last layers.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "model*.safetensors",
    "model.safetensors.index.json",
    "modules.json",
    "config_sentence_transformers.json",
    "[0-9]*/config.json",
    "[0-9]*/model.safetensors",
)
# A repository, and perhaps a GGUF file in it.
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?::([\w.+-][\w.+ /-]{0,250}\.gguf))?")
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
_SHOWN = 16


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form of a model's name on the hub.

    >>> is_repository("google/gemma-3-1b-it"), is_repository("./gemma/model")
    (True, False)
    >>> is_repository("someone/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_0.gguf")
    True
    """
    return _NAME.fullmatch(name) is not None and ".." not in name


def download(name: str, *, revision: str | None = None, token: str | bool | None = None) -> str:
    """Fetches the files of model ``name`` that gemlet reads and are not there yet, and returns their folder;
    of a GGUF model, the path of its (first) file.

    Args:
        name: as on the hub, "google/gemma-3-1b-it"; or a GGUF file there, with all parts where it is split:
            "someone/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_0.gguf". A repository without safetensors may be
            named alone where it holds only one GGUF model.
        revision: a branch, tag or commit; None: the main branch.
        token: an access token; None: the one `hf auth login` stored; False: none.

    Raises:
        HubError: there is no such model or revision, the licence was not accepted, the network is down and
            the files are not all there, or the disk is full.
        UnsupportedError: huggingface_hub is not installed.
        InvalidRequestError: an argument is wrong, the repository has no such GGUF file, or has several and
            none is named; the message lists them.

    >>> try:
    ...     download("gemma-3-1b-it")  # without the owner
    ... except InvalidRequestError as error:
    ...     print('like "google/gemma-3-1b-it"' in str(error))
    True
    """
    if not isinstance(name, str) or not is_repository(name):
        raise InvalidRequestError(
            f'name is {name!r}; expected a model on the hub, like "google/gemma-3-1b-it", or a GGUF file '
            'there, like "someone/gemma-GGUF:gemma-Q4_0.gguf"'
        )
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise InvalidRequestError(f"revision is {revision!r}; expected a branch, a tag or a commit, or None")
    if token is not None and not isinstance(token, (str, bool)):
        raise InvalidRequestError("token: expected an access token, True, False or None")
    try:
        import huggingface_hub
    except ImportError:
        raise UnsupportedError(
            f"{name}: no such folder; to download a model of this name: pip install 'gemlet[hub]'"
        ) from None
    from gemlet.gguf_checkpoint import split_names

    match = _NAME.fullmatch(name)
    repository, file = match.groups() if match else (name, None)
    names, is_here = _list_files(repository, revision, token)
    if file is None:
        file = _only_gguf(repository, names)
    elif file not in names:
        raise InvalidRequestError(f"{repository}: has no file {file}; its GGUF models are {_models(names)}")
    patterns, ignored = list(_FILES), ["[!0-9]*/*"]
    if file is not None:
        folder, name = os.path.split(file)
        patterns = [glob.escape(os.path.join(folder, part)) for part in split_names(folder, name)]
        ignored = []
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=token,
            allow_patterns=patterns,
            ignore_patterns=ignored,
            local_files_only=is_here,
        )
    except Exception as problem:  # what a broken server or disk makes of it has no common class
        raise HubError(f"{repository}: {_explain(problem, repository, revision)}") from problem
    return snapshot if file is None else os.path.join(snapshot, file)


def _list_files(repository: str, revision: str | None, token: str | bool | None) -> tuple[set[str], bool]:
    """The files of a repository; where the hub does not say, those in the cache, and True."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        siblings = huggingface_hub.HfApi().model_info(repository, revision=revision, token=token).siblings
        return {sibling.rfilename for sibling in siblings or ()}, False
    except Exception as problem:
        try:
            snapshot = huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=[]
            )
        except Exception as missing:
            said = isinstance(problem, errors.HfHubHTTPError | errors.HFValidationError)
            reason = _explain(problem if said else missing, repository, revision)
            raise HubError(f"{repository}: {reason}") from problem
    found = glob.glob("**", root_dir=snapshot, recursive=True)
    return {name for name in found if os.path.isfile(os.path.join(snapshot, name))}, True


def _only_gguf(repository: str, names: Collection[str]) -> str | None:
    """The GGUF model of a repository with these files; None where it is for its safetensors, or has none."""
    from gemlet.gguf_checkpoint import model_files

    models = model_files(names)
    if not models or ("config.json" in names and not _WEIGHTS.isdisjoint(names)):
        return None
    if len(models) > 1:
        raise InvalidRequestError(
            f"{repository}: holds several GGUF models; name one, as {repository}:{models[0]}. They are "
            f"{_models(names)}"
        )
    return models[0]


def _models(names: Collection[str]) -> str:
    """The GGUF models among these files, for a message."""
    from gemlet.gguf_checkpoint import model_files

    models = model_files(names)
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return (", ".join(models[:_SHOWN]) or "none") + more


def _explain(problem: Exception, name: str, revision: str | None) -> str:
    """What went wrong and what to do, in a line."""
    from huggingface_hub import constants, errors

    status: Any = getattr(getattr(problem, "response", None), "status_code", None)
    if isinstance(problem, errors.GatedRepoError):
        return (
            f"its licence has to be accepted first, at {constants.ENDPOINT}/{name}; then pass token=, or log "
            "in with `hf auth login`"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"has no revision {revision!r}; expected a branch, a tag or a commit"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return (
            "no such folder, and no such model on the hub, or a private one; check the name, or pass a token "
            "that may read it"
        )
    if isinstance(problem, errors.HFValidationError):
        return "is no name of a model"
    if isinstance(problem, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "is not in the cache, and HF_HUB_OFFLINE forbids downloading"
        return f"is not in the cache, and the hub ({constants.ENDPOINT}) cannot be reached"
    if status in (401, 403):
        return f"the hub refused the token (HTTP {status}); pass one that may read this model"
    if isinstance(problem, errors.HfHubHTTPError):
        return f"the hub answered with HTTP {status}; try again later"
    lines = str(problem).splitlines() or [""]
    return f"the download failed: {type(problem).__name__}: {lines[0]}"
