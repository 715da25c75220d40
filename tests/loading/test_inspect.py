"""The memory plan, ``max_memory`` and ``gemlet inspect``: what gemlet says before it reads a weight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.base.sizes import parse_memory, resident_bytes
from gemlet.cli import main
from gemlet.config import SHAPES, read_config, shape_config
from gemlet.errors import InvalidRequestError, MemoryLimitError
from gemlet.loading.for_memory import PROCESS_BYTES
from gemlet.loading.inspect import inspect
from gemlet.loading.memory_plan import check_memory, plan_memory
from gemlet.loading.options import LoadOptions
from gemlet.weights.formats import PRESETS
from golden.folders import ALL_NAMES, HERE
from support.core_models import builder_of, layer_config, model_config
from support.gguf_cases import model_of
from support.gguf_models import metadata, typed, write_gguf
from support.inside import context_of, core_of, testing
from support.tiny_models import CONFIGS, write_folder
from support.tokenizer_files import gemma4_json, trained_entries, trained_model

pytestmark = pytest.mark.tier


# --- The plan -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", PRESETS)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_the_plan_is_what_the_model_takes(name: str, weights: str) -> None:
    plan = gemlet.inspect(HERE / name, weights=weights).plan
    with gemlet.load(HERE / name, weights=weights, threads=1) as model:
        assert plan.weights == model.memory()["weights"]
        assert plan.embedding == model.memory()["embedding"]


@pytest.mark.parametrize("name", ["gemma3-270m", "gemma2-2b", "gemma4-e4b", "gemma3n-e2b"])
@pytest.mark.parametrize("context", [1, 63, 64, 65, 700, 1500])
def test_caches_stay_within_the_plan(name: str, context: int) -> None:
    plan = plan_memory(read_config(HERE / name), LoadOptions(weights="q8", max_context=context))
    random = np.random.default_rng(context)
    with gemlet.load(HERE / name, weights="q8", threads=1, max_context=context) as model:
        sequence = context_of(model)
        largest = 0
        while (left := context - sequence.length) > 0:
            count = min(left, int(random.choice([1, 3, 64, 512, 900])))
            sequence.extend(np.ones(count, np.int32), logits="none")
            memory = model.memory()
            largest = max(largest, memory["kv_cache"])
            assert testing.cache_bytes(sequence) == memory["kv_cache_used"] <= memory["kv_cache"]
        sequence.close()
        assert model.memory()["kv_cache"] == 0
    assert 0 < largest <= plan.kv_cache
    if context <= 64:
        assert largest == plan.kv_cache


@pytest.mark.parametrize("step", [1, 3, 64, 200, 512])
def test_the_plan_of_a_sliding_window_is_what_it_takes(step: int) -> None:
    """Blocks that the window has passed are used again before new ones are allocated."""
    builder = builder_of(model_config(layer_config(sliding_window=512), max_context=2500))
    plan, block = builder.plan()["kv_cache"], 64 * 2 * 2 * 16 * 4
    builder.add_random(seed=1)
    core = builder.finish()
    sequence = _core.TokenSequence(core)
    largest = 0
    while (left := 2500 - sequence.length) > 0:
        sequence.extend(np.ones(min(step, left), np.int32), logits="none")
        largest = max(largest, core.memory()["kv_cache"])
    assert plan == 17 * block  # the chunk, and the earlier tokens that its first token sees
    assert 15 * block < largest <= plan


def test_the_embedding_has_its_own_format() -> None:
    config = shape_config("gemma3-1b")
    plans = {
        kind: plan_memory(config, LoadOptions(weights="q4", embedding=kind))
        for kind in (None, "q4", "q8", "bf16")
    }
    assert plans[None].embedding == plans["q8"].embedding
    assert plans["bf16"].embedding == config.vocab_size * config.hidden_size * 2
    assert plans["q4"].embedding == config.vocab_size * config.hidden_size * 9 // 16
    with gemlet.load(weights="q4", embedding="q4", threads=1) as model:
        assert model.memory()["embedding"] == 4096 * 256 * 9 // 16
        assert model.generate("The", max_tokens=3).completion_tokens == 3
    for wrong in ("q7", "", "auto", 4):
        with pytest.raises(InvalidRequestError, match="embedding is"):
            gemlet.load(embedding=wrong)  # type: ignore[arg-type]


def test_an_embedding_on_disk_is_planned() -> None:
    config = shape_config("gemma4-e2b")
    resident = plan_memory(config, LoadOptions(weights="q4", max_context=4096))
    on_disk = plan_memory(config, LoadOptions(weights="q4", max_context=4096, embedding_on_disk=True))
    assert on_disk.embedding == 32 << 20
    assert on_disk.on_disk == resident.on_disk + resident.embedding
    assert (on_disk.weights, on_disk.kv_cache) == (resident.weights, resident.kv_cache)
    small = plan_memory(read_config(HERE / "gemma2-2b"), LoadOptions(weights="q8", embedding_on_disk=True))
    assert small.embedding == small.on_disk  # it is smaller than the window, so all of it may be resident
    found = inspect(HERE / "gemma3n-e4b", embedding_on_disk=True)
    whole = inspect(HERE / "gemma3n-e4b")
    table = found.config.vocab_size * found.config.hidden_size
    assert found.parameters_on_disk == whole.parameters_on_disk + table
    assert str(found).count("stay on disk") == 2
    assert whole.problem is None
    assert found.problem is not None
    assert "is not packed" in found.problem  # load() says the same


# --- max_memory ---------------------------------------------------------------------------------------------
def test_a_model_that_does_not_fit_is_refused_with_its_plan() -> None:
    total = inspect(weights="f32").plan.total
    with pytest.raises(
        MemoryLimitError, match=r"max_memory is .* weights 13 MB \+ embedding 4 MB \+ KV cache"
    ):
        gemlet.load(weights="f32", max_memory=total - 8_000_000)
    gemlet.load(weights="f32", max_memory=total + 8_000_000).close()


@pytest.mark.slow
def test_the_sizes_that_the_refusal_recommends_fit() -> None:
    """For every published size and a range of limits, the context, weights and embedding in the message
    fit."""
    named = set()
    for name in SHAPES:
        config = shape_config(name)
        for weights, limit in (("bf16", 4 << 30), ("q4", 2 << 30), ("q4", 3 << 30), ("q4", 16 << 30)):
            context = config.max_position_embeddings
            try:
                options = LoadOptions(weights=weights, max_context=context)
                check_memory(limit, config, options, process=PROCESS_BYTES)
            except MemoryLimitError as error:
                message = str(error)
            else:
                plan = plan_memory(config, LoadOptions(weights=weights), process=PROCESS_BYTES)
                assert plan.total <= limit
                continue
            found = message.partition("; it would fit with ")[2]
            for remedy in found.split(" or ") if found else []:
                changed: dict[str, Any] = {"weights": weights, "max_context": context}
                keys = re.findall(r'(max_context|weights|embedding|embedding_on_disk)="?(\w+)"?', remedy)
                for key, value in keys:
                    changed[key] = {"True": True}.get(value, int(value) if key == "max_context" else value)
                plan = plan_memory(config, LoadOptions(**changed), process=PROCESS_BYTES)
                assert plan.total <= limit, message
                named.add(tuple(key for key, _ in keys))
    together = ("weights", "embedding", "max_context")
    assert named == {("max_context",), ("weights",), ("embedding",), ("embedding_on_disk",), together}


def test_several_changes_are_recommended_if_no_single_one_is_enough() -> None:
    config = shape_config("gemma4-e4b")
    options = LoadOptions(weights="bf16", max_context=131072)
    with pytest.raises(MemoryLimitError, match=r'fit with weights="q4", embedding="q4", max_context=(\d+)'):
        check_memory(27 * 10**8 + PROCESS_BYTES, config, options, process=PROCESS_BYTES)
    with pytest.raises(MemoryLimitError, match="smaller model"):
        check_memory(10**9, config, options, process=PROCESS_BYTES)


@pytest.mark.parametrize(
    ("value", "size"),
    [(1, 1), ("17", 17), ("2GB", 2 * 10**9), (" 1.5 gib ", 3 << 29), ("800MB", 8 * 10**8), ("64kB", 64_000)],
)
def test_texts_of_sizes_are_parsed(value: int | str, size: int) -> None:
    assert parse_memory(value) == size


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.5, "", "GB", "-2GB", "2TB", "1e9", "0MB", "9" * 40, 1 << 70, "2 G B", b"2GB", []]
)
def test_texts_that_are_not_sizes(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="max_memory is"):
        gemlet.load(max_memory=value)  # type: ignore[arg-type]


def test_a_builder_made_to_plan_allocates_nothing() -> None:
    config = shape_config("gemma4-31b").to_core(weights="f32")
    builder = _core.ModelBuilder(config=config, weights="f32", embedding="f32", kv_cache="f32", threads=0)
    assert builder.plan()["weights"] > 100 * 10**9
    with pytest.raises(InvalidRequestError, match="plan only"):
        builder.add("final_norm", np.ones(5376, np.float32), "f32")
    with pytest.raises(InvalidRequestError, match="plan only"):
        builder.add_random(seed=1)
    with pytest.raises(InvalidRequestError, match="plan only"):
        builder.finish()


# --- gemlet inspect -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_golden_folder_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", (HERE / name).as_posix()]) == 0
    text = capsys.readouterr().out
    config = read_config(HERE / name)
    found = ", ".join(re.findall(r"^layers? ([\d, -]+): ", text, re.M))
    runs = [[int(number) for number in run.split("-")] for run in found.split(", ")]
    numbers = [number for run in runs for number in range(run[0], run[-1] + 1)]
    assert sorted(numbers) == list(range(config.num_layers))
    assert config.family in text
    assert "runs here  yes" in text
    assert main(["inspect", (HERE / name).as_posix(), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["problem"] is None
    assert len(described["config"]["layers"]) == config.num_layers
    with gemlet.load(HERE / name, threads=1) as model:
        assert described["weights"] == model.weights
        assert described["parameters"] == testing.parameter_count(core_of(model))
    assert described["memory"]["total"] == sum(
        described["memory"][part] for part in ("weights", "embedding", "kv_cache", "activations", "process")
    )


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "gemma2-2b",
            [
                "rope       base 10,000",
                "softcap    attention scores 50, logits 30",
                "layers 0, 2: window 8, 4 heads of 16, 2 for keys and values; MLP 36",
                "formats    weights f32; embedding f32, which is the output matrix too; KV cache f32",
            ],
        ),
        (
            "gemma3-untied",
            ["formats    weights f32; embedding f32, output matrix f32; KV cache f32"],
        ),
        (
            "gemma3-4b",
            ["rope       window: base 10,000; full attention: base 1,000,000, positions / 8"],
        ),
        (
            "gemma3n-e4b",
            [
                "softcap    logits 30",
                "streams    4 (AltUp), with a LAuReL branch of rank 5",
                "per layer  inputs of 6, from a table of 139 rows in f32, which stays on disk",
                "layers 0, 2: window 6, 4 heads of 16, 1 for keys and values; MLP 44, sparse above 1.64 "
                "deviations",
                "layer 5: window 6, 4 heads of 16, keys and values of layer 3; MLP 44",
            ],
        ),
        (
            "gemma4-26b-a4b",
            [
                "rope       window: base 10,000; full attention: base 1,000,000, 0.25 of each head",
                "layers 2, 4: full attention, 4 heads of 32, 1 for keys and values, values are the keys; MLP "
                "36; 3 of 9 experts of 12",
            ],
        ),
        ("embeddinggemma", ["formats    weights f32; embedding f32; KV cache f32"]),
    ],
)
def test_inspect_names_the_parts_of_a_family(name: str, lines: list[str]) -> None:
    text = str(inspect(HERE / name)).splitlines()
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_size_fits_a_terminal(tmp_path: Path, name: str) -> None:
    from support.real_shapes import write_real_shape_hole

    write_real_shape_hole(tmp_path / "model", name)
    lines = str(inspect(tmp_path / "model", weights="q4", max_context=4096, max_memory="999GB")).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines[1:])) <= 136


def test_the_formats_of_single_matrices(tmp_path: Path) -> None:
    config, tensors = model_of("gemma4_text")
    chosen = typed(tensors, "Q8_0")
    for name, kind in (("blk.0.attn_q", "Q4_0"), ("blk.1.ffn_up", "F32"), ("token_embd", "Q4_0")):
        chosen[f"{name}.weight"] = (kind, tensors[f"{name}.weight"])
    path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
    found, whole = inspect(path), inspect(path, weights="q8")
    formats = {"weights": "q8", "embedding": "q4", "kv_cache": "bf16"}
    assert found.as_dict()["formats"] == formats
    assert found.as_dict()["own_formats"] == {"layers.0.q_proj": "q4", "layers.1.up_proj": "f32"}
    assert "formats    weights q8 (but 1 matrix q4, 1 matrix f32); embedding q4, which is " in str(found)
    assert (whole.formats, whole.own_formats) == (formats | {"embedding": "q8"}, {})


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_the_table_on_disk_has_the_size_in_its_file(tmp_path: Path, kind: str) -> None:
    config, tensors = model_of("gemma3n_text")
    chosen = typed(tensors, "BF16")
    table = tensors["per_layer_token_embd.weight"]
    chosen["per_layer_token_embd.weight"] = (kind, table)
    path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
    size = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18}[kind] * table.size // 32
    assert inspect(path).plan.on_disk == size
    assert inspect(path).table_type == kind.lower()
    gemlet.convert(path, tmp_path / "packed", weights="q4", threads=1)
    assert inspect(tmp_path / "packed").plan.on_disk == size
    assert plan_memory(inspect(path).config, LoadOptions(weights="q4")).on_disk == table.size * 2


def test_inspect_describes_the_tokenizer(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")
    entries, size = trained_entries()
    tensors["token_embd.weight"] = np.resize(tensors["token_embd.weight"], (size, 64))
    write_gguf(tmp_path / "some.gguf", [*metadata(config), *entries], typed(tensors, "F32"))
    folder = write_folder(tmp_path / "folder", CONFIGS["gemma4_text"])
    (folder / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    unigram = write_folder(tmp_path / "unigram", CONFIGS["gemma3_text"])
    (unigram / "tokenizer.model").write_bytes(trained_model(model_type="unigram", vocab_size=340))
    gemlet.convert(None, tmp_path / "packed", weights="q4", threads=1)
    for path, file, kind in (
        (None, "tokenizer.model", "SentencePiece BPE"),
        (tmp_path / "some.gguf", "some.gguf", "GGUF BPE"),
        (folder, "tokenizer.json", "Hugging Face BPE"),
        (unigram, "tokenizer.model", "SentencePiece unigram"),
        (tmp_path / "packed", "tokenizer.safetensors", "packed BPE"),
    ):
        found = inspect(path)
        assert found.tokenizer == {"file": file, "kind": kind}
        assert f"tokenizer  {file}: {kind}, {found.vocabulary} pieces; chat format" in str(found)
    assert inspect(HERE / "gemma3-1b").as_dict()["tokenizer"] is None


def test_weights_are_not_read(tmp_path: Path) -> None:
    """The data of the file is one large hole. Inspecting it is quick; loading it would take minutes."""
    from support.real_shapes import write_real_shape_hole

    write_real_shape_hole(tmp_path / "model", "gemma4-31b")
    before = resident_bytes()
    found = inspect(tmp_path / "model", weights="q4", max_context=4096, max_memory="16GB")
    assert found.file_bytes > 60 * 10**9
    assert found.parameters > 30 * 10**9
    assert found.problem is not None
    assert "max_memory is 16.00 GB" in found.problem
    assert found.plan.process < before + 500 * 10**6


def test_inspect_says_why_a_model_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--max-memory", "20MB"]) == 1
    assert "runs here  no: max_memory is 20 MB" in capsys.readouterr().out
    assert main(["inspect", "--max-memory", "20MB", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problem"].startswith("max_memory is 20 MB")
    (tmp_path / "config.json").write_text('{"model_type": "llama\\u001b[31m"}')
    assert main(["inspect", tmp_path.as_posix()]) == 1
    assert "unknown architecture" in capsys.readouterr().err
    assert main(["inspect", tmp_path.as_posix(), "--json"]) == 1
    described = json.loads(capsys.readouterr().out)
    assert described["error"] == "ConfigError"
    assert "unknown architecture" in described["problem"]
    assert main(["inspect", (tmp_path / "missing").as_posix()]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_a_cut_model_and_its_cache() -> None:
    whole = inspect(HERE / "gemma3n-e4b", weights="q8")
    cut = inspect(HERE / "gemma3n-e4b", weights="q8", matformer=16, kv_cache="int8")
    assert {layer.intermediate_size for layer in cut.config.layers} == {16}
    assert cut.plan.weights < whole.plan.weights
    assert cut.plan.kv_cache < whole.plan.kv_cache
    skipping = {"intermediate_size": 16, "skip_layers": [2]}
    for matformer in (16, skipping):
        found = inspect(HERE / "gemma3n-e4b", weights="q8", matformer=matformer)
        with gemlet.load(HERE / "gemma3n-e4b", weights="q8", matformer=matformer, threads=1) as model:
            assert found.parameters == testing.parameter_count(core_of(model)) < whole.parameters
    assert found.parameters_on_disk == whole.parameters_on_disk // 6 * 5


def test_a_cut_model_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder = (HERE / "gemma3n-e4b").as_posix()
    for text, value in (
        ("16", 16),
        ("44,40,31,16,8,3", [44, 40, 31, 16, 8, 3]),
        ('{"skip_layers": [2]}', {"skip_layers": [2]}),
    ):
        assert main(["inspect", folder, "--matformer", text, "--json"]) == 0
        described = json.loads(capsys.readouterr().out)
        assert described["parameters"] == inspect(folder, matformer=value).parameters
    for text in ("E2C", "{", "1,", "[" * 100_000):
        assert main(["inspect", folder, "--matformer", text]) == 1
        assert "matformer" in capsys.readouterr().err
    assert main(["generate", "x", "--model", folder, "--matformer", "7,8"]) == 1
    assert "2 widths for the 6 layers" in capsys.readouterr().err
    assert main(["bench", "--random", "gemma3n-e4b", "--matformer", "E2B"]) == 1
    assert "matformer needs a model in files" in capsys.readouterr().err


def test_a_long_list_of_what_was_passed_over_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_folder(tmp_path, CONFIGS["gemma"] | {f"key{i}": None for i in range(50_000)})
    found = gemlet.inspect(path)
    assert len(found.passed_over) == 50_000
    assert "'key39' and 49960 more" in str(found)
    with caplog.at_level("INFO", "gemlet"), gemlet.load(path, threads=1, cache=False):
        said = [record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()]
    assert len(said) == 1
    assert len(said[0]) < 1000
