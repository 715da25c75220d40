"""EmbeddingGemma 2: texts, images and sounds as vectors, compared with the official implementation."""

from __future__ import annotations

import asyncio
import json
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.config import parse_config, read_config
from gemlet.media.videos import one_a_second
from golden.folders import TOLERANCE
from golden.variants_embedding import EMBEDDINGGEMMA2, EMBEDDINGGEMMA2_VIDEOS
from reference.forward import embedding
from reference.model import Model
from support.audio import difference
from support.embedding import FOLDER, PROMPTS, golden, media_of, write_with_vocabulary
from support.extras import optional
from support.guides import example
from support.inside import taps_of
from support.tower_adapters import EMBEDDING_NAMES, embedding_of, prompt_of
from support.tower_adapters import FOLDERS as ADAPTERS

pytestmark = pytest.mark.tier

GOLDEN = golden()


def embed(model: gemlet.Model, index: int, **options: Any) -> NDArray[np.float32]:
    return model.embed([GOLDEN[f"ids.{index}"].tolist()], **media_of(GOLDEN, index), **options)[0]


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(FOLDER, weights="f32", threads=2) as loaded:
        yield loaded


# --- The official results -----------------------------------------------------------------------------------
@pytest.mark.parametrize("index", PROMPTS)
def test_vectors_agree_with_the_official_implementation(model: gemlet.Model, index: int) -> None:
    assert difference(embed(model, index), GOLDEN[f"embedding.{index}"]) < TOLERANCE


@pytest.mark.parametrize(("number", "video"), [*enumerate(EMBEDDINGGEMMA2_VIDEOS)])
def test_frames_that_are_seen(number: int, video: tuple[int, float]) -> None:
    assert one_a_second(*video) == GOLDEN[f"seen.{number}"].tolist()


@pytest.mark.parametrize("index", [0, 5])
def test_reference_agrees_with_the_official_implementation(model: gemlet.Model, index: int) -> None:
    taps: dict[str, NDArray[Any]] = {}
    ids = GOLDEN[f"ids.{index}"]
    assert difference(embedding(Model.open(FOLDER), ids, taps), GOLDEN[f"embedding.{index}"]) < 5e-5
    found = taps_of(model, ids)
    for name, expected in taps.items():
        assert difference(found[name], expected) < TOLERANCE, name


@pytest.mark.parametrize(
    "mistake",
    [
        {"sliding_window": 4},
        {"sliding_window": 6},
        {"layer_types": ["sliding_attention"] * 5},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                },
            }
        },
    ],
)
def test_golden_notices_a_mistake(tmp_path: Path, mistake: dict[str, Any]) -> None:
    folder = changed(tmp_path, **mistake)
    if "layer_types" in mistake:  # another shape of global layers
        with pytest.raises(gemlet.TensorError, match=r"layers\.2\..*has shape"):
            gemlet.load(folder)
        return
    with gemlet.load(folder, weights="f32", threads=1) as model:
        assert difference(embed(model, 0), GOLDEN["embedding.0"]) > 20 * TOLERANCE


