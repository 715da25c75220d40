"""The public :class:`Model`: a loaded checkpoint with its tokenizer, and all its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from gemlet import _core
from gemlet.adapters.adapter import Adapter
from gemlet.base.arrays import NDArray, np
from gemlet.base.front_door import public
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError
from gemlet.generation.async_stream import AsyncTextStream, run_async
from gemlet.generation.option_values import check_timeout
from gemlet.generation.options import GenerationConfig
from gemlet.generation.result import Generation
from gemlet.generation.stream import TextStream
from gemlet.model.batch import ManyPrompts, Prompt, arranged
from gemlet.model.call_options import GenerateOptions, ManyTextOptions, TextOptions, takes_options
from gemlet.model.chatting import Chatting
from gemlet.model.embedding import Embedding
from gemlet.model.hearing import Hearing
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.logits import all_logits
from gemlet.model.media import Media
from gemlet.model.off_loop import off_loop
from gemlet.model.parts import method_of
from gemlet.model.prefix_cache import PrefixCacheOptions
from gemlet.model.reading import Reader
from gemlet.model.remembering import Remembering
from gemlet.model.requests import Requests
from gemlet.model.resident import Resident
from gemlet.model.scoring import Scoring
from gemlet.model.senses import Senses
from gemlet.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Model"]


class Model:
    """A Gemma model ready to generate; made by :func:`gemlet.load`.

    Threads and tasks of an event loop may share a model: requests that run at the same time advance together,
    step by step. Use the model as a context manager, or call :meth:`close`, to free its memory. Later calls
    raise :class:`~gemlet.errors.ModelClosedError`.

    Attributes:
        config: the model's configuration, read from ``config.json``.
        tokenizer: the tokenizer; or None. Without a tokenizer, prompts are token ids, and the text of a
            result is empty.
        end_ids: the tokens that end a generation.
        generation_config: the default options of calls: the sampling values that the checkpoint's
            ``generation_config.json`` recommends, else the defaults of :class:`GenerationConfig`.
        source: the file, folder or name that the model was loaded from, for people to read.
        weights: the format of the weights in memory: "f32", "bf16", "q8", "q4", ...
        kv_cache: the format of the KV cache in memory: "f32", "bf16", "int8" or "int4".
        threads: how many threads a forward pass uses.
        decode_threads: how many threads a forward pass over at most 8 tokens uses.
        tier: the instruction-set tier of the kernels in use, for example "avx2".
        context_length: the most tokens that a context holds, prompt and continuation together.
        vocab_size: the number of token ids, which is the width of the logits.
        prompts: for an embedding model, a mapping from names to texts that :meth:`embed` can put before a
        text. load_seconds: how long loading took.

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
        drafter: _core.Model | None = None,
        draft_tokens: int | None = None,
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
            core,
            source,
            spare_memory,
            writes=prompts is None,
            prefix_cache=prefix_cache,
            drafter=drafter,
            draft_tokens=draft_tokens,
        )
        self.weights, self.kv_cache, self.tier = own.weights, own.kv_cache, own.tier
        self.threads, self.decode_threads = own.threads, own.decode_threads
        self.context_length, self.vocab_size = own.context_length, own.vocab_size
        self._adapters = LoadedAdapters(self._resident, config, spare_memory)
        self._media = Media(self._resident, config)
        self._hearing = Hearing(self._resident, config)

    def __repr__(self) -> str:
        return f"<gemlet.Model {self._resident!r}>"

    def __enter__(self) -> Model:
        self._resident.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def chat_format(self) -> ChatFormat | None:
        """The format that makes a prompt of a conversation; None if the model has no chat format. Another
        format may be assigned. Sessions that have begun before keep their format.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.chat_format
        <gemlet.chat.GemmaFormat 'gemma'>
        """
        return self._chat_format

    @chat_format.setter
    def chat_format(self, chat_format: ChatFormat | None) -> None:
        if chat_format is not None and not isinstance(chat_format, ChatFormat):
            raise InvalidRequestError(f"chat_format: got {show(chat_format)}, expected a ChatFormat or None")
        self._chat_format = chat_format

    def memory(self) -> dict[str, int]:
        """The memory in use now, in bytes.

        "weights", "embedding" and "adapters" belong to the model itself. "kv_cache" has the keys and values
        of the requests that run, and "prefix_cache" the keys and values of requests that have ended.
        "drafter" is all memory of the draft model. "kv_cache_per_token" is the memory of one token in all
        layers without a sliding window, and "kv_cache_per_window_token" in all layers with a sliding window.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream("The door", max_tokens=100)
        ...     before, chunk, during = model.memory(), next(stream), model.memory()
        >>> before["kv_cache"], during["kv_cache"] > 4 * during["kv_cache_per_token"] > 0
        (0, True)
        """
        self._resident.check_open()
        return self._resident.memory()

    def stats(self) -> dict[str, int | float]:
        """Counts the engine's work: now, and since the model was loaded. The call is cheap.

        Requests now: "running"; "waiting" for memory; "longest_wait", the longest time in seconds that a
        request has been waiting for its first forward pass.

        Requests so far: "begun", the number that had their first forward pass; "waiting_seconds", the sum of
        the waits of all requests; "preemptions", how often a request gave its memory to others and was
        computed again.

        Tokens so far: "prompt_tokens" in all prompts; "cached_tokens" that the prefix cache had;
        "generated_tokens"; "drafts", the number of drafts; "drafted_tokens", the draft tokens in all drafts;
        "accepted_tokens", the accepted draft tokens.

        Bytes of keys and values now: "kv_bytes" in use; "prefix_cache_bytes", the part of "kv_bytes" that
        belongs to requests that have ended; "kv_room_bytes" that are free. Bytes so far: "disk_read_bytes"
        and "disk_written_bytes" of a prefix cache on disk.

        Work so far: "steps", the number of forward passes; "step_seconds", the time of all forward passes;
        "bytes_read", the weights, keys and values that they read.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     result = model.generate("The door opened", max_tokens=9)
        ...     stats = model.stats()
        >>> stats["running"], stats["prompt_tokens"], stats["generated_tokens"]
        (0, 4, 9)
        """
        self._resident.check_open()
        return self._resident.engine().stats()

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The loaded adapters by name.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.adapters
        {}
        """
        return self._adapters.by_name()

    load_adapter = method_of("_adapters", LoadedAdapters.load_adapter)
    unload_adapter = method_of("_adapters", LoadedAdapters.unload_adapter)

    def close(self, timeout: float | None = None) -> None:
        """Ends running streams with the finish reason "cancelled", then frees the memory. Closing twice is
        harmless.

        With a ``timeout``, running requests have this many seconds to finish before they are ended. New
        requests raise :class:`~gemlet.errors.ModelClosedError` in that time.

        >>> import gemlet
        >>> model = gemlet.load()
        >>> stream = model.stream("The door opened", max_tokens=100)
        >>> chunk = next(stream)
        >>> model.close()
        >>> stream.result.finish_reason, stream.result.completion_tokens
        ('cancelled', 1)
        """
        if seconds := check_timeout(timeout):
            self._resident.drain(seconds)
        self._resident.close()
        self._adapters.clear()
        self._media.clear()
        self._hearing.clear()

    @public
    def logits(
        self,
        ids: Sequence[int] | NDArray[np.integer[Any]],
        *,
        adapter: str | None = None,
        images: Sequence[Any] = (),
        pan_and_scan: bool | Mapping[str, Any] | None = None,
        image_tokens: int | None = None,
        videos: Sequence[Any] = (),
        audio: Sequence[Any] = (),
    ) -> NDArray[np.float32]:
        """The logits after each of ``ids`` in a fresh context, after any soft-capping.

        Args:
            ids: token ids ``[n]``, with BOS if the model expects one.
            adapter: the name of a loaded adapter to compute with; None: no adapter.
            images: the images that the placeholders in ``ids`` stand for, in order: paths, bytes of files,
                Pillow images or uint8 arrays ``[height, width, 3]``.
            pan_and_scan: whether Gemma 3 also sees a long image in parts. Each part has its own placeholders,
                after the placeholders of the whole image. A mapping with ``min_crop_size``,
                ``max_num_crops`` and ``min_ratio_to_activate`` turns this on, too. None: the setting in the
                model's files.
            image_tokens: the most tokens of an image in Gemma 4: 70, 140, 280, 560 or 1120. None: the number
                in the model's files.
            videos: the videos that placeholders stand for: paths, bytes of files, or pairs ``(frames, frames
                per second)``. Each frame is given like an image. The model sees at most 32 frames of a video.
            audio: the sounds that placeholders stand for: paths, bytes of files, arrays of samples at 16 kHz
                (float32 from -1 to 1, or int16), or pairs ``(samples, rate)`` with samples ``[n]`` or
                ``[n, channels]``.

        Returns:
            float32 ``[n, vocab_size]``; row i predicts token i + 1.

        Raises:
            InvalidRequestError: no ids, an id out of range, another number of placeholders than the images
                and sounds need, or an adapter that is not loaded.
            UnsupportedError: images or sounds for a model that does not see or hear.
            ContextLengthError: more ids than the context holds.
            MemoryLimitError: the result does not fit in memory.
            TensorError: the result is not finite.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     logits = model.logits(model.tokenizer.encode("The door"))
        >>> logits.dtype, logits.ndim
        (dtype('float32'), 2)
        """
        self._resident.check_writes("logits")
        views = self._media.images(images, pan_and_scan, image_tokens) if images else []
        views += self._media.videos(videos) if videos else []
        sounds = self._hearing.sounds(audio) if len(audio) else []
        tokens = self._reader.raw(ids, "ids")
        chosen = self._adapters.find(adapter)
        seen = [(one.first, self._media.rows(one, chosen)) for one in self._media.place(tokens, views)]
        heard = self._hearing.place(tokens, sounds, chosen)
        spans = [(first, first + len(rows)) for first, rows in seen]
        taken = [(first, first + len(rows)) for first, rows in heard]
        others = self._hearing.other_tables(tokens, [*spans, *taken], chosen)
        soft = sorted([*seen, *heard, *others], key=lambda one: one[0])
        return all_logits(self._resident, chosen.core, tokens, soft, spans)

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
    @takes_options
    @public
    def generate(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """Continues ``prompt`` and returns the whole continuation; for a list of prompts, a list of
        continuations.

        The prompts of a list are continued together, which is faster than one after the other. Each result is
        the same as in a call for only its prompt. ``seed`` is one seed for all prompts, or a list with a seed
        for each prompt. One call generates at most 65,536 continuations.

        Args:
            prompt: text (encoded with one BOS) or token ids, which are used unchanged; or a list of these.
            config: the options of the call; None: :attr:`generation_config`. Options given by name replace
                the values in ``config``.
            adapter: the name of a loaded adapter to generate with; None: no adapter.
            allow_control: whether a control token written in the text (``<end_of_turn>``) becomes that token.
                Use False for text from somebody else: the token is then read as plain characters.
            echo: whether the text of each result begins with the prompt.
            timeout: the seconds after which a request ends with the text so far and the finish reason
                "timeout".
            n: return a list of this many continuations of each prompt, at most 16, with the seeds ``seed``,
                ``seed + 1`` and so on. The prompt is computed once.
            best_of: generate this many continuations, and return the ``n`` that are most probable per token.
            images, videos, pan_and_scan, image_tokens: as in :meth:`logits`. In a text, write
                ``<start_of_image>`` for each image (Gemma 3n: ``<image_soft_token>``). In Gemma 4, write
                ``<|image|>`` for an image and ``<|video|>`` for a video. For several prompts, give a list for
                each prompt.
            audio: sounds as in :meth:`logits`. In a text, write ``<|audio|>`` for each sound (Gemma 3n:
                ``<audio_soft_token>``). For several prompts, give a list for each prompt.
            priority: -100 to 100. If requests have to wait, those with a higher priority begin first.
            cache_salt: a request reuses only keys and values from requests with the same salt. Requests
                without a salt share theirs with each other.
            (the options of GenerationConfig)

        Raises:
            InvalidRequestError: an empty prompt, a token id out of range, an invalid option, an adapter that
                is not loaded, text for a model without a tokenizer, or too many prompts.
            UnsupportedError: the model makes embeddings, or the prompt has images or sounds and the model
                does not see or hear.
            ContextLengthError: the prompt does not fit into the context.
            ModelClosedError: the model is closed.
            KeyboardInterrupt: Ctrl-C was pressed; the model stays usable.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     first = model.generate("The door opened", max_tokens=9, seed=3)
        ...     second = model.generate("The door opened", max_tokens=9, seed=3)
        >>> first.text == second.text
        True
        """
        prepared = self._requests.texts(prompt, config, options)
        return arranged(prompt, options, self._requests.run(prepared))

    @takes_options
    @public
    def stream(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[ManyTextOptions],
    ) -> TextStream:
        """Continues ``prompt`` step by step; arguments and errors are as in :meth:`generate`.

        The call checks the request. The work begins when the first chunk is taken from the returned
        :class:`TextStream`. The chunks of several prompts come in the order in which they are generated.

        Args:
            (the options of GenerationConfig)

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     len(list(model.stream("The door", max_tokens=5, temperature=0)))
        5
        """
        prepared = self._requests.texts(prompt, config, options)
        return self._requests.stream(prepared)

    @takes_options
    @public
    async def agenerate(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """:meth:`generate` for programs with an event loop. Cancelling the task ends its requests. Images,
        sounds, grammars and long texts are read in a thread.

        >>> import asyncio, gemlet
        >>> with gemlet.load() as model:
        ...     asyncio.run(model.agenerate("The door", max_tokens=5)).completion_tokens
        5
        """
        prepare = partial(self._requests.texts, prompt, config, options)
        stream = self._requests.stream(await off_loop(prepare, prompt, options), readable=True)
        return arranged(prompt, options, await run_async(AsyncTextStream(stream)))

    @takes_options
    @public
    def astream(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[ManyTextOptions],
    ) -> AsyncTextStream:
        """:meth:`stream` for programs with an event loop: ``async for chunk in model.astream(prompt)``.

        The call checks the request, and reads images, sounds, grammars and long texts. To let the event loop
        run in that time, use ``await asyncio.to_thread(model.astream, prompt, images=[...])``. No thread
        waits for the chunks.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.astream("The door")
        <gemlet.AsyncTextStream not begun>
        """
        prepared = self._requests.texts(prompt, config, options)
        return AsyncTextStream(self._requests.stream(prepared, readable=True))

    chat = method_of("_chatting", Chatting.chat)
    count_tokens = method_of("_chatting", Chatting.count_tokens)
    stream_chat = method_of("_chatting", Chatting.stream_chat)
    achat = method_of("_chatting", Chatting.achat)
    astream_chat = method_of("_chatting", Chatting.astream_chat)
    embed = method_of("_embedding", Embedding.embed)
    aembed = method_of("_embedding", Embedding.aembed)
    embedding_ids = method_of("_embedding", Embedding.embedding_ids)
    score = method_of("_scoring", Scoring.score)
    choose = method_of("_scoring", Scoring.choose)
    log_likelihoods = method_of("_scoring", Scoring.log_likelihoods)
    judge_image = method_of("_scoring", Scoring.judge_image)
    session = method_of("_remembering", Remembering.session)
    load_session = method_of("_remembering", Remembering.load_session)
    explain_prefix = method_of("_remembering", Remembering.explain_prefix)

    @property
    def _remembering(self) -> Remembering:
        return Remembering(self._requests)

    @property
    def _embedding(self) -> Embedding:
        return Embedding(self._reader, self._adapters, self._senses, self._prompts)

    @property
    def _chatting(self) -> Chatting:
        return Chatting(self._requests)

    @property
    def _scoring(self) -> Scoring:
        return Scoring(self._requests)

    @property
    def _reader(self) -> Reader:
        return Reader(self._resident, self.tokenizer, self.config)

    @property
    def _requests(self) -> Requests:
        asked = self.generation_config, self._not_followed
        return Requests(self._reader, self._adapters, self._senses, self.chat_format, self.end_ids, *asked)

    @property
    def _senses(self) -> Senses:
        return Senses(self.config, self._media, self._hearing)
