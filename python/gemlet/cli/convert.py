"""``gemlet convert``: a checkpoint as a folder that loads quickly."""

from __future__ import annotations

import argparse

from gemlet.cli.common import access_options, load_options
from gemlet.loading.convert import convert

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    convert(
        arguments.source,
        arguments.destination,
        merge_adapter=arguments.adapter,
        calibrate=arguments.calibrate,
        for_memory=arguments.for_memory,
        **load_options(arguments),
        **access_options(arguments),
    )
    return 0
