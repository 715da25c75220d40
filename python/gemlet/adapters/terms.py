"""What an adapter changes in a model: :class:`Terms`, by the core's names of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gemlet.config.text_config import TextConfig
from gemlet.weights.slots import expected_slots

__all__ = ["COEFFICIENTS", "TARGETS", "LowRank", "Terms", "kind_of", "linear_slots"]

# The linear modules of a layer, by their slots.
_LAYER = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "router_proj"),
    *("per_layer_input_gate", "per_layer_projection", "altup_router"),
    *("altup_prediction_coefs", "altup_correction_coefs", "laurel_left", "laurel_right"),
)
_OUTSIDE = ("per_layer_model_projection", "altup_projections", "altup_unembed_projections")
TARGETS = (*_LAYER, *_OUTSIDE)
# Of them, those that the core keeps as the changed matrix itself, in f32.
COEFFICIENTS = ("altup_prediction_coefs", "altup_correction_coefs")


class LowRank(NamedTuple):
    """What is added to one weight: ``scale * B A``. ``a``, ``b`` and ``magnitude`` are tensors of the
    adapter's file; with a magnitude (DoRA) every row of the sum then gets that length."""

    a: str
    b: str
    rank: int
    scale: float
    magnitude: str = ""


class Terms(NamedTuple):
    """What an adapter changes.

    Attributes:
        low_rank: slot -> what is added to it.
        passed_over: modules of its file that text does not need: of towers for images and sound.
    """

    low_rank: Mapping[str, LowRank]
    passed_over: tuple[str, ...] = ()


def linear_slots(config: TextConfig) -> list[str]:
    """The slots of all linear modules of a text model, without the output head.

    >>> from gemlet.config import shape_config
    >>> linear_slots(shape_config("gemma3-1b"))[:3]
    ['layers.0.q_proj', 'layers.0.o_proj', 'layers.0.gate_proj']
    """
    return [slot for slot in expected_slots(config) if kind_of(slot) in TARGETS]


def kind_of(slot: str) -> str:
    """The kind of a weight, without the number of its layer or stream.

    >>> kind_of("layers.3.q_proj"), kind_of("altup_projections.0")
    ('q_proj', 'altup_projections')
    """
    return slot.split(".")[2] if slot.startswith("layers.") else slot.partition(".")[0]
