"""Finds the folder or the file of an adapter: :func:`find_adapter`."""

from __future__ import annotations

import os

from gemlet.base.handlers import importing
from gemlet.sources.hub_names import check_access, is_repository

__all__ = ["find_adapter"]


def find_adapter(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: bool = True,
) -> str | os.PathLike[str]:
    """The path of the adapter: ``source`` itself, or the path of the downloaded files if ``source`` is a name
    on the hub.

    Raises the errors of :func:`gemlet.sources.hub.download_adapter`. If ``source`` is neither a path nor a
    name on the hub, :func:`gemlet.adapters.opening.open_adapter` raises the error.
    """
    check_access(revision, token)
    if not isinstance(source, str) or "\0" in source or os.path.lexists(source) or not is_repository(source):
        return source
    with importing():
        from gemlet.sources.hub import download_adapter
    return download_adapter(source, revision=revision, token=token, progress=progress)
