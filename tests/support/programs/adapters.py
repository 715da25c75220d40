"""Functions that forward/test_adapter_life.py runs in separate processes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model
from gemlet.weights.slots import expected_slots
from support.adapters import write_adapter
from support.core_models import layer_config, model_config, random_core
from support.processes import resident


def write_large_adapter(folder: Path, config: gemlet.ModelConfig) -> Path:
    """Writes an adapter of rank 256 for one matrix of each layer."""
    slots = expected_slots(config)
    tensors = {}
    for layer in range(config.num_layers):
        rows, cols = slots[f"layers.{layer}.up_proj"]
        at = f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_"
        tensors[at + "A.weight"] = np.ones((256, cols), np.float32)
        tensors[at + "B.weight"] = np.ones((rows, 256), np.float32)
    peft_config = {"peft_type": "LORA", "r": 256, "lora_alpha": 1, "target_modules": ["up_proj"]}
    return write_adapter(folder, peft_config, tensors)


def load_and_unload() -> None:
    with (
        TemporaryDirectory() as folder,
        random_model("gemma3-270m", LoadOptions(weights="q4", threads=1)) as model,
    ):
        path = write_large_adapter(Path(folder, "adapter"), model.config)

        def use() -> tuple[float, float]:
            adapter = model.load_adapter(path, "a")
            size = adapter.memory_bytes / 2**20
            loaded = resident()
            model.generate([2, 5], adapter="a", max_tokens=2)
            model.unload_adapter("a")
            return size, loaded

        use()
        before = resident()
        for _ in range(5):
            size, loaded = use()
            assert size > 20
            assert before + 0.8 * size < loaded < before + size + 20, (before, size, loaded)
        assert resident() < before + 5, (before, resident())


def fill_the_scratch(weights: str) -> None:
    width, rank = 2**14, 8
    config = model_config(layer_config(intermediate_size=width), max_context=2048)
    core = random_core(config, weights=weights)
    builder = _core.AdapterBuilder(core)
    for slot, rows, cols in (("gate_proj", width, 64), ("up_proj", width, 64), ("down_proj", 64, width)):
        a, b = np.full((rank, cols), 0.01, np.float32), np.full((rows, rank), 0.01, np.float32)
        builder.add(f"layers.0.{slot}", a=a, a_dtype="f32", b=b, b_dtype="f32", scale=1.0)
    adapter = builder.finish()
    ids = np.arange(512, dtype=np.int32) % 96
    _core.TokenSequence(core).extend(ids, logits="all")
    before = resident()
    _core.TokenSequence(core, adapter).extend(ids, logits="all")
    grown = (resident() - before) * 2**20
    expected = core.adapter_scratch_bytes(rank)
    assert expected > 2 * width * 512 * 4
    assert 0.9 * expected < grown < 1.05 * expected + 2**21, (grown, expected)
