"""Tests of ``gemlet embed``, which prints the vectors of texts, images and sounds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet.cli import main
from support import embedding
from support.audio import wav
from support.extras import optional
from support.tiny_models import write_text_embedder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    """A random embedding model with a tokenizer and prompts."""
    folder = write_text_embedder(tmp_path_factory.mktemp("reader") / "model")
    prompts = {"prompts": {"note": "a note: ", "plain": ""}, "default_prompt_name": "plain"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with gemlet.load(folder, threads=1) as loaded:
        yield loaded


def test_command_line(
    reader: gemlet.Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reader.embed(["one", "two"], "note", 8)
    assert (
        main(["embed", "one", "two", "--model", reader.source, "--prompt", "note", "--dimensions", "8"]) == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(np.array(rows), expected, atol=1e-7)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\r\ntwo\n")))
    assert main(["embed", "--model", reader.source, "--prompt", "note", "--dimensions", "8"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert main(["embed", "one"]) == 1
    assert "writes text and makes no embeddings" in capsys.readouterr().err


def test_the_command_line_cuts_long_texts_and_says_so(
    reader: gemlet.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["one", "word " * 40, "two", "more " * 40]
    with gemlet.load(reader.source, threads=1, max_context=16) as model:
        expected = model.embed(texts, truncate=True)
    options = ["--model", reader.source, "--max-context", "16", "--threads", "1"]
    assert main(["embed", *texts, *options]) == 0
    output, errors = capsys.readouterr()
    np.testing.assert_allclose([json.loads(line) for line in output.splitlines()], expected, atol=1e-7)
    assert errors == (
        "gemlet: note: texts 2, 4 are longer than the context of 16 tokens and cut there; --no-truncate "
        "refuses this\n"
    )
    assert main(["embed", *texts, *options, "--no-truncate"]) == 1
    assert "2 texts are wrong, and none was computed; their indices are 1, 3" in capsys.readouterr().err
    assert main(["embed", "", *texts, *options]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("gemlet: error: texts[0]: it is empty")
    assert main(["embed", "", "word " * 40, *options, "--empty", "zero"]) == 0
    output, errors = capsys.readouterr()
    assert set(json.loads(output.splitlines()[0])) == {0.0}
    assert errors.startswith("gemlet: note: text 2 is longer")


@pytest.mark.extra("vision")
@pytest.mark.extra("audio")
def test_each_image_and_each_sound_has_its_own_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(embedding.write_with_vocabulary(tmp_path / "model"))
    levels, wave = embedding.golden()["image.4.0"], tmp_path / "bark.wav"
    picture = tmp_path / "dog.png"
    optional("PIL.Image").fromarray(levels).save(picture)
    wave.write_bytes(wav(embedding.golden()["wave.4.0"]))
    media = ["--image", str(picture), "--audio", str(wave)]
    parts = [{"type": "image", "image": levels}], [{"type": "audio", "audio": str(wave)}]
    with gemlet.load(folder, threads=1) as model:
        apart = model.embed(["a dog", *parts])
        together = model.embed([[{"type": "text", "text": "a dog"}, *parts[0], *parts[1]]])
    for more, expected in (["a dog"], apart), (["a dog", "--together"], together), ([], apart[1:]):
        assert main(["embed", *more, *media, "--model", folder, "--threads", "1"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        np.testing.assert_allclose(np.array(rows), expected, atol=1e-7)
    assert main(["embed", "--image", str(tmp_path / "none.png"), "--model", folder]) == 1
    assert "none.png" in capsys.readouterr().err
    assert main(["embed", "a dog", "--together", "--model", folder]) == 1
    assert "--together: expected --image, --video or --audio too" in capsys.readouterr().err
