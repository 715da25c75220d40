"""``gemlet download``: a model from the hub, kept in its cache."""

from __future__ import annotations

import argparse

from gemlet.cli.common import access_options
from gemlet.sources.hub import download

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: prints the folder."""
    print(download(arguments.name, **access_options(arguments)))
    return 0
