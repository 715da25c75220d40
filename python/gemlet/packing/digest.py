"""What tells the weights of a model from all others, without reading them whole."""

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

_SAMPLES = 64  # samples spread over a file; they show that it was rewritten within one tick of the clock
_SAMPLE_BYTES = 4096


def model_digest(
    files: ModelFiles, builder: _core.ModelBuilder, *, weights: str, kernels: tuple[str, ...]
) -> bytes:
    """32 bytes that tell the model in ``files`` from all others, as it is computed by ``kernels``.

    Of each file they cover its size, the times of its last changes and samples of its content.
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
    """A hash of what the packed form depends on."""
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
    """For a record: what it holds. (It can show itself, but something would be compiled for that.)"""
    if not hasattr(value, "__record__"):
        return value
    return type(value).__name__, {name: _values(own) for name, own in vars(value).items()}


def add_files(digest: hashlib._Hash, sampled: Iterable[tuple[TensorFiles, str]]) -> None:
    """Adds size, times and samples of each file."""
    for checkpoint, file in sampled:
        descriptor = checkpoint.files.descriptor(file)
        status = os.fstat(descriptor)
        digest.update(repr((file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
        for sample in range(_SAMPLES):
            at = max(0, status.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, at))
