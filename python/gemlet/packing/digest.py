"""Computes hashes that identify the weights of a model, without reading the whole files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gemlet.base.late import hashlib
from gemlet.base.records import replace
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.sources.model_files import ModelFiles
from gemlet.weights.packed_file import FORMAT_VERSION

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["add_files", "digest_of_source", "model_digest"]

# Samples of a file's content. They show a change that happened within one tick of the file system's clock.
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def model_digest(
    files: ModelFiles, builder: _core.ModelBuilder, *, weights: str, kernels: tuple[str, ...]
) -> bytes:
    """A hash (32 bytes) that identifies the model in ``files`` and the ``kernels`` that compute it.

    It covers the size of each file, the times of the last changes, and samples of the content.
    """
    digest = digest_of_source(files, builder, weights)
    digest.update(repr(kernels).encode())
    if files.packed is not None:
        checkpoint = files.checkpoint
        add_files(
            digest, [(checkpoint, name) for name in sorted({i.file for i in checkpoint.tensors.values()})]
        )
    return digest.digest()


def digest_of_source(files: ModelFiles, builder: _core.ModelBuilder, weights: str) -> hashlib._Hash:
    """A hash of everything on which the packed weights depend."""
    from gemlet import _core

    checkpoint = files.checkpoint
    digest = hashlib.sha256()
    versions = (FORMAT_VERSION, _core.LAYOUT_VERSION, _core.__version__)
    config = _values(replace(files.config, passed_over=()))
    digest.update(repr((versions, weights, config, sorted(builder.packed_sizes().items()))).encode())
    slots = sorted(files.slots.items())
    infos = [checkpoint.tensors[name] for name, _ in slots]
    cuts = [(name, _values(cut)) for name, cut in sorted(files.cuts.items())]
    digest.update(repr((slots, [_values(info) for info in infos], cuts)).encode())
    sampled = [(checkpoint, file) for file in sorted({info.file for info in infos})]
    if files.adapter is not None:
        digest.update(repr(sorted(files.merged.items())).encode())
        digest.update(repr(files.adapter.terms).encode())
        tensors = files.adapter.checkpoint
        sampled += [(tensors, file) for file in sorted({info.file for info in tensors.tensors.values()})]
    add_files(digest, sampled)
    return digest


def _values(value: object) -> object:
    """The type of a record, and the values of its fields. ``repr`` has the same information, but the first
    call would compile code (:mod:`gemlet.base.records`)."""
    if not hasattr(value, "__record__"):
        return value
    return type(value).__name__, {name: _values(own) for name, own in vars(value).items()}


def add_files(digest: hashlib._Hash, sampled: Iterable[tuple[TensorFiles, str]]) -> None:
    """Adds the size, the times and samples of each file to ``digest``."""
    for checkpoint, file in sampled:
        descriptor = checkpoint.files.descriptor(file)
        status = os.fstat(descriptor)
        digest.update(repr((file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
        for sample in range(_SAMPLES):
            at = max(0, status.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, at))
