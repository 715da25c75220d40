"""``gemlet batch``: answers the requests in a file and writes the answers to another file."""

from __future__ import annotations

import argparse

from gemlet.cli.common import note
from gemlet.cli.serve import read_settings
from gemlet.server.batch import run_batch

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if a request failed."""
    settings, specs = read_settings(arguments)
    counts = run_batch(arguments.input, arguments.output, settings, specs, concurrent=arguments.concurrent)
    before = f"{counts.before} answered before, " if counts.before else ""
    note(f"{counts.total} requests: {before}{counts.answered} answered, {counts.failed} failed")
    return 1 if counts.failed else 0
