"""Packs a model into a folder: :func:`convert`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile

from gemlet.base.files import checked_path
from gemlet.base.front_door import public
from gemlet.base.handlers import only_in, undisturbed
from gemlet.base.progress import Progress, reporting
from gemlet.base.sizes import parse_memory
from gemlet.base.strict_json import read_json_object
from gemlet.config.matformer import cut_keys
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, ModelFileError
from gemlet.loading.builder import make_builder
from gemlet.loading.calibration import Calibrate, check_calibrate, measure_inputs
from gemlet.loading.for_memory import options_for_memory
from gemlet.loading.load import load
from gemlet.loading.options import LoadOptions, Matformer
from gemlet.packing.blocks import stored_bytes
from gemlet.packing.write import write_packed
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.opening import open_model_files
from gemlet.sources.tokenizers import ASKED_OF_TEXTS
from gemlet.tokenizer.stored import STORED_FILE, write_stored

__all__ = ["convert"]


@public
def convert(
    source: str | os.PathLike[str] | None,
    destination: str | os.PathLike[str],
    *,
    weights: str = "auto",
    embedding: str | None = None,
    for_memory: int | str | None = None,
    matformer: Matformer = None,
    vision: bool = True,
    audio: bool = True,
    mmproj: str | os.PathLike[str] | bool | None = None,
    merge_adapter: str | os.PathLike[str] | None = None,
    calibrate: Calibrate = None,
    threads: int | None = None,
    progress: Progress = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> None:
    """Writes a model as a folder with packed weights. :func:`gemlet.load` opens such a folder in
    milliseconds, because the weights are mapped and not read. Processes that load the same folder share the
    memory of the weights.

    With ``matformer``, the folder contains the smaller model, such as an E2B out of an E4B, and its
    ``config.json``.

    The folder has ``model.safetensors`` with the packed weights, ``tokenizer.safetensors`` with the tokenizer
    as gemlet has it in memory, and ``config.json``, ``generation_config.json`` and ``chat_template.jinja``,
    copied or made from a GGUF file's metadata. If the conversion fails, no folder is made. The memory that a
    conversion needs does not grow with the model.

    A packed file has a version of the layout; a gemlet with another version refuses the file. While a model
    is loaded, you may remove its file, or rename another file over it. Never write into the file or cut it
    short.

    Args:
        source: a model as in :func:`gemlet.load` that is not packed yet.
        destination: the folder to make. If it exists, it must be empty.
        calibrate: with weights "q4" or "q5", uses statistics of the matrices' inputs for the rounding. They
            are measured on a text: pass the path of a file of about 8,000 tokens or more, or True for texts
            that the model generates. This takes some minutes, and as much memory as the model's files. It
            cannot be combined with ``merge_adapter``.
        for_memory: the memory of the machine for which the folder is made, such as "1GB". The weights get the
            format that loses least among those with which the model fits, with a text of 4096 tokens.
        weights, embedding, matformer, vision, audio, mmproj, merge_adapter, threads, progress, revision,
            token: as in :func:`gemlet.load`. An exception of ``progress`` cancels the conversion.

    Raises:
        InvalidRequestError: an argument is wrong, or the source is packed already.
        MemoryLimitError: no format is small enough for ``for_memory``.
        UnsupportedError: ``matformer`` for a model that is not a MatFormer, or whose weights are quantized.
        ModelFileError: the destination exists or cannot be written.
        GemletError: any other error that :func:`gemlet.load` raises for the source.

    >>> import tempfile, gemlet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gemlet.convert(None, f"{folder}/demo-q4", weights="q4")
    ...     with gemlet.load(f"{folder}/demo-q4", threads=1) as model:
    ...         model.weights
    'q4'
    """
    process = os.getpid()
    room = None if for_memory is None else parse_memory(for_memory, "for_memory")
    if room is not None and weights not in (None, "auto"):
        raise InvalidRequestError("for_memory chooses the format of the weights; give one of the two")
    options = LoadOptions(
        weights=weights,
        threads=threads,
        embedding=embedding,
        progress=progress,
        matformer=matformer,
        vision=vision,
        audio=audio,
        mmproj=mmproj,
    )
    check_calibrate(calibrate, options.weights, merge_adapter)
    path = checked_path("destination", destination, "the path of a folder to make")
    target = os.path.abspath(path)
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise ModelFileError(f"{path}: exists; expected a new folder. Remove it, or give another path")
    target = os.path.realpath(target)  # for a link to an empty folder, the folder is replaced
    if os.path.ismount(target):
        raise ModelFileError(f"{path}: is a mount point, which cannot be replaced; give a new folder in it")
    with open_model_files(
        source,
        revision=revision,
        token=token,
        merge_adapter=merge_adapter,
        mmproj=options.towers_file,
        progress=progress,
        as_drafter=None,
    ) as files:
        if files.packed is not None:
            raise InvalidRequestError(f"{files.name}: is packed already, as {files.packed.weights}")
        files = files.with_towers(vision=options.vision, audio=options.audio)
        whole = files.config
        if matformer is not None:
            files = files.cut(matformer)
        options = options.with_formats(files)
        calibration = None
        if calibrate:
            with load(
                source,
                weights="auto",
                threads=threads,
                prefix_cache=False,
                max_context=_calibrated_context(files),
                matformer=matformer,
                vision=False,
                audio=False,
                revision=revision,
                token=token,
                progress=progress,
            ) as model:
                calibration = measure_inputs(model, calibrate)
        if room is not None:
            options = options_for_memory(room, files.config, options)
        builder = make_builder(files.config, options, allocate=False)
        parent, name = os.path.split(target)
        own = None  # a temporary folder in which the destination is made
        try:
            with only_in(process, path):
                os.makedirs(parent, exist_ok=True)
                own = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent)
                made = os.path.join(own, name)
                os.mkdir(made)
            with reporting(progress, "converting", stored_bytes(files, table=True)) as advance:
                packed = f"{made}/model.safetensors"
                write_packed(
                    packed,
                    files,
                    builder,
                    advance,
                    weights=options.weights,
                    process=process,
                    calibration=calibration,
                )
            with only_in(process, path):
                _describe(made, files)
                if matformer is not None:
                    _rewrite_config(made, whole, matformer)
                os.rename(made, target)
        except OSError as problem:
            raise ModelFileError(f"{path}: cannot be written: {problem.strerror or problem}") from problem
        finally:
            with undisturbed():
                if own is not None and os.getpid() == process:
                    shutil.rmtree(own, ignore_errors=True)


def _calibrated_context(files: ModelFiles) -> int:
    return min(1024, files.config.max_position_embeddings)


def _describe(folder: str, files: ModelFiles) -> None:
    """Writes all files of the folder except the weights."""
    for file in files.config_files:
        copy = os.path.join(folder, os.path.relpath(file, files.checkpoint.folder))
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        shutil.copyfile(file, copy)
    for name, text in files.config_texts.items():
        with open(os.path.join(folder, name), "wb") as described:
            described.write(text.encode("utf-8", "replace"))
    # A packed folder has no other file with these options.
    asked = {key: value for key, value in files.not_followed.items() if key in ASKED_OF_TEXTS}
    if asked:
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as described:
            json.dump(asked, described, indent=2)
    if files.vocabulary is not None:
        write_stored(os.path.join(folder, STORED_FILE), files.vocabulary)


def _rewrite_config(folder: str, whole: TextConfig, matformer: object) -> None:
    """Changes the ``config.json`` of the ``whole`` model in ``folder`` into that of the smaller model."""
    path = os.path.join(folder, "config.json")
    keys = cut_keys(read_json_object(path, error=ModelFileError), whole, matformer)
    with open(path, "w", encoding="utf-8") as described:
        json.dump(keys, described, indent=2)
