"""Reads adapters of mlx-lm: ``adapter_config.json`` and ``adapters.safetensors``.

A module has the tensors ``lora_a [cols, rank]`` and ``lora_b [rank, rows]``, which are the transposes of
PEFT's, and with DoRA also ``m [rows]``. The file has the scale itself instead of alpha. Only the names of the
tensors say which modules are changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gemlet.adapters.terms import EXPERTS, TABLES, LowRank, Terms, kind_of, target_slots
from gemlet.base.keys import Keys
from gemlet.base.text import show
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError, TensorError
from gemlet.weights.hf_names import is_tower, split_prefix, tensor_name
from gemlet.weights.slots import expected_slots

__all__ = ["MLX_FILE", "MlxConfig", "map_mlx", "read_mlx_config"]

MLX_FILE = "adapters.safetensors"
_MAX_RANK = 1 << 16
_PARTS = ("lora_a", "lora_b", "m")


class MlxConfig(NamedTuple):
    """The facts in the ``adapter_config.json`` of mlx-lm that gemlet needs; the other keys are about
    training."""

    where: str
    base_model: str
    rank: int
    scale: float
    dora: bool


def read_mlx_config(raw: Mapping[str, Any], where: str) -> MlxConfig:
    """Checks the keys that matter. Raises :class:`ConfigError`, which names the key.

    >>> parameters = {"rank": 8, "scale": 20.0, "dropout": 0.0}
    >>> read_mlx_config({"lora_parameters": parameters}, "adapter_config.json").scale
    20.0
    """
    keys = Keys(raw, where, "", {"fine_tune_type": "lora", "use_dora": False, "model": None})
    kind = keys.get("fine_tune_type")
    if kind not in ("lora", "dora", None):
        raise keys.wrong(
            "fine_tune_type", "'lora' or 'dora'; fuse other kinds with mlx_lm.fuse and load the result"
        )
    parameters = Keys(keys.mapping("lora_parameters"), where, "lora_parameters.")
    if parameters.raw.get("alpha") is not None:
        raise parameters.wrong(
            "alpha",
            "only scale, because alpha has different meanings in versions of mlx-lm. Fuse the adapter with "
            "mlx_lm.fuse of the version that made it, and load the result",
        )
    parameters.refuse_unknown(frozenset({"dropout", "keys", "rank", "scale"}), {})
    base_model = keys.get("model")
    return MlxConfig(
        where=where,
        base_model=base_model if isinstance(base_model, str) else "",
        rank=parameters.integer("rank", _MAX_RANK),
        scale=parameters.number("scale", -1e6, 1e6),
        dora=kind == "dora" or (keys.get("use_dora") is not None and keys.flag("use_dora")),
    )


def map_mlx(checkpoint: Checkpoint, described: MlxConfig, config: TextConfig) -> Terms:
    """Returns the changes of the adapter. Raises :class:`TensorError` for a tensor that is missing,
    unexpected or does not fit the model."""
    where = checkpoint.path(MLX_FILE)
    found: dict[str, dict[str, str]] = {}
    towers: set[str] = set()
    slots: dict[str, str] = {}
    for tensor, info in checkpoint.tensors.items():
        checkpoint.dtype(tensor)  # raises for a type that cannot be read
        module, _, part = tensor.rpartition(".")
        prefix = split_prefix(module)[0]
        if not slots and not is_tower(module, config.family):
            names = {
                slot: tensor_name(slot, config.family, prefix, prefix)
                for slot in target_slots(config)
                if kind_of(slot) not in EXPERTS
            }
            slots = {name.removesuffix(".weight"): slot for slot, name in names.items()}
        if is_tower(module, config.family):
            towers.add(module)
        elif module in slots and part in _PARTS:
            found.setdefault(slots[module], {})[part] = tensor
        else:
            raise TensorError(
                f"{where}: unexpected tensor {show(tensor)} of shape {list(info.shape)}; gemlet reads "
                f"lora_a, lora_b and m of linear modules of this {config.family} model of "
                f"{config.num_layers} layers"
            )
    if not found:
        raise TensorError(f"{where}: has no tensors for the layers of a text model")
    terms = {slot: _term(checkpoint, where, slot, parts, described, config) for slot, parts in found.items()}
    if (table := terms.get("embed_tokens")) and config.tie_word_embeddings and not config.bidirectional:
        # In mlx-lm, a tied output head uses the table with the table's adapter.
        terms["lm_head"] = LowRank(table.b, table.a, table.rank, table.scale)
    passed_over = tuple(sorted(towers))
    return Terms(terms, {}, passed_over, never_changed=passed_over)


def _term(
    checkpoint: Checkpoint,
    where: str,
    slot: str,
    found: Mapping[str, str],
    described: MlxConfig,
    config: TextConfig,
) -> LowRank:
    shapes = expected_slots(config)
    rows, cols = shapes[slot if slot in shapes else "embed_tokens"]
    if slot in TABLES:
        rows, cols = cols, rows
        if described.dora:  # mlx-lm's DoRA scales the rows of a table, and PEFT's DoRA the columns
            raise ConfigError(
                f"{described.where}: has DoRA for {slot}, which gemlet computes differently from mlx-lm. "
                "Fuse the adapter with mlx_lm.fuse and load the result"
            )
    expected: dict[str, tuple[int, ...]] = {
        "lora_a": (cols, described.rank),
        "lora_b": (described.rank, rows),
    }
    if described.dora:
        expected["m"] = (rows,)
    for part in found.keys() - expected.keys():
        raise TensorError(f"{where}: unexpected tensor {show(found[part])}: the adapter is LoRA, not DoRA")
    for part, shape in expected.items():
        if part not in found:
            name = next(iter(found.values())).rpartition(".")[0]
            raise TensorError(f"{where}: tensor {show(f'{name}.{part}')} is missing")
        got = checkpoint.tensors[found[part]].shape
        if got != shape:
            made_for = (
                f"; the adapter was made for {show(described.base_model)}" if described.base_model else ""
            )
            raise TensorError(
                f"{where}: tensor {show(found[part])} has shape {list(got)}; expected {list(shape)}: rank "
                f"{described.rank}, on a matrix of {rows} x {cols} in this model{made_for}"
            )
    magnitude = found.get("m", "")
    return LowRank(
        found["lora_a"], found["lora_b"], described.rank, described.scale, magnitude, transposed=True
    )
