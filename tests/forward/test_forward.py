"""The C++ forward pass in float32, compared with the golden taps of the official implementation.

gemlet.load() opens every published structure of every family, as a user would. The model must give the
official taps, logits and greedy text however its tokens are fed: all at once, in chunks, one by one, together
with another context, and on one thread or two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from golden.folders import ALL_NAMES, BY_NAME, HERE, TOLERANCE, expected_taps, read_golden, tap_errors
from support.core_models import VOCAB, builder_of, int32, layer_config, model_config
from support.feeding import REORDERED, difference, feed
from support.inside import context_of, taps_of, testing

pytestmark = pytest.mark.tier

Floats = NDArray[np.float32]
# Taps after all layers.
END = {"final_norm", "logits"}
# Variants whose last layers read the keys and values of earlier ones.
SHARING = {"gemma3n-e2b", "gemma3n-e4b", "gemma3n-sliced", "gemma4-e2b", "gemma4-e4b", "gemma4-far"}


@pytest.fixture(scope="module", params=ALL_NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> Iterator[gemlet.Model]:
    with gemlet.load(HERE / name, weights="f32", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def golden(name: str) -> dict[str, NDArray[Any]]:
    tensors = read_golden(name)
    return tensors | {"ids": tensors["ids"].astype(np.int32)}


# --- The official results -----------------------------------------------------------------------------------
def test_taps_agree_with_the_official_implementation(
    name: str, model: gemlet.Model, golden: dict[str, NDArray[Any]]
) -> None:
    taps = taps_of(model, golden["ids"])
    expected = expected_taps(BY_NAME[name])
    assert not set(expected) - taps.keys()
    for tap in expected:
        assert taps[tap].dtype == np.float32
        assert taps[tap].shape == (len(golden["ids"]), golden[tap].shape[1])
        assert np.isfinite(taps[tap]).all()
    errors = tap_errors(golden, taps)
    for tap in expected:  # in order of computation, so that the message names the first wrong tap
        assert errors[tap] < TOLERANCE, f"{tap}: {errors[tap]:.1e}; worst {max(errors.values()):.1e}"


def test_logits_agree_with_the_official_implementation(
    model: gemlet.Model, golden: dict[str, NDArray[Any]]
) -> None:
    logits = model.logits(golden["ids"].tolist())
    assert logits.dtype == np.float32
    assert difference(logits[golden["rows"]], golden["logits"]) < TOLERANCE


def test_greedy_text_is_the_official_one(model: gemlet.Model, golden: dict[str, NDArray[Any]]) -> None:
    result = model.generate(golden["ids"].tolist(), temperature=0, max_tokens=24, ignore_eos=True)
    assert list(result.token_ids) == golden["greedy"].tolist()
    assert result.finish_reason == "length"


# --- However the tokens are fed -----------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 2, 7, 8, 9, 16, 40, 63, 64, 65, 512])
def test_chunked_prefill_and_decode_equal_whole_prefill(
    model: gemlet.Model, golden: dict[str, NDArray[Any]], chunk: int
) -> None:
    ids = golden["ids"]
    logits = feed(model, ids, [chunk])
    assert difference(logits, model.logits(ids.tolist())) < REORDERED
    assert difference(logits[golden["rows"]], golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("past_window", [-1, 0, 1])
def test_prefill_that_ends_at_the_window_then_decodes(
    model: gemlet.Model, golden: dict[str, NDArray[Any]], past_window: int
) -> None:
    """The prompt ends just before, at and just after the first window; then single tokens cross its end."""
    window = max(layer.sliding_window for layer in model.config.layers) or 8
    ids = golden["ids"][: 3 * window + 3]
    first = window + past_window
    rows = golden["rows"][golden["rows"] < len(ids)]
    logits = feed(model, ids, [first, 1])
    assert difference(logits[rows], golden["logits"][: len(rows)]) < TOLERANCE
    alone = model.logits(ids[:first].tolist())
    assert difference(alone, logits[:first]) < REORDERED


def test_the_logits_of_last_and_none_are_rows_of_all(
    model: gemlet.Model, golden: dict[str, NDArray[Any]]
) -> None:
    ids = golden["ids"]
    sequence = context_of(model)
    sequence.extend(ids[:20], logits="none")
    sequence.extend(ids[20:], logits="last")
    last = sequence.logits()
    sequence.close()
    assert last.shape == (1, golden["logits"].shape[1])
    assert difference(last, golden["logits"][-1:]) < TOLERANCE


@pytest.mark.parametrize("wanted", ["none", "last"])
@pytest.mark.parametrize("chunk", [1, 7, 16, 38, 512])
def test_a_prefill_without_logits_leaves_the_same_cache(
    model: gemlet.Model, golden: dict[str, NDArray[Any]], wanted: str, chunk: int
) -> None:
    """A token without logits leaves the pass once all layers with a cache have its keys and values."""
    ids = golden["ids"]
    first = len(ids) - 3
    expected = model.logits(ids.tolist())
    sequence = context_of(model)
    for at in range(0, first, chunk):
        end = min(at + chunk, first)
        sequence.extend(ids[at:end], logits=wanted)
        assert len(sequence.logits()) == (1 if wanted == "last" else 0)
        if wanted == "last":
            assert difference(sequence.logits(), expected[end - 1 : end]) < REORDERED
    sequence.extend(ids[first:], logits="all")
    assert difference(sequence.logits(), expected[first:]) < REORDERED
    sequence.close()


@pytest.mark.parametrize(("wanted", "rows"), [("none", 0), ("last", 1), ("all", 38)])
def test_layers_after_the_last_cache_compute_only_the_wanted_rows(
    name: str, model: gemlet.Model, golden: dict[str, NDArray[Any]], wanted: str, rows: int
) -> None:
    """A tap shows the rows that were computed. For other tokens, the last layer with a cache computes only
    keys and values."""
    ids = golden["ids"][:38]
    taps = taps_of(model, ids, logits=wanted)
    layers = model.config.layers
    last = max(i for i, layer in enumerate(layers) if layer.kv_source < 0)
    assert (last + 1 < len(layers)) == (name in SHARING)
    whole = taps_of(model, ids)
    for tap, values in whole.items():
        layer = int(tap.split(".")[1]) if tap.startswith("layers.") else len(layers) if tap in END else -1
        expected = values if layer < last else values[len(values) - rows :]
        got = taps.get(tap, values[:0])
        assert got.shape == expected.shape, tap
        assert np.abs(got - expected).max(initial=0) <= REORDERED * np.abs(values).max(), tap


def test_two_contexts_do_not_disturb_each_other(model: gemlet.Model, golden: dict[str, NDArray[Any]]) -> None:
    """The contexts are fed alternately. Each context has the same bits as when it runs alone."""
    ids = golden["ids"][:41]
    texts = [ids, np.concatenate([ids[:1], ids[:0:-1]])]
    pieces = [5, 9, 1, 1, 1, 12, 1, 1, 10]
    assert sum(pieces) == len(ids)
    together: list[list[Floats]] = [[], []]
    sequences = [context_of(model) for _ in texts]
    at = 0
    for piece in pieces:
        for text, sequence, rows in zip(texts, sequences, together, strict=True):
            sequence.extend(text[at : at + piece], logits="all")
            rows.append(sequence.logits().copy())
        at += piece
    for sequence in sequences:
        sequence.close()
    for text, rows in zip(texts, together, strict=True):
        np.testing.assert_array_equal(np.concatenate(rows), feed(model, text, pieces))
    assert np.abs(together[0][-1] - together[1][-1]).max() > 0.1


def test_a_second_pass_changes_no_bit(model: gemlet.Model, golden: dict[str, NDArray[Any]]) -> None:
    ids = golden["ids"].tolist()
    np.testing.assert_array_equal(model.logits(ids), model.logits(ids))


def test_a_second_thread_changes_no_bit(
    name: str, model: gemlet.Model, golden: dict[str, NDArray[Any]]
) -> None:
    ids = golden["ids"]
    with gemlet.load(HERE / name, weights="f32", threads=2) as two:
        assert (model.threads, two.threads) == (1, 2)
        one_taps, two_taps = (taps_of(m, ids) for m in (model, two))
        assert one_taps.keys() == two_taps.keys()
        for tap, value in one_taps.items():
            np.testing.assert_array_equal(value, two_taps[tap], err_msg=tap)
        short = ids[:41]
        np.testing.assert_array_equal(feed(model, short, [10, 1]), feed(two, short, [10, 1]))


# --- Work that sparsity saves -------------------------------------------------------------------------------


def sparse_model(weights: str, spoil: float | None = None) -> _core.Model:
    """One layer of Gemma 3n. Its last panel has fewer than 16 lanes. ``spoil`` fills one row of up_proj."""
    layer = layer_config(
        intermediate_size=647, activation_sparsity=1.6448536, sliding_window=0, v_norm=True, query_scale=1.0
    )
    config = model_config(
        layer, per_layer_input_size=8, per_layer_vocab_size=VOCAB, altup_streams=4, laurel_rank=4
    )
    builder = builder_of(config, weights=weights)
    random = np.random.default_rng(3)
    for name, shape in builder.tensors().items():
        if name.endswith("_balance"):
            continue
        scale = 0.0 if len(shape) == 1 else shape[-1] ** -0.5
        values = random.normal(0, scale, shape).astype(np.float32)
        if spoil is not None and name.endswith("up_proj"):
            values[:] = 0
            values[300] = spoil
        builder.add(name, values, "f32")
    builder.add_random(seed=1)
    return builder.finish()


@pytest.mark.parametrize("weights", ["f32", "bf16", "bf12", "q8", "q4"])
def test_skipped_lanes_change_no_bit(weights: str) -> None:
    core = sparse_model(weights)
    for token in range(5, 25):
        alone = testing.taps(core, int32(token))  # skips the lanes that its gate closes
        beside = testing.taps(core, int32(token, 7))  # with two rows, everything is computed
        np.testing.assert_array_equal(alone["layers.0.mlp"][0], beside["layers.0.mlp"][0])


def test_lanes_that_the_gate_closes_are_not_computed() -> None:
    """A row of weights overflows at a place where the gate is closed. If it were computed, 0 times infinity
    would show."""
    core = sparse_model("f32", spoil=3e38)
    finite = []
    for token in range(VOCAB):
        one, two = (testing.taps(core, int32(*ids))["layers.0.mlp"][0] for ids in ([token], [token, 7]))
        assert not np.isfinite(two).all()
        finite.append(bool(np.isfinite(one).all()))
    # The gate closes all 16 lanes of the row's panel with a probability of 0.95**16 = 44 %.
    assert 0.2 < np.mean(finite) < 0.7
