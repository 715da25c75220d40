"""What the programs beside this file have gemlet do: each work is a function that does it once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import gemlet
from gemlet import _core
from support.core_models import model_config, random_core

LONG = [2, *random.Random(0).choices(range(300, 4000), k=900)]  # of the demo model's 1,024
TEXT = "The door opened, and an old man came in. " * 20

model = gemlet.load(threads=2, weights="q8")
embedding_model = random_core(model_config(bidirectional=True, max_context=2000, embedding_scale=1.0))
_numbers = itertools.count()
_folder = Path(tempfile.mkdtemp(), str(os.getpid()))


def generate() -> None:
    model.generate([2, 500], max_tokens=200, ignore_eos=True)


def stream() -> None:
    for _ in model.stream("The door", max_tokens=200, ignore_eos=True):
        pass


def chat() -> None:
    model.chat([{"role": "user", "content": "Who is there?"}], max_tokens=20)


def prefill() -> None:
    model.generate(LONG, max_tokens=1)


def logits() -> None:
    model.logits(LONG)


def embed() -> None:
    embedding_model.embed([[5] * 1500])


def encode() -> None:
    assert model.tokenizer is not None
    model.tokenizer.encode(TEXT)


def error() -> None:
    with contextlib.suppress(gemlet.InvalidRequestError):
        _core.TokenSequence(model._core_model).extend([-1])


def load() -> None:
    gemlet.load(weights="f32", threads=2).close()


def drop() -> None:
    gemlet.load(weights="q8", threads=1)


def convert() -> None:
    gemlet.convert(None, f"{_folder}-{next(_numbers)}", weights="q8")


def fill() -> None:
    random_core(model_config(vocab_size=50_000))


def measure() -> None:
    _core.measure_read_bandwidth(threads=1, megabytes=8)


WORKS: dict[str, Callable[[], None]] = {
    work.__name__: work
    for work in (
        generate,
        stream,
        chat,
        prefill,
        logits,
        embed,
        encode,
        error,
        load,
        drop,
        convert,
        fill,
        measure,
    )
}
