"""Modules of the standard library that are imported at their first use, and the logger "gemlet". Generating
text rarely needs these modules, and importing them would slow gemlet's start. For example, ``inspect``
imports ``ast``, ``dis`` and ``tokenize``.

>>> hashlib.sha256(b"").hexdigest()[:8]
'e3b0c442'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import importing

__all__ = ["base64", "dataclasses", "hashlib", "inspect", "log", "selectors"]

if TYPE_CHECKING:
    import base64
    import dataclasses
    import hashlib
    import inspect
    import logging
    import selectors

    log = logging.getLogger("gemlet")
else:

    class _Module:
        """Stands for a module. Each attribute is looked up in the module once."""

        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __getattr__(self, name: str) -> Any:
            with importing():
                found = getattr(import_module(self.__name__), name)
            setattr(self, name, found)
            return found

    class _Log:
        """Stands for the logger. It is silent unless the program that imports gemlet sets up logging."""

        def __getattr__(self, name: str) -> Any:
            with importing():
                logging = import_module("logging")
            logger = logging.getLogger("gemlet")
            if not logger.handlers:
                logger.addHandler(logging.NullHandler())
            return getattr(logger, name)

    base64, dataclasses, hashlib = map(_Module, ("base64", "dataclasses", "hashlib"))
    inspect, selectors = map(_Module, ("inspect", "selectors"))
    log = _Log()
