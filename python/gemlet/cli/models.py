"""``gemlet models``: lists the models on this machine and says whether each one can run here."""

from __future__ import annotations

import argparse
import json

from gemlet.base.progress import reporting
from gemlet.base.sizes import size_text
from gemlet.cli.common import one_line, print_table
from gemlet.errors import GemletError
from gemlet.loading.inspect import inspect
from gemlet.packing.kept import kept_entries
from gemlet.sources.local import LocalModel, hub_cache, local_models, model_folders

__all__ = ["run"]

_FITS = "it would fit with "


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    models = local_models()
    problems: list[str | None] = []
    with reporting(None, "reading", len(models), "models") as advance:
        for model in models:
            problems.append(_problem(model))
            advance(1)
    kept = [entry for entry in kept_entries() if entry.what.startswith("weights")]
    if arguments.json:
        listed = [
            {**model._asdict(), "problem": problem} for model, problem in zip(models, problems, strict=True)
        ]
        cached = [{"name": e.source, "weights": e.what.partition(" ")[2], "nbytes": e.nbytes} for e in kept]
        print(json.dumps({"models": listed, "cache": cached}))
        return 0
    rows = [
        (one_line(model.name), size_text(model.nbytes), one_line(model.place), one_line(_runs(problem)))
        for model, problem in zip(models, problems, strict=True)
    ]
    rows += [
        (one_line(entry.source or entry.name[:20]), size_text(entry.nbytes), "cache", f"packed {entry.what}")
        for entry in kept
    ]
    if rows:
        print_table(("model", "size", "where", "runs here"), rows, right=(1,))
    else:
        places = ", ".join([hub_cache(), *model_folders()])
        print(
            one_line(f"no models in {places}; gemlet download NAME fetches one, GEMLET_MODELS names folders")
        )
    return 0


def _problem(model: LocalModel) -> str | None:
    """Returns the reason why the model cannot run on this machine, or None if it can."""
    try:
        return inspect(model.path).problem
    except GemletError as error:
        return str(error)


def _runs(problem: str | None) -> str:
    if problem is None:
        return "yes"
    remedy = problem.partition(_FITS)[2]
    return f"with {remedy}" if remedy else f"no: {problem}"
