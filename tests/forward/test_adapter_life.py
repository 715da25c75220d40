"""The memory and the names of adapters, from loading to the end of the last stream that uses them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gemlet
from gemlet import _core
from gemlet.adapters.adapter import AdapterFiles
from gemlet.adapters.opening import open_adapter
from gemlet.errors import MemoryLimitError
from golden.folders import HERE
from support.adapters import ADAPTERS, ON_270M, base_of, read_golden
from support.inside import adapters_of, core_of
from support.processes import run_program
from support.programs import adapters


@pytest.fixture
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=1) as loaded:
        yield loaded


def test_the_description_of_an_adapter(model: gemlet.Model) -> None:
    adapter = model.load_adapter(ADAPTERS / "gemma3-patterns", "mine")
    assert adapter.name == "mine"
    assert adapter.source == str(ADAPTERS / "gemma3-patterns")
    assert adapter.base_model == "gemma3-270m"
    assert adapter.ranks == (1, 2, 5)
    assert adapter.targets == ("v_proj", "o_proj", "up_proj")
    assert model.adapters == {"mine": adapter}
    assert model.memory()["adapters"] == adapter.memory_bytes > 0


@pytest.mark.tier
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_adapters_count_against_max_memory(weights: str) -> None:
    folder = HERE / "gemma3-270m"
    plan = gemlet.inspect(folder, weights=weights, max_context=64).plan
    with gemlet.load(folder, weights=weights, max_context=64, threads=1) as free:
        loaded = {name: free.load_adapter(ADAPTERS / name) for name in ON_270M}
        size = {name: adapter.memory_bytes for name, adapter in loaded.items()}
        first, second = sorted(ON_270M, key=lambda name: -max(loaded[name].ranks, default=0))[:2]
        scratch = core_of(free).adapter_scratch_bytes(loaded[first].ranks[-1])
        assert 0 < core_of(free).adapter_scratch_bytes(1) < scratch
    room = plan.total + (64 << 20)
    with gemlet.load(folder, weights=weights, max_context=64, threads=1, max_memory=room) as model:
        adapters_of(model).spare_memory = scratch + size[first] - 1  # the process itself may have grown
        with pytest.raises(MemoryLimitError, match=f"{first}: the adapter needs .* max_memory leaves"):
            model.load_adapter(ADAPTERS / first)
        adapters_of(model).spare_memory = scratch + size[first] + size[second] - 1
        assert model.load_adapter(ADAPTERS / first).memory_bytes == size[first]
        with pytest.raises(MemoryLimitError, match=f"{second}: the adapter needs .* max_memory leaves"):
            model.load_adapter(ADAPTERS / second)
        assert list(model.adapters) == [first]
        model.unload_adapter(first)
        model.load_adapter(ADAPTERS / second)
    with gemlet.load(folder, weights=weights, max_context=64, threads=1, max_memory=room) as model:
        assert 0 < adapters_of(model).spare_memory <= 64 << 20  # type: ignore[operator]
        for name in ON_270M:
            model.load_adapter(ADAPTERS / name)


@pytest.mark.parametrize("weights", ["f32", "bf12", "q4"])
@pytest.mark.parametrize(
    "name",
    [
        "gemma3-bias",
        "gemma3-dora",
        "gemma3-dora-table",
        "gemma4-routed",
        "gemma3-only-tokens",
        "gemma3-ends",
        "gemma3-saved",
        "gemma3-tied",
        "gemma3n-linear",
        "gemma3n-norms",
        "gemma4-table",
        "gemma4-table-tokens",
    ],
)
def test_the_memory_of_an_adapter_is_known_before_it_is_built(name: str, weights: str) -> None:
    with gemlet.load(base_of(name), weights=weights, threads=1) as model:
        with open_adapter(ADAPTERS / name, model.config) as files:
            planned = files.memory_bytes(core_of(model), weights)
        assert model.load_adapter(ADAPTERS / name).memory_bytes == planned


def test_a_name_is_given_once_and_must_be_loaded(model: gemlet.Model) -> None:
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


def test_an_unloaded_adapter_stays_until_its_streams_end(model: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    model.load_adapter(ADAPTERS / "gemma3-plain")
    expected = model.generate(ids, adapter="gemma3-plain", **options)
    used = model.memory()["adapters"]
    stream = model.stream(ids, adapter="gemma3-plain", **options)
    next(stream)
    model.unload_adapter("gemma3-plain")
    assert model.adapters == {}
    assert model.memory()["adapters"] == used  # the stream still uses it
    other = model.load_adapter(ADAPTERS / "gemma3-rslora", "gemma3-plain")  # the name is free
    assert model.memory()["adapters"] == used + other.memory_bytes
    for _ in stream:
        pass
    assert stream.result.token_ids == expected.token_ids
    assert model.memory()["adapters"] == other.memory_bytes


def test_memory_that_a_stream_still_uses_is_not_given_to_another_adapter(model: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    first = model.load_adapter(ADAPTERS / "gemma3-plain", "first")
    adapters_of(model).spare_memory = adapters_of(model).scratch + first.memory_bytes
    stream = model.stream(ids, adapter="first", max_tokens=2)
    model.unload_adapter("first")
    with pytest.raises(MemoryLimitError, match="max_memory leaves 0 kB"):
        model.load_adapter(ADAPTERS / "gemma3-plain", "second")
    stream.close()
    model.load_adapter(ADAPTERS / "gemma3-plain", "second")


@pytest.mark.parametrize("names", [("first", "second"), ("first", "first")])
def test_two_loads_at_the_same_time_do_not_get_the_same_room_or_name(
    model: gemlet.Model, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """The first adapter was checked and is being built when the second load begins."""
    path = ADAPTERS / "gemma3-plain"
    size = model.load_adapter(path, "measured").memory_bytes
    model.unload_adapter("measured")
    if names[0] != names[1]:
        adapters_of(model).spare_memory = adapters_of(model).scratch + size
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
        _core.AdapterBuilder(core_of(model))


@pytest.mark.slow
def test_memory_comes_back_when_an_adapter_goes() -> None:
    run_program(adapters.load_and_unload)


@pytest.mark.tier
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_the_scratch_of_adapters_is_what_a_pass_takes(weights: str) -> None:
    """The form in which kernels take an input depends on the tier, so the prepared inputs do too."""
    run_program(adapters.fill_the_scratch, weights)
