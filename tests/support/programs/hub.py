"""Functions that files/test_hub.py runs in separate processes. huggingface_hub reads its settings only during
its import, so each test needs its own process."""

from __future__ import annotations

import contextlib
import io
import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
import gemlet.sources.hub_headers
from gemlet.cli import main
from gemlet.sources.hub import choose
from support.hub_server import COMMIT, TOKEN


def bars(name: str, progress: bool | None) -> str:
    """Downloads and loads the model ``name``. Returns the text on standard error, which has the progress
    bars."""
    calls: list[tuple[int, int]] = []
    with contextlib.redirect_stderr(io.StringIO()) as error:
        given: Any = progress if progress is not None else lambda done, total: calls.append((done, total))
        gemlet.load(name, threads=1, progress=given).close()
    assert bool(calls) is (progress is None)
    return error.getvalue()


def load_and_download(name: str) -> tuple[str, NDArray[np.float32]]:
    """The folder of the model ``name``, and its logits for three tokens."""
    with gemlet.load(name, threads=1) as model:
        assert model.generation_config.top_k == 7
        logits = model.logits([1, 2, 3])
        folder = model.source
    assert gemlet.download(name) == folder
    assert gemlet.download(name, revision=COMMIT) == folder
    gated = gemlet.download("someone/gated", token=TOKEN)
    assert sorted(os.listdir(gated)) == sorted(os.listdir(folder))
    return folder, logits


def download(names: Iterable[str]) -> list[str]:
    return [gemlet.download(name) for name in names]


def drafters(names: Iterable[str]) -> list[str | None]:
    """The file of each draft model, or None if gemlet finds none."""
    return [choose(name, None, None, as_drafter=True).file for name in names]


def load_error(name: str, revision: str | None = None, token: str | None = None) -> tuple[str, str]:
    """The name and the message of the error that load() raises."""
    with pytest.raises(gemlet.GemletError) as error:
        gemlet.load(name, threads=1, revision=revision, token=token)
    return type(error.value).__name__, str(error.value)


def load_errors(requests: Iterable[tuple[str, str | None, str | None]]) -> list[tuple[str, str]]:
    """The errors for each name, revision and token."""
    return [load_error(*request) for request in requests]


def inspect_all(requests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The descriptions of the models, without their source and the memory of this process."""
    described = []
    for name, arguments in requests.items():
        found = gemlet.inspect(name, weights="q4", max_context=8, **arguments).as_dict()
        assert found["source"] == name
        memory = found["memory"]
        del found["source"], found["problem"], memory["process"], memory["total"]
        described.append(found)
    return described


def download_and_inspect(name: str) -> list[dict[str, Any]]:
    gemlet.download(name)
    return inspect_all({name: {}})


def inspect_errors(names: Iterable[str], max_metadata_bytes: int) -> list[tuple[str, str]]:
    gemlet.sources.hub_headers._MAX_METADATA_BYTES = max_metadata_bytes
    errors, peaks = [], []
    for name in names:
        with pytest.raises(gemlet.GemletError) as error:
            gemlet.inspect(name)
        errors.append((type(error.value).__name__, str(error.value)))
        del error  # the error's frames keep the data alive that inspect() has read
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] < peaks[0] + 40_000, peaks
    return errors


def inspect_and_load(names: Iterable[str]) -> None:
    """Inspects and loads each model. Typed errors are allowed."""
    for name in names:
        for open_it in (gemlet.inspect, gemlet.load):
            with contextlib.suppress(gemlet.GemletError):
                open_it(name)


def load_with_and_without(there: str, missing: str) -> tuple[str, str]:
    """Loads ``there``, then returns the error for ``missing``."""
    gemlet.load(there, threads=1).close()
    return load_error(missing)


def run_commands(name: str, folder: Path) -> str:
    """Runs the commands that accept a model on the hub. Returns their output."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["download", name, "--revision", "main"]) == 0
        assert main(["download", "no/such-model"]) == 1
        assert main(["download", "some/tokenizers"]) == 0
        assert main(["inspect", "someone/private"]) == 1
        access = ["--revision", COMMIT, "--token", TOKEN]
        main(["inspect", "someone/private", "--max-context", "8", *access])
        for command in ("generate -- x", "chat", "embed x", "bench", "convert"):
            command, *rest = command.split()
            model = ["--model", "someone/private"]
            model = ["someone/private", str(folder)] if command == "convert" else model
            with contextlib.redirect_stderr(io.StringIO()) as said:
                assert main([command, *model, "--revision", "v9", "--token", TOKEN, *rest]) == 1
            assert "has no revision 'v9'" in said.getvalue(), said.getvalue()
    return printed.getvalue()


def load_adapters(base: str, ids: list[int], names: Iterable[str]) -> dict[str, Any]:
    """The logits with each adapter and with the first adapter merged. An error replaces logits."""
    found: dict[str, Any] = {}
    with gemlet.load(base, weights="f32", threads=1) as model:
        for number, name in enumerate(names):
            try:
                adapter = model.load_adapter(name, f"a{number}")
                found[name] = model.logits(ids, adapter=adapter.name)
            except gemlet.GemletError as error:
                found[name] = f"{type(error).__name__}: {error}"
        found["name"] = model.load_adapter(next(iter(names))).name
    with gemlet.load(base, weights="f32", threads=1, merge_adapter=next(iter(names))) as merged:
        found["merged"] = merged.logits(ids)
    return found
