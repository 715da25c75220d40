"""Functions that loading/test_packed.py and test_packed_mapped.py run in separate processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from support.pace import slowness
from support.processes import peak


def convert_and_interrupt(source: Path, packed: Path) -> None:
    """Simulates Ctrl-C at the first step of convert(). The exception must reach the caller, and no file may
    stay open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        gemlet.convert(
            source,
            packed,
            threads=2,
            progress=lambda done, total: os.kill(os.getpid(), signal.SIGINT),
        )
    assert len(os.listdir("/proc/self/fd")) == before


def memory() -> tuple[float, float]:
    """The anonymous memory and the memory of mapped files that this process uses, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["RssAnon"].split()[0]) / 1024, int(found["RssFile"].split()[0]) / 1024


def map_a_file(folder: Path, size: int) -> None:
    gemlet.load(threads=1).close()
    anonymous, file = memory()
    model = gemlet.load(folder, threads=1)
    model.logits([2, 5])  # reads the whole embedding, because it is also the output matrix
    after_anonymous, after_file = memory()
    assert after_file - file > size * 0.95, (file, after_file)
    assert after_anonymous - anonymous < 5, (anonymous, after_anonymous)
    model.close()
    assert memory()[1] < file + 5


def use_an_embedding(folder: Path, on_disk: bool) -> tuple[float, float, Sequence[int], NDArray[np.float32]]:
    """The growth of the peak memory in MiB, the reported size of the embedding in MiB, generated tokens, and
    logits."""
    gemlet.load(threads=1).generate("The", max_tokens=2)
    before = peak()
    with gemlet.load(folder, threads=2, embedding_on_disk=on_disk) as model:
        ids = [2] + [i * 5003 % 131072 for i in range(400)]
        tokens = model.generate(ids, max_tokens=5, temperature=0, stop=[]).token_ids
        taken, said = peak() - before, model.memory()["embedding"] / 2**20
        return taken, said, tokens, model.logits(ids[:20])


def peak_before() -> float:
    """The peak memory in MiB after the imports of the modules that every process needs."""
    gemlet.load(threads=1, weights="q4").generate("The", max_tokens=2)
    return peak()


def load_over_its_size(folder: Path) -> float:
    """Loads a model. Returns by how many MiB the peak memory exceeds the size of the weights."""
    before = peak_before()
    with gemlet.load(folder, weights="q4", threads=2) as model:
        return peak() - before - sum(model.memory()[key] for key in ("weights", "embedding")) / 2**20


def load_and_generate(folder: Path) -> float:
    """Loads a model and generates a short text. Returns the peak memory in MiB."""
    before = peak_before()
    with gemlet.load(folder, weights="q4", threads=2) as model:
        model.generate([2, 10, 20], max_tokens=4, temperature=0)
        return peak() - before


def convert(source: Path, packed: Path) -> float:
    """Converts a model. Returns the peak memory in MiB."""
    before = peak_before()
    gemlet.convert(source, packed, weights="q4")
    return peak() - before


def convert_and_cache(source: Path, packed: Path) -> None:
    """Packs ``source`` with its tokenizer into ``packed``. Then it packs ``source`` without the tokenizer
    into the cache."""
    gemlet.convert(source, packed, weights="q4")
    (source / "tokenizer.json").unlink()
    gemlet.load(source, weights="q4", cache=True).close()


def cost_of_loading(folder: Path, cache: bool) -> tuple[float, float]:
    """The processor time of load() without imports, in seconds of the reference machine of support/pace.py,
    and the MiB of files that load() reads into memory."""
    gemlet.load().generate("x", max_tokens=1)
    read, before = bytes_read(), time.process_time()
    model = gemlet.load(folder, weights="q4", max_context=4096, cache=cache)
    seconds, copied = time.process_time() - before, (bytes_read() - read) / 2**20
    seconds /= slowness()
    if not cache:
        assert model.tokenizer is not None
        assert model.tokenizer.vocab_size == 262144
    assert len(model.generate([2, 20, 30], max_tokens=2, temperature=0).token_ids) > 0
    return seconds, copied


def bytes_read() -> int:
    """The bytes that this process has read from files so far, without mapped files."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.readline().split()[1])


def truncate_in_use(folder: Path, other: Path) -> None:
    """Loads the model in ``folder``. While the model is in use, it replaces the file in ``folder`` by the
    file in ``other``, and then truncates the new file."""

    def load() -> Any:
        return gemlet.load(folder, threads=1)

    first = load()
    expected = first.logits([1, 2, 3])
    os.replace(other / "model.safetensors", folder / "model.safetensors")
    assert (first.logits([1, 2, 3]) == expected).all()
    second = load()
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(gemlet.ModelFileError, match="was cut short while it was in use"):
        second.logits([1, 2, 3])
    assert (first.logits([1, 2, 3]) == expected).all()
    with pytest.raises(gemlet.ModelFileError, match="cut short"):
        load()
