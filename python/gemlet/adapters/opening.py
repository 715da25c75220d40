"""Opens an adapter of any supported tool: :func:`open_adapter`."""

from __future__ import annotations

import os

from gemlet.adapters.adapter import AdapterFiles
from gemlet.adapters.gguf import GGUFAdapter
from gemlet.adapters.mlx import MLX_FILE, map_mlx, read_mlx_config
from gemlet.adapters.peft import map_peft
from gemlet.adapters.peft_config import CONFIG_FILE, read_adapter_config
from gemlet.base.files import check_links, checked_path
from gemlet.base.late import log
from gemlet.base.strict_json import read_json_object
from gemlet.checkpoint.gguf_files import gguf_models
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError, ModelFileError

__all__ = ["ADAPTER_FILES", "open_adapter"]

PEFT_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, PEFT_FILE, MLX_FILE)  # the files that are read in an adapter's folder
_EXPECTED = (
    f"expected a folder with {CONFIG_FILE} and {PEFT_FILE} (of PEFT) or {MLX_FILE} (of mlx-lm), or a GGUF "
    "adapter"
)
# Files of weights that gemlet does not read, and what to do about them.
_OTHERS = {
    "adapter_model.bin": "must be saved again as safetensors",
    "adapters.npz": "was made by an old mlx-lm; a newer mlx-lm writes adapters.safetensors",
}


def open_adapter(path: str | os.PathLike[str], config: TextConfig) -> AdapterFiles:
    """Opens the adapter in the folder or GGUF file ``path``. The adapter is one of PEFT (LoRA and DoRA),
    mlx-lm or llama.cpp. Everything but the values is checked against the model.

    Every tensor has to be used, with two exceptions. If gemlet cannot change a module of a tower, or the
    model does not have the tower, the tensors of the module are only logged. In layers that read another
    layer's keys and values, ``k_proj`` and ``v_proj`` are ignored.

    Raises:
        InvalidRequestError: ``path`` is not a path.
        ModelFileError: the folder or one of its files is missing, cut short or inconsistent.
        ConfigError: gemlet does not support a key in the adapter's configuration. The message names the key.
        TensorError: a tensor is missing, unexpected or does not fit the model. The message names the tensor.
    """
    source = checked_path("adapter", path, _EXPECTED.removeprefix("expected "))
    if not os.path.lexists(source):
        raise ModelFileError(f"{source}: no such folder or file; {_EXPECTED}")
    opened = _open(source, config)
    never = opened.terms.never_changed
    merged_only = tuple(name for name in opened.terms.passed_over if name not in never)
    for names, how in ((never, "does not change"), (merged_only, "changes in a merged model only")):
        if names:
            log.warning(
                "%s: the adapter also changes modules for images or sound that gemlet %s (%d, the first is "
                "%s)",
                source,
                how,
                len(names),
                names[0],
            )
    return opened


def _open(source: str, config: TextConfig) -> AdapterFiles:
    if not os.path.isdir(source):
        if source.lower().endswith(".gguf"):
            return _open_gguf(source, config)
        raise ModelFileError(f"{source}: is not a folder; {_EXPECTED}")
    check_links(source)
    names = os.listdir(source)
    if CONFIG_FILE not in names:
        models = gguf_models(names)
        if len(models) == 1:
            return _open_gguf(os.path.join(source, models[0]), config)
        raise ModelFileError(f"{os.path.join(source, CONFIG_FILE)}: missing; {_EXPECTED}")
    if MLX_FILE in names and PEFT_FILE not in names:
        return _open_mlx(source, config)
    described = read_adapter_config(source)
    if PEFT_FILE not in names:
        other = next((f"; {name} {why}" for name, why in _OTHERS.items() if name in names), "")
        raise ModelFileError(f"{source}: has no {PEFT_FILE}{other}")
    checkpoint = Checkpoint(source, file=PEFT_FILE)
    try:
        return AdapterFiles(
            source, described.base_model, checkpoint, map_peft(checkpoint, PEFT_FILE, described, config)
        )
    except BaseException:
        checkpoint.close()
        raise


def _open_mlx(source: str, config: TextConfig) -> AdapterFiles:
    path = os.path.join(source, CONFIG_FILE)
    described = read_mlx_config(read_json_object(path, error=ConfigError), path)
    checkpoint = Checkpoint(source, file=MLX_FILE)
    try:
        return AdapterFiles(source, described.base_model, checkpoint, map_mlx(checkpoint, described, config))
    except BaseException:
        checkpoint.close()
        raise


def _open_gguf(path: str, config: TextConfig) -> AdapterFiles:
    checkpoint = GGUFAdapter(path)
    try:
        return AdapterFiles(path, checkpoint.base_model, checkpoint, checkpoint.terms(config))
    except BaseException:
        checkpoint.close()
        raise
