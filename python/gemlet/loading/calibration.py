"""Measures the inputs of a model's matrices on a text: :func:`measure_inputs`."""

from __future__ import annotations

import os

from gemlet.base.arrays import NDArray, np
from gemlet.base.files import checked_path
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.model.model import Model
from gemlet.packing.calibrated import Grams, add_inputs

__all__ = ["Calibrate", "check_calibrate", "measure_inputs"]

Calibrate = bool | str | os.PathLike[str] | None
_TOKENS = 8192  # the number of tokens on which inputs are measured, about
_TEXT = 512  # the number of tokens of each sequence
_MOST_BYTES = 8 << 20  # the most bytes of a file that are read


def check_calibrate(calibrate: object, weights: str, merge_adapter: object) -> None:
    """Raises :class:`InvalidRequestError` if ``calibrate`` has a wrong type, or cannot be combined with the
    other arguments."""
    if calibrate is None or calibrate is False:
        return
    if calibrate is not True:
        checked_path("calibrate", calibrate, "True, or the path of a file with text")
    if weights not in ("q4", "q5"):
        raise InvalidRequestError(
            f"calibrate goes with weights='q4' or 'q5'; weights is {show_argument(weights)}"
        )
    if merge_adapter is not None:
        raise InvalidRequestError("calibrate cannot be combined with merge_adapter; leave one of them out")


def measure_inputs(model: Model, calibrate: Calibrate) -> Grams:
    """The Gram matrices of the inputs of ``model``'s matrices, measured on about 8,000 tokens. The tokens
    come from the file ``calibrate``, or if it is True, from texts that the model generates."""
    if model.config.bidirectional or model.config.altup_streams > 1:
        raise UnsupportedError(
            "calibrate works only for Gemma 1, 2, 3 and 4 that generate text; leave it out for this model"
        )
    texts = _own_texts(model) if calibrate is True else _texts_of(model, str(os.fspath(calibrate or "")))
    grams: dict[str, NDArray[np.float32]] = {}
    for ids in texts:
        add_inputs(grams, model._resident.core, ids)
    return grams


def _own_texts(model: Model) -> list[list[int]]:
    """Texts that the model generates without a prompt. They resemble its training data."""
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    start = [2 if bos is None else bos]
    count, tokens = 2 * _TOKENS // _TEXT, min(_TEXT // 2, model.context_length - 1)
    prompts: list[list[int]] = [start] * count
    results = model.generate(
        prompts, max_tokens=tokens, temperature=1, top_k=0, top_p=1, ignore_eos=True, seed=1
    )
    return [[*start, *result.token_ids] for result in results]


def _texts_of(model: Model, path: str) -> list[list[int]]:
    if model.tokenizer is None:
        raise InvalidRequestError("calibrate: the model has no tokenizer to read a text with; use True")
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError as problem:
        raise ModelFileError(f"calibrate: {path}: cannot be read: {problem.strerror}") from problem
    bos, *ids = model.tokenizer.encode(text, allow_control=False)
    size = min(_TEXT, model.context_length) - 1
    if len(ids) < size:
        raise InvalidRequestError(f"calibrate: {path} has {len(ids)} tokens; expected {size} or more")
    starts = list(range(0, len(ids) - size + 1, size))
    step = max(1, len(starts) * size // _TOKENS)
    return [[bos, *ids[at : at + size]] for at in starts[::step]]
