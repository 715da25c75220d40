"""The placeholder ids of images, videos and sound in a text: handled as in the reference, or refused. No
model generates them.

transformers replaces those of Gemma 4 by the pad token, in both tables, before it embeds anything
(``Gemma4Model.forward``), and embeds those of Gemma 3n with the tables of its towers
(``Gemma3nModel.forward``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.config import parse_config, read_config
from gemlet.errors import ConfigError, UnsupportedError
from support.paths import TESTS
from support.tiny_models import CONFIGS, IDS, write_folder

pytestmark = pytest.mark.tier

GEMMA4 = {"image_token_id": 17, "audio_token_id": 80, "video_token_id": None}


def multimodal(model_type: str, text: str | None = None, **outer: Any) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": CONFIGS[text or f"{model_type}_text"], **outer}


def folder_of(path: Path, config: dict[str, Any]) -> Path:
    write_folder(path, config["text_config"])
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("text", ["gemma4_text", "gemma4_experts"])
def test_gemma4_reads_a_placeholder_as_the_pad_token(tmp_path: Path, text: str) -> None:
    pad = 11
    config = multimodal("gemma4", text, **GEMMA4)
    config["text_config"] = config["text_config"] | {"pad_token_id": pad}
    folder = folder_of(tmp_path / "model", config)
    padded = [pad if token in (17, 80) else token for token in IDS]
    assert padded != IDS
    with gemlet.load(folder, threads=1) as model:
        expected = model.logits(padded)
        assert np.array_equal(model.logits(IDS), expected)
        assert np.array_equal(model.logits(np.array(IDS)), expected)
        assert model.generate(IDS, max_tokens=8, temperature=0).token_ids == (
            model.generate(padded, max_tokens=8, temperature=0).token_ids
        )
        # A placeholder is read as the pad token, but keeps its own probability.
        rows = expected - np.logaddexp.reduce(expected, axis=-1, keepdims=True)
        wanted = rows[np.arange(len(IDS) - 1), IDS[1:]]
        found = model.score(IDS)
        assert found.token_ids == IDS
        np.testing.assert_allclose(found.token_logprobs, wanted, atol=1e-4)
        asked = model.generate(IDS, max_tokens=1, prompt_logprobs=0).prompt_logprobs
        assert asked is not None
        assert [one.token_id for one in asked if one is not None] == IDS[1:]
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    with gemlet.load(folder, threads=1) as model:  # the model without towers has none
        assert not np.array_equal(model.logits(IDS), expected)
        assert np.array_equal(model.logits(padded), expected)


def test_gemma3n_refuses_ids_of_its_towers(tmp_path: Path) -> None:
    config = multimodal("gemma3n", vision_config={"vocab_offset": 80}, audio_config={"vocab_offset": 90})
    folder = folder_of(tmp_path / "model", config)
    text = [token for token in IDS if token < 80]
    with gemlet.load(folder, threads=1) as model:
        assert model.logits(text).shape == (len(text), 96)
        for ids in (IDS, [5, 90], [80]):
            for use in (model.logits, model.generate):
                with pytest.raises(UnsupportedError, match=r"token id (80|90) .*an image or a sound"):
                    use(ids)


@pytest.mark.parametrize("model_type", ["gemma4", "gemma3n", "gemma3"])
def test_a_placeholder_is_never_written(tmp_path: Path, model_type: str) -> None:
    """This is also true if the model's logits favour it, here at every second step."""
    folder = folder_of(tmp_path / "model", multimodal(model_type))
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with gemlet.load(folder, threads=1) as model:
        free = model.generate(IDS[:3], **options).token_ids
    likely = max(set(free), key=free.count)
    outer: dict[str, Any] = {"image_token_id": likely}
    if model_type == "gemma3":
        outer = {"image_token_index": likely}
    if model_type == "gemma3n":
        outer = {"vision_config": {"vocab_offset": likely}}
    (folder / "config.json").write_text(json.dumps(multimodal(model_type, **outer)))
    ids = [token for token in IDS[:3] if token < likely] or [2] if model_type == "gemma3n" else IDS[:3]
    with gemlet.load(folder, threads=1) as model:
        written = model.generate(ids, **options).token_ids
        assert likely not in written
        if model_type == "gemma3n":
            assert max(written) < likely
        assert likely not in model.generate(ids, suppress_tokens=[1], **options).token_ids


def test_the_ids_of_placeholders_follow_from_the_config() -> None:
    large = CONFIGS["gemma4_text"] | {"vocab_size": 262144, "vocab_size_per_layer_input": 262144}
    whole = {"model_type": "gemma4", "text_config": large}
    assert parse_config(whole, where="c").placeholder_ids == (258880, 258881, 258884)
    assert parse_config(whole, where="c").placeholders_read_as == 0
    without = parse_config({**whole, "image_token_id": None, "audio_token_id": -1}, where="c")
    assert without.placeholder_ids == (258884,)
    assert parse_config(large, where="c").placeholder_ids == ()
    table = CONFIGS["gemma3n_text"] | {"vocab_size": 262400}
    assert parse_config({"model_type": "gemma3n", "text_config": table}, where="c").text_ids == 262144
    assert parse_config(table, where="c").text_ids is None
    assert parse_config(multimodal("gemma3n"), where="c").text_ids is None
    wide = {"model_type": "gemma3", "text_config": CONFIGS["gemma3_text"] | {"vocab_size": 262208}}
    for key in ("image_token_index", "image_token_id"):
        assert parse_config({**wide, key: 262144}, where="c").placeholder_ids == (262144,)
    assert parse_config(wide, where="c").placeholders_read_as is None
    for wrong in (
        {"image_token_id": "x"},
        {"image_token_id": 2**40},
        {"video_token_id": [1]},
        {"audio_token_id": True},
    ):
        with pytest.raises(ConfigError, match="token_id"):
            parse_config({**whole, **wrong}, where="c")
    for wrong in ({"vision_config": {"vocab_offset": "x"}}, {"audio_config": 3}):
        with pytest.raises(ConfigError, match=r"vision_config\.vocab_offset|audio_config"):
            parse_config({**multimodal("gemma3n"), **wrong}, where="c")


def test_gguf_files_have_the_published_ids() -> None:
    """The config of such a file names no placeholders."""
    config = CONFIGS["gemma4_text"] | {"vocab_size": 262144, "vocab_size_per_layer_input": 262144}
    widths = {"intermediate_size": [96, 96, 192]}
    assert parse_config({**config, "gguf": widths}, where="c").placeholder_ids == (258880, 258881, 258884)


def test_golden_folders_have_no_placeholders() -> None:
    for name in ("gemma3-4b", "gemma3n-e2b", "gemma4-e2b", "gemma4-12b"):
        config = read_config(TESTS / "golden" / name)
        assert (config.placeholder_ids, config.text_ids) == ((), None)


def test_every_call_reads_the_ids_of_other_tables() -> None:
    """This is about a Gemma 3n with its towers. The ids may also begin a session or come before choices."""
    ids = [2, 149, 5, 140, 9]
    with gemlet.load(TESTS / "golden" / "vision" / "gemma3n", weights="f32", threads=1) as model:
        rows = model.logits([*ids, 7])
        best = int(np.argmax(rows[4, : model.config.text_ids]))
        session = model.session()
        assert session.generate(ids, max_tokens=1, temperature=0, ignore_eos=True).token_ids == [best]
        total = float(rows[4, 7] - np.logaddexp.reduce(rows[4]))
        assert model.score([*ids, 7]).token_logprobs[-1] == pytest.approx(total, abs=1e-4)
