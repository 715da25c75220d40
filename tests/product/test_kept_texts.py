"""Tests of load(prefix_cache=...): the prefix cache in memory and in a folder, and the reports about the
reuse of prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import gemlet
from support.commands import run

OPTIONS: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
TEXT = "The wind blew over the hills and the old house was dark. " * 20


def cached(model: gemlet.Model, text: str = TEXT, **options: Any) -> int:
    return model.generate(text, **OPTIONS, **options).cached_tokens


def test_the_default_is_a_prefix_cache_in_memory() -> None:
    with gemlet.load(threads=1) as model:
        assert cached(model) == 0
        assert cached(model) == model.generate(TEXT, **OPTIONS).prompt_tokens - 1
        memory = model.memory()
        assert memory["kv_cache"] == 0
        assert memory["prefix_cache"] > 0
    with gemlet.load(threads=1, prefix_cache=False) as model:
        assert cached(model) == cached(model) == 0
        assert model.memory()["prefix_cache"] == 0


def test_requests_with_different_salts_share_no_cache() -> None:
    with gemlet.load(threads=1) as model:
        assert cached(model, cache_salt="one") == 0
        assert cached(model, cache_salt="one") > 0
        assert cached(model, cache_salt="two") == cached(model) == 0
        assert model.explain_prefix(TEXT, cache_salt="one").cached_tokens > 0
        assert model.explain_prefix(TEXT, cache_salt="three").cached_tokens == 0
        for salt in ("", "x" * 257, 5, True, b"x"):
            with pytest.raises(
                gemlet.InvalidRequestError, match=r"cache_salt: got .*, expected None, or 1 to 256"
            ):
                model.generate("x", cache_salt=salt)


def test_the_size_limits_the_cache_and_counts_in_the_plan() -> None:
    plain, found = gemlet.inspect().plan, gemlet.inspect(prefix_cache_size="1MB").plan
    assert (plain.prefix_cache, found.prefix_cache) == (0, 10**6)
    assert "prefix cache 1 MB" in str(found)
    with pytest.raises(gemlet.MemoryLimitError, match=r"prefix cache .*a smaller prefix_cache_size"):
        gemlet.load(max_memory=plain.total + 10**7, prefix_cache_size="1GB")
    with gemlet.load(threads=1, prefix_cache_size="300KB") as model:
        for start in range(6):
            cached(model, TEXT[start:])
        assert 0 < model.stats()["prefix_cache_bytes"] <= 300_000


def test_a_folder_outlives_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "texts"
    with gemlet.load(threads=1, prefix_cache=folder, prefix_cache_size="100MB") as model:
        expected = model.generate(TEXT, **OPTIONS)
    assert folder.stat().st_mode & 0o777 == 0o700
    with gemlet.load(threads=1, prefix_cache=str(folder)) as model:
        found = model.generate(TEXT, **OPTIONS)
        assert (found.token_ids, found.cached_tokens) == (expected.token_ids, expected.prompt_tokens - 1)
    with gemlet.load(weights="q8", threads=1, prefix_cache=folder) as model:  # other weights
        assert cached(model) == 0
    with gemlet.load(kv_cache="int8", threads=1, prefix_cache=folder) as model:
        assert cached(model) == 0


def test_a_changed_model_does_not_use_old_texts(tmp_path: Path) -> None:
    """The model is in a packed folder. A new time stamp of the weights is enough to make it another model."""
    gemlet.convert(None, tmp_path / "packed", weights="q8")
    options: dict[str, Any] = {"threads": 1, "prefix_cache": tmp_path / "texts"}
    for expected in (False, True):
        with gemlet.load(tmp_path / "packed", **options) as model:
            assert (cached(model) > 0) == expected
    weights = max((tmp_path / "packed").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    os.utime(weights, (1, 1))
    with gemlet.load(tmp_path / "packed", **options) as model:
        assert cached(model) == 0


def test_adapters_are_recognized_by_their_content(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "prefix_cache": tmp_path}
    ids, settings = list(range(5, 95)), {"max_tokens": 2, "temperature": 0}
    adapters = "tests/golden/adapters"
    for name, expected in (("mine", 0), ("other name", 89)):
        with gemlet.load("tests/golden/gemma3-270m", **options) as model:
            model.load_adapter(f"{adapters}/gemma3-plain", name=name)
            assert model.generate(ids, adapter=name, **settings).cached_tokens == expected
    with gemlet.load("tests/golden/gemma3-270m", **options) as model:
        assert model.generate(ids, **settings).cached_tokens == 0


def test_folders_and_sizes_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for folder, match in (
        ("file", "cannot be used"),
        ("file/below", "cannot be used"),
        ("open", "chmod go-w"),
    ):
        with pytest.raises(gemlet.InvalidRequestError, match=match):
            gemlet.load(prefix_cache=tmp_path / folder)
    for arguments in (
        {"prefix_cache": 3},
        {"prefix_cache": ""},
        {"prefix_cache_size": "much"},
        {"prefix_cache_size": 0},
        {"prefix_cache_size": "1GB", "prefix_cache": False},
    ):
        with pytest.raises(gemlet.InvalidRequestError, match="prefix_cache"):
            gemlet.load(**arguments)  # type: ignore[arg-type]


def test_explain_prefix_finds_the_byte_that_prevents_reuse() -> None:
    with gemlet.load(threads=1) as model:
        nothing = model.explain_prefix(TEXT)
        assert (nothing.cached_tokens, nothing.byte, nothing.kept) == (0, 0, "")
        model.generate(TEXT, **OPTIONS)
        place = TEXT.index("old", 300)
        changed = TEXT[:place] + "new" + TEXT[place + 3 :]
        report = model.explain_prefix(changed)
        assert report.byte is not None
        assert abs(report.byte - place) <= 1  # the token of "old" may begin with the space before the word
        assert changed.encode()[: report.byte].decode().endswith(report.before)
        assert report.prompt.lstrip().startswith("new")
        assert report.kept.lstrip().startswith("old")
        assert report.cached_tokens == report.common_tokens == cached(model, changed)
        assert f"byte {report.byte}" in str(report)
        whole = model.explain_prefix(TEXT)
        assert (whole.byte, whole.cached_tokens) == (None, whole.prompt_tokens - 1)


@pytest.mark.parametrize("begin", ["", "<bos>", "<bos><bos>"])
def test_the_reported_byte_counts_in_the_text_of_the_caller(begin: str) -> None:
    with gemlet.load(threads=1) as model:
        assert model.explain_prefix(f"{begin}The door").byte == 0
        model.generate("The door \U0001f642 opened", **OPTIONS)
        # Only the last byte of this emoji differs.
        report = model.explain_prefix(f"{begin}The door \U0001f643 opened")
        assert report.byte is not None
        assert report.byte - len(f"{begin}The door ") in (0, 3)
        if not begin:
            spelled = model.explain_prefix("<bos>The door", allow_control=False)
            assert spelled.byte == 0
            assert model.tokenizer is not None
            ids = model.explain_prefix([2, *model.tokenizer.encode("A", add_bos=False)])
            assert ids.byte == len("<bos>")


def test_the_report_of_a_chat() -> None:
    with gemlet.load(threads=1) as model:
        first = [{"role": "user", "content": "Who is there?"}]
        model.chat(first, **OPTIONS)
        report = model.explain_prefix([{"role": "user", "content": "Who was there?"}])
        assert report.before.endswith("Who")
        assert report.cached_tokens == report.common_tokens > 3
        assert model.explain_prefix(first).byte is None


def test_the_command_line_uses_a_prefix_cache_in_a_folder(tmp_path: Path) -> None:
    asked = (
        "chat",
        "--json",
        "--max-tokens",
        "3",
        "--prefix-cache",
        str(tmp_path / "texts"),
        "Who was at the door?",
    )
    found = []
    for _ in range(2):
        done = run(*asked)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert [one["cached_tokens"] for one in found] == [0, found[0]["prompt_tokens"] - 1]