def changed(path: Path, **text: Any) -> Path:
    """The golden folder with other keys in text_config."""
    folder = shutil.copytree(FOLDER, path / "model")
    config = {**EMBEDDINGGEMMA2, "text_config": {**EMBEDDINGGEMMA2["text_config"], **text}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_dimensions_and_length(tmp_path: Path, model: gemlet.Model) -> None:
    whole = embed(model, 3)
    part = embed(model, 3, dimensions=16)
    np.testing.assert_allclose(part, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))  # these modules have no Normalize
    with gemlet.load(folder, weights="f32", threads=1) as plain:
        assert difference(embed(plain, 3), GOLDEN["mean.3"]) < TOLERANCE
    dense = {**modules[2], "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules[:2], dense]))
    with pytest.raises(gemlet.ConfigError, match=r"'Dense'.*expected Transformer, Pooling, Normalize"):
        gemlet.load(folder)


# --- Formats, batches, parts --------------------------------------------------------------------------------
@pytest.mark.parametrize(("weights", "least"), [("bf16", 0.9998), ("q8", 0.995), ("q4", 0.8)])
def test_vectors_of_every_format_point_the_same_way(tmp_path: Path, weights: str, least: float) -> None:
    packed = tmp_path / "packed"
    gemlet.convert(FOLDER, packed, weights=weights, threads=1)
    with (
        gemlet.load(FOLDER, weights=weights, threads=1) as model,
        gemlet.load(packed, threads=1) as loaded,
    ):
        assert loaded.weights == weights
        for index in PROMPTS:
            vector = embed(model, index)
            assert float(vector @ GOLDEN[f"embedding.{index}"]) > least
            np.testing.assert_array_equal(embed(loaded, index), vector)


def test_mixed_media_beside_each_other(model: gemlet.Model) -> None:
    order = [4, 0, 1, 6, 3, 2, 5, 1]
    ids = [GOLDEN[f"ids.{index}"].tolist() for index in order]
    media = [media_of(GOLDEN, index) for index in order]
    given = {name: [one[name][0] for one in media] for name in ("images", "videos", "audio")}
    together = model.embed(ids, **given)
    np.testing.assert_array_equal(together, [embed(model, index) for index in order])
    np.testing.assert_array_equal(asyncio.run(model.aembed(ids, **given)), together)
    assert model.embedding_ids(ids, **given) == ids


def test_towers_can_be_left_out(tmp_path: Path) -> None:
    whole = gemlet.inspect(FOLDER, weights="f32").plan.weights
    for left_out, index, other, message in (
        ({"vision": False}, 1, 2, "sees no images"),
        ({"audio": False}, 2, 1, "hears no sound"),
    ):
        assert gemlet.inspect(FOLDER, weights="f32", **left_out).plan.weights < whole
        with gemlet.load(FOLDER, weights="f32", threads=1, **left_out) as model:
            for known in (0, other):
                assert difference(embed(model, known), GOLDEN[f"embedding.{known}"]) < TOLERANCE
            with pytest.raises(gemlet.UnsupportedError, match=message):
                embed(model, index)
    text_alone = {key: None for key in ("vision_config", "audio_config")}
    folder = shutil.copytree(FOLDER, tmp_path / "model")  # the file still has the tensors of towers
    (folder / "config.json").write_text(json.dumps(EMBEDDINGGEMMA2 | text_alone))
    with gemlet.load(folder, weights="f32", threads=1) as model:
        assert model.config.towers == frozenset()
        assert difference(embed(model, 0), GOLDEN["embedding.0"]) < TOLERANCE


def test_inspect_says_what_it_is() -> None:
    found = gemlet.inspect(FOLDER)
    assert found.plan.on_disk == 0
    text = str(found)
    assert "embeddinggemma2 (embedding_gemma2)" in text
    assert "inputs of 10, from the embedding alone" in text
    assert "5 tokens to either side" in text


def test_an_adapter_changes_the_vector(tmp_path: Path, model: gemlet.Model) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(3)
    module = "base_model.model.language_model.layers.1.ple_block.per_layer_input_gate"
    shapes = {"lora_A": (2, 36), "lora_B": (10, 2)}
    tensors = {
        f"{module}.{part}.weight": random.normal(size=shape).astype(np.float32)
        for part, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["per_layer_input_gate"]}
    config |= {"layers_to_transform": [1], "layers_pattern": "layers"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    plain = embed(model, 4)
    model.load_adapter(tmp_path, "low-rank")
    beside = embed(model, 4, adapter="low-rank")
    model.unload_adapter("low-rank")
    with gemlet.load(FOLDER, weights="f32", threads=1, merge_adapter=tmp_path) as merged:
        assert difference(embed(merged, 4), beside) < TOLERANCE
    assert difference(plain, beside) > 20 * TOLERANCE


# --- Texts with images and sounds ---------------------------------------------------------------------------
IMAGE = GOLDEN["image.4.0"]
WAVE = GOLDEN["wave.4.0"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    with gemlet.load(write_with_vocabulary(tmp_path_factory.mktemp("reader") / "model"), threads=1) as loaded:
        yield loaded


def image(value: Any = IMAGE) -> dict[str, Any]:
    return {"type": "image", "image": value}


def sound(value: Any = WAVE) -> dict[str, Any]:
    return {"type": "audio", "audio": value}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_parts_markers_and_ids_give_the_same_vector(reader: gemlet.Model) -> None:
    assert reader.tokenizer is not None
    assert reader.config.vision is not None
    parts = [said("  a dog "), image(), said("barks"), sound()]
    (ids,) = reader.embedding_ids([parts])
    token, begin, end = (reader.tokenizer.token_id(name) for name in ("<|image|>", "<|image>", "<image|>"))
    assert begin is not None
    assert end is not None
    assert (ids[0], ids[-1]) == (2, 1)
    # Every soft token of the image, and nothing else, is between its two ends.
    first, last = ids.index(begin), ids.index(end)
    assert set(ids[first + 1 : last]) == {token}
    expected = reader.embed([parts])
    media = {"images": [[IMAGE]], "audio": [[WAVE]]}
    for text in ("a dog <|image|>barks<|audio|>", ids):
        np.testing.assert_array_equal(reader.embed([text], **media), expected)
    one = reader.embed("a dog <|image|>barks<|audio|>", images=[IMAGE], audio=[WAVE])
    np.testing.assert_array_equal(one, expected)
    mixed = reader.embed(["a dog", parts, [image()]])
    np.testing.assert_array_equal(mixed[1:2], expected)
    np.testing.assert_array_equal(mixed[:1], reader.embed("a dog"))
    np.testing.assert_array_equal(mixed[2:], reader.embed("", images=[IMAGE]))
    np.testing.assert_array_equal(asyncio.run(reader.aembed(["a dog", parts, [image()]])), mixed)


@pytest.mark.extra("vision")
def test_the_example_of_the_guide(
    reader: gemlet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    optional("PIL.Image").fromarray(IMAGE).save("dog.jpg", "PNG")
    with wave.open("bark.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((WAVE * 32767).astype("<i2").tobytes())
    code, names = example("embeddings"), {"model": reader}
    exec(code.replace("model.embed(", "vectors = model.embed("), names)
    assert np.shape(names["vectors"]) == (4, reader.config.embedding_size)


def test_prompts_are_added_to_media_without_a_text(reader: gemlet.Model) -> None:
    assert list(reader.prompts) == ["Document", "SearchQuery"]
    (ids,) = reader.embedding_ids([[image()]], "Document")
    (same,) = reader.embedding_ids(["title: none | text: <|image|>"], images=[[IMAGE]])
    assert ids == same
    (ids,) = reader.embedding_ids([""], images=[[IMAGE, IMAGE]], audio=[[WAVE]])
    (same,) = reader.embedding_ids(["<|image|> <|image|> <|audio|>"], images=[[IMAGE, IMAGE]], audio=[[WAVE]])
    assert ids == same
    assert not reader.embed([""], empty="zero").any()
    assert reader.embed([""], empty="zero", images=[[IMAGE]]).any()


def test_a_video_is_its_frames_without_times(reader: gemlet.Model) -> None:
    frames = [GOLDEN[f"frame.6.{i}"] for i in range(5)]
    parts = [said("a film"), {"type": "video", "video": (frames, 2.0)}]
    (ids,) = reader.embedding_ids([parts])
    assert reader.tokenizer is not None
    places = {reader.tokenizer.token_id(name) for name in ("<|image>", "<|video|>", "<image|>")}
    text = reader.tokenizer.encode("a film")
    assert ids[: len(text)] == text
    assert set(ids[len(text) : -1]) == places
    expected = reader.embed([parts])
    np.testing.assert_array_equal(reader.embed("a film<|video|>", videos=[(frames, 2.0)]), expected)
    every_second = [(frames[::2][:2], 1.0)]  # 2.5 seconds: the first frame of each second
    np.testing.assert_array_equal(reader.embed("a film<|video|>", videos=every_second), expected)


def test_more_tokens_of_an_image(reader: gemlet.Model) -> None:
    counts = {
        budget: len(reader.embedding_ids([[image()]], image_tokens=budget)[0]) for budget in (None, 70, 280)
    }
    assert counts[None] == counts[70] < counts[280] <= 280 + 4
    given: dict[str, Any] = {"images": [[IMAGE]], "image_tokens": 280}
    np.testing.assert_array_equal(reader.embed([[image()]], image_tokens=280), reader.embed([""], **given))
    with pytest.raises(gemlet.InvalidRequestError, match="image_tokens: got 71, expected one of 70"):
        reader.embed([[image()]], image_tokens=71)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([[image(), said("<|image|>")]], {}, r"texts\[0\]: the prompt has \d+ placeholders of images"),
        (
            ["<|image|>"],
            {"images": [[IMAGE, IMAGE]]},
            r"texts\[0\]: it has the marker <\|image\|> 1 times, but there are 2",
        ),
        (["a"], {"audio": [[WAVE]]}, r"texts\[0\]: it has the marker <\|audio\|> 0 times"),
        (["a", "b"], {"images": [[IMAGE]]}, r"(?s)images: .*a list of images for each of 2"),
        (["a"], {"images": [IMAGE]}, r"(?s)images: .*a list of images for each"),
        ([[image("nowhere.png")]], {}, r"texts\[0\]\[0\]"),
        ([[image(7)]], {}, r"texts\[0\]\[0\]: got 7, expected a path"),
        ([[{"type": "image"}]], {}, r"texts\[0\]\[0\] has no image"),
        ([[{"type": "video", "video": "a.mp4"}]], {}, r"texts\[0\]\[0\]: 'a.mp4' cannot be read"),
        ([[said("a"), {"text": "b"}]], {}, r"texts\[0\]\[1\]: got {'text': 'b'}, expected a part"),
        ([[{"type": "text", "text": 5}]], {}, r"texts\[0\]\[0\]: got"),
        ([[image()]], {"images": [[IMAGE]]}, "give all media as parts"),
        ([[said(" ")]], {}, r"texts\[0\]: it is empty"),
        ([[2, 5, 1]], {"images": [[IMAGE]]}, "the prompt has 0 placeholders of images"),
        (["a"], {"audio": "a.wav"}, "audio: got 'a.wav', expected a list of sounds"),
    ],
)
def test_wrong_requests(reader: gemlet.Model, texts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        reader.embed(texts, **options)


def test_a_text_with_an_image_is_never_cut(reader: gemlet.Model) -> None:
    with gemlet.load(reader.source, threads=1, max_context=16) as short:
        short.embed(["word " * 40], truncate=True)
        with pytest.raises(gemlet.ContextLengthError, match=r"texts\[0\]"):
            short.embed([[image()]], truncate=True)


# --- Configuration ------------------------------------------------------------------------------------------
def test_a_saved_configuration_is_read_as_the_published_one() -> None:
    """transformers 5 writes it with everything that the published form leaves out."""
    found = read_config(FOLDER)
    text = {**EMBEDDINGGEMMA2["text_config"]}
    for key in ("global_head_dim", "num_global_key_value_heads", "sliding_window_pattern"):
        del text[key]
    local, full = "sliding_attention", "full_attention"
    text |= {
        "layer_types": [local, local, full, local, full],
        "per_layer_config": {str(i): {"head_dim": 24, "num_key_value_heads": 1} for i in (2, 4)},
        "rope_parameters": {
            local: {"rope_theta": 10000.0, "rope_type": "default"},
            full: {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    }
    assert parse_config({**EMBEDDINGGEMMA2, "text_config": text}, where="") == found
    assert [layer.sliding_window for layer in found.layers] == [6, 6, 0, 6, 0]
    assert (found.dense_sizes, found.per_layer_vocab_size, found.placeholders_read_as) == ((40,), 0, 0)


def test_published_sizes() -> None:
    config = parse_config({"model_type": "embedding_gemma2", "text_config": {}}, where="")
    assert (config.num_layers, config.hidden_size, config.embedding_size) == (24, 512, 768)
    assert config.max_position_embeddings == 8192  # the file says 262144; the publisher's limit is this
    assert [i for i, layer in enumerate(config.layers) if not layer.sliding_window] == [5, 11, 17, 23]
    full, local = config.layers[5], config.layers[0]
    assert (full.num_kv_heads, full.head_dim, local.num_kv_heads, local.head_dim) == (1, 512, 2, 256)
    assert (full.rope_theta, full.rope_partial_factor, local.sliding_window) == (1e6, 1.0, 513)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("text_config.embedding_dim", 0, "embedding_dim is 0"),
        ("text_config.embedding_dim", 1 << 40, "embedding_dim is"),
        ("text_config.embedding_dim", None, "embedding_dim is None"),
        ("text_config.hidden_size_per_layer_input", 0, "hidden_size_per_layer_input is 0"),
        ("text_config.num_global_key_value_heads", 3, "a divisor of num_attention_heads"),
        ("text_config.num_global_key_value_heads", None, "num_global_key_value_heads is None"),
        ("text_config.global_head_dim", 7, "an even number"),
        ("text_config.sliding_window", 0, "sliding_window is 0"),
        ("text_config.sliding_window", 1 << 24, "sliding_window"),
        ("text_config.sliding_window_pattern", 0, "sliding_window_pattern is 0"),
        ("text_config.per_layer_config", {"0": {"head_dim": 8}}, "makes layer 1 differ"),
        ("text_config.use_bidirectional_attention", False, "use_bidirectional_attention is False"),
        ("text_config.attention_bias", True, "attention_bias is True"),
        ("text_config.vocab_size_per_layer_input", 148, "unknown key"),
        ("text_config.model_type", "gemma4_text", "model_type is 'gemma4_text'"),
        ("text_config", None, "text_config is None"),
        ("vision_config", 5, "vision_config is 5"),
        ("audio_config", {"model_type": "gemma3n_audio"}, "model_type is 'gemma3n_audio'"),
        ("image_token_id", "x", "image_token_id is 'x'"),
        ("num_experts", 4, "unknown key"),
    ],
)
def test_hostile_configurations(place: str, value: Any, message: str) -> None:
    config = json.loads(json.dumps(EMBEDDINGGEMMA2))
    *outer, key = place.split(".")
    inside = config[outer[0]] if outer else config
    inside[key] = value
    with pytest.raises(gemlet.ConfigError, match=message):
        parse_config(config, where="config.json").to_core(weights="f32")


# --- Adapters -----------------------------------------------------------------------------------------------
def test_every_golden_adapter_is_there() -> None:
    assert EMBEDDING_NAMES == ["embeddinggemma2-dora", "embeddinggemma2-linear"]


@pytest.mark.parametrize("name", EMBEDDING_NAMES)
def test_adapters_of_text_and_towers_agree_with_peft(name: str) -> None:
    index = prompt_of(name)
    plain, expected = GOLDEN[f"embedding.{index}"], embedding_of(name)
    with gemlet.load(FOLDER, weights="f32", threads=2) as model:
        adapter = model.load_adapter(ADAPTERS / name)
        assert not adapter.passed_over
        assert {target.partition(".")[0] for target in adapter.targets} >= {"vision", "audio", "v_proj"}
        # Neither call uses the cached results of the other.
        assert difference(embed(model, index), plain) < TOLERANCE
        assert difference(embed(model, index, adapter=name), expected) < TOLERANCE
        assert difference(embed(model, index), plain) < TOLERANCE
    with gemlet.load(FOLDER, weights="f32", threads=2, merge_adapter=ADAPTERS / name) as merged:
        assert difference(embed(merged, index), expected) < 10 * TOLERANCE  # this value is rounded once more
