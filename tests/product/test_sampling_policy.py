"""Tests of the recommendations for sampling in the files of a checkpoint. gemlet follows them, lists them if
it does not support them, or ignores them if they change nothing."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet import GenerationConfig
from gemlet.base.sampling_options import OPTIONS
from gemlet.generation.options import GenerationOptions
from gemlet.sources.tokenizers import asked_by_folder
from support.gguf_models import convert_folder
from support.tiny_models import CONFIGS, write_folder
from support.tokenizer_files import ARRAY, BOOL, F32, I32, STRING, gguf_entry

PROMPT = [2, 17, 5, 80]


def folder(path: Path, **generation: Any) -> Path:
    write_folder(path, CONFIGS["gemma3_text"])
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def greedy(model: gemlet.Model, **options: Any) -> list[int]:
    return model.generate(PROMPT, max_tokens=24, temperature=0, ignore_eos=True, **options).token_ids


def test_suppressed_tokens_are_never_generated(tmp_path: Path) -> None:
    with gemlet.load(folder(tmp_path / "plain"), threads=1) as model:
        free = greedy(model)
        likely = sorted(set(free))
        options = {
            "max_tokens": 200,
            "seed": 1,
            "temperature": 5.0,
            "top_k": 0,
            "top_p": 1.0,
            "ignore_eos": True,
        }
        assert set(model.generate(PROMPT, suppress_tokens=likely, **options).token_ids).isdisjoint(likely)
        assert set(greedy(model, suppress_tokens=likely)).isdisjoint(likely)
        assert set(greedy(model, suppress_tokens=likely, repetition_penalty=1.3)).isdisjoint(likely)
    named = folder(tmp_path / "named", suppress_tokens=[-1, *likely])  # -1 means no token
    with gemlet.load(named, threads=1) as model:
        assert model.generation_config.suppress_tokens == tuple(likely)
        assert set(greedy(model)).isdisjoint(likely)
        # The value of the caller replaces the value of the file.
        assert greedy(model, suppress_tokens=[]) == free
        assert set(greedy(model, suppress_tokens=None)).isdisjoint(likely)
    gemlet.convert(named, tmp_path / "packed", weights="f32")
    with gemlet.load(tmp_path / "packed", threads=1) as model:
        assert set(greedy(model)).isdisjoint(likely)


def test_suppressed_tokens_in_a_gguf_file(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "folder", CONFIGS["gemma3_text"])
    with gemlet.load(source, threads=1) as model:
        likely = sorted(set(greedy(model)))
    path = convert_folder(
        source, tmp_path / "a.gguf", more=[gguf_entry("tokenizer.ggml.suppress_tokens", ARRAY, (I32, likely))]
    )
    with gemlet.load(path, threads=1) as model:
        assert model.generation_config.suppress_tokens == tuple(likely)
        assert set(greedy(model)).isdisjoint(likely)


def test_suppressed_tokens_beyond_the_vocabulary_are_ignored(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", suppress_tokens=[5, 96, -1, -2, 1 << 70, 258_882, 258_883])
    assert "suppress_tokens -2, 96, 258882 and 2 more" in gemlet.inspect(source).passed_over
    entry = gguf_entry("tokenizer.ggml.suppress_tokens", ARRAY, (I32, [96, 5]))
    with gemlet.load(source, threads=1) as model:
        assert model.generation_config.suppress_tokens == (5,)
    path = convert_folder(
        write_folder(tmp_path / "b", CONFIGS["gemma3_text"]), tmp_path / "b.gguf", more=[entry]
    )
    assert "tokenizer.ggml.suppress_tokens 96" in gemlet.inspect(path).passed_over
    with gemlet.load(path, threads=1) as model:
        assert model.generation_config.suppress_tokens == (5,)


def test_sampling_settings_of_a_gguf_file_are_followed_or_listed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "folder", CONFIGS["gemma3_text"])
    asked = {
        "xtc_probability": (F32, 0.5),
        "xtc_threshold": (F32, 0.25),
        "mirostat": (I32, 0),
        "mirostat_tau": (F32, 5.0),
        "sequence": (STRING, "top_k;temp"),
        "penalty_repeat": (F32, 1.0),
        "penalty_last_n": (I32, 64),
        "top_k": (I32, 5),
    }
    entries = [gguf_entry(f"general.sampling.{key}", *value) for key, value in asked.items()]
    found = gemlet.inspect(convert_folder(source, tmp_path / "a.gguf", more=entries))
    said = {"xtc_probability": 0.5, "xtc_threshold": 0.25, "sequence": "top_k;temp"}
    assert found.not_followed == {f"general.sampling.{key}": value for key, value in said.items()}
    gemlet.convert(tmp_path / "a.gguf", tmp_path / "packed")
    assert gemlet.inspect(tmp_path / "packed").not_followed == found.not_followed
    entries.append(gguf_entry("general.sampling.penalty_repeat", F32, 1.5))
    entries = entries[:5] + entries[6:]  # removes the earlier penalty, which was 1
    found = gemlet.inspect(convert_folder(source, tmp_path / "b.gguf", more=entries))
    assert found.not_followed["general.sampling.penalty_last_n"] == 64


@pytest.mark.parametrize("ids", [["1"], 5, [True], [1.0], {"1": 1}, [None]])
def test_wrong_suppressed_tokens_are_named(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(gemlet.ConfigError, match=r"suppress_tokens is .*; expected a list of up to"):
        gemlet.load(folder(tmp_path / "a", suppress_tokens=ids))


def test_unsupported_sampling_gives_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path / "a", num_beams=3, eta_cutoff=0.9, epsilon_cutoff=0.0, bad_words_ids=None)
    found = gemlet.inspect(path)
    assert found.not_followed == {"num_beams": 3, "eta_cutoff": 0.9}
    assert "not done   num_beams=3, eta_cutoff=0.9" in str(found)
    with caplog.at_level(logging.WARNING, "gemlet"), gemlet.load(path, threads=1) as model:
        assert not caplog.records
        greedy(model)
        greedy(model)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "asks for num_beams=3, eta_cutoff=0.9, which gemlet cannot do" in caplog.text


@pytest.mark.parametrize(
    ("key", "asked", "nothing"), [("num_return_sequences", 2, 1), ("token_healing", True, False)]
)
def test_settings_that_would_change_the_text_are_listed(
    key: str, asked: Any, nothing: Any, tmp_path: Path
) -> None:
    assert gemlet.inspect(folder(tmp_path / "a", **{key: asked})).not_followed == {key: asked}
    assert gemlet.inspect(folder(tmp_path / "b", **{key: nothing})).not_followed == {}


@pytest.mark.parametrize("key", ["max_new_tokens", "max_length"])
def test_lengths_in_a_file_are_listed(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path / "a", **{key: 5})
    assert gemlet.inspect(path).not_followed == {key: 5}
    with caplog.at_level(logging.WARNING, "gemlet"), gemlet.load(path, threads=1) as model:
        assert len(model.generate(PROMPT, max_tokens=7, ignore_eos=True).token_ids) == 7
    assert f"asks for {key}=5, which gemlet cannot do" in caplog.text


def test_max_tokens_below_the_min_tokens_of_a_file(tmp_path: Path) -> None:
    with gemlet.load(folder(tmp_path / "a", min_new_tokens=9), threads=1) as model:
        assert len(model.generate(PROMPT, max_tokens=3).token_ids) == 3
        assert len(model.generate(PROMPT, max_tokens=20).token_ids) >= 9
        with pytest.raises(
            gemlet.InvalidRequestError, match="min_tokens: got 5, expected at most max_tokens, 3"
        ):
            model.generate(PROMPT, max_tokens=3, min_tokens=5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"add_bos_token": False}, {"add_bos_token": False}),
        ({"add_eos_token": True, "add_bos_token": True}, {"add_eos_token": True}),
        ({"add_bos_token": True, "add_eos_token": False}, {}),
        ({"add_bos_token": None}, {}),
    ],
)
def test_end_tokens_that_tokenizers_would_add_are_listed(
    asked: dict[str, Any], said: dict[str, Any], tmp_path: Path
) -> None:
    path = shutil.copytree(Path(gemlet.__file__).parent / "demo", tmp_path / "a")
    (path / "tokenizer_config.json").write_text(json.dumps(asked))
    assert gemlet.inspect(path).not_followed == said


def test_an_end_token_of_a_post_processor_is_listed(tmp_path: Path) -> None:
    path = shutil.copytree(Path(gemlet.__file__).parent / "demo", tmp_path / "a")

    def asked(processor: object, **more: object) -> dict[str, Any]:
        vocabulary = {"model": {"vocab": {"post_processor": 1}}}  # a piece, and not the key
        text = json.dumps({**vocabulary, "post_processor": processor, **more})
        (path / "tokenizer.json").write_text(text)
        return asked_by_folder(str(path), "<eos>")

    text = {"Sequence": {"id": "A", "type_id": 0}}
    bos, eos = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<bos>", "<eos>"))
    template = {"type": "TemplateProcessing", "single": [bos, text, eos]}
    assert asked(template) == {"add_eos_token": True}
    assert asked({"type": "Sequence", "processors": [{"type": "X"}, template]}) == {"add_eos_token": True}
    assert asked({**template, "single": [bos, text]}) == {}
    assert asked(None) == asked({}) == asked({"single": [[]]}) == {}


def test_end_tokens_that_gguf_files_ask_for_are_listed(tmp_path: Path) -> None:
    more = [gguf_entry("tokenizer.ggml.add_bos_token", BOOL, False)]
    path = convert_folder(folder(tmp_path / "f"), tmp_path / "a.gguf", more=more)
    assert gemlet.inspect(path).not_followed == {"add_bos_token": False}


def test_end_tokens_are_listed_after_a_conversion(tmp_path: Path) -> None:
    """The post-processor in tokenizer.json adds EOS. A packed folder does not contain this file, but the
    setting is still listed."""
    path = shutil.copytree(Path(gemlet.__file__).parent / "demo", tmp_path / "a")
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, eos]}
    (path / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    gemlet.convert(path, packed := tmp_path / "packed")
    assert gemlet.inspect(packed).not_followed == {"add_eos_token": True}


def test_settings_without_an_effect_are_ignored(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", presence_penalty=0.0, surprise=7, max_length=20, top_k=-1, top_p=1)
    found = gemlet.inspect(path)
    assert found.not_followed == {}
    assert found.passed_over == ("surprise",)
    with gemlet.load(path, threads=1) as model:
        assert model.generation_config.top_k == 0


def test_recommended_sampling_becomes_the_default(tmp_path: Path) -> None:
    wanted = {
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "no_repeat_ngram_size": 2,
    }
    path = folder(tmp_path / "a", min_new_tokens=7, **wanted)
    assert gemlet.inspect(path).not_followed == {}
    with gemlet.load(path, threads=1) as model:
        config = model.generation_config
        assert {name: getattr(config, name) for name in wanted} == wanted
        assert config.min_tokens == 7
        text = PROMPT + model.generate(PROMPT, max_tokens=40, temperature=0, ignore_eos=True).token_ids
    pairs = list(itertools.pairwise(text))
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    ("given", "stops"), [("END", ("END",)), (["a", "b"], ("a", "b")), ([], ()), (None, ()), ("", ())]
)
def test_stop_strings_of_a_file(tmp_path: Path, given: Any, stops: tuple[str, ...]) -> None:
    path = folder(tmp_path / "a", stop_strings=given)
    assert gemlet.inspect(path).not_followed == {}
    with gemlet.load(path, threads=1) as model:
        assert model.generation_config.stop == stops


@pytest.mark.parametrize("given", [5, [5], [""], ["a"] * 17, {"a": 1}, "a" * 257])
def test_wrong_stop_strings_are_named(tmp_path: Path, given: Any) -> None:
    with pytest.raises(gemlet.ConfigError, match=r"stop_strings is .*; expected up to"):
        gemlet.load(folder(tmp_path / "a", stop_strings=given))


@pytest.mark.parametrize("value", [64, 64.0])
def test_integers_may_have_a_decimal_point(tmp_path: Path, value: float) -> None:
    with gemlet.load(folder(tmp_path / "a", top_k=value), threads=1) as model:
        assert model.generation_config.top_k == 64
    assert GenerationConfig(top_k=value).top_k == 64  # type: ignore[arg-type]


def test_an_option_of_none_has_its_default() -> None:
    assert GenerationConfig(**dict.fromkeys(GenerationOptions.__annotations__)) == GenerationConfig()
    with gemlet.load(threads=1) as model:
        options: Any = dict.fromkeys(GenerationOptions.__annotations__)
        one = model.generate("The door", **options | {"max_tokens": 8, "seed": 3})
        assert one.text == model.generate("The door", max_tokens=8, seed=3).text


def test_values_that_switch_an_option_off() -> None:
    assert GenerationConfig(seed=-1).seed is None
    assert GenerationConfig(top_p=0).greedy
    assert GenerationConfig(top_k=-1).top_k == 0
    with gemlet.load(threads=1) as model:
        likeliest = model.generate("The door", max_tokens=8, temperature=0).token_ids
        assert model.generate("The door", max_tokens=8, top_p=0).token_ids == likeliest


def test_all_tables_of_options_have_the_same_names() -> None:
    """The table of options, the overrides and GenerationConfig have the same names."""
    assert set(OPTIONS) < set(GenerationOptions.__annotations__)
    assert set(GenerationOptions.__annotations__) == {one.name for one in fields(GenerationConfig)}
    for name, option in OPTIONS.items():
        assert getattr(GenerationConfig(), name) == option.default
