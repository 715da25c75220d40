"""Models by their names on the Hugging Face hub: :func:`download`.

What reaches for the network is huggingface_hub, an extra (``pip install 'gemlet[hub]'``), with its cache, its
settings and its login.
"""

from __future__ import annotations

import re
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
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form of a model's name on the hub.

    >>> is_repository("google/gemma-3-1b-it"), is_repository("./gemma/model")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name


def download(name: str, *, revision: str | None = None, token: str | bool | None = None) -> str:
    """Fetches the files of model ``name`` that gemlet reads and are not there yet, and returns their folder.

    Args:
        name: as on the hub, "google/gemma-3-1b-it".
        revision: a branch, tag or commit; None: the main branch.
        token: an access token; None: the one `hf auth login` stored; False: none.

    Raises:
        HubError: there is no such model or revision, the licence was not accepted, the network is down and
            the files are not all there, or the disk is full.
        UnsupportedError: huggingface_hub is not installed.
        InvalidRequestError: an argument is wrong.
    """
    if not isinstance(name, str) or not is_repository(name):
        raise InvalidRequestError(
            f'name is {name!r}; expected a model on the hub, like "google/gemma-3-1b-it"'
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
    try:
        folder: str = huggingface_hub.snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(_FILES), ignore_patterns=["[!0-9]*/*"]
        )
    except Exception as problem:  # what a broken server or disk makes of it has no common class
        raise HubError(f"{name}: {_explain(problem, name, revision)}") from problem
    return folder


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
