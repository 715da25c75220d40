"""Parses names of models on the Hugging Face hub. It does not import huggingface_hub."""

from __future__ import annotations

import re

from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError

__all__ = ["REPOSITORY", "check_access", "is_repository", "plain_name"]

# The name of a repository. After a colon, it may name a GGUF file or the quantization of one, such as
# "Q4_K_M".
REPOSITORY = late_pattern(
    r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})"
    r"(?::(?:([\w.+-][\w.+ /-]{0,250}\.gguf)|([A-Za-z0-9][\w.-]{0,31})))?"
)
# What a name may begin with: an address of the hub, or a prefix that Ollama or huggingface_hub accepts.
_ADDRESS = late_pattern(
    r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://(?:models/)?", re.IGNORECASE
)
_IN_ADDRESS = late_pattern(r"([^/]+/[^/]+)/(?:blob|resolve|raw)/([^/]+)/(.+)")
_TREE = late_pattern(r"([^/]+/[^/]+)(?:/tree/([^/]+))?/?")


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form of a model's name on the hub.

    >>> is_repository("google/gemma-3-1b-it"), is_repository("./gemma/model")
    (True, False)
    >>> is_repository("someone/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_0.gguf")
    True
    >>> is_repository("hf.co/someone/gemma-3-1b-it-GGUF:Q4_K_M")
    True
    """
    plain = plain_name(name)[0]
    return REPOSITORY.fullmatch(plain) is not None and ".." not in plain


def plain_name(name: str) -> tuple[str, str | None]:
    """A model's name without the hub's address, and the revision in the address.

    >>> plain_name("https://huggingface.co/google/gemma-3-1b-it/tree/main")
    ('google/gemma-3-1b-it', 'main')
    >>> plain_name("https://huggingface.co/a/b-GGUF/blob/main/b-Q4_0.gguf?download=true")
    ('a/b-GGUF:b-Q4_0.gguf', 'main')
    """
    address = _ADDRESS.match(name)
    if address is None:
        return name, None
    rest = name[address.end() :].partition("?")[0].partition("#")[0]
    if file := _IN_ADDRESS.fullmatch(rest):
        repository, revision, path = file.groups()
        return (f"{repository}:{path}" if path.endswith(".gguf") else repository), revision
    if tree := _TREE.fullmatch(rest):
        return tree[1], tree[2]
    return rest, None


def check_access(revision: str | None, token: str | bool | None) -> None:
    """Raises :class:`InvalidRequestError` for arguments that cannot be a revision or a token."""
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise InvalidRequestError(
            f"revision is {show(revision)}; expected a branch, a tag or a commit, or None"
        )
    if token is not None and not isinstance(token, (str, bool)):
        raise InvalidRequestError("token: expected an access token, True, False or None")
