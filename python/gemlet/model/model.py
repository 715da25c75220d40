"""The public :class:`Model`: a loaded checkpoint with its tokenizer, and everything one asks of it."""

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

    It may be shared by threads, and by tasks of an event loop: what is asked of it at a time advances
    together, step by step. Use it as a context manager, or call :meth:`close`, to give its memory back; what
    is called on it afterwards raises :class:`~gemlet.errors.ModelClosedError`.

    Attributes:
        config: what ``config.json`` says.
        tokenizer: None where the model came without one; prompts are then token ids and the text stays empty.
        end_ids: the tokens that end a generation.
        generation_config: how to generate where a call does not say: the sampling values that the
            checkpoint's ``generation_config.json`` recommends, else :class:`GenerationConfig`'s defaults.
        source: where the model came from, for people to read.
        weights: the format of the weights in memory: "f32", "bf16", "q8", "q4", ...
        kv_cache: the format of the KV cache in memory: "f32", "bf16", "int8" or "int4".
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
        """How a conversation becomes a prompt; None where the model has no way. Another one may be assigned;
        sessions that have begun keep theirs.

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
        """Bytes in memory now: "weights", "embedding", "adapters", "kv_cache" of the texts that run, and
        "prefix_cache" of what is only kept; "drafter", all of a drafter's together. And what one token takes
        of the cache in layers without ("kv_cache_per_token") and with a window
        ("kv_cache_per_window_token").

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
        """What the engine has done since the model was loaded, and does now. It is cheap to ask.

        "running" and "waiting" requests; "longest_wait", seconds that one has waited for its first pass so
        far; "begun", those that had it, after "waiting_seconds" in all; "steps", forward passes;
        "prompt_tokens" that were read and "cached_tokens" that need not be; "generated_tokens"; "drafts",
        guesses about a text in one step, with "drafted_tokens" in all, of which "accepted_tokens" were
        right; "preemptions", texts that gave up their memory for others and were computed again; "kv_bytes"
        in use, of which "prefix_cache_bytes" are only kept, and "kv_room_bytes" for more; "disk_read_bytes"
        and "disk_written_bytes" of a prefix cache on disk; "step_seconds" in forward passes; and "bytes_read"
        by them, of weights, keys and values.

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
        """The LoRA adapters that are loaded, by name.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.adapters
        {}
        """
        return self._adapters.by_name()

    load_adapter = method_of("_adapters", LoadedAdapters.load_adapter)
    unload_adapter = method_of("_adapters", LoadedAdapters.unload_adapter)

    def close(self, timeout: float | None = None) -> None:
        """Ends running streams ("cancelled"), then gives the memory back; closing twice is harmless.

        With a ``timeout``, running texts have this many seconds to finish before they are ended. Requests
        made meanwhile raise :class:`~gemlet.errors.ModelClosedError`.

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
            ids: token ids ``[n]``, BOS included where the model expects one.
            adapter: the name of a loaded adapter to compute with; None: the model alone.
            images: what the placeholders in ``ids`` stand for, in order: paths, bytes of files, Pillow images
                or uint8 arrays ``[height, width, 3]``.
            pan_and_scan: whether a long image is also seen in parts, which have placeholders of their own
                behind those of the whole; or a mapping with ``min_crop_size``, ``max_num_crops`` and
                ``min_ratio_to_activate``. None: as the model's files say.
            image_tokens: the most tokens of an image, 70, 140, 280, 560 or 1120, in Gemma 4. None: as the
                model's files say.
            videos: paths, bytes of files, or pairs of frames, each like an image, and frames per second. At
                most 32 frames are seen.
            audio: sounds, likewise: paths, bytes of files, arrays of samples at 16 kHz (float32 from -1 to 1,
                or int16), or pairs of samples ``[n]`` or ``[n, channels]`` and their rate.

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
        """Continues ``prompt`` and returns the whole continuation; of a list of prompts, a list of them.

        The texts of a list advance together, which is faster than one after the other. ``seed`` is one for
        all or a list of them; each text is what it would be alone. One call writes at most 65,536 texts.

        Args:
            prompt: text (encoded with one BOS) or token ids, which are taken as they are; or a list of these.
            config: how to generate, :attr:`generation_config` for None; single options replace values of it.
            adapter: the name of a loaded adapter to generate with; None: the model alone.
            allow_control: a control token written in the text (``<end_of_turn>``) is that token. False, for
                text from somebody else, takes it as plain characters.
            echo: the text of each result begins with its prompt.
            timeout: seconds after which a text ends with what there is and the reason "timeout".
            n: give a list of this many continuations of each prompt, at most 16, with the seeds ``seed``,
                ``seed + 1`` and so on. The prompt is read once.
            best_of: write this many, and give the ``n`` that the model finds most probable per token.
            images, videos, pan_and_scan, image_tokens: as of :meth:`logits`; ``<start_of_image>`` in the text
                (Gemma 4: ``<|image|>``, ``<|video|>``) stands for each. Of several prompts a list for each.
            audio: sounds, in the order of their placeholders (``<|audio|>``, of Gemma 3n
                ``<audio_soft_token>``) in a text, or of all of them in token ids; what :meth:`logits` takes.
                Of several prompts a list of sounds for each.
            priority: -100 to 100; where texts have to wait for a place, those with a higher one begin first.
            cache_salt: a text shares what was computed only with texts of the same salt, or also without one.
            (the options of GenerationConfig)

        Raises:
            InvalidRequestError: an empty prompt, a token id out of range, an invalid option, an adapter that
                is not loaded, text for a model without tokenizer, or too many prompts.
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

    @takes_options
    @public
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

    @takes_options
    @public
    async def agenerate(
        self,
        prompt: Prompt | ManyPrompts,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | list[Generation]:
        """:meth:`generate` for programs with an event loop. A task that is cancelled ends its texts. Images,
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

        The request is checked here. No thread waits for the text. Images, sounds, grammars and long texts
        are read here, too: ``await asyncio.to_thread(model.astream, prompt, images=[...])`` lets the event
        loop go on meanwhile.

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
