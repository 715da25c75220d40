"""Says which tokens may come next in a text with a grammar or a limit for thoughts: :class:`Masks`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence

from gemlet.base.arrays import np
from gemlet.base.records import record
from gemlet.chat.reply_readers import Aside
from gemlet.errors import InvalidRequestError
from gemlet.generation.grammar import Grammar, TokenMask, bits_of

__all__ = ["MaskPlan", "Masks"]


@record(frozen=True)
class MaskPlan:
    """The rules that a text has to follow.

    Attributes:
        grammar: the grammar that the answer has to match; None if any answer is allowed.
        vocab_size: the ids that the core knows.
        asides: what may come before the answer: a thought, or calls, which then replace it. In a free text
            they may come anywhere.
        begins_in: the aside in which the text begins.
        end_ids: tokens that end the model's texts; they are never part of the answer.
        stop_ids: the tokens that end this text.
        thinking_budget: the most tokens that all thoughts together may have; None: no limit.
    """

    grammar: Grammar | None
    vocab_size: int
    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    asides: Sequence[Aside] = ()
    begins_in: Aside | None = None
    thinking_budget: int | None = None


class Masks:
    """The masks of one generated text, token after token.

    Attributes:
        is_complete: whether only a token that ends the text may follow.
    """

    def __init__(self, plan: MaskPlan) -> None:
        self.is_complete = False
        self.count = 0  # number of tokens so far
        self._plan = plan
        self._state = None if plan.grammar is None else plan.grammar.begin()
        self._aside = plan.begins_in
        self._header: Sequence[int] = ()  # the rest of a thought's header, which has to follow
        self._left = plan.thinking_budget  # tokens that thoughts may still have
        self._may_follow = list(plan.asides)  # parts that may come before the answer
        self._answers = True  # whether an answer may follow; False if only calls may
        self._last: TokenMask | None = self._bits([])  # the last result of next()
        self._ends = self._bits(plan.end_ids)
        self._stops = self._bits(plan.stop_ids)
        self._no_thought = ~self._bits([one.start for one in plan.asides if one.kind == "thought"])

    def push(self, ids: Sequence[int]) -> None:
        """Takes the next tokens of the text. The masks allow each of them."""
        self.count += len(ids)
        for token_id in ids:
            started = next((one for one in self._may_follow if one.start == token_id), None)
            if started is not None:  # without a mask, the new part may end the one before it
                self._aside, self._header = started, started.header
            elif self._aside is not None:
                if token_id == self._aside.end:
                    self._leave_aside(self._aside)
                elif self._aside.kind == "thought":
                    self._think(token_id)
            elif self._state is not None:
                self._may_follow = []
                self._state.push(token_id)

    def next(self) -> TokenMask | None:
        """The ids that may come next, None for all. Once :attr:`is_complete` is set, only those that end the
        text.

        Raises:
            InvalidRequestError: no token may come next, or the grammar has become too complex.
        """
        self._last = self._next()
        return self._last

    def ahead(self, guessed: Sequence[int]) -> Iterator[TokenMask | None]:
        """The ids that may follow each of the ``guessed`` next tokens, up to a token that is not allowed, or
        after which only the end may follow."""
        own, allowed = copy.copy(self), self._last
        own._state = None if self._state is None else self._state.copy()
        for token_id in guessed:
            if allowed is not None and not allowed[token_id // 32] >> np.uint32(token_id % 32) & 1:
                return
            try:
                own.push([token_id])
                allowed = own.next()
            except InvalidRequestError:  # the text itself reports it, once it is there
                return
            if own.is_complete:
                return
            yield allowed

    def _next(self) -> TokenMask | None:
        is_spent = self._left is not None and self._left <= 0
        if self._aside is not None:
            if self._aside.kind == "thought" and is_spent:
                return self._bits([self._aside.end])
            if self._plan.grammar is None:
                return None
            text = self._fitted(self._plan.grammar.text_ids) & ~self._ends
            return text | self._bits((self._aside.end, *self._aside.inside))
        if self._state is None:
            return self._no_thought if is_spent else None
        starts = self._bits([one.start for one in self._may_follow if one.kind != "thought" or not is_spent])
        if not self._answers:
            return starts | self._stops
        found, may_end = self._state.next_tokens()
        mask = self._fitted(found) & ~self._ends
        may_go_on = bool(mask.any() or starts.any())
        if not may_end and not may_go_on:
            name = self._state.grammar.name
            raise InvalidRequestError(f"{name}: after {self.count} tokens no token of the vocabulary fits")
        self.is_complete = not may_go_on
        return mask | starts | (self._stops if may_end else np.uint32(0))

    def _think(self, token_id: int) -> None:
        """A token of a thought: it counts, unless it belongs to the header."""
        if self._header and token_id == self._header[0]:
            self._header = self._header[1:]
            return
        self._header = ()
        if self._left is not None:
            self._left -= 1

    def _leave_aside(self, aside: Aside) -> None:
        self._aside = None
        if self._state is None:
            return
        if aside.kind == "call":
            self._answers = False
        self._may_follow = [one for one in self._plan.asides if one.kind == "call"]

    def _bits(self, ids: Collection[int]) -> TokenMask:
        return bits_of(ids, self._plan.vocab_size)

    def _fitted(self, mask: TokenMask) -> TokenMask:
        """``mask`` for the ids that the core knows. These may be more or fewer than the vocabulary's."""
        fitted = np.zeros((self._plan.vocab_size + 31) // 32, np.uint32)
        fitted[: len(mask)] = mask[: len(fitted)]
        return fitted
