"""The public :class:`Model`: a loaded checkpoint with its tokenizer, and everything one asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.text import show_argument
from gemlet.chat.base import ChatFormat
from gemlet.errors import ContextLengthError, InvalidRequestError, MemoryLimitError, UnsupportedError
from gemlet.generation.options import GenerationConfig, GenerationOptions, resolve_config
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.generation.token_ids import token_id_array
from gemlet.model.embedding import passes, unit_vectors
from gemlet.model.resident import LoadedModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Model"]

# Rows of logits computed at a time: bounds the core's own buffer to 128 * vocab_size floats (134 MB for
# Gemma 3).
_LOGITS_CHUNK = 128


class Model(LoadedModel):
    """A Gemma model ready to generate; made by :func:`gemlet.load`.

    It may be shared by threads: each generation has a context of its own, and the forward passes of
    concurrent generations take turns. Use it as a context manager, or call :meth:`close`, to give its memory
    back; what is called on it afterwards raises :class:`~gemlet.errors.ModelClosedError`.

    Attributes:
        config: what ``config.json`` says.
        tokenizer: None where the model came without one; prompts are then token ids and the text stays empty.
        chat_format: how a conversation becomes a prompt; None where the model has none.
        end_ids: the tokens that end a generation.
        generation_config: how to generate where a call does not say: the sampling values that the
            checkpoint's ``generation_config.json`` recommends, else :class:`GenerationConfig`'s defaults.
        source: where the model came from, for people to read.
        prompts: of an embedding model: what :meth:`embed` puts before a text, by name.
        load_seconds: how long loading took.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     answer = model.generate("The door opened", max_tokens=12, seed=7)
    >>> answer.finish_reason, answer.completion_tokens
    ('length', 12)
    >>> model.weights, model.kv_cache, model.context_length, model.vocab_size
    ('bf16', 'bf16', 1024, 4096)
    """

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
            MemoryLimitError: the result does not fit in memory.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     logits = model.logits(model.tokenizer.encode("The door"))
        >>> logits.dtype, logits.ndim
        (dtype('float32'), 2)
        """
        self._check_open()
        self._check_writes("logits")
        tokens = self._checked_ids(ids, "ids")
        try:
            result = np.empty((len(tokens), self._vocab_size), dtype=np.float32)
        except MemoryError:
            size = len(tokens) * self._vocab_size * 4
            raise MemoryLimitError(
                f"logits: {len(tokens)} rows of {self._vocab_size} need {size} bytes; pass fewer ids"
            ) from None
        sequence = _core.TokenSequence(self._core_model, self._find_adapter(adapter))
        try:
            for start in range(0, len(tokens), _LOGITS_CHUNK):
                stop = start + _LOGITS_CHUNK
                sequence.extend(tokens[start:stop], logits="all")
                result[start:stop] = sequence.logits()
        finally:
            sequence.close()
        return result

    def embed(
        self,
        texts: str | Iterable[str | Sequence[int] | NDArray[np.integer[Any]]],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        adapter: str | None = None,
    ) -> NDArray[np.float32]:
        """The meaning of each text as a vector of length 1: of an embedding model such as EmbeddingGemma.

        The mean of the model's last hidden states over all tokens, then its dense layers, then the division
        by the length; the dot product of two vectors is the cosine of their angle.

        Args:
            texts: one text, or several; instead of a text also token ids, which are taken as they are.
                Around a text come BOS and EOS, and white space at its ends does not count.
            prompt: the name of the prompt (:attr:`prompts`) to put before every text: "query" for what is
                searched for, "document" for what is searched. None: the model's default, which is none for
                EmbeddingGemma.
            dimensions: keep so many numbers of each vector, from the first on, and divide by the length
                again: what models trained as Matryoshka (Kusupati et al. 2022, arXiv 2205.13147) allow,
                EmbeddingGemma at 512, 256 and 128. None: all.
            adapter: the name of a loaded adapter to compute with; None: the model alone.

        Returns:
            float32 ``[n, dimensions]``, a row for each text.

        Raises:
            UnsupportedError: the model writes text and makes no embeddings.
            InvalidRequestError: an empty text, an unknown prompt, a wrong number of dimensions, text for a
                model without tokenizer, a token id out of range, an adapter that is not loaded.
            ContextLengthError: a text is longer than the context.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:  # which writes text
        ...     try:
        ...         model.embed("The door")
        ...     except gemlet.UnsupportedError as error:
        ...         print("EmbeddingGemma" in str(error))
        True
        """
        self._check_open()
        if self._prompts is None:
            raise UnsupportedError(
                f"embed: {self.source} writes text and makes no embeddings; use generate(), or load a model "
                "like EmbeddingGemma (google/embeddinggemma-300m)"
            )
        size = self.config.embedding_size
        kept = size if dimensions is None else dimensions
        if type(kept) is not int or not 1 <= kept <= size:
            raise InvalidRequestError(
                f"dimensions: got {show_argument(dimensions)}, expected 1 to {size}, or None"
            )
        before = self._prompts.find(prompt)
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Iterable):
            raise InvalidRequestError(
                f"texts: got {show_argument(texts)}, expected a string or a list of them"
            )
        ids = [self._text_ids(text, before, f"texts[{i}]") for i, text in enumerate(texts)]
        low_rank = self._find_adapter(adapter)
        result = np.empty((len(ids), kept), dtype=np.float32)
        at = 0
        for group in passes(ids, self._context_length):
            vectors = self._core_model.embed(group, low_rank)
            result[at : at + len(group)] = unit_vectors(vectors[:, :kept], self.source)
            at += len(group)
        return result

    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]],
        config: GenerationConfig | None = None,
        *,
        adapter: str | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Generation:
        """Continues ``prompt`` and returns the whole continuation.

        Args:
            prompt: text (encoded with one BOS) or token ids, which are taken as they are.
            config: how to generate; None takes :attr:`generation_config`.
            adapter: the name of a loaded adapter to generate with; None: the model alone.
            **overrides: single values of it, for this call.

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
        return _run_to_end(self.stream(prompt, config, adapter=adapter, **overrides))

    def stream(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer[Any]],
        config: GenerationConfig | None = None,
        *,
        adapter: str | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> TextStream:
        """Continues ``prompt`` step by step; arguments and errors are those of :meth:`generate`.

        The request is checked here; the work is done as the returned :class:`TextStream` is iterated.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     text = "".join(chunk.text for chunk in model.stream("The door", max_tokens=5, temperature=0))
        >>> text != ""
        True
        """
        self._check_open()
        self._check_writes("generate")
        settings = resolve_config(config, overrides, self.generation_config)
        if isinstance(prompt, str):
            ids: object = self._encode(prompt)
        else:
            ids = prompt
        return self._start(ids, settings, adapter)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        adapter: str | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Generation:
        """Replies to a conversation in OpenAI's form, ``[{"role": "user", "content": "Hello"}, ...]``.

        Args:
            messages: roles system (or developer), user and assistant, and tool for the result of a call;
                where the format has no system role, a system message joins the first user turn.
                :attr:`Generation.message` is the reply in this form.
            config: how to generate, as in :meth:`generate`. Stop strings count in the answer alone.
            adapter: as in :meth:`generate`.
            tools: functions the model may call, in OpenAI's form: ``{"type": "function", "function":
                {"name": ..., "description": ..., "parameters": JSON schema}}``. Calls are in
                :attr:`Generation.tool_calls`; nothing is called by gemlet.
            thinking: let the model think first; :attr:`Generation.reasoning` is what it thought.
            **overrides: single values of ``config``.

        Raises:
            UnsupportedError: the model has no chat format or no tokenizer; or tools or thinking are asked of
                a format without (Gemma 4 has both).
            InvalidRequestError: malformed messages or tools; and what :meth:`generate` raises.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     reply = model.chat([{"role": "user", "content": "Who is there?"}], max_tokens=6)
        >>> reply.completion_tokens <= 6
        True
        """
        return _run_to_end(
            self.stream_chat(messages, config, adapter=adapter, tools=tools, thinking=thinking, **overrides)
        )

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        adapter: str | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> TextStream:
        """Replies to a conversation step by step; arguments and errors are those of :meth:`chat`.

        Reasoning and calls of tools come as :attr:`Chunk.events`, a call when it is complete.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream_chat([{"role": "user", "content": "Who is there?"}], max_tokens=4)
        ...     text = "".join(chunk.text for chunk in stream)
        >>> stream.result.prompt_tokens > 4
        True
        """
        self._check_open()
        self._check_writes("chat")
        settings = resolve_config(config, overrides, self.generation_config)
        if self.chat_format is None or self.tokenizer is None:
            missing = "tokenizer" if self.tokenizer is None else "chat format"
            raise UnsupportedError(f"chat: {self.source} has no {missing}; use generate() or stream()")
        ids = self.chat_format.encode_chat(self.tokenizer, messages, tools=tools, thinking=thinking)
        return self._start(ids, settings, adapter, self.chat_format)

    def _check_writes(self, what: str) -> None:
        if self._prompts is not None:
            raise UnsupportedError(f"{what}: {self.source} makes embeddings and writes no text; use embed()")

    def _text_ids(self, text: object, prompt: str, name: str) -> list[int]:
        if not isinstance(text, str):
            return list(map(int, self._checked_ids(text, name)))
        stripped = text.strip()
        ids = self._encode((prompt + stripped).strip() if stripped else "", name)
        end = self.config.eos_token_ids[:1] if self.tokenizer is not None else ()
        return list(map(int, self._checked_ids([*ids, *end], name)))

    def _encode(self, prompt: str, name: str = "prompt") -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"{name}: got text, but {self.source} has no tokenizer; pass token ids instead"
            )
        if not prompt:
            raise InvalidRequestError(f"{name}: it is empty, expected at least one character")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"{name}: character {error.start} is half of a surrogate pair, expected valid Unicode: "
                f"{show_argument(prompt[max(0, error.start - 10) : error.end])}"
            ) from None
        return self.tokenizer.encode(prompt)

    def _checked_ids(self, ids: object, name: str) -> NDArray[np.int32]:
        tokens = token_id_array(ids, vocab_size=self._vocab_size, name=name)
        if len(tokens) > self._context_length:
            remedy = "shorten it"
            if self._context_length < self.config.max_position_embeddings:
                remedy += ", or load the model with a larger max_context"
            raise ContextLengthError(
                f"{name}: {len(tokens)} tokens, but the context holds {self._context_length}; {remedy}"
            )
        return tokens

    def _start(
        self,
        ids: object,
        settings: GenerationConfig,
        adapter: str | None,
        chat_format: ChatFormat | None = None,
    ) -> TextStream:
        tokens = self._checked_ids(ids, "prompt")
        end_ids, decoder, reply_parser = self.end_ids, None, None
        if self.tokenizer is not None and chat_format is not None:
            end_ids = end_ids | chat_format.end_ids(self.tokenizer)
            reply_parser = chat_format.reply_parser(self.tokenizer, tokens.tolist())
        elif self.tokenizer is not None:
            decoder = self.tokenizer.stream_decoder()
        if settings.stop and self.tokenizer is None:
            raise InvalidRequestError(f"stop: {self.source} has no tokenizer, so no text to find a string in")
        # 32 bits are enough to tell runs apart, and short enough to type again.
        seed = int.from_bytes(os.urandom(4), "little") if settings.seed is None else settings.seed
        sampler = _core.Sampler(
            temperature=0.0 if settings.greedy else settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            seed=seed,
            # Rows of the embedding beyond the vocabulary are padding: never sample what cannot be decoded.
            vocab_limit=0 if self.tokenizer is None else min(self.tokenizer.vocab_size, self._vocab_size),
        )
        with self._lock:
            self._check_open()
            stream = TextStream(
                sequence=_core.TokenSequence(self._core_model, self._find_adapter(adapter)),
                sampler=sampler,
                prompt_ids=tokens,
                config=settings,
                seed=seed,
                end_ids=end_ids,
                context_length=self._context_length,
                decoder=decoder,
                reply_parser=reply_parser,
            )
            self._streams.add(stream)
        return stream


def _run_to_end(stream: TextStream) -> Generation:
    with stream:
        for _ in stream:
            pass
    return stream.result
