"""The public :class:`Model`: a loaded checkpoint with its tokenizer, and everything one asks of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.adapters.adapter import Adapter
from gemlet.base.front_door import public
from gemlet.chat.base import ChatFormat
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.generation.async_stream import AsyncTextStream, run_async
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.model.call_options import ChatOptions, takes_options
from gemlet.model.embedding import checked_dimensions, embed_all, writes_no_text
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.logits import all_logits
from gemlet.model.parts import method_of
from gemlet.model.prefix_cache import PrefixCacheOptions
from gemlet.model.reading import Reader
from gemlet.model.remembering import Remembering
from gemlet.model.requests import Requests
from gemlet.model.resident import Resident
from gemlet.model.texts import Texts
from gemlet.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Model"]


class Model(Texts):
    """A Gemma model ready to generate; made by :func:`gemlet.load`.

    It may be shared by threads, and by tasks of an event loop: what is asked of it at a time advances
    together, step by step. Use it as a context manager, or call :meth:`close`, to give its memory back; what
    is called on it afterwards raises :class:`~gemlet.errors.ModelClosedError`.

    Attributes:
        config: what ``config.json`` says.
        tokenizer: None where the model came without one; prompts are then token ids and the text stays empty.
        chat_format: how a conversation becomes a prompt; None where the model has none.
        end_ids: the tokens that end a generation.
        generation_config: how to generate where a call does not say: the sampling values that the
            checkpoint's ``generation_config.json`` recommends, else :class:`GenerationConfig`'s defaults.
        source: where the model came from, for people to read.
        weights: the format of the weights in memory: "f32", "bf16", "bf12", "q8" or "q4".
        kv_cache: the format of the KV cache in memory: "f32", "bf16" or "int8".
        threads, decode_threads: how many threads a forward pass runs on, and one over at most 8 tokens.
        tier: the instruction-set tier of the kernels in use, for example "avx2".
        context_length: the most tokens, prompt and continuation together, that a context holds.
        vocab_size: the number of token ids, and so the width of the logits.
        prompts: of an embedding model: what :meth:`embed` puts before a text, by name.
        load_seconds: how long loading took.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     model.weights, model.kv_cache, model.context_length, model.vocab_size
    ('bf16', 'bf16', 1024, 4096)
    """

    def __init__(
        self,
        *,
        core: _core.Model,
        config: TextConfig,
        tokenizer: Tokenizer | None,
        chat_format: ChatFormat | None,
        end_ids: frozenset[int],
        source: str,
        load_seconds: float,
        generation_config: GenerationConfig | None = None,
        prompts: Prompts | None = None,
        spare_memory: int | None = None,
        not_followed: Mapping[str, Any] | None = None,
        prefix_cache: PrefixCacheOptions | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.end_ids = end_ids
        self.generation_config = generation_config or GenerationConfig()
        self.source = source
        self.prompts: Mapping[str, str] = {} if prompts is None else prompts.texts
        self.load_seconds = load_seconds
        self._prompts = prompts
        self._not_followed = dict(not_followed or {})
        self._resident = own = Resident(
            core, source, spare_memory, writes=prompts is None, prefix_cache=prefix_cache
        )
        self.weights, self.kv_cache, self.tier = own.weights, own.kv_cache, own.tier
        self.threads, self.decode_threads = own.threads, own.decode_threads
        self.context_length, self.vocab_size = own.context_length, own.vocab_size
        self._adapters = LoadedAdapters(self._resident, config, spare_memory)

    def __repr__(self) -> str:
        return f"<gemlet.Model {self._resident!r}>"

    def __enter__(self) -> Model:
        self._resident.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def memory(self) -> dict[str, int]:
        """Bytes in memory now: "weights", "embedding", "adapters", "kv_cache" of the texts that run, and
        "prefix_cache" of what is only kept. And what one token takes of the cache in layers without
        ("kv_cache_per_token") and with a window ("kv_cache_per_window_token").

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream("The door", max_tokens=100)
        ...     before, chunk, during = model.memory(), next(stream), model.memory()
        >>> before["kv_cache"], during["kv_cache"] > 4 * during["kv_cache_per_token"] > 0
        (0, True)
        """
        self._resident.check_open()
        return self._resident.core.memory()

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The LoRA adapters that are loaded, by name.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.adapters
        {}
        """
        return self._adapters.by_name()

    load_adapter = method_of("_adapters", LoadedAdapters.load_adapter)
    unload_adapter = method_of("_adapters", LoadedAdapters.unload_adapter)

    def close(self) -> None:
        """Ends running streams ("cancelled"), then gives the memory back; closing twice is harmless.

        >>> import gemlet
        >>> model = gemlet.load()
        >>> stream = model.stream("The door opened", max_tokens=100)
        >>> chunk = next(stream)
        >>> model.close()
        >>> stream.result.finish_reason, stream.result.completion_tokens
        ('cancelled', 1)
        """
        self._resident.close()
        self._adapters.clear()

    @public
    def logits(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], *, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """The logits after each of ``ids`` in a fresh context, after any soft-capping.

        Args:
            ids: token ids ``[n]``, BOS included where the model expects one.
            adapter: the name of a loaded adapter to compute with; None: the model alone.

        Returns:
            float32 ``[n, vocab_size]``; row i predicts token i + 1.

        Raises:
            InvalidRequestError: no ids, an id out of range, or an adapter that is not loaded.
            ContextLengthError: more ids than the context holds.
            MemoryLimitError: the result does not fit in memory; TensorError: it is not finite.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     logits = model.logits(model.tokenizer.encode("The door"))
        >>> logits.dtype, logits.ndim
        (dtype('float32'), 2)
        """
        self._resident.check_writes("logits")
        tokens = self._reader.checked(ids, "ids")
        return all_logits(self._resident, self._adapters.find(adapter), tokens)

    @public
    def embed(
        self,
        texts: str | Iterable[str | Sequence[int] | NDArray[np.integer[Any]]],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        adapter: str | None = None,
        truncate: bool = False,
        empty: Literal["error", "zero"] = "error",
    ) -> NDArray[np.float32]:
        """The meaning of each text as a vector of length 1: of an embedding model such as EmbeddingGemma.

        The mean of the model's last hidden states over all tokens, then its dense layers, then the division
        by the length; the dot product of two vectors is the cosine of their angle.

        Args:
            texts: one text, or several; instead of a text also token ids, which are taken as they are.
                Around a text come BOS and EOS, and white space at its ends does not count.
            prompt: the name of the prompt (:attr:`prompts`) to put before every text: "query" for what is
                searched for, "document" for what is searched. None: the model's default.
            dimensions: keep the first numbers of each vector, and divide by the length again. Models trained
                as Matryoshka (Kusupati et al. 2022, arXiv 2205.13147) allow it. None: all.
            adapter: the name of a loaded adapter to compute with; None: the model alone.
            truncate: cut a text that is longer than the context instead of raising.
            empty: "error", or "zero" for a row of zeros where a text is empty.

        Returns:
            float32 ``[n, dimensions]``, a row for each text. All are checked before any is computed, and an
            error names the place of every one that is wrong.

        Raises:
            UnsupportedError: the model writes text and makes no embeddings.
            InvalidRequestError: an empty text, an unknown prompt, a wrong number of dimensions, text for a
                model without tokenizer, a token id out of range, an adapter that is not loaded.
            ContextLengthError: a text is longer than the context.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     model.embed([[2, 5, 1], [2, 7, 9, 1]], dimensions=4).shape
        (2, 4)
        """
        self._resident.check_open()
        prompts = writes_no_text(self._prompts, self.source)
        count = checked_dimensions(dimensions, self.config.embedding_size)
        ids = self._reader.for_embedding(texts, prompts.find(prompt), truncate=truncate, empty=empty)
        low_rank, divide = self._adapters.find(adapter), self.config.unit_vectors
        return embed_all(self._resident, ids, low_rank, count, divide=divide)

    @public
    @takes_options
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generation:
        """Replies to a conversation in OpenAI's form, ``[{"role": "user", "content": "Hello"}, ...]``.

        Args:
            messages: roles system (or developer), user and assistant, and tool for the result of a call;
                where the format has no system role, a system message joins the first user turn. A string is
                the only message, of the user. :attr:`Generation.message` is the reply in this form.
            config: how to generate, as in :meth:`generate`. Stop strings count in the answer alone.
            adapter, timeout: as in :meth:`generate`.
            tools: functions the model may call, in OpenAI's form: ``{"type": "function", "function":
                {"name": ..., "description": ..., "parameters": JSON schema}}``. Calls are in
                :attr:`Generation.tool_calls`; nothing is called by gemlet.
            thinking: let the model think first; :attr:`Generation.reasoning` is what it thought.
            continue_final_message: the last message is the beginning of the assistant's reply, which the
                model goes on with. The text of the result is only what the model adds.
            (the options of GenerationConfig)

        Raises:
            UnsupportedError: the model has no chat format, or tools or thinking are asked of one without.
            InvalidRequestError: malformed messages or tools; and what :meth:`generate` raises.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     reply = model.chat("Who is there?", max_tokens=6)
        >>> reply.completion_tokens <= 6
        True
        """
        prepared = self._requests.reply(messages, config, options)
        return self._requests.run([prepared])[0]

    @public
    @takes_options
    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> TextStream:
        """Replies to a conversation step by step; arguments and errors are those of :meth:`chat`.

        Reasoning and calls of tools come as :attr:`Chunk.events`, a call when it is complete.

        Args:
            (the options of GenerationConfig)

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     len(list(model.stream_chat("Who is there?", max_tokens=4)))
        4
        """
        return self._requests.stream([self._requests.reply(messages, config, options)])

    @public
    @takes_options
    async def achat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generation:
        """:meth:`chat` for programs with an event loop. A task that is cancelled ends its text.

        >>> import asyncio, gemlet
        >>> with gemlet.load() as model:
        ...     asyncio.run(model.achat("Who is there?", max_tokens=6)).completion_tokens <= 6
        True
        """
        prepared = self._requests.reply(messages, config, options)
        return (await run_async(AsyncTextStream(self._requests.stream([prepared], readable=True))))[0]

    @public
    @takes_options
    def astream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncTextStream:
        """:meth:`stream_chat` for programs with an event loop.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.astream_chat("Who is there?")
        <gemlet.AsyncTextStream not begun>
        """
        prepared = self._requests.reply(messages, config, options)
        return AsyncTextStream(self._requests.stream([prepared], readable=True))

    session = method_of("_remembering", Remembering.session)
    load_session = method_of("_remembering", Remembering.load_session)
    explain_prefix = method_of("_remembering", Remembering.explain_prefix)

    @property
    def _remembering(self) -> Remembering:
        return Remembering(self._requests)

    @property
    def _reader(self) -> Reader:
        return Reader(self._resident, self.tokenizer, self.config)

    @property
    def _requests(self) -> Requests:
        asked = self.generation_config, self._not_followed
        return Requests(self._reader, self._adapters, self.chat_format, self.end_ids, *asked)
