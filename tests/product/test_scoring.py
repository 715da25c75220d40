"""Tests of the probabilities of texts and choices, and of ``gemlet eval``."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError
from gemlet.evaluate import choices, perplexity, read_questions
from golden.folders import HERE

QUESTION = {"query": "He opened the", "choices": ["door", "zebra"], "gold": 0}


@pytest.fixture(scope="module")
def model() -> Any:
    with gemlet.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


def log_probabilities(model: gemlet.Model, ids: list[int]) -> list[float]:
    """The log probability of each token except the first, computed from the logits of a forward pass."""
    logits = model.logits(ids).astype(np.float64)
    of_all = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return [float(of_all[i, token]) for i, token in enumerate(ids[1:])]


@pytest.mark.tier
def test_a_score_is_the_sum_of_the_log_probabilities(model: gemlet.Model) -> None:
    score = model.score("The door opened, and the captain went in.")
    assert model.tokenizer is not None
    assert score.token_ids == model.tokenizer.encode("The door opened, and the captain went in.")
    expected = log_probabilities(model, score.token_ids)
    np.testing.assert_allclose(score.token_logprobs, expected, atol=1e-4)
    assert score.log_likelihood == pytest.approx(sum(expected), abs=1e-3)
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-3)


@pytest.mark.tier
def test_a_long_text_is_scored_in_pieces(model: gemlet.Model) -> None:
    ids = [2, *np.random.default_rng(1).integers(100, 4000, 700).tolist()]
    np.testing.assert_allclose(model.score(ids).token_logprobs, log_probabilities(model, ids), atol=1e-3)


@pytest.mark.tier
@pytest.mark.parametrize(("repeated", "prefix_cache"), [(1, False), (30, True)])
def test_likelihoods_of_choices(repeated: int, prefix_cache: bool) -> None:
    """Tests a short prompt without a prefix cache, and a long prompt whose prefill is shared by all
    choices."""
    prompt = "He opened the old" * repeated
    wanted = [" door", " zebra", " window of the house", "er"]
    with gemlet.load(threads=1, prefix_cache=prefix_cache) as model:
        found = model.log_likelihoods(prompt, wanted)
        read = model.stats()["prompt_tokens"]
        assert model.tokenizer is not None
        start = len(model.tokenizer.encode(prompt))
        for choice, likelihood in zip(wanted, found, strict=True):
            ids = model.tokenizer.encode(prompt + choice)
            common = min(
                start,
                next(
                    (
                        i
                        for i, pair in enumerate(zip(ids, model.tokenizer.encode(prompt), strict=False))
                        if pair[0] != pair[1]
                    ),
                    start,
                ),
            )
            expected = log_probabilities(model, ids)[common - 1 :]
            if common == start:
                assert likelihood == pytest.approx(sum(expected), abs=1e-3)
        probabilities = model.choose(prompt, wanted)
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(probabilities) == wanted
    logs = np.array(found)
    np.testing.assert_allclose(
        list(probabilities.values()), np.exp(logs) / np.exp(logs).sum(), rtol=1e-4, atol=1e-12
    )
    if prefix_cache and repeated > 1:
        assert read < 1.3 * start


@pytest.mark.tier
def test_a_choice_after_messages(model: gemlet.Model) -> None:
    question = [{"role": "user", "content": "Yes or no?"}]
    assert model.chat_format is not None
    assert model.tokenizer is not None
    prompt = model.chat_format.encode_chat(model.tokenizer, question)
    found = model.choose(question, ["Yes", "No"])
    logits = model.logits(prompt)[-1].astype(np.float64)
    yes, no = (logits[model.tokenizer.encode(text, add_bos=False)[0]] for text in ("Yes", "No"))
    if all(len(model.tokenizer.encode(text, add_bos=False)) == 1 for text in ("Yes", "No")):
        assert found["Yes"] == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-4)
    assert sum(found.values()) == pytest.approx(1)


def test_an_adapter_changes_the_choice() -> None:
    with gemlet.load(HERE / "gemma3-270m", threads=1) as model:
        model.load_adapter(HERE / "adapters" / "gemma3-plain", "mine")
        alone, adapted = (model.score([2, 7, 9, 11], adapter=name) for name in (None, "mine"))
    assert alone.log_likelihood != adapted.log_likelihood


def test_wrong_choices_are_refused(model: gemlet.Model) -> None:
    for wrong in ([], "yes", ["a", "a"], ["a", ""], ["a", 3], None, ["x"] * 1001):
        with pytest.raises(InvalidRequestError, match="choices"):
            model.choose("Hello", wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="at least 2"):
        model.score([2])
    with pytest.raises(InvalidRequestError):
        model.score("")
    with pytest.raises(InvalidRequestError, match="text: got a list of 2 prompts, expected one"):
        model.score(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="prompt: got a list of 2 prompts, expected one"):
        model.choose(["a", "b"], ["x"])  # type: ignore[arg-type]


@pytest.mark.tier
def test_perplexity_of_windows(model: gemlet.Model) -> None:
    text = "The sea was calm, and the ship lay still. " * 12
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text, add_bos=False)
    found = perplexity(model, text, window=51)
    total = 0.0
    for start in range(0, len(ids), 50):
        total += sum(log_probabilities(model, [2, *ids[start : start + 50]]))
    assert found.tokens == len(ids)
    assert found.perplexity == pytest.approx(math.exp(-total / len(ids)), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(-total / math.log(2) / len(text.encode()), rel=1e-3)
    for window in (1, 10**6, "x"):
        with pytest.raises(InvalidRequestError, match="window"):
            perplexity(model, text, window=window)  # type: ignore[arg-type]


def test_accuracy(model: gemlet.Model) -> None:
    questions = [QUESTION, QUESTION | {"gold": 1}, QUESTION]
    found = choices(model, questions)
    assert (found.questions, found.accuracy) == (3, 2 / 3)
    assert found.error == pytest.approx(math.sqrt(2 / 9 / 2))


def test_forms_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    lines: list[dict[str, Any]] = [
        {"query": "Q", "choices": ["a", "b"], "gold": 1},
        {"question": "Q", "choices": ["a", "b"], "answer": "b"},
        {"ctx": "Q", "endings": ["a", "b"], "label": "1"},
        {"question": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "B"},
        {"prompt": "Q", "options": ["x", "y"], "target": "B"},
        {"question": "Q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        {
            "question": {"stem": "Q", "choices": [{"text": "1", "label": "1"}, {"text": "b", "label": "2"}]},
            "answerKey": "2",
        },
        {"question": "Q", "choices": {"text": ["a", "b"], "label": [1, 2]}, "answer": 2},
        {"goal": "Q", "sol1": "a", "sol2": "b", "label": 1},
        {"query": "Q", "choices": ["a", "b"], "gold": 1.0},
        {"query": "Q", "choices": ["1", "0"], "gold": "0"},  # the gold answer is a number in a string
    ]
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert [question["gold"] for question in read_questions(file)] == [1] * len(lines)


def test_a_sentence_of_winogrande(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    line = {"sentence": "Ann waved and _ smiled.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    file.write_text(json.dumps(line))
    expected = {"query": "Ann waved and", "choices": ["Ann smiled.", "Bo smiled."], "gold": 1}
    assert read_questions(file) == [expected]
    for name, wrong in (
        *(("sentence", one) for one in ("no blank", "_ and _", "_ first", 3)),
        *(("option2", one) for one in ("", None, "Ann")),
        *(("answer", one) for one in ("", "0", 1, [], None)),
    ):
        file.write_text(json.dumps(line | {name: wrong}))
        with pytest.raises(ModelFileError, match="line 1"):
            read_questions(file)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    query = "a\u2028b\x85c"
    lines = [json.dumps(QUESTION | {"query": query}, ensure_ascii=False)] * 2
    file.write_bytes("\r\n".join(lines).encode())
    assert [question["query"] for question in read_questions(file)] == [query] * 2


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "{}",
        '{"query": 3, "choices": ["a", "b"], "gold": 0}',
        '{"query": "a", "choices": ["a"], "gold": 0}',
    ]
    + [
        json.dumps(QUESTION | {"gold": gold})
        for gold in (2, -1, 1.5, None, "zz", True, "99999999999999999999")
    ]
    + [
        json.dumps(QUESTION | {"choices": wrong})
        for wrong in (3, ["a", "a"], ["a", 3], ["a", ""], {}, {"text": 3})
    ],
)
def test_a_wrong_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(QUESTION) + "\n" + line)
    with pytest.raises(ModelFileError, match="line 2"):
        read_questions(file)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["query", "choices", "gold", "text", "label"]), x, max_size=4)
        ),
    )
)
def test_any_line_is_a_question_or_an_error(folder: Path, line: Any) -> None:
    file = folder / "q.jsonl"
    file.write_text(json.dumps(line))
    with contextlib.suppress(ModelFileError):
        assert len(read_questions(file)) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTION))
    (tmp_path / "text").write_text("The door was open. " * 9)
    assert main(["eval", "choices", str(tmp_path / "q.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1
    assert main(["eval", "perplexity", str(tmp_path / "text")]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["eval", "perplexity", str(tmp_path / "missing")]) == 1
    assert "cannot be read" in capsys.readouterr().err
