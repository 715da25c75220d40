"""The methods of :class:`gemlet.Model` about sessions and the prefix cache: :class:`Remembering`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemlet.base.arrays import NDArray, np
from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.model.call_options import PromptOptions, takes_options
from gemlet.model.prefix_report import PrefixReport, prefix_report
from gemlet.model.requests import Requests
from gemlet.model.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Remembering"]


@record(frozen=True)
class Remembering:
    """Makes sessions, and reports how much of a prompt the prefix cache has."""

    requests: Requests

    @public
    def session(
        self,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        adapter: str | None = None,
    ) -> Session:
        """Begins a :class:`Session`: one conversation, or one text, that continues over several calls.

        Args:
            messages: the first messages of the conversation, for example a system message; None: no messages.
            adapter: the name of a loaded adapter to generate with; None: no adapter.

        Raises:
            UnsupportedError: the model makes embeddings.
            InvalidRequestError: malformed messages, or an adapter that is not loaded.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     session = model.session()
        ...     reply = session.chat("Who is there?", max_tokens=6)
        >>> session
        <gemlet.Session conversation of 2 messages>
        """
        self.requests.reader.resident.check_writes("session")
        return Session(self.requests, messages, adapter)

    @public
    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Loads the session that :meth:`Session.save` wrote to the file ``path``. The tokens are not computed
        again if the same model wrote the file, with the same formats and on the same kind of CPU.

        Raises:
            ModelFileError: the file is missing, is not a session, has another version, or is damaged.
            InvalidRequestError: the adapter of the session is not loaded.
            UnsupportedError: the model makes embeddings.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     try:
        ...         model.load_session("missing")
        ...     except gemlet.ModelFileError as error:
        ...         print(error)
        missing: cannot be read: No such file or directory
        """
        self.requests.reader.resident.check_writes("load_session")
        return Session.load(path, self.requests)

    @takes_options
    @public
    def explain_prefix(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Mapping[str, Any]],
        **options: Unpack[PromptOptions],
    ) -> PrefixReport:
        """Reports how much of a prompt the prefix cache has, and at which byte the prompt begins to differ
        from the nearest kept text. The model does not run.

        Args:
            prompt: as in :meth:`generate`; or messages, as in :meth:`chat`.
            adapter: the name of a loaded adapter; None: no adapter.
            tools, thinking: for messages, as in :meth:`chat`.

        Raises:
            InvalidRequestError, ContextLengthError, ModelClosedError: as in :meth:`generate`.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     result = model.generate("The door opened and", max_tokens=1)
        ...     report = model.explain_prefix("The door closed and")
        >>> report.byte, report.before, report.prompt, report.cached_tokens
        (8, '<bos>The door', ' closed and', 3)
        """
        requests = self.requests
        prepared = requests.of(prompt, options)
        ids = prepared.ids.tolist()
        resident = requests.reader.resident
        return prefix_report(
            resident.engine().prefix_cache,
            ids,
            prepared.adapter,
            requests.reader.tokenizer,
            prepared.cache_salt,
            media=prepared.media,
            added_bytes=self._added_bytes(prompt, options),
        )

    def _added_bytes(self, prompt: object, options: Mapping[str, Any]) -> int:
        """The number of bytes that the text of the tokens has more than ``prompt``; 0 if ``prompt`` is not a
        text. The tokens begin with exactly one BOS, even if ``prompt`` begins with none or with several."""
        tokenizer = self.requests.reader.tokenizer
        if not isinstance(prompt, str) or tokenizer is None or tokenizer.bos_id is None:
            return 0
        name = tokenizer.decode([tokenizer.bos_id], skip_control=False)
        own = 0
        while options.get("allow_control", True) and prompt.startswith(name, own):
            own += len(name)
        return len(name.encode()) - own
