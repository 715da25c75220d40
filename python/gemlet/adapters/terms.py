"""The changes that an adapter makes to a model, by the core's names of the weights: :class:`Terms`."""

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
TABLES = ("embed_tokens", PER_LAYER_TABLE)  # these are read by row, so the term is added to the transpose
BY_ROW = (*ENDS, PER_LAYER_TABLE)  # an adapter may replace the rows of some tokens in these
_OUTSIDE = ("per_layer_model_projection", "altup_projections", "altup_unembed_projections")
_PROJECTION = "dense"  # the last layer of EmbeddingGemma 2; other dense layers are not part of the model
TARGETS = (*_LAYER, *EXPERTS, *_OUTSIDE, _PROJECTION, *ENDS, PER_LAYER_TABLE)
# Those of them for which the core keeps the changed matrix, in f32.
COEFFICIENTS = ("altup_prediction_coefs", "altup_correction_coefs")


class LowRank(NamedTuple):
    """A product that is added to one weight: ``scale * B A``.

    ``a``, ``b``, ``magnitude`` and ``bias`` are names of tensors in the adapter's file. ``transposed`` says
    whether the file has the transposes of A and B. With a magnitude (DoRA), every row of the sum gets that
    length; in a table, every column does. ``scale * bias`` is added to the product with the weight. For
    ``experts`` stacked matrices, A is [experts * rank, cols], and B is [rows, rank * experts]; neighbouring
    columns of B belong to different experts. ``initial`` says which part of the weight is subtracted first
    (:mod:`gemlet.adapters.initial`).
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
        """The rank of everything that is added, including the part that is subtracted and a bias."""
        return self.rank * (2 if self.initial else 1) + bool(self.bias)


class OwnRows(NamedTuple):
    """The tensor ``tensor`` in the adapter's file, which replaces a weight. Without ``ids``, it replaces the
    whole weight. In the weights ``BY_ROW``, it may replace only the rows of the tokens ``ids``, in the order
    of the tensor's rows. ``offset`` is added to the weight of a norm, which then has the same form as in the
    model's files."""

    tensor: str
    ids: tuple[int, ...] = ()
    offset: float = 0.0


class Terms(NamedTuple):
    """All changes that an adapter makes.

    Attributes:
        low_rank: slot -> what is added to the weight, or to the transpose of a table.
        own_rows: slot -> what replaces the weight, or rows of it, before something is added.
        passed_over: modules of towers for images and sound in the adapter's file that gemlet changes only by
            merging, or not at all.
        merged_only: slot -> what replaces the weight when the adapter is merged into the model. Its modules
            are in passed_over.
        never_changed: modules in passed_over that merging does not change either.
    """

    low_rank: Mapping[str, LowRank]
    own_rows: Mapping[str, OwnRows]
    passed_over: tuple[str, ...] = ()
    merged_only: Mapping[str, OwnRows] = MappingProxyType({})
    never_changed: tuple[str, ...] = ()


def target_slots(config: TextConfig) -> list[str]:
    """The slots of what an adapter can change: all linear modules of a text model, its routed experts, its
    tables and its output head. The head has its own slot here, even if it is tied to the table.

    >>> from gemlet.config import shape_config
    >>> target_slots(shape_config("gemma3-1b"))[:3]
    ['embed_tokens', 'lm_head', 'layers.0.q_proj']
    """
    targets = set(TARGETS) - (set() if config.projects_itself else {_PROJECTION})
    found = [slot for slot in expected_slots(config) if kind_of(slot) in targets]
    ends = ["embed_tokens"] if config.bidirectional else list(ENDS)
    return ends + [slot for slot in found if slot not in ends]


def own_slots(config: TextConfig) -> dict[str, float]:
    """The slots of what an adapter may replace, apart from the embedding table and the output head: the
    weights of all modules of a text model. Each slot has its offset (:class:`OwnRows`)."""
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
    """The linear modules and convolutions of a model's towers that an adapter can change, by the plain names
    of their modules: slot, rows and columns. Depthwise convolutions are not among them.

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
