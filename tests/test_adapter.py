"""LoRA adapters beside a model and merged into it: the results of transformers + PEFT, request by request."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.folders import HERE, TOLERANCE, read_tensors
from numpy.typing import NDArray
from processes import run_python

import gemlet
from gemlet import _core
from gemlet.adapter import AdapterFiles
from gemlet.errors import MemoryLimitError
from gemlet.packing import _blocks
from gemlet.source import open_source

Floats = NDArray[np.float32]
ADAPTERS = HERE / "adapters"
NAMES = sorted(folder.name for folder in ADAPTERS.iterdir())
ON_270M = [name for name in NAMES if name.startswith("gemma3-") and name != "gemma3-regex"]
REORDERED = 5e-5  # two float32 evaluations of the same thing


def base_of(name: str) -> Path:
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    return HERE / str(config["base_model_name_or_path"])


def read_golden(name: str) -> tuple[list[int], Floats]:
    golden = read_tensors(ADAPTERS / name / "golden.safetensors")
    return golden["ids"].tolist(), golden["logits"]


def difference(got: Floats, expected: Floats) -> float:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=1) as loaded:
        yield loaded


@pytest.fixture
def adapted(model: gemlet.Model) -> gemlet.Model:
    for name in ON_270M:
        model.load_adapter(ADAPTERS / name)
    return model


def core_adapter(model: gemlet.Model, name: str | None) -> _core.Adapter | None:
    return model._find_adapter(name)


def int32(ids: list[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


# --- The official results -----------------------------------------------------------------------------------
def test_every_golden_adapter_is_there() -> None:
    assert len(NAMES) == 9
    assert len(ON_270M) == 4


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers_and_peft(name: str) -> None:
    ids, expected = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        adapter = model.load_adapter(ADAPTERS / name)
        assert adapter.name == name
        beside = model.logits(ids, adapter=name)
        assert difference(beside, expected) < TOLERANCE
        assert difference(model.logits(ids), expected) > 0.05  # the model alone is another one
    with gemlet.load(base_of(name), weights="f32", threads=1, merge_adapter=ADAPTERS / name) as merged:
        assert difference(merged.logits(ids), expected) < TOLERANCE
        assert difference(merged.logits(ids), beside) < REORDERED


@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.05), ("q8", 0.2)])
def test_adapters_beside_rounded_weights(weights: str, bound: float) -> None:
    """About as far from the exact result as the rounded weights alone; the adapter itself changes 139 %."""
    ids, expected = read_golden("gemma3-plain")
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=1) as exact:
        plain = exact.logits(ids)
    path = ADAPTERS / "gemma3-plain"
    with gemlet.load(HERE / "gemma3-270m", weights=weights, threads=1) as model:
        model.load_adapter(path)
        alone = difference(model.logits(ids), plain)
        assert difference(model.logits(ids, adapter=path.name), expected) < min(2 * alone, bound)
    with gemlet.load(HERE / "gemma3-270m", weights=weights, threads=1, merge_adapter=path) as merged:
        assert merged.weights == weights
        assert difference(merged.logits(ids), expected) < min(2 * alone, bound)


def test_what_an_adapter_says_of_itself(model: gemlet.Model) -> None:
    adapter = model.load_adapter(ADAPTERS / "gemma3-patterns", "mine")
    assert adapter.name == "mine"
    assert adapter.source == str(ADAPTERS / "gemma3-patterns")
    assert adapter.base_model == "gemma3-270m"
    assert adapter.ranks == (1, 2, 5)
    assert adapter.targets == ("v_proj", "o_proj", "up_proj")
    assert model.adapters == {"mine": adapter}
    assert model.memory()["adapters"] == adapter.memory_bytes > 0


@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_adapters_count_against_max_memory(weights: str) -> None:
    folder = HERE / "gemma3-270m"
    plan = gemlet.inspect(folder, weights=weights, max_context=64).plan
    with gemlet.load(folder, weights=weights, max_context=64, threads=1) as free:
        loaded = {name: free.load_adapter(ADAPTERS / name) for name in ON_270M}
        size = {name: adapter.memory_bytes for name, adapter in loaded.items()}
        first, second = sorted(ON_270M, key=lambda name: -loaded[name].ranks[-1])[:2]
        scratch = free._core_model.adapter_scratch_bytes(loaded[first].ranks[-1])
        assert 0 < free._core_model.adapter_scratch_bytes(1) < scratch
    room = plan.total + (64 << 20)
    with gemlet.load(folder, weights=weights, max_context=64, threads=1, max_memory=room) as model:
        model._spare_memory = scratch + size[first] - 1  # the process itself may have grown
        with pytest.raises(MemoryLimitError, match=f"{first}: the adapter needs .* max_memory leaves"):
            model.load_adapter(ADAPTERS / first)
        model._spare_memory = scratch + size[first] + size[second] - 1
        assert model.load_adapter(ADAPTERS / first).memory_bytes == size[first]
        with pytest.raises(MemoryLimitError, match=f"{second}: the adapter needs .* max_memory leaves"):
            model.load_adapter(ADAPTERS / second)
        assert list(model.adapters) == [first]
        model.unload_adapter(first)
        model.load_adapter(ADAPTERS / second)
    with gemlet.load(folder, weights=weights, max_context=64, threads=1, max_memory=room) as model:
        assert 0 < model._spare_memory <= 64 << 20  # type: ignore[operator]
        for name in ON_270M:
            model.load_adapter(ADAPTERS / name)


# --- Several adapters, each request with its own ------------------------------------------------------------
def test_interleaved_sequences_keep_their_adapters(adapted: gemlet.Model) -> None:
    """Fed in turns, each gives bit for bit what it gives alone."""
    ids, _ = read_golden("gemma3-plain")
    names = [*ON_270M, None]
    sequences = [_core.TokenSequence(adapted._core_model, core_adapter(adapted, name)) for name in names]
    rows: list[list[Floats]] = [[] for _ in names]
    at = 0
    for piece in (7, 1, 1, 9, 1, 5):
        for sequence, found in zip(sequences, rows, strict=True):
            sequence.extend(int32(ids[at : at + piece]), logits="all")
            found.append(sequence.logits())
        at += piece
    for name, found in zip(names, rows, strict=True):
        alone = adapted.logits(ids, adapter=name)
        np.testing.assert_array_equal(np.concatenate(found), alone, err_msg=str(name))
        if name is not None:
            assert difference(alone, read_golden(name)[1]) < TOLERANCE or ids != read_golden(name)[0]


@pytest.mark.parametrize("base", ["gemma3-270m", "gemma3n-e2b", "gemma4-e2b"])
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_one_forward_pass_serves_several_adapters(base: str, weights: str) -> None:
    names = [name for name in NAMES if base_of(name).name == base][:2]
    with gemlet.load(HERE / base, weights=weights, threads=2) as model:
        for name in names:
            model.load_adapter(ADAPTERS / name)
        ids, _ = read_golden(names[0])
        # None and adapters by turns, so that the rows of one are not consecutive in the batch.
        requests = [(names[0], 9), (None, 5), (names[-1], 1), (names[0], 4), (None, 1), (names[-1], 24)]
        together = model._core_model.batch_logits(
            [ids[:count] for _, count in requests], [core_adapter(model, name) for name, _ in requests]
        )
        for (name, count), logits in zip(requests, together, strict=True):
            np.testing.assert_array_equal(logits, model.logits(ids[:count], adapter=name), err_msg=f"{name}")


def test_the_same_bits_on_one_thread_and_two_and_token_by_token(adapted: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    whole = adapted.logits(ids, adapter="gemma3-plain")
    sequence = _core.TokenSequence(adapted._core_model, core_adapter(adapted, "gemma3-plain"))
    for at, token in enumerate(ids):
        sequence.extend(int32([token]))
        np.testing.assert_array_equal(sequence.logits()[0], whole[at])
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=2) as two:
        two.load_adapter(ADAPTERS / "gemma3-plain")
        np.testing.assert_array_equal(two.logits(ids, adapter="gemma3-plain"), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_prefill_whose_logits_nobody_wants_leaves_the_same_cache(name: str) -> None:
    """The adapter changes keys and values of tokens that have no further part in the last layers."""
    ids, _ = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(ADAPTERS / name)
        expected = model.logits(ids, adapter=name)
        sequence = _core.TokenSequence(model._core_model, core_adapter(model, name))
        sequence.extend(int32(ids[:9]), logits="none")
        sequence.extend(int32(ids[9:-2]), logits="last")
        assert difference(sequence.logits(), expected[-3:-2]) < REORDERED
        sequence.extend(int32(ids[-2:]), logits="all")
        assert difference(sequence.logits(), expected[-2:]) < REORDERED


def test_generations_choose_their_adapter(adapted: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    alone = {
        name: adapted.generate(ids, adapter=name, **options).token_ids
        for name in (None, "gemma3-plain", "gemma3-rslora")
    }
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    streams = {name: adapted.stream(ids, adapter=name, **options) for name in alone}
    for _ in range(8):
        for stream in streams.values():
            next(stream)
    assert {name: stream.result.token_ids for name, stream in streams.items()} == alone


def test_layers_that_share_keys_ignore_projections_of_their_own(tmp_path: Path) -> None:
    """Older versions of transformers gave such layers a k_proj and a v_proj that nothing reads."""
    name = "gemma3n-shared"
    ids, expected = read_golden(name)
    tensors = dict(read_tensors(ADAPTERS / name / "adapter_model.safetensors"))
    layers = {int(tensor.split(".")[4]) for tensor in tensors}
    with_keys = {int(tensor.split(".")[4]) for tensor in tensors if ".k_proj." in tensor}
    assert with_keys < layers
    for tensor in list(tensors):
        if ".layers.0.self_attn.k_proj" in tensor or ".layers.0.self_attn.v_proj" in tensor:
            tensors[tensor.replace(".layers.0.", f".layers.{max(layers)}.")] = tensors[tensor]
    write_adapter(
        tmp_path / "old", json.loads((ADAPTERS / name / "adapter_config.json").read_text()), tensors
    )
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(tmp_path / "old")
        assert difference(model.logits(ids, adapter="old"), expected) < TOLERANCE


def write_adapter(folder: Path, config: Any, tensors: dict[str, NDArray[Any]]) -> Path:
    from tiny_models import safetensors_bytes

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


# --- Life of an adapter -------------------------------------------------------------------------------------
def test_names_are_taken_once_and_must_be_loaded(model: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    with pytest.raises(gemlet.InvalidRequestError, match="expected the name of a loaded one"):
        model.generate(ids, adapter="gemma3-plain")
    model.load_adapter(ADAPTERS / "gemma3-plain")
    with pytest.raises(gemlet.InvalidRequestError, match="loaded already"):
        model.load_adapter(ADAPTERS / "gemma3-rslora", "gemma3-plain")
    for wrong in ("", "a\nb", "x" * 300, 7):
        with pytest.raises(gemlet.InvalidRequestError, match="printable"):
            model.load_adapter(ADAPTERS / "gemma3-plain", wrong)  # type: ignore[arg-type]
    for wrong in ("", 7, "other", ("gemma3-plain",)):
        with pytest.raises(gemlet.InvalidRequestError, match=r"\('gemma3-plain'\)"):
            model.logits(ids, adapter=wrong)  # type: ignore[arg-type]
    with pytest.raises(gemlet.InvalidRequestError, match="other"):
        model.unload_adapter("other")


def test_an_unloaded_adapter_serves_its_streams_to_their_end(model: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    model.load_adapter(ADAPTERS / "gemma3-plain")
    expected = model.generate(ids, adapter="gemma3-plain", **options)
    used = model.memory()["adapters"]
    stream = model.stream(ids, adapter="gemma3-plain", **options)
    next(stream)
    model.unload_adapter("gemma3-plain")
    assert model.adapters == {}
    assert model.memory()["adapters"] == used  # by the stream
    other = model.load_adapter(ADAPTERS / "gemma3-rslora", "gemma3-plain")  # the name is free
    assert model.memory()["adapters"] == used + other.memory_bytes
    for _ in stream:
        pass
    assert stream.result.token_ids == expected.token_ids
    assert model.memory()["adapters"] == other.memory_bytes


def test_what_a_stream_still_uses_is_not_given_out_again(model: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    first = model.load_adapter(ADAPTERS / "gemma3-plain", "first")
    model._spare_memory = model._adapter_scratch + first.memory_bytes
    stream = model.stream(ids, adapter="first", max_tokens=2)
    model.unload_adapter("first")
    with pytest.raises(MemoryLimitError, match="max_memory leaves 0 kB"):
        model.load_adapter(ADAPTERS / "gemma3-plain", "second")
    stream.close()
    model.load_adapter(ADAPTERS / "gemma3-plain", "second")


@pytest.mark.parametrize("names", [("first", "second"), ("first", "first")])
def test_loads_at_the_same_time_share_neither_room_nor_name(
    model: gemlet.Model, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """The second begins while the first, which has been checked, is being built."""
    path = ADAPTERS / "gemma3-plain"
    size = model.load_adapter(path, "measured").memory_bytes
    model.unload_adapter("measured")
    if names[0] != names[1]:
        model._spare_memory = model._adapter_scratch + size
    errors: list[gemlet.GemletError] = []

    def load_second() -> None:
        try:
            model.load_adapter(path, names[1])
        except gemlet.GemletError as error:
            errors.append(error)

    second = threading.Thread(target=load_second)
    build = AdapterFiles.build

    def slow_build(files: AdapterFiles, core: _core.Model) -> _core.Adapter:
        if second.ident is None:
            second.start()
            second.join(0.3)
            assert not errors
        return build(files, core)

    monkeypatch.setattr(AdapterFiles, "build", slow_build)
    model.load_adapter(path, names[0])
    second.join()
    expected = gemlet.InvalidRequestError if names[0] == names[1] else MemoryLimitError
    assert [type(error) for error in errors] == [expected]
    assert model.memory()["adapters"] == size
    assert list(model.adapters) == ["first"]


def test_a_closed_model_takes_no_adapter(model: gemlet.Model) -> None:
    model.load_adapter(ADAPTERS / "gemma3-plain")
    model.close()
    assert model.adapters == {}
    with pytest.raises(gemlet.ModelClosedError):
        model.load_adapter(ADAPTERS / "gemma3-rslora")
    with pytest.raises(gemlet.ModelClosedError):
        _core.AdapterBuilder(model._core_model)


def test_an_adapter_of_another_model_is_refused(adapted: gemlet.Model) -> None:
    adapter = core_adapter(adapted, "gemma3-plain")
    with gemlet.load(threads=1) as other:
        with pytest.raises(gemlet.InvalidRequestError, match="another model"):
            other._core_model.batch_logits([[2]], [adapter])
        with pytest.raises(gemlet.InvalidRequestError, match="another model"):
            _core.TokenSequence(other._core_model, adapter)


def test_memory_comes_back_when_an_adapter_goes() -> None:
    run_python("""
    import gemlet, json
    import numpy as np
    from pathlib import Path
    from tempfile import TemporaryDirectory
    from processes import resident
    from tiny_models import safetensors_bytes
    from gemlet.tensors import expected_slots
    from gemlet.load import random_model
    with TemporaryDirectory() as folder, random_model("gemma3-270m", weights="q4", threads=1) as model:
        slots = expected_slots(model.config)
        tensors = {}
        for layer in range(model.config.num_layers):
            rows, cols = slots[f"layers.{layer}.up_proj"]
            at = f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_"
            tensors[at + "A.weight"] = np.ones((256, cols), np.float32)
            tensors[at + "B.weight"] = np.ones((rows, 256), np.float32)
        config = {"peft_type": "LORA", "r": 256, "lora_alpha": 1, "target_modules": ["up_proj"]}
        Path(folder, "adapter_config.json").write_text(json.dumps(config))
        Path(folder, "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
        del tensors
        def use():
            adapter = model.load_adapter(folder, "a")
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
    """)


def test_the_scratch_of_adapters_is_what_a_pass_takes() -> None:
    run_python("""
    import numpy as np
    from core_models import int32, layer_config, model_config, random_core
    from gemlet import _core
    from processes import resident
    width, rank = 2**14, 8
    config = model_config(layer_config(intermediate_size=width), max_context=2048)
    core = random_core(config, weights="q4")
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
    """)


# --- Merging ------------------------------------------------------------------------------------------------
def test_merged_tensors_are_the_sums_whatever_the_blocks() -> None:
    name = "gemma3-plain"
    tensors = read_tensors(ADAPTERS / name / "adapter_model.safetensors")
    at = "base_model.model.model.layers.2.mlp.up_proj.lora_"
    with (
        open_source(base_of(name)) as plain,
        open_source(base_of(name), merge_adapter=ADAPTERS / name) as merged,
    ):
        tensor = "model.layers.2.mlp.up_proj.weight"
        values, _ = plain.checkpoint.read(tensor)
        if values.dtype == np.uint16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        expected = values + 2.0 * (tensors[at + "B.weight"] @ tensors[at + "A.weight"])
        for size in (1, 5000, 1 << 25):
            blocks = [block.copy() for block, dtype in merged.read_rows(tensor, size) if dtype == "f32"]
            np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-5)
        assert merged.stored_weights() == plain.stored_weights()
        untouched = [block for block, _ in merged.read_rows("model.norm.weight", 1 << 20)]
        np.testing.assert_array_equal(untouched[0], plain.checkpoint.read("model.norm.weight")[0])


def test_merging_takes_little_memory(tmp_path: Path) -> None:
    """A matrix of 16 MB, merged in blocks: loading stays below what the model takes when it runs."""
    from real_shapes import write_real_shape_hole

    write_real_shape_hole(tmp_path / "model", "gemma3-1b")
    module = "model.layers.0.mlp.up_proj"
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": module}
    tensors = {
        f"base_model.model.{module}.lora_A.weight": np.ones((1, 1152), np.float32),
        f"base_model.model.{module}.lora_B.weight": np.ones((6912, 1), np.float32),
    }
    folder = write_adapter(tmp_path / "adapter", config, tensors)
    with open_source(tmp_path / "model", merge_adapter=folder) as source:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        rows = 0
        for block in _blocks(source):
            rows += len(block.rows[0]) if block.part == "layers.0.up_proj" else 0
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert rows == 6912
    assert 8 << 20 < peak < 36 << 20


def test_converted_and_cached_models_have_the_adapter_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, base = ADAPTERS / "gemma3-plain", HERE / "gemma3-270m"
    ids, _ = read_golden(path.name)
    with gemlet.load(base, weights="q8", threads=1, merge_adapter=path) as merged:
        expected = merged.logits(ids)
    gemlet.convert(base, tmp_path / "q8", weights="q8", threads=1, merge_adapter=path)
    with gemlet.load(tmp_path / "q8", threads=1) as packed:
        np.testing.assert_array_equal(packed.logits(ids), expected)
        packed.load_adapter(ADAPTERS / "gemma3-rslora")  # another one, beside what is merged
        assert difference(packed.logits(ids, adapter="gemma3-rslora"), expected) > 0.1
    with pytest.raises(gemlet.InvalidRequestError, match="is packed"):
        gemlet.load(tmp_path / "q8", threads=1, merge_adapter=path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options: dict[str, Any] = {"weights": "q8", "threads": 1, "cache": True}
    with gemlet.load(base, **options) as plain:
        alone = plain.logits(ids)
    for _ in range(2):  # made, then found
        with gemlet.load(base, merge_adapter=path, **options) as cached:
            np.testing.assert_array_equal(cached.logits(ids), expected)
    with gemlet.load(base, merge_adapter=ADAPTERS / "gemma3-rslora", **options) as other:
        assert difference(other.logits(ids), expected) > 0.1
    with gemlet.load(base, **options) as plain:
        np.testing.assert_array_equal(plain.logits(ids), alone)


# --- The command line ---------------------------------------------------------------------------------------
def test_the_command_line_takes_an_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from gemlet.cli import main

    demo = gemlet.load()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 64, "target_modules": ["q_proj", "down_proj"]}
    tensors = random_adapter(demo, ("q_proj", "down_proj"), 2)
    demo.close()
    folder = write_adapter(tmp_path / "loud", config, tensors)
    command = ["generate", "The door opened", "--max-tokens", "8", "--temperature", "0", "--json"]
    texts = []
    for extra in ([], ["--adapter", str(folder)]):
        assert main([*command, *extra]) == 0
        texts.append(json.loads(capfd.readouterr().out)["token_ids"])
    assert texts[0] != texts[1]
    assert main([*command, "--adapter", str(tmp_path / "none")]) == 1
    assert "no such folder" in capfd.readouterr().err


def random_adapter(model: gemlet.Model, targets: tuple[str, ...], rank: int) -> dict[str, NDArray[Any]]:
    from gemlet.tensors import expected_slots, tensor_name

    random = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}
    for slot, shape in expected_slots(model.config).items():
        if slot.endswith(targets):
            at = "base_model.model." + tensor_name(slot, model.config.family, "model.", "").removesuffix(
                "weight"
            )
            tensors[at + "lora_A.weight"] = random.normal(0, 1, (rank, shape[1])).astype(np.float32)
            tensors[at + "lora_B.weight"] = random.normal(0, 1, (shape[0], rank)).astype(np.float32)
    return tensors
