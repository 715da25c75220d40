"""What continues texts: :class:`Texts`, a part of :class:`gemlet.Model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from gemlet.base.front_door import public
from gemlet.generation.async_stream import AsyncTextStream, run_async
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.model.batch import ManyPrompts, Prompt, arranged
from gemlet.model.call_options import GenerateOptions, ManyTextOptions, TextOptions, takes_options
from gemlet.model.requests import Requests

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Texts"]


class Texts:
    """The functions that continue texts, of a model that makes requests of them."""

    @property
    def _requests(self) -> Requests:
        raise NotImplementedError

    @overload
    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        **options: Unpack[TextOptions],
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        n: int,
        best_of: int | None = None,
        **options: Unpack[TextOptions],
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompt: ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...
    @public
    @takes_options
    def generate(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """Continues ``prompt`` and returns the whole continuation; of a list of prompts, a list of them.

        The texts of a list advance together, which is faster than one after the other. ``seed`` is one for
        all or a list of them; each text is what it would be alone.

        Args:
            prompt: text (encoded with one BOS) or token ids, which are taken as they are; or a list of these.
            config: how to generate; None takes :attr:`generation_config`. The arguments behind ``timeout``
                replace single values of it.
            adapter: the name of a loaded adapter to generate with; None: the model alone.
            allow_control: a control token written in the text (``<end_of_turn>``) is that token. False, for
                text from somebody else, takes it as plain characters.
            echo: the text of each result begins with its prompt.
            timeout: seconds after which a text ends with what there is and the reason "timeout".
            n: give a list of so many continuations of each prompt, at most 16, with the seeds ``seed``,
                ``seed + 1`` and so on. The prompt is read once.
            best_of: write so many, and give the ``n`` that the model finds most probable per token.
            (the options of GenerationConfig)

        Raises:
            InvalidRequestError: an empty prompt, a token id out of range, an invalid option, an adapter that
                is not loaded, or text for a model without tokenizer.
            ContextLengthError: the prompt does not fit the context.
            ModelClosedError: the model is closed.
            KeyboardInterrupt: Ctrl-C; the model stays usable.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     first = model.generate("The door opened", max_tokens=9, seed=3)
        ...     second = model.generate("The door opened", max_tokens=9, seed=3)
        >>> first.text == second.text
        True
        """
        prepared = self._requests.texts(prompt, config, options)
        return arranged(prompt, options, self._requests.run(prepared))

    @public
    @takes_options
    def stream(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[ManyTextOptions],
    ) -> TextStream:
        """Continues ``prompt`` step by step; arguments and errors are those of :meth:`generate`.

        The request is checked here; the work begins with the first chunk that is asked of the returned
        :class:`TextStream`. Of several prompts the chunks come mixed, as they are written.

        Args:
            (the options of GenerationConfig)

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     len(list(model.stream("The door", max_tokens=5, temperature=0)))
        5
        """
        prepared = self._requests.texts(prompt, config, options)
        return self._requests.stream(prepared)

    @public
    @takes_options
    async def agenerate(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """:meth:`generate` for programs with an event loop. A task that is cancelled ends its texts.

        >>> import asyncio, gemlet
        >>> with gemlet.load() as model:
        ...     asyncio.run(model.agenerate("The door", max_tokens=5)).completion_tokens
        5
        """
        prepared = self._requests.texts(prompt, config, options)
        stream = self._requests.stream(prepared, readable=True)
        return arranged(prompt, options, await run_async(AsyncTextStream(stream)))

    @public
    @takes_options
    def astream(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[ManyTextOptions],
    ) -> AsyncTextStream:
        """:meth:`stream` for programs with an event loop: ``async for chunk in model.astream(prompt)``.

        The request is checked here. No thread waits for the text.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.astream("The door")
        <gemlet.AsyncTextStream not begun>
        """
        prepared = self._requests.texts(prompt, config, options)
        return AsyncTextStream(self._requests.stream(prepared, readable=True))
