"""``gemlet serve``: serves models over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from gemlet.base.late import dataclasses
from gemlet.base.records import replace
from gemlet.cli.common import load_options, note
from gemlet.errors import GemletError, InvalidRequestError
from gemlet.loading.options import LoadOptions
from gemlet.server.content_filter import ContentFilter
from gemlet.server.keys import KeyStore
from gemlet.server.models import Models
from gemlet.server.run import serve
from gemlet.server.settings import (
    ModelSpec,
    Settings,
    check_specs,
    checked_alias,
    default_alias,
    read_file_of_settings,
    setting_fields,
)
from gemlet.server.tracing import Tracing

__all__ = ["read_settings", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command until a signal ends it."""
    settings, specs = read_settings(arguments)
    if arguments.check:
        return _check(settings, specs)
    return serve(settings, specs, lambda url: note(f"listening on {url}"))


def read_settings(arguments: argparse.Namespace) -> tuple[Settings, list[ModelSpec]]:
    """Returns the settings of the file. A flag replaces the setting with the same name."""
    values: dict[str, Any] = {}
    specs: list[ModelSpec] = []
    if arguments.config is not None:
        values, specs = read_file_of_settings(arguments.config)
    values |= {n: getattr(arguments, n) for n in setting_fields() if getattr(arguments, n, None) is not None}
    options = load_options(arguments)
    changed = {name: value for name, value in options.items() if value != getattr(LoadOptions, name)}
    if arguments.model:
        specs = [_spec(text, changed) for text in arguments.model]
    elif not specs:
        specs = [ModelSpec(default_alias(None), None, changed)]
    elif changed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise InvalidRequestError(f"{names}: {arguments.config} names the models; put the option there")
    if arguments.adapter:
        adapters = dict(_named(text, "--adapter") for text in arguments.adapter)
        specs[0] = replace(specs[0], adapters={**specs[0].adapters, **adapters})
    check_specs(specs)
    return Settings(**values), specs


def _spec(text: str, options: dict[str, Any]) -> ModelSpec:
    alias, equals, source = text.partition("=")
    if not equals:
        return ModelSpec(default_alias(text), text, options)
    return ModelSpec(checked_alias(alias), source or None, options)


def _named(text: str, flag: str) -> tuple[str, str]:
    alias, equals, path = text.partition("=")
    if not equals or not path:
        raise InvalidRequestError(f"{flag}: got {text!r}, expected ALIAS=PATH")
    return checked_alias(alias), path


def _can_write(folder: str) -> bool:
    """Whether the folder exists and is usable, or can be created."""
    place = os.path.abspath(folder)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def _check(settings: Settings, specs: Sequence[ModelSpec]) -> int:
    """Prints the models and settings of the server. Returns 1 if the server could not start with them."""
    from inspect import signature

    from gemlet.adapters.opening import open_adapter
    from gemlet.loading.inspect import inspect
    from gemlet.sources.adapters import find_adapter
    from gemlet.sources.tokenizers import read_override

    known = signature(inspect).parameters
    problems = []
    shown: dict[str, Any] = {"server": dataclasses.asdict(settings), "models": {}}
    if settings.keys is not None:
        try:
            with contextlib.closing(KeyStore(settings.keys)) as store:
                shown["keys"] = sum(key["revoked"] is None for key in store.all())
        except GemletError as error:
            problems.append(f"keys: {error}")
    try:
        ContentFilter(settings)
        Models(specs, settings.filter_model)
        if settings.otel:
            Tracing().close()
    except GemletError as error:
        problems.append(str(error))
    if settings.data is not None and not _can_write(settings.data):
        problems.append(f"data: {settings.data}: is not a folder that this user can write to")
    for spec in specs:
        options = {name: value for name, value in spec.options.items() if name in known}
        try:
            read_override(spec.options.get("chat_template"))
            found = inspect(spec.source, **options)
            if found.problem:
                problems.append(f"models.{spec.name}: {found.problem}")
            shown["models"][spec.name] = {"source": found.source, "memory": found.plan.total}
        except GemletError as error:
            problems.append(f"models.{spec.name}: {error}")
            continue
        for alias, path in spec.adapters.items():
            try:
                open_adapter(find_adapter(path), found.config).close()
            except GemletError as error:
                problems.append(f"models.{spec.name}.adapters.{alias}: {error}")
    print(json.dumps({**shown, "problems": problems}, indent=2))
    sys.stdout.flush()
    return 1 if problems else 0
