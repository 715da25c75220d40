"""Runs several server processes with the same models on Ray. This package needs the extra ``ray``. The README
of this folder is its guide."""

from gemlet.replicas.deployment import application, build

__all__ = ["application", "build"]
