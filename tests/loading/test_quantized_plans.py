"""The planned memory of Google's quantized Gemma 4 at the published shapes, with the bits of E2B."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemlet.config import shape_config
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.loading.builder import make_builder
from gemlet.loading.memory_plan import plan_memory
from gemlet.loading.options import LoadOptions
from gemlet.weights.slots import expected_slots, takes_format

PROCESS = 120_000_000  # bytes of Python, NumPy and a tokenizer (gemlet.loading.for_memory)


def published(name: str) -> tuple[TextConfig, LoadOptions]:
    """4 bits; 2 in the head, the embedding and the MLPs from layer 15 on; 8 around per-layer inputs."""
    config = without_towers(replace(shape_config(name), tie_word_embeddings=False))
    formats = {}
    for slot, shape in expected_slots(config).items():
        if takes_format(slot, shape):
            part = slot.rpartition(".")[2]
            late = slot.startswith("layers.") and int(slot.split(".")[1]) >= 15
            few = part in ("embed_tokens", "lm_head")
            few = few or (late and part in ("gate_proj", "up_proj", "down_proj"))
            formats[slot] = "r2" if few else "r8" if part.startswith("per_layer") else "r4"
    config = replace(config, rounded=tuple(sorted(slot for slot in formats if slot != "embed_tokens")))
    own = {slot: format for slot, format in formats.items() if format != "r4"}
    return config, LoadOptions(weights="r4", max_context=4096, own_formats=own)


@pytest.mark.tier
@pytest.mark.parametrize(("name", "read", "total"), [("gemma4-e2b", 0.80, 1.25), ("gemma4-e4b", 1.75, 2.4)])
def test_bytes_per_token_and_memory(name: str, read: float, total: float) -> None:
    """In GB: the weights that a token reads, and all resident memory at 4096 tokens."""
    config, options = published(name)
    sizes = make_builder(config, options, plan_only=True).packed_sizes()
    assert sum(nbytes for slot, (_, nbytes) in sizes.items() if slot != "embed_tokens") < read * 1e9
    plan = plan_memory(config, options, table_type="i4", process=PROCESS)
    assert plan.total < total * 1e9
