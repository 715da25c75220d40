"""Measures the quality of a model: its perplexity on a text, and its accuracy on multiple-choice
questions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemlet.base.arrays import np
from gemlet.base.progress import Progress, reporting
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, ModelFileError
from gemlet.model.model import Model

__all__ = ["Accuracy", "Perplexity", "choices", "perplexity", "read_questions"]

_WINDOW = 2048
# Keys for the parts of a question in the data sets of lm-evaluation-harness.
_QUERY = ("query", "question", "prompt", "ctx", "text", "goal")
_CHOICES = ("choices", "endings", "options")
_GOLD = ("gold", "label", "answer", "answerKey", "target")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@record(frozen=True)
class Perplexity:
    """Attributes:
    tokens: the number of tokens that were predicted.
    perplexity: ``exp`` of the tokens' mean negative log probability.
    bits_per_byte: the negative log probability in bits per byte of text. It can be compared between models
    with different tokenizers.
    """

    tokens: int
    perplexity: float
    bits_per_byte: float


@record(frozen=True)
class Accuracy:
    """Attributes:
    questions: the number of questions.
    accuracy: the share of questions for which the model finds the right choice the most probable.
    accuracy_norm: the same share if the log probability of a choice is divided by its number of bytes.
    error: the standard error of ``accuracy``.
    error_norm: the standard error of ``accuracy_norm``.
    """

    questions: int
    accuracy: float
    error: float
    accuracy_norm: float
    error_norm: float


def perplexity(
    model: Model,
    text: str,
    *,
    window: int | None = None,
    adapter: str | None = None,
    progress: Progress = False,
) -> Perplexity:
    """The perplexity of ``text``. The text is split into consecutive windows. Each window begins with BOS,
    and all other tokens of the window are predicted.

    Args:
        window: the number of tokens of a window, including BOS; None for 2048, or for the whole context if
            the context is shorter.

    Raises:
        InvalidRequestError: text without tokens, a window that the context does not hold, no tokenizer.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     found = perplexity(model, "The door was open, and the room was dark.")
    >>> found.tokens, found.perplexity > 1
    (11, True)
    """
    size = min(_WINDOW, model.context_length) if window is None else window
    if type(size) is not int or not 2 <= size <= model.context_length:
        raise InvalidRequestError(
            f"window: got {show_argument(window)}, expected 2 to {model.context_length} tokens"
        )
    if model.tokenizer is None:
        raise InvalidRequestError(f"perplexity: {model.source} has no tokenizer")
    ids = model.tokenizer.encode(text, add_bos=False, allow_control=False)
    if not ids:
        raise InvalidRequestError("text: it is empty, expected at least one token")
    bos = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    step, total, count = size - len(bos), 0.0, 0
    with reporting(progress, "reading", len(ids), "tokens") as advance:
        for start in range(0, len(ids), step):
            part = bos + ids[start : start + step]
            if len(part) > 1:
                score = model.score(part, adapter=adapter)
                total += score.log_likelihood
                count += len(score.token_logprobs)
            advance(min(step, len(ids) - start))
    if count == 0:
        raise InvalidRequestError("text: it has one token, expected at least two")
    size_in_bytes = len(text.encode("utf-8", "surrogatepass"))
    return Perplexity(count, math.exp(min(700.0, -total / count)), -total / math.log(2) / size_in_bytes)


def read_questions(path: str | Path) -> list[dict[str, Any]]:
    """Reads questions from a file of JSON lines, in the format of the data sets of lm-evaluation-harness.
    Each line is an object with three keys:

    - ``query`` (or ``question``, ``prompt``, ``ctx``, ``text``, ``goal``): the text of the question;
    - ``choices`` (or ``endings``, ``options``): a list of texts;
    - ``gold`` (or ``label``, ``answer``, ``answerKey``, ``target``): the right choice, as its number from
      0 on, its letter, or its text. If ``gold`` equals the text of a choice, it means this choice, even if it
      is a number or a letter.

    ARC, PIQA (``goal``, ``sol1``, ``sol2``) and Winogrande (``sentence``, ``option1``, ``option2``) are
    accepted as they are published. A sentence of Winogrande has a blank, ``_``. The query is the text before
    the blank, and each choice is an option followed by the text after the blank.

    Raises:
        ModelFileError: the file cannot be read, or a line is not a question; the error names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # other line ends may occur inside strings
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path}: cannot be read: {reason}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_question(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ModelFileError(f"{path}: line {number}: {error}") from None
    if not found:
        raise ModelFileError(f"{path}: there is no question in it")
    return found


def choices(
    model: Model,
    questions: list[dict[str, Any]],
    *,
    delimiter: str = " ",
    adapter: str | None = None,
    progress: Progress = False,
) -> Accuracy:
    """The share of ``questions`` for which the model finds the right choice the most probable. The questions
    come from :func:`read_questions`. ``delimiter`` is put between the query and a choice.

    >>> import gemlet
    >>> questions = [{"query": "He opened the", "choices": ["door", "zebra"], "gold": 0}]
    >>> with gemlet.load() as model:
    ...     choices(model, questions).accuracy
    1.0
    """
    right: list[bool] = []
    right_norm: list[bool] = []
    with reporting(progress, "answering", len(questions), "questions") as advance:
        for question in questions:
            texts = [delimiter + choice for choice in question["choices"]]
            found = np.array(model.log_likelihoods(question["query"], texts, adapter=adapter))
            sizes = np.array([len(choice.encode("utf-8", "surrogatepass")) for choice in question["choices"]])
            right.append(int(found.argmax()) == question["gold"])
            right_norm.append(int((found / np.maximum(sizes, 1)).argmax()) == question["gold"])
            advance(1)
    return Accuracy(len(right), *_mean(right), *_mean(right_norm))


def _mean(values: list[bool]) -> Iterator[float]:
    mean = sum(values) / len(values)
    yield mean
    yield math.sqrt(mean * (1 - mean) / max(1, len(values) - 1))


def _question(line: Any) -> dict[str, Any]:
    if not isinstance(line, Mapping):
        raise ValueError("it is not a JSON object")
    if "sentence" in line and "option1" in line:
        line = _winogrande(line)
    elif "sol1" in line and "sol2" in line:  # PIQA
        line = {**line, "choices": [line["sol1"], line["sol2"]]}
    stem = line.get("question")
    if isinstance(stem, Mapping):  # ARC, in the authors' own files
        line = {**line, "choices": stem.get("choices"), "question": stem.get("stem")}
    query, texts, gold = (_of(line, names) for names in (_QUERY, _CHOICES, _GOLD))
    if type(gold) is float and gold.is_integer():
        gold = int(gold)
    labels: Any = None
    if isinstance(texts, Mapping):  # ARC: {"text": [...], "label": [...]}
        parts: Mapping[str, Any] = texts
        texts, labels = parts.get("text"), parts.get("label")
    elif isinstance(texts, list) and texts and all(isinstance(one, Mapping) for one in texts):
        pairs: list[Any] = texts
        texts, labels = [one.get("text") for one in pairs], [one.get("label") for one in pairs]
    if isinstance(labels, list) and not isinstance(gold, bool) and gold in labels:
        gold = labels.index(gold)
    if not isinstance(query, str) or not query:
        raise ValueError(f"{' or '.join(_QUERY)}: got {show_argument(query)}, expected text")
    is_list = (
        isinstance(texts, list) and len(texts) > 1 and all(isinstance(one, str) and one for one in texts)
    )
    if not is_list or len(set(texts)) < len(texts):
        raise ValueError(f"choices: got {show_argument(texts)}, expected at least two different texts")
    if isinstance(gold, str) and gold in texts:
        gold = texts.index(gold)
    elif isinstance(gold, str) and len(gold) == 1 and gold in _LETTERS[: len(texts)]:
        gold = _LETTERS.index(gold)
    elif isinstance(gold, str) and gold.isdecimal() and len(gold) < 4:
        gold = int(gold)
    if type(gold) is not int or not 0 <= gold < len(texts):
        raise ValueError(f"gold: got {show_argument(gold)}, expected a choice or its number from 0 on")
    return {"query": query, "choices": texts, "gold": gold}


def _winogrande(line: Mapping[str, Any]) -> dict[str, Any]:
    sentence, options, answer = line["sentence"], [line["option1"], line.get("option2")], line.get("answer")
    if not isinstance(sentence, str) or sentence.count("_") != 1:
        raise ValueError(f"sentence: got {show_argument(sentence)}, expected text with one blank, _")
    if not all(isinstance(option, str) and option for option in options):
        raise ValueError(f"option1, option2: got {show_argument(options)}, expected texts")
    if answer not in ("1", "2"):
        raise ValueError(f"answer: got {show_argument(answer)}, expected 1 or 2 as text")
    before, after = sentence.split("_")
    return {
        "query": before.rstrip(),
        "choices": [option + after for option in options],
        "gold": int(answer) - 1,
    }


def _of(line: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in line:
            return line[name]
    raise ValueError(f"it has no {' or '.join(names)}")
