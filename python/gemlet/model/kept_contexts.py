"""Contexts that outlive their streams, so that a conversation need not be computed again:
:class:`KeptContexts`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gemlet import _core

__all__ = ["KeptContexts"]

_Kept = tuple[_core.TokenSequence, _core.Adapter | None]


class KeptContexts:
    """The contexts of the last turn: before it, after its prompt and after its reply.

    The one after the reply is what the next turn goes on with. If the reply's text has other tokens than
    those that the model wrote, the one after the prompt is. If the turn is taken back, the one before it is.
    They share the memory of what they have in common.
    """

    def __init__(self) -> None:
        self._kept: tuple[_Kept, ...] = ()
        self._open = True

    def begin(self, model: _core.Model, adapter: _core.Adapter | None, ids: NDArray[np.int32]) -> _Turn:
        """A context for the prompt ``ids`` with the most tokens of its beginning that are there. At least one
        is left to compute, for its logits."""
        best, found = None, 0
        for sequence, made_with in self._kept:
            length = sequence.length
            fits = made_with is adapter and found < length < len(ids)
            if fits and np.array_equal(sequence.token_ids, ids[:length]):
                best, found = sequence, length
        sequence = _core.TokenSequence(model, adapter) if best is None else best.fork()
        return _Turn(self, sequence, best, adapter)

    def keep(self, sequences: list[_core.TokenSequence], adapter: _core.Adapter | None) -> None:
        """Keeps these, whose streams have ended, and gives back the others."""
        before, self._kept = self._kept, tuple((one, adapter) for one in sequences if self._open)
        for one in [one for one, _ in before if one not in sequences] + ([] if self._open else sequences):
            one.close()

    def close(self) -> None:
        """Gives all back, and from now on what is to be kept."""
        self._open = False
        self.keep([], None)


class _Turn:
    """The context of one stream, which is kept when the stream closes it."""

    def __init__(
        self,
        owner: KeptContexts,
        sequence: _core.TokenSequence,
        before: _core.TokenSequence | None,
        adapter: _core.Adapter | None,
    ) -> None:
        self._owner = owner
        self._sequence = sequence
        self._before = before
        self._after_prompt: _core.TokenSequence | None = None
        self._adapter = adapter

    @property
    def length(self) -> int:
        return self._sequence.length

    def extend(self, ids: NDArray[np.int32], *, logits: str = "last") -> None:
        self._sequence.extend(ids, logits=logits)

    def sample(self, sampler: _core.Sampler) -> int:
        if self._after_prompt is None:  # the first token after the prompt
            self._after_prompt = self._sequence.fork()
        return self._sequence.sample(sampler)

    def cancel(self) -> None:
        self._sequence.cancel()

    def close(self) -> None:
        found = (self._before, self._after_prompt, self._sequence)
        self._owner.keep([one for one in found if one is not None], self._adapter)
