"""Computes the probability of a text, or of each of several continuations: :class:`Scoring`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet import _core
from gemlet.base.front_door import public
from gemlet.base.records import field, record
from gemlet.base.text import show_argument
from gemlet.chat.shieldgemma2 import IMAGE_POLICIES, ShieldGemma2Format
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.generation.answer import Prepared
from gemlet.model.batch import Prompt, check_one
from gemlet.model.requests import Requests
from gemlet.model.rows import rows_of

__all__ = ["Score", "Scoring"]

_MOST_CHOICES = 1000


@record(frozen=True)
class Score:
    """The result of :meth:`gemlet.Model.score`.

    Attributes:
        log_likelihood: the natural logarithm of the probability of all tokens after the first token.
        token_ids: the tokens of the text, including BOS.
        token_logprobs: the natural logarithm of the probability of each token after the first token, given
            the tokens before it. It has one value fewer than ``token_ids``.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     score = model.score("The door opened")
    >>> len(score.token_ids), len(score.token_logprobs), score.perplexity > 1
    (4, 3, True)
    """

    log_likelihood: float
    token_ids: list[int] = field(repr=False)
    token_logprobs: list[float] = field(repr=False)

    @property
    def perplexity(self) -> float:
        """``exp(-log_likelihood / n)``, where n is the number of tokens after the first token."""
        try:
            return math.exp(-self.log_likelihood / len(self.token_logprobs))
        except OverflowError:
            return math.inf


@record(frozen=True)
class Scoring:
    """The methods of :class:`gemlet.Model` that compute probabilities of texts and generate no token."""

    requests: Requests

    @public
    def score(self, text: Prompt, *, adapter: str | None = None, allow_control: bool = True) -> Score:
        """Computes the probability that the model gives to each token of ``text``, at temperature 1.

        Args:
            text: text (encoded with one BOS) or token ids, which are used unchanged; at least two tokens.
            adapter, allow_control: as in :meth:`generate`.

        Raises:
            InvalidRequestError, ContextLengthError, ModelClosedError: as in :meth:`generate`.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     likely, odd = model.score("The door was open."), model.score("The door zebra open.")
        >>> likely.perplexity < odd.perplexity
        True
        """
        check_one(text, "text")
        (prepared,) = self.requests.texts(text, None, {"adapter": adapter, "allow_control": allow_control})
        ids = prepared.ids
        if len(ids) < 2:
            raise InvalidRequestError(f"text: got {len(ids)} token, expected at least 2")
        found = self._logprobs([ids], 1, prepared)[0]
        return Score(math.fsum(found), ids.tolist(), found)

    @public
    def choose(
        self,
        prompt: Prompt | Sequence[Mapping[str, Any]],
        choices: Sequence[str],
        *,
        adapter: str | None = None,
        allow_control: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        cache_salt: str | None = None,
    ) -> dict[str, float]:
        """The probability of each of ``choices``, if exactly one of them has to follow ``prompt``. The
        probabilities sum to 1.

        The probability of a choice is in proportion to the probability of all its tokens after the prompt. A
        continuation after the choice does not matter. The prompt, and a common beginning of the choices, are
        computed once.

        Args:
            prompt: as in :meth:`generate`; or messages, as in :meth:`chat`. Then a choice is the beginning of
                the reply.
            choices: 1 to 1000 different texts that are not empty.
            adapter, allow_control: as in :meth:`generate`.
            tools, thinking: for messages, as in :meth:`chat`.
            cache_salt: as in :meth:`generate`.

        Raises:
            InvalidRequestError: there are no choices, a choice is empty, or a choice occurs twice; also as in
                :meth:`generate`.
            ContextLengthError, ModelClosedError: as in :meth:`generate`.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     found = model.choose("He opened the", [" door", " zebra"])
        >>> max(found, key=found.get), round(sum(found.values()), 6)
        (' door', 1.0)
        """
        totals = self.log_likelihoods(
            prompt,
            choices,
            adapter=adapter,
            allow_control=allow_control,
            tools=tools,
            thinking=thinking,
            cache_salt=cache_salt,
        )
        largest = max(totals)
        weights = [math.exp(total - largest) for total in totals]
        return {choice: weight / sum(weights) for choice, weight in zip(choices, weights, strict=True)}

    @public
    def log_likelihoods(
        self,
        prompt: Prompt | Sequence[Mapping[str, Any]],
        choices: Sequence[str],
        *,
        adapter: str | None = None,
        allow_control: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        cache_salt: str | None = None,
    ) -> list[float]:
        """The natural logarithm of the probability of each of ``choices`` after ``prompt``, among all
        possible continuations. Arguments and errors are as in :meth:`choose`. :meth:`choose` divides the
        probabilities by their sum.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     door, zebra = model.log_likelihoods("He opened the", [" door", " zebra"])
        >>> zebra < door < 0
        True
        """
        wanted = _checked(choices)
        options = {
            "adapter": adapter,
            "allow_control": allow_control,
            "tools": tools,
            "thinking": thinking,
            "cache_salt": cache_salt,
        }
        prepared = self.requests.of(prompt, options)
        reader = self.requests.reader
        texts = []
        for index, choice in enumerate(wanted):
            name = f"choices[{index}]"
            if isinstance(prompt, str):  # the last token of the prompt may change when a choice follows it
                ids: Any = reader.encode(prompt + choice, name, allow_control=allow_control is not False)
            else:
                ids = [
                    *prepared.ids.tolist(),
                    *reader.encode(choice, name, add_bos=False, allow_control=False),
                ]
            found = reader.raw(ids, name)
            if reader.places_of_other_tables(found) != reader.places_of_other_tables(prepared.ids):
                reader.checked(ids, name)  # raises: the choice has ids that do not stand for text
            texts.append(found)
        shared = _shared(texts, len(prepared.ids))
        return [math.fsum(one) for one in self._logprobs(texts, shared, prepared)]

    @public
    def judge_image(
        self,
        image: Any,
        policies: Sequence[str] | Mapping[str, str] | None = None,
        *,
        adapter: str | None = None,
        cache_salt: str | None = None,
    ) -> dict[str, float]:
        """The probability that ``image`` violates a policy, for each policy. This is the probability that
        ShieldGemma 2 answers "Yes", if the answer has to be "Yes" or "No". The image is encoded once.

        Args:
            image: as in :meth:`logits`.
            policies: a list of names from "dangerous", "sexual" and "violence"; or a mapping from names of
                your choice to the texts of policies. None: the three policies with these names.
            adapter, cache_salt: as in :meth:`generate`.

        Raises:
            UnsupportedError: the model is not a ShieldGemma 2.
            InvalidRequestError: an unknown policy, or something that is not an image.
            ContextLengthError, ModelClosedError: as in :meth:`generate`.

        >>> import gemlet
        >>> with gemlet.load("shieldgemma-2-4b-it") as model:  # doctest: +SKIP
        ...     model.judge_image("cat.jpg")
        {'dangerous': 0.0001, 'sexual': 0.0002, 'violence': 0.0001}
        """
        verdicts = self.requests.reader.config.verdict_ids
        if verdicts is None or not isinstance(self.requests.chat_format, ShieldGemma2Format):
            raise UnsupportedError(
                f"judge_image: {self.requests.reader.resident.name} is not a ShieldGemma 2 with the "
                "published chat template; load one, such as google/shieldgemma-2-4b-it"
            )
        options = {"adapter": adapter, "cache_salt": cache_salt}
        found: dict[str, float] = {}
        for name, text in _policies(policies).items():
            content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
            prepared = self.requests.reply([{"role": "user", "content": content}], None, options)
            texts = [prepared.ids + array("i", [verdict]) for verdict in verdicts]
            (yes,), (no,) = self._logprobs(texts, len(prepared.ids), prepared)
            found[name] = 1 / (1 + math.exp(min(no - yes, 700)))
        return found

    def _logprobs(self, texts: Sequence[array[int]], first: int, prepared: Prepared) -> list[list[float]]:
        """The log probabilities of the tokens of each text, beginning with token ``first``. All texts have
        the same tokens before this token. ``prepared`` is the request for the prompt, whose adapter, cache
        salt and media are used."""
        found: list[list[float]] = [[] for _ in texts]
        fed = [ids[:-1] for ids in texts]
        resident = self.requests.reader.resident
        adapter, salt, media = prepared.adapter, prepared.cache_salt, prepared.media
        for index, rows in rows_of(resident, fed, adapter, "logits", first - 1, salt, [media] * len(fed)):
            start = first + len(found[index])
            chosen = texts[index][start : start + len(rows)]
            found[index] += [one for one, _ in _core.logprobs(rows, chosen, 0)]
        return found


def _policies(policies: object) -> Mapping[str, str]:
    if policies is None:
        return IMAGE_POLICIES
    if isinstance(policies, Mapping):
        if not all(isinstance(part, str) and part for one in policies.items() for part in one):
            raise InvalidRequestError(
                f"policies: got {show_argument(policies)}, expected a mapping from names to the texts of "
                "policies"
            )
        return policies
    listed = ", ".join(IMAGE_POLICIES)
    if isinstance(policies, str) or not isinstance(policies, Sequence):
        raise InvalidRequestError(
            f"policies: got {show_argument(policies)}, expected a list of names from {listed}, or a mapping "
            "from names to the texts of policies"
        )
    for policy in policies:
        if not isinstance(policy, str) or policy not in IMAGE_POLICIES:
            raise InvalidRequestError(
                f"policies: got {show_argument(policy)}, expected names from {listed}; give the text of "
                "another policy in a mapping"
            )
    return {policy: IMAGE_POLICIES[policy] for policy in policies}


def _checked(choices: object) -> list[str]:
    expected = f"a list of 1 to {_MOST_CHOICES} different texts that are not empty"
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InvalidRequestError(f"choices: got {show_argument(choices)}, expected {expected}")
    if not 1 <= len(choices) <= _MOST_CHOICES:
        raise InvalidRequestError(f"choices: got a list of {len(choices)}, expected {expected}")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice or choice in choices[:index]:
            raise InvalidRequestError(f"choices[{index}]: got {show_argument(choice)}, expected {expected}")
    return list(choices)


def _shared(texts: Sequence[array[int]], prompt_tokens: int) -> int:
    """The number of tokens that all texts have in common at their start, at most the tokens of the prompt. It
    is less if the last token of the prompt changes when a choice follows. Every text has at least one more
    token."""
    shared = min(prompt_tokens, *(len(ids) - 1 for ids in texts)) if texts else prompt_tokens
    for ids in texts[1:]:
        if ids[:shared] != texts[0][:shared]:
            shared = next(at for at, (a, b) in enumerate(zip(ids, texts[0], strict=False)) if a != b)
    return max(1, shared)
