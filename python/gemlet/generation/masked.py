"""Which tokens may come next in a text that follows a grammar: :class:`Masks`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from gemlet.base.records import record
from gemlet.chat.reply_readers import Aside
from gemlet.errors import InvalidRequestError
from gemlet.generation.grammar import Grammar, TokenMask, bits_of

__all__ = ["GrammarPlan", "Masks"]


@record(frozen=True)
class GrammarPlan:
    """What a text has to follow.

    Attributes:
        grammar: of the answer.
        vocab_size: the ids that the core knows.
        asides: what may come before the answer: a thought, or calls, which then stand in its place.
        begins_in: the one of them in which the text begins.
        end_ids: tokens that end the model's texts; they never stand in the answer.
        stop_ids: those that end this one.
    """

    grammar: Grammar
    vocab_size: int
    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    asides: Sequence[Aside] = ()
    begins_in: Aside | None = None


class Masks:
    """The masks of one text, token after token.

    Attributes:
        is_complete: nothing may follow but the end.
    """

    def __init__(self, plan: GrammarPlan) -> None:
        self.is_complete = False
        self.count = 0  # number of tokens so far
        self._plan = plan
        self._state = plan.grammar.begin()
        self._aside = plan.begins_in
        self._may_follow = list(plan.asides)  # before the answer begins
        self._answers = True  # not with calls
        self._last = self._bits([])  # what next() said
        self._ends = self._bits(plan.end_ids)
        self._stops = self._bits(plan.stop_ids)

    def push(self, ids: Sequence[int]) -> None:
        """The text goes on by ``ids``, each of which its mask allows."""
        self.count += len(ids)
        for token_id in ids:
            if self._aside is not None:
                if token_id == self._aside.end:
                    self._leave_aside(self._aside)
                continue
            self._aside = next((one for one in self._may_follow if one.start == token_id), None)
            if self._aside is None:
                self._may_follow = []
                self._state.push(token_id)

    def next(self) -> TokenMask:
        """Which ids may be the next; once :attr:`is_complete` is set, only those that end the text.

        Raises:
            InvalidRequestError: there is none, or the grammar has become too complex.
        """
        self._last = self._next()
        return self._last

    def ahead(self, guessed: Sequence[int]) -> Iterator[TokenMask]:
        """Which ids may follow each of ``guessed``, which are guessed to come next: up to one that may not
        come, or behind which nothing may follow but the end."""
        own, allowed = copy.copy(self), self._last
        own._state = self._state.copy()
        for token_id in guessed:
            if not allowed[token_id // 32] >> np.uint32(token_id % 32) & 1:
                return
            try:
                own.push([token_id])
                allowed = own.next()
            except InvalidRequestError:  # the text itself reports it, once it is there
                return
            if own.is_complete:
                return
            yield allowed

    def _next(self) -> TokenMask:
        if self._aside is not None:
            text = self._fitted(self._plan.grammar.text_ids) & ~self._ends
            return text | self._bits((self._aside.end, *self._aside.inside))
        starts = self._bits([aside.start for aside in self._may_follow])
        if not self._answers:
            return starts | self._stops
        found, may_end = self._state.next_tokens()
        mask = self._fitted(found) & ~self._ends
        may_go_on = bool(mask.any() or starts.any())
        if not may_end and not may_go_on:
            name = self._plan.grammar.name
            raise InvalidRequestError(f"{name}: after {self.count} tokens no token of the vocabulary fits")
        self.is_complete = not may_go_on
        return mask | starts | (self._stops if may_end else np.uint32(0))

    def _leave_aside(self, aside: Aside) -> None:
        self._aside = None
        if aside.kind == "call":
            self._answers = False
        self._may_follow = [one for one in self._plan.asides if one.kind == "call"]

    def _bits(self, ids: Collection[int]) -> TokenMask:
        return bits_of(ids, self._plan.vocab_size)

    def _fitted(self, mask: TokenMask) -> TokenMask:
        """``mask`` for the ids that the core knows, which may be more than the vocabulary has, or fewer."""
        fitted = np.zeros((self._plan.vocab_size + 31) // 32, np.uint32)
        fitted[: len(mask)] = mask[: len(fitted)]
        return fitted
