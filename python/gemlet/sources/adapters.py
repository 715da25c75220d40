"""Which folder or file somebody means who names an adapter: :func:`find_adapter`."""

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
    """``source`` itself, or where the adapter of this name on the hub was downloaded to.

    Raises what :func:`gemlet.sources.hub.download_adapter` raises. What is no name of the hub either,
    :func:`gemlet.adapters.opening.open_adapter` refuses.
    """
    check_access(revision, token)
    if not isinstance(source, str) or "\0" in source or os.path.lexists(source) or not is_repository(source):
        return source
    with importing():
        from gemlet.sources.hub import download_adapter
    return download_adapter(source, revision=revision, token=token, progress=progress)
