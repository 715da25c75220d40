"""From files to a :class:`~gemlet.model.Model`: :func:`load`, and :func:`random_model` for benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.memory import check_memory, parse_memory

if TYPE_CHECKING:
    from gemlet import _core
    from gemlet.chat import ChatFormat
    from gemlet.config import TextConfig
    from gemlet.embedding import Prompts
    from gemlet.model import Model
    from gemlet.progress import Progress
    from gemlet.source import ModelSource
    from gemlet.tokenizer import Tokenizer

__all__ = ["PRESETS", "load", "random_model"]


class Formats(NamedTuple):
    """Formats in memory."""

    matrices: str
    embedding: str
    kv_cache: str


# The embedding is also the output matrix and loses more to four bits than the others do, so "q4" keeps it at
# eight.
PRESETS = {
    "f32": Formats("f32", "f32", "f32"),
    "bf16": Formats("bf16", "bf16", "bf16"),
    "bf12": Formats("bf12", "bf12", "bf16"),
    "q8": Formats("q8", "q8", "bf16"),
    "q4": Formats("q4", "q8", "bf16"),
}
KV_CACHES = ("f32", "bf16", "int8")
MAX_THREADS = 1024


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    weights: str = "auto",
    threads: int | None = None,
    decode_threads: int | None = None,
    max_context: int | None = None,
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_memory: int | str | None = None,
    embedding_on_disk: bool = False,
    device: str = "cpu",
    matformer: str | int | Sequence[int] | Mapping[str, Any] | None = None,
    merge_adapter: str | os.PathLike[str] | None = None,
    cache: bool = False,
    progress: Progress = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Model:
    """Loads a Gemma model of any family; ``source`` None is the small demo model that comes with gemlet.

    A folder is read as published on the Hugging Face hub: ``config.json``, ``model.safetensors`` (or its
    shards and their index), ``tokenizer.model`` or ``tokenizer.json``, ``generation_config.json`` where there
    is one: its end tokens end a text, its sampling values are the model's defaults. A GGUF file (versions 2
    and 3; of a split model, any of its files) says the same in its metadata. Of a multimodal model the text
    part is loaded. Weights are converted one at a time; a folder that :func:`gemlet.convert` made is mapped
    and used in place, so it is there at once. The table of per-layer embeddings of Gemma 3n and 4 stays in
    its file and is read while the model runs.

    Args:
        source: the folder, or its safetensors file; or a GGUF file, or a folder with only one; or the name of
            a model on the hub, which is downloaded once: "google/gemma-3-1b-it", or with a GGUF file
            "someone/gemma-GGUF:gemma-Q4_0.gguf". Without a tokenizer in it the model still loads, and takes
            and gives token ids.
        weights: the format of the weights in memory: "bf16", "bf12" (the same values and results in three
            quarters of the memory; faster where decoding waits for memory), "f32", "q8" (int8 in blocks of
            32), "q4" (int4 in blocks of 32; the embedding table is q8). bf12 has codes for 15 consecutive
            exponents of each row, and room for few others; a matrix with more is refused. "auto": each matrix
            in a format that has all its values, bf16 for BF16 and for float16 that came from it, else f32; of
            GGUF's types q4 for Q4_0 and q8 for Q8_0, Q5_0 and IQ4_NL. Types whose values no format has become
            q8 (Q4_1, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_XS) or q4 (Q2_K, Q3_K), which adds little to the error they
            have. Of a packed folder, the format it has.
        threads: how many threads compute, 1 to 1024. None: as many as this process may use, at most the
            physical cores (``gemlet info`` shows the number and the reason).
        decode_threads: how many threads write the reply, once the prompt is read (passes of at most 8
            tokens). None: as many as ``threads``. Decoding waits for memory, which few cores can use up.
        max_context: the longest text, prompt and reply together, in tokens; bounds the memory of the KV
            cache. None: what the model was made for.
        embedding: the format of the embedding table, which is also the output matrix. None: as ``weights``,
            but "q8" for "q4", which answers better; "q4" is what the smallest memories need.
        kv_cache: the format of the KV cache: "f32", "bf16", or "int8" (one scale per token and head), which
            takes half of bf16's memory. None: "bf16", but "f32" for weights in f32.
        max_memory: bytes, or text such as "2GB": refuses, before anything is allocated, a model that would
            make this process larger with one text of ``max_context`` tokens. The message has the plan and
            what would fit. Adapters that are loaded later have to fit into the rest.
        embedding_on_disk: reads the embedding from its file and keeps at most 32 MiB of it in memory at a
            time, for the same results. It is read by row for the prompt, but whole for every token that is
            written: from the system's page cache if that has room, else from the disk. The model has to be
            packed, or ``cache`` True.
        device: only "cpu".
        matformer: the smaller model to cut out of a Gemma 3n, of which only that part is read: "E2B" out of
            E4B, an MLP width for all layers, a list of widths, or ``{"intermediate_size": width or list of
            widths, "skip_layers": [...]}`` with a width for each layer that is kept.
        merge_adapter: the folder of a PEFT LoRA adapter to add into the weights before they are packed (and
            before ``matformer`` cuts). To keep it apart and choose per request: :meth:`Model.load_adapter`.
        cache: keeps the packed weights and the parsed vocabulary in the user's cache directory
            (``$XDG_CACHE_HOME/gemlet`` or ``~/.cache/gemlet``, at most ``$GEMLET_CACHE_SIZE``, by default
            20 GB, the longest unused leaving first), and uses them the next time.
        progress: None shows a bar on terminals if tqdm is installed (the extra ``progress``) and
            packing takes a while, True everywhere, False nowhere; or a function that is called with the bytes
            done and the bytes in all. What it raises cancels the loading and passes through, and so does
            Ctrl-C: nothing is left behind.
        revision, token: which branch, tag or commit of a model on the hub, and the access token.

    Returns:
        The model, a context manager; ``close()`` gives its memory back.

    Raises:
        ModelFileError: the folder or one of its files is missing, cut short or inconsistent.
        ConfigError: ``config.json`` or GGUF's metadata describe something that gemlet does not run; names
            the key.
        TensorError: a tensor is missing, unexpected, mis-shaped, of another type or not finite; names it.
        TokenizerError: there is a tokenizer, but it cannot be used.
        InvalidRequestError: an argument is out of range.
        UnsupportedError: ``device`` is not one this build has, ``matformer`` for a model that is none, or an
            extra is not installed.
        HubError: the hub cannot be reached, or does not give the model out.
        MemoryLimitError: the weights do not fit into memory, or the model not into ``max_memory``.

    >>> import gemlet
    >>> with gemlet.load(weights="q8", threads=1) as model:
    ...     model.weights, model.config.family
    ('q8', 'gemma3')
    """
    started = time.perf_counter()
    check_weights(weights)
    _check_device(device)
    threads = check_threads(threads)
    decode_threads = threads if decode_threads is None else check_threads(decode_threads, "decode_threads")
    limit = None if max_memory is None else parse_memory(max_memory)
    check_flag("embedding_on_disk", embedding_on_disk)
    check_flag("cache", cache)
    from gemlet.progress import check_progress
    from gemlet.source import open_source

    check_progress(progress)
    with open_source(
        source, revision=revision, token=token, merge_adapter=merge_adapter, cache=cache
    ) as opened:
        if matformer is not None:
            opened = opened.cut(matformer)
        if embedding_on_disk and opened.packed is None and not cache:
            raise not_packed(opened)
        max_context = check_max_context(max_context, opened.config)
        if cache and weights == "auto":
            from gemlet.cache import know_float16

            know_float16(opened)
        weights, embedding, own_formats = choose_formats(opened, weights, embedding)
        formats = formats_of(weights, embedding, kv_cache)
        spare = None
        if limit is not None:
            settle(opened)
            spare = check_memory(
                limit,
                opened.config,
                weights=weights,
                embedding=embedding,
                kv_cache=kv_cache,
                max_context=max_context,
                embedding_on_disk=embedding_on_disk,
                own_formats=own_formats,
                threads=threads,
            )
        builder = _filled_builder(
            opened,
            cache=cache,
            progress=progress,
            weights=weights,
            formats=formats,
            own_formats=own_formats,
            threads=threads,
            decode_threads=decode_threads,
            max_context=max_context,
            embedding_on_disk=embedding_on_disk,
        )
        return _model(
            builder,
            opened.config,
            tokenizer=opened.tokenizer,
            chat_format=opened.chat_format,
            end_ids=opened.end_ids,
            sampling=opened.sampling,
            prompts=opened.prompts,
            source=opened.name,
            started=started,
            spare_memory=spare,
        )


def random_model(
    name: str,
    *,
    weights: str = "auto",
    threads: int | None = None,
    decode_threads: int | None = None,
    max_context: int | None = None,
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_memory: int | str | None = None,
    seed: int = 0,
) -> Model:
    """A model of a published shape ("gemma3-1b") with random weights, built in memory: for benchmarks.

    ``weights`` "auto" is "bf16"; the other arguments are those of :func:`load`. It has no tokenizer. Raises
    :class:`InvalidRequestError` for an unknown name (the names are the keys of ``gemlet.config.SHAPES``) and
    :class:`MemoryLimitError` where it would not fit.

    >>> with random_model("gemma3-270m", weights="q4", threads=1) as model:
    ...     model.config.num_layers
    18
    """
    from gemlet.config import shape_config

    started = time.perf_counter()
    check_weights(weights)
    threads = check_threads(threads)
    decode_threads = threads if decode_threads is None else check_threads(decode_threads, "decode_threads")
    config = shape_config(name)
    max_context = check_max_context(max_context, config)
    weights = "bf16" if weights == "auto" else weights
    formats = formats_of(weights, embedding, kv_cache)
    spare = None
    if max_memory is not None:
        spare = check_memory(
            parse_memory(max_memory),
            config,
            weights=weights,
            embedding=embedding,
            kv_cache=kv_cache,
            max_context=max_context,
            threads=threads,
        )
    builder = make_builder(
        config,
        weights=weights,
        formats=formats,
        threads=threads,
        decode_threads=decode_threads,
        max_context=max_context,
    )
    builder.add_random(seed=seed)
    end_ids = frozenset(config.eos_token_ids)
    return _model(
        builder,
        config,
        tokenizer=None,
        chat_format=None,
        end_ids=end_ids,
        sampling={},
        source=name,
        started=started,
        spare_memory=spare,
    )


def formats_of(weights: str, embedding: str | None = None, kv_cache: str | None = None) -> Formats:
    """The formats in memory that ``weights`` (not "auto"), ``embedding`` and ``kv_cache`` stand for."""
    if embedding is not None and (not isinstance(embedding, str) or embedding not in PRESETS):
        choices = ", ".join(repr(choice) for choice in PRESETS)
        raise InvalidRequestError(f"embedding is {embedding!r}; expected one of {choices}, or None")
    if kv_cache is not None and kv_cache not in KV_CACHES:
        choices = ", ".join(repr(choice) for choice in KV_CACHES)
        raise InvalidRequestError(f"kv_cache is {kv_cache!r}; expected one of {choices}, or None")
    preset = PRESETS[weights]
    return Formats(preset.matrices, embedding or preset.embedding, kv_cache or preset.kv_cache)


def choose_formats(
    source: ModelSource, weights: str, embedding: str | None
) -> tuple[str, str | None, dict[str, str]]:
    """The two arguments for ``source``, and the formats of the matrices that have one of their own: "auto" is
    resolved, and what is packed is taken as it is."""
    packed = source.packed
    if packed is None:
        if weights != "auto":
            return weights, embedding, {}
        weights = source.stored_weights()
        preset = PRESETS[weights]
        own = source.stored_formats()
        tables = {slot: own.pop(slot) for slot in ("embed_tokens", "lm_head") if slot in own}
        own = {slot: name for slot, name in own.items() if name != preset.matrices}
        if embedding is None:
            own |= {slot: name for slot, name in tables.items() if name != preset.embedding}
        return weights, embedding, own
    for name, wanted, has in (
        ("weights", weights, packed.weights),
        ("embedding", embedding, packed.embedding),
    ):
        if wanted not in (None, "auto", has):
            raise InvalidRequestError(
                f"{name} is {wanted!r}, but {source.name} is packed as {has!r}; load the original, or "
                "convert it again"
            )
    return packed.weights, packed.embedding, packed.formats()


def make_builder(
    config: TextConfig,
    *,
    weights: str,
    formats: Formats,
    threads: int,
    decode_threads: int = 0,
    max_context: int | None = None,
    allocate: bool = True,
    embedding_on_disk: bool = False,
    own_formats: Mapping[str, str] | None = None,
) -> _core.ModelBuilder:
    """The core's builder; ``allocate`` False: its weights come from a file, or go to one. ``own_formats`` are
    those of matrices that have another than ``formats`` says."""
    from gemlet import _core

    return _core.ModelBuilder(
        config=config.to_core(weights=weights, max_context=max_context),
        weights=formats.matrices,
        embedding=formats.embedding,
        kv_cache=formats.kv_cache,
        threads=threads,
        decode_threads=decode_threads,
        allocate=allocate,
        embedding_on_disk=embedding_on_disk,
        formats=dict(own_formats or {}),
    )


def _filled_builder(
    source: ModelSource,
    *,
    cache: bool,
    progress: Progress,
    weights: str,
    formats: Formats,
    own_formats: Mapping[str, str],
    threads: int,
    decode_threads: int,
    max_context: int,
    embedding_on_disk: bool,
) -> _core.ModelBuilder:
    def builder(allocate: bool) -> _core.ModelBuilder:
        return make_builder(
            source.config,
            weights=weights,
            formats=formats,
            threads=threads,
            decode_threads=decode_threads,
            max_context=max_context,
            allocate=allocate,
            embedding_on_disk=embedding_on_disk,
            own_formats=own_formats,
        )

    from gemlet.packing import fill, set_table, source_bytes
    from gemlet.progress import reporting

    packed = source.packed
    if packed is None and cache:
        from gemlet.cache import packed_copy

        packed = packed_copy(source, builder(False), weights=weights, progress=progress)
    if packed is not None:
        with packed:
            mapped = builder(False)
            packed.use(mapped)
            set_table(mapped, source)
            return mapped
    if embedding_on_disk:
        raise not_packed(source)
    made = builder(True)
    with reporting(progress, "loading", source_bytes(source)) as advance:
        fill(made, source, advance)
    return made


def not_packed(source: ModelSource) -> InvalidRequestError:
    return InvalidRequestError(
        f"embedding_on_disk: {source.name} is not packed, and no cache has its packed form; make a packed "
        "folder of it with `gemlet convert`, or load it with cache=True"
    )


def _model(
    builder: _core.ModelBuilder,
    config: TextConfig,
    *,
    tokenizer: Tokenizer | None,
    chat_format: ChatFormat | None,
    end_ids: frozenset[int],
    sampling: dict[str, Any],
    source: str,
    started: float,
    spare_memory: int | None = None,
    prompts: Prompts | None = None,
) -> Model:
    from gemlet.generation_config import GenerationConfig
    from gemlet.model import Model

    if tokenizer is not None and tokenizer.end_of_turn_id is not None:
        end_ids |= {tokenizer.end_of_turn_id}
    return Model(
        core=builder.finish(),
        config=config,
        tokenizer=tokenizer,
        chat_format=chat_format,
        end_ids=end_ids,
        generation_config=GenerationConfig(**sampling),
        source=source,
        load_seconds=time.perf_counter() - started,
        spare_memory=spare_memory,
        prompts=prompts,
    )


def settle(source: ModelSource) -> None:
    """Waits for what reads ``source`` in a thread, so that a plan counts its memory: the tokenizer."""
    if source.tokenizer is not None:
        source.tokenizer.encode("x")


def check_weights(weights: str) -> None:
    if not isinstance(weights, str) or (weights != "auto" and weights not in PRESETS):
        choices = ", ".join(repr(choice) for choice in ("auto", *PRESETS))
        raise InvalidRequestError(f"weights is {weights!r}; expected one of {choices}")


def _check_device(device: str) -> None:
    if device == "cuda":
        raise UnsupportedError("device is 'cuda', but this gemlet was built without CUDA; use device='cpu'")
    if device != "cpu":
        raise UnsupportedError(f"device is {device!r}; this gemlet runs on 'cpu' only")


def check_threads(threads: int | None, name: str = "threads") -> int:
    if threads is None:
        from gemlet import _core

        return _core.default_threads()[0]
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise InvalidRequestError(f"{name} is {threads!r}; expected 1 to {MAX_THREADS}, or None")
    return threads


def check_flag(name: str, value: bool) -> None:
    if type(value) is not bool:
        raise InvalidRequestError(f"{name} is {value!r}; expected True or False")


def check_max_context(max_context: int | None, config: TextConfig) -> int:
    longest = config.max_position_embeddings
    if max_context is None:
        return longest
    if type(max_context) is not int or not 1 <= max_context <= longest:
        raise InvalidRequestError(
            f"max_context is {max_context!r}; expected 1 to {longest} tokens, the model's limit, or None"
        )
    return max_context
