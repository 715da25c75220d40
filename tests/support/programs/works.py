"""The kinds of work that exits.py, forks.py and handlers.py repeat and interrupt."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile

import gemlet
from gemlet import _core
from gemlet.base.cache_entries import cache_folder
from gemlet.generation import TextStream
from support.core_models import int32, model_config, random_core
from support.inside import context_of

# How often a test interrupts or forks. The moments are random, so more rounds can find more faults.
ROUNDS = int(os.environ.get("GEMLET_ROUNDS", "2"))

TEXT = "The door opened, and an old man came in. " * 20
LONG = [2, *random.Random(0).choices(range(300, 4000), k=900)]  # 900 random token ids

WORKS = (
    "generate",
    "stream",
    "chat",
    "prefill",
    "logits",
    "embed",
    "encode",
    "error",
    "load",
    "drop",
    "convert",
    "fill",
    "measure",
)


class Works:
    """Each method of ``WORKS`` does one kind of work once."""

    def __init__(self) -> None:
        self.embedding_model = random_core(model_config(bidirectional=True, max_context=2000))
        self.model = gemlet.load(threads=2, weights="q8")
        self.streams: list[TextStream] = []  # the streams that the method stream() is reading

    def generate(self) -> None:
        self.model.generate([2, 500], max_tokens=200, ignore_eos=True)

    def stream(self) -> None:
        """Reads a stream. In each case, the result must have all text that the stream gave before its end."""
        stream = self.model.stream(LONG[:100], max_tokens=60, ignore_eos=True)
        self.streams.append(stream)
        texts = []
        try:
            for chunk in stream:
                texts.append(chunk.text)
        finally:
            # If a signal handler raised an exception between two steps, the stream has not ended yet.
            stream.close()
            self.streams.remove(stream)
            result = stream.result
            assert result.finish_reason in ("length", "cancelled")
            assert len("".join(texts)) <= len(result.text)

    def chat(self) -> None:
        self.model.chat([{"role": "user", "content": "Who is there?"}], max_tokens=20)

    def prefill(self) -> None:
        self.model.generate(LONG, max_tokens=1)

    def logits(self) -> None:
        self.model.logits(LONG)

    def embed(self) -> None:
        self.embedding_model.embed([[5] * 1500])

    def encode(self) -> None:
        assert self.model.tokenizer is not None
        self.model.tokenizer.encode(TEXT)

    def error(self) -> None:
        with contextlib.suppress(gemlet.InvalidRequestError):
            context_of(self.model).extend(int32(-1))

    def load(self) -> None:
        gemlet.load(weights="f32", threads=2).close()

    def drop(self) -> None:
        gemlet.load(weights="q8", threads=1)

    def convert(self) -> None:
        folder = tempfile.mkdtemp()  # the test sets TMPDIR to its own folder
        gemlet.convert(None, f"{folder}/{os.getpid()}", weights="q8")

    def cache(self) -> None:
        # The test sets XDG_CACHE_HOME to its own folder.
        shutil.rmtree(cache_folder(), ignore_errors=True)
        gemlet.load(weights="q8", threads=2, cache=True).close()

    def fill(self) -> None:
        random_core(model_config(vocab_size=50_000))

    def measure(self) -> None:
        _core.measure_read_bandwidth(threads=1, megabytes=8)
