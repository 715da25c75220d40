"""Every family on device="cuda": the official taps and greedy text, formats, batches, caches that are shared.

A build with GEMLET_CUDA=emulated runs the kernels of the GPU on the CPU, in a shuffled order of threads. In
other builds these tests are skipped."""

from __future__ import annotations

import numpy as np
import pytest

import gemlet
from golden.folders import (
    ALL_NAMES,
    BY_NAME,
    HERE,
    TOLERANCE,
    expected_taps,
    read_golden,
    read_tensors,
    tap_errors,
)
from support import vision
from support.audio import difference
from support.devices import needs_cuda
from support.inside import taps_of

pytestmark = needs_cuda
# A layer of this model needs 8192 tokens, which takes minutes under the emulator.
NAMES = [name for name in ALL_NAMES if not name.endswith("-far")]


@pytest.mark.parametrize("name", NAMES)
def test_taps_and_text_agree_with_the_official_implementation(name: str) -> None:
    golden = read_golden(name)
    ids = golden["ids"].astype(np.int32)
    with gemlet.load(HERE / name, weights="f32", threads=1, device="cuda") as model:
        taps = taps_of(model, ids)
        errors = tap_errors(golden, taps)
        assert set(expected_taps(BY_NAME[name])) <= errors.keys()
        assert max(errors.values()) < TOLERANCE, errors
        expected = golden["greedy"][:6].tolist()
        found = model.generate(ids.tolist(), temperature=0, max_tokens=6, ignore_eos=True)
        assert found.token_ids[: len(expected)] == expected


@pytest.mark.parametrize("weights", ["bf16", "bf12", "q8", "q6k", "q5k", "q5", "q4k", "q4"])
@pytest.mark.parametrize("kv_cache", ["bf16", "int8"])
def test_formats_of_the_demo_model(weights: str, kv_cache: str) -> None:
    """Activations are rounded at other places than on the CPU, which hardly changes the distribution."""
    prompt = "The door opened, and"
    chances = []
    for device in ("cpu", "cuda"):
        with gemlet.load(weights=weights, kv_cache=kv_cache, threads=1, device=device) as model:
            logits = model.logits(model.tokenizer.encode(prompt))[-1].astype(np.float64)
            chances.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    divergence = float((chances[0] * np.log(chances[0] / chances[1])).sum())
    assert 0 <= divergence < 2e-3


def test_an_int4_cache_is_refused() -> None:
    expected = "KV cache in int4; use device='cpu', or kv_cache='int8'"
    with pytest.raises(gemlet.UnsupportedError, match=expected):
        gemlet.load(kv_cache="int4", threads=1, device="cuda")


def test_a_tower_for_images() -> None:
    """Convolutions, attention over fewer keys than queries, and the fusion of two stages."""
    expected = vision.golden("gemma3n-odd")
    with gemlet.load(vision.FOLDERS / "gemma3n-odd", weights="f32", threads=1, device="cuda") as model:
        pixels = expected["levels.0.0"].astype(np.float32) / np.float32(255)
        soft = vision.tower_of(model).encode(pixels)
        assert difference(soft, expected["soft.0"]) < TOLERANCE


def test_a_batch_does_not_change_its_texts() -> None:
    prompts = ["The door opened", "My father was a man of", "In the morning", "Who is there?"]
    options = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    with gemlet.load(threads=1, device="cuda", exact_batches=True) as model:
        alone = [model.generate(prompt, **options).token_ids for prompt in prompts]
        assert [one.token_ids for one in model.generate(prompts, **options)] == alone
        again = model.generate(prompts[0], **options)
        assert again.cached_tokens > 0
        assert again.token_ids == alone[0]


@pytest.mark.parametrize("weights", ["auto", "f32"])
def test_weights_of_few_bits_with_rounded_activations(weights: str) -> None:
    folder = HERE / "quantized" / "gemma"
    found = read_tensors(folder / "golden.safetensors")
    with gemlet.load(folder, weights=weights, threads=1, device="cuda") as model:
        logits = model.logits(found["ids.0"].tolist())
    np.testing.assert_allclose(logits, found["logits.0"], rtol=0, atol=2e-4)
