"""GGUF models are the same models as the Hugging Face folders that they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from gemlet.errors import ModelFileError, UnsupportedError
from gemlet.sources.opening import open_model_files
from support.gguf_cases import BLOCK_TYPES, BLOCKED, BLOCKS, model_of
from support.gguf_models import (
    TYPES,
    Tensors,
    Typed,
    convert_folder,
    convert_tensors,
    decode,
    metadata,
    typed,
    write_gguf,
)
from support.inside import testing
from support.templates import GEMMA_LIKE
from support.tiny_models import CONFIGS, IDS, logits_of, weights_of, write_folder
from support.tokenizer_files import ARRAY, BOOL, F32, I32, STRING, U32, gguf_entry, trained_entries

pytestmark = pytest.mark.tier

# EXACT: the formats that hold all values of a type. KEPT: the format that weights="auto" takes.
EXACT = {
    "Q4_0": ("q4", "q8"),
    "Q5_0": ("q5", "q8"),
    "Q8_0": ("q8",),
    "IQ4_NL": ("q8",),
    "Q4_K": ("q4k",),
    "Q5_K": ("q5k",),
    "Q6_K": ("q6k",),
}
KEPT = (
    dict.fromkeys(BLOCK_TYPES, "q8")
    | dict.fromkeys(("Q2_K", "Q3_K"), "q4")
    | {kind: formats[0] for kind, formats in EXACT.items()}
)


def rounded(tensors: Tensors, kind: str) -> Tensors:
    """The values that a file stores if the tensors have the type ``kind``."""
    return {
        name: decode(kind, TYPES[kind][1](values)) if stored == kind else values
        for name, (stored, values) in typed(tensors, kind).items()
    }


def test_a_folder_with_one_gguf_model(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")
    entries = [gguf_entry("general.architecture", STRING, "clip")]
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "Q4_0"))
    write_gguf(tmp_path / "mmproj-model.gguf", entries, {})
    np.testing.assert_array_equal(logits_of(tmp_path), logits_of(path))
    (tmp_path / "config.json").write_text("{}")  # some repositories have one beside their GGUF files
    np.testing.assert_array_equal(logits_of(tmp_path), logits_of(path))
    write_gguf(tmp_path / "model-q8.gguf", metadata(config), typed(tensors, "Q8_0"))
    with pytest.raises(ModelFileError, match=r"several .*model-q8\.gguf, model\.gguf"):
        gemlet.load(tmp_path)


def test_a_folder_with_only_parts_of_gguf_models_is_refused(tmp_path: Path) -> None:
    for name in ("mmproj-model.gguf", "model-00002-of-00002.gguf"):
        write_gguf(tmp_path / name, [gguf_entry("general.architecture", STRING, "clip")], {})
    with pytest.raises(
        ModelFileError, match=r"no complete GGUF model.*mmproj-model\.gguf, model-00002-of-00002\.gguf"
    ):
        gemlet.load(tmp_path)


@pytest.mark.parametrize(("number", "name"), [(4, "Q4_2"), (31, "Q4_0_4_4"), (38, "IQ4_NL_8_8")])
def test_errors_name_types_of_the_past(number: int, name: str, tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")
    path = write_gguf(tmp_path / "a.gguf", metadata(config), typed(tensors, "Q4_0"))
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=f"blk.0.ffn_up.weight has the type {name}.*take another file"):
        gemlet.load(path)


@pytest.mark.parametrize("family", BLOCKED)
@pytest.mark.parametrize(
    ("kind", "weights"), [("Q8_0", "q8"), ("Q4_0", "q4"), ("BF16", "bf16"), ("F16", "f32")]
)
def test_blocks_become_the_format_that_holds_them(
    tmp_path: Path, family: str, kind: str, weights: str
) -> None:
    config, tensors = model_of(family)
    if kind in ("BF16", "F16"):
        for name, values in tensors.items():
            if values.ndim > 1:
                tensors[name] = values.astype(np.float16).astype(np.float32)
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, kind))
    with gemlet.load(path, threads=1) as model:
        assert model.weights == weights
        stored = model.logits(IDS)
    if kind in ("Q8_0", "Q4_0"):
        tensors = rounded(tensors, kind)
    exact = write_gguf(tmp_path / "exact.gguf", metadata(config), typed(tensors, "F32"))
    expected = logits_of(exact, weights="f32")
    # The difference comes from int8 and bf16 activations and the rounded embedding scale, not from weights.
    tolerance = {"f32": 0.0, "bf16": 0.03, "q8": 0.05, "q4": 0.08}[weights]
    assert np.abs(stored - expected).max() <= tolerance * np.abs(expected).max()
    if kind in ("Q8_0", "Q4_0"):
        np.testing.assert_array_equal(logits_of(path, weights="f32"), expected)


def test_q4_0_blocks_with_a_scale_of_zero_are_zero(tmp_path: Path) -> None:
    """Such blocks are zero for any four bits, although the kernels add to the exponent of a scale."""
    config, tensors = model_of("gemma2")
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "Q4_0"))
    blocks = TYPES["Q4_0"][1](tensors["blk.0.ffn_down.weight"])
    content, logits = path.read_bytes(), []
    for bits in (0x88, 0x3F):
        changed = blocks.reshape(-1, 18).copy()
        changed[::2, :2], changed[::2, 2:] = 0, bits
        changed[::4, 1] = 0x80  # minus zero
        path.write_bytes(content.replace(blocks.tobytes(), changed.tobytes()))
        logits.append(logits_of(path))
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(*logits)


def test_float16_made_from_bfloat16_becomes_bfloat16_again(tmp_path: Path) -> None:
    config, tensors = model_of("gemma2")
    bits = {name: values.view(np.uint32) & 0xFFFF0000 for name, values in tensors.items()}
    came = {name: values.view(np.float32) for name, values in bits.items()}
    came["blk.0.attn_q.weight"][0, :2] = (2.0**-24, 255 * 2.0**-24)  # denormal in float16
    f16 = write_gguf(tmp_path / "f16.gguf", metadata(config), typed(came, "F16"))
    exact = {name: values.astype(np.float16).astype(np.float32) for name, values in came.items()}
    bf16 = write_gguf(tmp_path / "bf16.gguf", metadata(config), typed(exact, "BF16"))
    with gemlet.load(f16, threads=1) as model:
        assert model.weights == "bf16"
        np.testing.assert_array_equal(model.logits(IDS), logits_of(bf16))
    for value in (257 * 2.0**-24, 1 + 2.0**-10):
        came["blk.0.attn_q.weight"][0, 0] = value
        changed = write_gguf(tmp_path / "changed.gguf", metadata(config), typed(came, "F16"))
        with open_model_files(changed) as source:
            assert source.stored_weights() == "bf16"
            assert source.stored_formats()["layers.0.q_proj"] == "f32"
            assert source.stored_formats()["layers.0.k_proj"] == "bf16"


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_decode_to_the_values_of_gguf(kind: str) -> None:
    """The values have the same bits, also after they are repacked."""
    blocks, values = BLOCKS[f"{kind}.blocks"], BLOCKS[f"{kind}.values"]
    for format in ("f32", *EXACT.get(kind, ())):
        decoded = testing.kernel_blocks(dtype=kind.lower(), data=np.array(blocks), format=format)
        np.testing.assert_array_equal(decoded, values, err_msg=format)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_other_formats_are_close(kind: str) -> None:
    """The results are as close as if the format were made from the values themselves."""
    blocks, values = BLOCKS[f"{kind}.blocks"], BLOCKS[f"{kind}.values"]
    fits = np.abs(values).max(axis=1) < 1e5
    for format in ("bf16", "q8", "q6k", "q5k", "q5", "q4k", "q4"):
        if format not in EXACT.get(kind, ()):
            packed = testing.kernel_blocks(dtype=kind.lower(), data=np.array(blocks)[fits], format=format)
            expected = testing.kernel_roundtrip(format=format, w=values[fits])
            np.testing.assert_array_equal(packed, expected, err_msg=format)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_works_in_a_whole_model(tmp_path: Path, kind: str) -> None:
    """The embedding, the per-layer table that stays in the file, and the experts each have their own code."""
    for family in ("gemma4_text", "gemma4_experts"):
        config = BLOCKED[family] | {
            "hidden_size": 256,
            "intermediate_size": 256,
            "moe_intermediate_size": 256,
        }
        config["hidden_size_per_layer_input"] = 256 * (family == "gemma4_text")
        tensors = convert_tensors(config, weights_of(config))
        rows = np.array(BLOCKS[f"{kind}.blocks"])
        # Random blocks, of a size with which the model works normally.
        scale = np.abs(BLOCKS[f"{kind}.values"]).max(axis=1)
        sane = np.flatnonzero((scale > 1e-4) & (scale < 2))
        values = BLOCKS[f"{kind}.values"][sane]
        random = np.random.default_rng(5)
        chosen: Typed = {}
        for name, tensor in typed(tensors, "F32").items():
            if tensor[1].ndim > 1 and tensor[1].shape[-1] % 256 == 0 and "ffn_gate_inp" not in name:
                pick = random.integers(0, len(sane), tensor[1].size // 256)
                tensors[name] = values[pick].reshape(tensor[1].shape)
                chosen[name] = (kind, rows[sane[pick]].reshape(*tensor[1].shape[:-1], -1))
            else:
                chosen[name] = tensor
        path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
        exact = write_gguf(tmp_path / "exact.gguf", metadata(config), typed(tensors, "F32"))
        expected = logits_of(exact, weights="f32")
        np.testing.assert_array_equal(logits_of(path, weights="f32"), expected)
        with open_model_files(path) as source:
            assert source.stored_weights() == KEPT[kind]
            assert set(source.stored_formats().values()) <= {KEPT[kind], "f32"}
        with gemlet.load(path, threads=1) as model:
            assert model.weights == KEPT[kind]
            error = np.abs(model.logits(IDS) - expected).max() / np.abs(expected).max()
        # The difference comes from int8 activations and the bits of q4. A token may also get another expert.
        assert family == "gemma4_experts" or error < (0.3 if kind in ("Q2_K", "Q3_K") else 0.1)


@pytest.mark.parametrize("kind", [kind for kind in EXACT if kind != "IQ4_NL"])
def test_a_model_takes_as_much_memory_as_its_file(kind: str) -> None:
    """The memory is within 10 % of the file's size, which is the purpose of GGUF's mixed types."""
    values, size, format = _core.source_types()[kind.lower()]
    assert format == EXACT[kind][0]
    run = testing.MatmulRun(tier="scalar", operation=f"matmul_i8_{format}", rows=1, outputs=64, cols=1024)
    assert run.weight_bytes <= 1.1 * 64 * 1024 / values * size


def test_experts_with_separate_gate_and_up(tmp_path: Path) -> None:
    config, tensors = model_of("gemma4_experts")
    apart = dict(tensors)
    for i in range(config["num_hidden_layers"]):
        both = apart.pop(f"blk.{i}.ffn_gate_up_exps.weight")
        apart[f"blk.{i}.ffn_gate_exps.weight"], apart[f"blk.{i}.ffn_up_exps.weight"] = np.split(
            both, 2, axis=1
        )
    for kind in ("F32", "Q8_0"):
        one = write_gguf(tmp_path / "one.gguf", metadata(config), typed(tensors, kind))
        two = write_gguf(tmp_path / "two.gguf", metadata(config), typed(apart, kind))
        np.testing.assert_array_equal(logits_of(two), logits_of(one))
    mixed = typed(apart, "Q4_0") | {"blk.0.ffn_up_exps.weight": ("Q8_0", apart["blk.0.ffn_up_exps.weight"])}
    with open_model_files(write_gguf(tmp_path / "mixed.gguf", metadata(config), mixed)) as source:
        formats = source.stored_formats()
    assert formats["layers.0.experts.0.gate_up"] == "q8"  # q8 holds the values of both types
    assert formats["layers.1.experts.0.gate_up"] == "q4"


def test_the_folder_and_its_conversion_are_the_same_model(tmp_path: Path) -> None:
    """The bits are the same if 1 + w loses nothing of the norms, as in a bfloat16 model."""
    for family, config in CONFIGS.items():
        bf16 = write_folder(tmp_path / family, config, bf16=True)
        path = convert_folder(bf16, tmp_path / "model.gguf", "BF16")
        np.testing.assert_array_equal(logits_of(path), logits_of(bf16), err_msg=family)
        np.testing.assert_array_equal(logits_of(path, weights="q4"), logits_of(bf16, weights="q4"), family)


def test_types_may_be_mixed(tmp_path: Path) -> None:
    """Google's QAT files have Q4_0 matrices and an embedding of another type."""
    config, tensors = model_of("gemma3_text")
    chosen = typed(tensors, "Q4_0")
    chosen["token_embd.weight"] = ("Q8_0", tensors["token_embd.weight"])
    chosen["blk.1.ffn_down.weight"] = ("F32", tensors["blk.1.ffn_down.weight"])
    path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
    exact = rounded(tensors, "Q4_0") | {
        "token_embd.weight": rounded(tensors, "Q8_0")["token_embd.weight"],
        "blk.1.ffn_down.weight": tensors["blk.1.ffn_down.weight"],
    }
    expected = logits_of(write_gguf(tmp_path / "exact.gguf", metadata(config), typed(exact, "F32")))
    with gemlet.load(path, threads=1) as model:
        assert model.weights == "q4"
        logits = model.logits(IDS)
        with gemlet.load(path, threads=1, weights="q4") as other:
            assert model.memory()["weights"] > other.memory()["weights"]  # the model has the F32 tensor
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_experts"])
def test_the_packed_form_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Tensors may have their own formats, be stacked, or be two tensors for one matrix of an expert."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, tensors = model_of(family)
    chosen = typed(tensors, "Q4_0")
    for name in [name for name in chosen if "ffn_gate_up_exps" in name]:
        gate, up = np.split(chosen.pop(name)[1], 2, axis=1)
        chosen[name.replace("gate_up", "up")] = ("Q4_0", up)
        chosen[name.replace("gate_up", "gate")] = ("Q4_0", gate)
    chosen["token_embd.weight"] = ("Q8_0", tensors["token_embd.weight"])
    chosen["blk.1.attn_output.weight"] = ("F32", tensors["blk.1.attn_output.weight"])
    path = write_gguf(tmp_path / "model.gguf", metadata(config), chosen)
    expected = logits_of(path)
    for _ in range(2):
        np.testing.assert_array_equal(logits_of(path, cache=True), expected)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_matformer_cuts_floats(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3n_text")
    cut = {"matformer": 48}
    folder = write_folder(tmp_path / "folder", config, tensors=weights_of(config))
    path = write_gguf(tmp_path / "model.gguf", metadata(config), typed(tensors, "F32"))
    np.testing.assert_array_equal(logits_of(path, **cut), logits_of(folder, **cut))
    blocks = write_gguf(tmp_path / "blocks.gguf", metadata(config), typed(tensors, "Q4_0"))
    with pytest.raises(UnsupportedError, match="quantized weights cannot be cut"):
        gemlet.load(blocks, **cut)


def test_inspect_says_which_format_each_type_gets(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")
    chosen = typed(tensors, "Q4_0")
    blocks = np.array(BLOCKS["Q5_1.blocks"])[0, : 64 // 32 * 24]
    chosen["token_embd.weight"] = ("Q5_1", np.tile(blocks, (96, 1)))
    found = gemlet.inspect(write_gguf(tmp_path / "model.gguf", metadata(config), chosen))
    assert found.weights == "q4"
    assert found.kept_as == {"q5_1": "q8", "q4_0": "q4"}
    assert "1 q5_1 as q8" in str(found)
    assert found.as_dict()["kept_as"] == found.kept_as
    assert gemlet.inspect(tmp_path / "model.gguf", weights="q8").kept_as == {}
    assert found.plan.embedding == gemlet.inspect(tmp_path / "model.gguf", weights="q8").plan.embedding


@pytest.mark.extra("templates")
def test_tokenizer_chat_format_ends_and_sampling(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")
    entries, size = trained_entries()
    entries += [
        gguf_entry("tokenizer.ggml.eot_token_id", U32, 7),
        gguf_entry("tokenizer.chat_template", STRING, GEMMA_LIKE),
        gguf_entry("general.sampling.top_k", I32, 64),
        gguf_entry("general.sampling.top_p", F32, 0.75),
        gguf_entry("general.sampling.temp", F32, 0.5),
    ]
    rows = np.resize(tensors["token_embd.weight"], (size, config["hidden_size"]))
    path = write_gguf(
        tmp_path / "model.gguf",
        [*metadata(config), *entries],
        typed(tensors | {"token_embd.weight": rows}, "F32"),
    )
    with gemlet.load(path, threads=1) as model:
        assert model.tokenizer is not None
        assert model.tokenizer.decode(model.tokenizer.encode("the door")) == "the door"
        assert model.chat_format is not None
        assert model.chat_format.name == "gemma"
        assert model.end_ids == {1, model.tokenizer.token_id("<end_of_turn>")}
        assert model.config.model_type == "gemma3"
        assert model.source == str(path)
        recommended = model.generation_config
        assert (recommended.top_k, recommended.top_p, recommended.temperature) == (64, 0.75, 0.5)


PASSED_OVER: dict[str, tuple[int, Any]] = {
    "expert_count": (U32, 0),
    "expert_used_count": (U32, 0),
    "pooling_type": (U32, 0),
    "surprise": (STRING, ""),
    "rope.scaling.type": (STRING, "none"),
    "rope.scaling.factor": (F32, 8.0),
    "rope.scaling.yarn_beta_fast": (F32, 32.0),
    "logit_scale": (F32, 1.0),
}


def changed(path: Path, **changes: tuple[int, Any] | None) -> Path:
    config, tensors = model_of("gemma3_text")
    unscaled = {"rope__scaling__type": None, "rope__scaling__factor": None}
    return write_gguf(path, metadata(config, **(unscaled | changes)), typed(tensors, "F32"))


def test_keys_that_change_nothing_are_passed_over_and_listed(tmp_path: Path) -> None:
    plain = changed(tmp_path / "plain.gguf")
    extra = changed(
        tmp_path / "extra.gguf", **{key.replace(".", "__"): value for key, value in PASSED_OVER.items()}
    )
    np.testing.assert_array_equal(logits_of(extra), logits_of(plain))
    found = gemlet.inspect(extra)
    assert set(found.passed_over) == {f"gemma3.{key}" for key in PASSED_OVER if key != "rope.scaling.type"}
    assert "passed over" in str(found)
    assert gemlet.inspect(plain).passed_over == ()


def test_a_factor_without_a_type_is_linear(tmp_path: Path) -> None:
    """llama.cpp reads it in the same way."""
    factor: dict[str, tuple[int, Any]] = {"rope__scaling__factor": (F32, 4.0)}
    short = changed(tmp_path / "short.gguf", **factor)
    full = changed(tmp_path / "long.gguf", **factor, rope__scaling__type=(STRING, "linear"))
    np.testing.assert_array_equal(logits_of(short), logits_of(full))
    assert 4.0 in [layer.rope_scaling_factor for layer in gemlet.inspect(short).config.layers]


def test_windows_as_llama_cpp_reads_them(tmp_path: Path) -> None:
    config, tensors = model_of("gemma3_text")

    def logits(**changes: Any) -> NDArray[np.float32]:
        entries = metadata(config, **changes)
        return logits_of(write_gguf(tmp_path / "m.gguf", entries, typed(tensors, "F32")), weights="f32")

    count = config["num_hidden_layers"]
    window = "attention__sliding_window"
    kinds = [True, False] * count
    usual = logits(**{f"{window}_pattern": (ARRAY, (BOOL, kinds[:count]))})
    assert np.array_equal(logits(**{f"{window}_pattern": (ARRAY, (U32, kinds[:count]))}), usual)
    none = logits(**{window: None, f"{window}_pattern": None})
    assert not np.array_equal(none, usual)
    # Without a window, the pattern is not read.
    assert np.array_equal(logits(**{window: (U32, 0)}), none)
    assert np.array_equal(logits(**{window: None}), none)
    # A window longer than every context has no effect either, but such layers keep the local rotation.
    assert np.array_equal(logits(**{window: (U32, (1 << 32) - 1)}), logits(**{window: (U32, 4096)}))
