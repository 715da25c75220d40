"""Adds the towers in an ``mmproj`` file of llama.cpp to a GGUF model: :func:`add_towers`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.late import log
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.checkpoint.gguf_files import GGUFCheckpoint, is_mmproj, mmproj_among
from gemlet.checkpoint.gguf_format import GGUFFile, read_gguf
from gemlet.config.hf_config import parse_config
from gemlet.config.image_settings import parse_image_settings
from gemlet.config.sound_settings import parse_sound_settings
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.errors import ConfigError, ModelFileError, TensorError
from gemlet.sources.mmproj_keys import mmproj_problem, preprocessor_keys, projector_types, read_mmproj_keys
from gemlet.weights.cuts import Cut
from gemlet.weights.mmproj_names import map_mmproj_tensors

__all__ = ["Towers", "add_towers"]


@record(frozen=True)
class Towers:
    """The towers that an mmproj file adds to a text model.

    Attributes:
        config: the configuration of the model with its towers.
        slots: tensor of a tower -> slot, as in ModelFiles.
        cuts: tensor of a tower -> cut, as in ModelFiles.
        texts: name -> content of the files that describe the towers in a Hugging Face folder.
        left_out: for each tower that was left out, the reason as text.
    """

    config: TextConfig
    slots: Mapping[str, str]
    cuts: Mapping[str, Cut]
    texts: Mapping[str, str]
    left_out: tuple[str, ...]


def add_towers(
    checkpoint: GGUFCheckpoint, text: Mapping[str, Any], mmproj: str | bool | None
) -> Towers | None:
    """Opens the mmproj file of the model in ``checkpoint``, and adds its tensors to the checkpoint. ``text``
    has the keys of the text model. Returns None if there is no mmproj file.

    If a file that was found beside the model lacks tensors of a tower, the tower is left out. A file that
    ``mmproj`` names has to be complete.

    Raises ``ModelFileError``, ``ConfigError`` or ``TensorError`` if the file is damaged, or if ``mmproj``
    names a file for another model.
    """
    own = checkpoint.gguf
    path = _find(own, text["hidden_size"]) if mmproj is None else mmproj
    if not path or not isinstance(path, str):
        return None
    named = mmproj is not None
    try:
        if named and (problem := mmproj_problem(read_gguf(path), own, text["hidden_size"])):
            raise ConfigError(
                f"mmproj: {path} does not belong to {own.path}: {problem}; give the file of this model"
            )
        gguf = checkpoint.add(path)
        shapes = {name: info.shape for name, info in gguf.tensors.items()}
        keys = read_mmproj_keys(gguf, shapes, text, own)
        types = projector_types(gguf)
        config = parse_config(keys, where=f"{path} (metadata)")
        config = without_towers(config, vision="vision" in types, audio="audio" in types)
        if "audio" in types and config.audio is None:
            heads, width = (
                gguf.metadata.get(f"clip.audio.{key}") for key in ("attention.head_count", "embedding_length")
            )
            raise ConfigError(
                f"{path}: clip.audio.embedding_length is {show(width)}; expected a multiple of the "
                f"{show(heads)} heads"
            )
        prepared = preprocessor_keys(gguf)
        config = _with_settings(config, Keys(prepared, f"{path} (metadata)", ""))
        slots, cuts, config, left_out = map_mmproj_tensors(shapes, config, where=path, whole=named)
        for tensor in slots:
            checkpoint.dtype(tensor)
    except (ModelFileError, ConfigError, TensorError) as problem:
        if named:
            raise
        raise type(problem)(
            f"{problem} (the file is beside the model; mmproj=False loads the model without it)"
        ) from None
    if left_out:
        log.warning("%s: %s is left out", path, " and ".join(left_out))
    texts = {"config.json": json.dumps(keys, indent=2), "preprocessor_config.json": json.dumps(prepared)}
    return Towers(config, slots, cuts, texts, left_out)


def _with_settings(config: TextConfig, prepared: Keys) -> TextConfig:
    """Returns ``config`` with the settings in ``prepared`` for preparing images and sounds."""
    if config.vision is not None:
        images = parse_image_settings(prepared, config.vision.settings)
        config = replace(config, vision=replace(config.vision, settings=images))
    if config.audio is not None and config.audio.settings is not None:
        sounds = parse_sound_settings(prepared, config.audio.settings)
        config = replace(config, audio=replace(config.audio, settings=sounds))
    return config


def _find(own: GGUFFile, hidden_size: int) -> str | None:
    """The path of the mmproj file beside the model ``own``; None if no mmproj file there fits the model."""
    if any(name.startswith(("v.", "a.", "mm.")) for name in own.tensors):
        return None  # some tools write the towers into the model's file
    folder, name = os.path.split(own.path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return None
    fitting = []
    for file in sorted(names):
        if is_mmproj(file):
            path = os.path.join(folder, file)
            if problem := mmproj_problem(_read_beside(path), own, hidden_size):
                log.info("%s is not used for %s: %s", path, own.path, problem)
            else:
                fitting.append(file)
    chosen = mmproj_among(name, fitting)
    return None if chosen is None else os.path.join(folder, chosen)


def _read_beside(path: str) -> GGUFFile:
    try:
        return read_gguf(path)
    except ModelFileError as problem:
        raise ModelFileError(
            f"{problem} (the file is beside the model; mmproj=False loads the model without it)"
        ) from None
