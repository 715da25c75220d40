"""Runs several processes that serve the same models, on Ray. It needs the extra ``ray``. See the README of
this folder."""

from gemlet.replicas.deployment import application, build

__all__ = ["application", "build"]
