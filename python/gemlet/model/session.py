"""A conversation that does not compute its beginning again with every turn: :class:`Session`."""

from __future__ import annotations

import copy
from typing import Any

from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.model.kept_contexts import KeptContexts
from gemlet.model.model import Model

__all__ = ["Session"]


class Session:
    """Replies to the turns of one conversation. A turn computes only what its prompt does not share with the
    turn before.

    The result is that of :meth:`gemlet.Model.stream_chat`, but for rounding: the same tokens may be computed
    in other portions, as for prompts of another length. Use it as a context manager, or call :meth:`close`,
    to give the memory back; closing the model does so too. A conversation that goes on in another way, or is
    another one, is computed from where it differs, or from the beginning.

    >>> import gemlet
    >>> messages = [{"role": "user", "content": "Who is there?"}]
    >>> with gemlet.load() as model, Session(model) as session:
    ...     first = session.chat(messages, max_tokens=6)
    ...     messages += [first.message, {"role": "user", "content": "Go on."}]
    ...     second = session.chat(messages, max_tokens=6)
    >>> first.cached_tokens, second.cached_tokens > 4
    (0, True)
    """

    def __init__(self, model: Model) -> None:
        self._kept = KeptContexts()
        model._resident.add(self._kept)
        self._model = copy.copy(model)  # shares everything with the model, except where contexts come from
        self._model._contexts = self._kept

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stream_chat(self, *arguments: Any, **options: Any) -> TextStream:
        """Replies step by step, as :meth:`gemlet.Model.stream_chat` does, with the same arguments."""
        return self._model.stream_chat(*arguments, **options)

    def chat(self, *arguments: Any, **options: Any) -> Generation:
        """Replies, as :meth:`gemlet.Model.chat` does, with the same arguments."""
        return self._model.chat(*arguments, **options)

    def close(self) -> None:
        """Gives the memory back. Closing twice is harmless."""
        self._kept.close()
