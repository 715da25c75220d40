"""The sampling of tokens in NumPy and float64, written from the definitions. The tests compare the C++
sampler with this code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORBIDDEN = -np.inf


def repetition_penalty(logits: NDArray[Any], ids: Sequence[int], penalty: float) -> None:
    for i in set(ids):
        logits[i] = logits[i] * penalty if logits[i] < 0 else logits[i] / penalty


def generated_penalties(
    logits: NDArray[Any], generated: Sequence[int], frequency: float, presence: float
) -> None:
    for i, count in Counter(generated).items():
        logits[i] -= frequency * count + presence


def no_repeat_ngram(logits: NDArray[Any], ids: Sequence[int], size: int) -> None:
    text = list(ids)
    end = text[len(text) - size + 1 :]
    for start in range(len(text) - size + 1):
        if text[start : start + size - 1] == end:
            logits[text[start + size - 1]] = FORBIDDEN


def dry(
    logits: NDArray[Any],
    ids: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Sequence[int] = (),
) -> None:
    """Subtracts the DRY penalty as text-generation-webui does, for sequence breakers of one token."""
    text = list(ids)
    longest: dict[int, int] = {}
    for end in range(len(text) - 1):  # the text up to `end` has the same ending as the whole text
        length = 0
        while length <= end and text[end - length] == text[-1 - length] and text[-1 - length] not in breakers:
            length += 1
        following = text[end + 1]
        if length and following not in breakers:
            longest[following] = max(length, longest.get(following, 0))
    for i, length in longest.items():
        if length >= allowed_length:
            logits[i] -= min(multiplier * base ** min(length - allowed_length, 500), 1e30)


def processed(logits: NDArray[Any], ids: Sequence[int], prompt_tokens: int, **options: Any) -> NDArray[Any]:
    """The logits after all penalties and biases. The sampler chooses a token from these."""
    logits = logits.astype(np.float64)
    for i, bias in options.get("logit_bias", ()):
        logits[i] += bias
    repetition_penalty(logits, ids, options.get("repetition_penalty", 1.0))
    generated = list(ids)[prompt_tokens:]
    generated_penalties(
        logits, generated, options.get("frequency_penalty", 0.0), options.get("presence_penalty", 0.0)
    )
    if options.get("dry_multiplier", 0):
        dry(
            logits,
            ids,
            options["dry_multiplier"],
            options.get("dry_base", 1.75),
            options.get("dry_allowed_length", 2),
            options.get("breakers", ()),
        )
    if options.get("no_repeat_ngram", 0):
        no_repeat_ngram(logits, ids, options["no_repeat_ngram"])
    if len(generated) < options.get("min_tokens", 0):
        logits[list(options["end_ids"])] = FORBIDDEN
    logits[list(options.get("suppressed", ()))] = FORBIDDEN
    return logits


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def typical(probabilities: NDArray[Any], mass: float) -> NDArray[Any]:
    """True for each token that typical_p keeps."""
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = np.nansum(np.where(probabilities > 0, probabilities * surprise, 0))
        distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    sums = np.cumsum(probabilities[order])
    last = min(int((sums < mass).sum()), len(sums) - 1)
    return np.asarray(distance <= distance[order[last]])


def distribution(
    logits: NDArray[Any],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    **others: Any,
) -> Mapping[int, float]:
    """The probability of each token, given the processed logits."""
    scaled = logits.astype(np.float64) / temperature
    kept = np.isfinite(scaled)
    order = np.lexsort((np.arange(len(scaled)), -scaled))
    if top_k:
        kept[order[top_k:]] = False
    if top_p < 1:
        chances = softmax(np.where(kept, scaled, -np.inf))
        sums = np.cumsum(chances[order])
        kept[order[1:][sums[:-1] >= top_p]] = False
    chances = softmax(np.where(kept, scaled, -np.inf))
    kept &= chances >= min_p * chances.max()
    if typical_p < 1:
        chances = softmax(np.where(kept, scaled, -np.inf))
        kept &= typical(np.where(kept, chances, 0), typical_p) & kept
    chances = softmax(np.where(kept, scaled, -np.inf))
    return {int(i): float(chances[i]) for i in np.flatnonzero(kept)}
