"""Describes the changes that an adapter makes to a model's weights: :class:`Terms`. Weights are named by
slots."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from gemlet.config.families import FAMILIES
from gemlet.config.text_config import TextConfig
from gemlet.weights.slots import PER_LAYER_TABLE, expected_slots
from gemlet.weights.tower_slots import in_tower, is_transposed, tower_names, tower_slots
from gemlet.weights.tower_slots import kind_of as tower_kind_of

__all__ = [
    "BY_ROW",
    "COEFFICIENTS",
    "ENDS",
    "EXPERTS",
    "TABLES",
    "TARGETS",
    "LowRank",
    "OwnRows",
    "Terms",
    "is_norm",
    "kind_of",
    "own_slots",
    "target_slots",
    "tower_matrices",
]

# The linear modules of a layer, by their slots.
_LAYER = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "router_proj"),
    *("per_layer_input_gate", "per_layer_projection", "altup_router"),
    *("altup_prediction_coefs", "altup_correction_coefs", "laurel_left", "laurel_right"),
)
# The matrices of routed experts, stacked.
EXPERTS = ("experts_gate_up", "experts_down")
ENDS = ("embed_tokens", "lm_head")
TABLES = ("embed_tokens", PER_LAYER_TABLE)  # a low-rank term is added to the transpose of these tables
BY_ROW = (*ENDS, PER_LAYER_TABLE)  # in these weights, an adapter may replace the rows of some tokens only
_OUTSIDE = ("per_layer_model_projection", "altup_projections", "altup_unembed_projections")
# The last layer of EmbeddingGemma 2. In other embedding models, transformers does not count dense layers as
# the model.
_PROJECTION = "dense"
TARGETS = (*_LAYER, *EXPERTS, *_OUTSIDE, _PROJECTION, *ENDS, PER_LAYER_TABLE)
# For these targets, the core keeps the whole changed matrix in f32.
COEFFICIENTS = ("altup_prediction_coefs", "altup_correction_coefs")


class LowRank(NamedTuple):
    """A low-rank term, the product ``scale * B A``, which is added to a weight.

    ``a``, ``b``, ``magnitude`` and ``bias`` are names of tensors in the adapter's file. ``transposed`` says
    whether the file has the transposes of A and B. With ``magnitude`` (DoRA), every row of the sum is scaled
    to the length that the tensor has for it; in a table, every column is. ``scale * bias`` is added to the
    output of the changed matrix. For a stack of ``experts`` matrices, A is [experts * rank, cols] and B is
    [rows, rank * experts]; neighbouring columns of B belong to different experts. ``initial`` names the
    method that subtracts a part of the weight first (:mod:`gemlet.adapters.initial`).
    """

    a: str
    b: str
    rank: int
    scale: float
    magnitude: str = ""
    transposed: bool = False
    bias: str = ""
    experts: int = 0
    initial: str = ""

    @property
    def whole_rank(self) -> int:
        """The rank of the whole change, including the subtracted part (``initial``) and a bias."""
        return self.rank * (2 if self.initial else 1) + bool(self.bias)


class OwnRows(NamedTuple):
    """The tensor ``tensor`` in the adapter's file, which replaces a weight. Without ``ids``, it replaces the
    whole weight. In the weights ``BY_ROW``, it may replace only the rows of the tokens ``ids``, in the order
    of the tensor's rows. ``offset`` is added to the weight of a norm: some model files store norms with 1
    added, and adapters do not."""

    tensor: str
    ids: tuple[int, ...] = ()
    offset: float = 0.0


class Terms(NamedTuple):
    """All changes that an adapter makes.

    Attributes:
        low_rank: slot -> the term that is added to the weight, or to the transpose of a table.
        own_rows: slot -> the tensor that replaces the weight, or some of its rows, before the term is added.
        passed_over: modules of towers in the adapter's file that gemlet changes only by merging, or not at
            all.
        merged_only: slot -> the tensor that replaces the weight if the adapter is merged into the model. The
            modules of these weights are in ``passed_over``.
        never_changed: the modules in ``passed_over`` that merging does not change either.
    """

    low_rank: Mapping[str, LowRank]
    own_rows: Mapping[str, OwnRows]
    passed_over: tuple[str, ...] = ()
    merged_only: Mapping[str, OwnRows] = MappingProxyType({})
    never_changed: tuple[str, ...] = ()


def target_slots(config: TextConfig) -> list[str]:
    """The slots to which an adapter can add a low-rank term: all linear modules of a text model, its routed
    experts, its tables and its output head. The head has its own slot here, even if it is tied to the table.

    >>> from gemlet.config import shape_config
    >>> target_slots(shape_config("gemma3-1b"))[:3]
    ['embed_tokens', 'lm_head', 'layers.0.q_proj']
    """
    targets = set(TARGETS) - (set() if config.projects_itself else {_PROJECTION})
    found = [slot for slot in expected_slots(config) if kind_of(slot) in targets]
    ends = ["embed_tokens"] if config.bidirectional else list(ENDS)
    return ends + [slot for slot in found if slot not in ends]


def own_slots(config: TextConfig) -> dict[str, float]:
    """slot -> offset (:class:`OwnRows`), for the weights that an adapter may replace. These are the weights
    of all modules of a text model, except for the embedding table and the output head."""
    own = {family.norm_offset for family in FAMILIES.values() if family.name == config.family}
    offset = max(own) - config.norm_offset  # GGUF files have the offset added already
    others = (*ENDS, *(() if config.projects_itself else (_PROJECTION,)))
    slots = [slot for slot in expected_slots(config) if kind_of(slot) not in others]
    return {slot: offset if is_norm(slot) else 0.0 for slot in slots}


def is_norm(slot: str) -> bool:
    """Whether the weight is that of a norm.

    >>> is_norm("layers.3.q_norm"), is_norm("layers.3.q_proj")
    (True, False)
    """
    return slot.endswith("_norm")


def tower_matrices(config: TextConfig) -> dict[str, tuple[str, int, int]]:
    """plain name of a module -> (slot, rows, columns), for the linear modules and convolutions of a model's
    towers that an adapter can change. Depthwise convolutions are left out.

    >>> from gemlet.config import read_config
    >>> config = read_config("tests/golden/vision/gemma3")  # in a checkout
    >>> tower_matrices(config)["vision_tower.encoder.layers.1.mlp.fc1"]
    ('vision.layers.1.fc1', 52, 36)
    """
    slots = tower_slots(config)
    found = {}
    for slot, name in tower_names(slots, config.family).items():
        shape = slots[slot]
        matrix = tower_kind_of(slot, shape) in ("matrix", "exact") and not is_transposed(slot, config.family)
        if matrix and name.endswith(".weight"):
            found[name.removesuffix(".weight")] = (slot, shape[0], prod(shape[1:]))
    return found


def kind_of(slot: str) -> str:
    """The kind of a weight, without the number of its layer or stream.

    >>> kind_of("layers.3.q_proj"), kind_of("altup_projections.0"), kind_of("vision.layers.0.fc1")
    ('q_proj', 'altup_projections', 'vision.fc1')
    """
    if in_tower(slot):
        return f"{slot.partition('.')[0]}.{slot.rpartition('.')[2]}"
    return slot.split(".")[2] if slot.startswith("layers.") else slot.partition(".")[0]
