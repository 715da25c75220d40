"""The forward pass with weights in every format: prefill and decode agree, whichever kernels they use.

From 24 rows on, a tier with a matrix unit uses other kernels for weights in blocks. They take activations in
bf16, while decode may take int8, and they round weights to bf16. Each of these roundings is different, so
prefill and decode agree within BOUNDS, relative to the largest logit. On all other tiers they agree more
closely. The bundled model, which was trained, shows this for a whole text. The golden models have random
weights, and their logits react strongly to every rounding; with them only the last token is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from golden.folders import ALL_NAMES, HERE, read_golden
from support.feeding import REORDERED, difference, feed
from support.paths import DATA

pytestmark = pytest.mark.tier

BOUNDS = {"f32": REORDERED, "bf16": 3e-3, "q8": 1.2e-2, "q4": 2e-2}
LAST_TOKEN_BOUNDS = {"f32": REORDERED, "bf16": 0.04, "q8": 0.15, "q4": 0.25}
LENGTHS = [15, 16, 17, 24, 33, 66]
HELDOUT = DATA / "heldout.txt"


@pytest.fixture(scope="module", params=BOUNDS)
def weights(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(weights: str) -> Iterator[gemlet.Model]:
    with gemlet.load(weights=weights, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def ids(model: gemlet.Model) -> NDArray[np.int32]:
    assert model.tokenizer is not None
    return np.array(model.tokenizer.encode(HELDOUT.read_text())[: LENGTHS[-1]], np.int32)


def test_prefill_and_decode_agree(weights: str, model: gemlet.Model, ids: NDArray[np.int32]) -> None:
    decoded = feed(model, ids, [1])
    for length in LENGTHS:
        logits = model.logits(ids[:length].tolist())
        assert difference(logits, decoded[:length]) < BOUNDS[weights], length


def test_the_logits_of_a_token_do_not_depend_on_how_many_follow(
    model: gemlet.Model, ids: NDArray[np.int32]
) -> None:
    """The bits are the same as long as the same kernels run."""
    whole = model.logits(ids.tolist())
    for length in LENGTHS:
        if length < 24 and "amx" in _core.cpu_info()["tier"]:  # blocks are in tiles from 24 rows on
            continue
        np.testing.assert_array_equal(model.logits(ids[:length].tolist()), whole[:length])


@pytest.mark.parametrize("name", [None, *ALL_NAMES])
def test_bf12_has_the_bits_of_bf16(name: str | None) -> None:
    """This is true in a prompt and in decoding, for every family and for the bundled model."""
    seen = []
    for weights in ("bf16", "bf12"):
        with gemlet.load(name and HERE / name, weights=weights, threads=1) as loaded:
            ids = np.arange(3, 43, dtype=np.int32) % loaded.vocab_size
            seen.append(feed(loaded, ids, [31, 8, 1]))
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_decode_on_the_cache_of_a_prefill(weights: str, name: str) -> None:
    ids = read_golden(name)["ids"][-41:]
    with gemlet.load(HERE / name, weights=weights, threads=1) as golden:
        whole = golden.logits(ids.tolist())
        assert difference(feed(golden, ids, [40, 1]), whole) < LAST_TOKEN_BOUNDS[weights]
