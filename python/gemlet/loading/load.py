"""From files to a :class:`~gemlet.model.model.Model`: :func:`load`."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from gemlet.base.front_door import public
from gemlet.base.late import log
from gemlet.base.progress import Progress
from gemlet.base.text import listed
from gemlet.loading.builder import digest_of, filled_builder, finish_model, not_packed
from gemlet.loading.drafter import open_drafter
from gemlet.loading.memory_plan import check_memory, room_for
from gemlet.loading.options import LoadOptions, Matformer
from gemlet.model.model import Model
from gemlet.sources.opening import open_model_files

__all__ = ["load"]


@public
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
    exact_batches: bool = False,
    device: str = "cpu",
    vision: bool = True,
    audio: bool = True,
    mmproj: str | os.PathLike[str] | bool | None = None,
    drafter: str | os.PathLike[str] | None = None,
    draft_tokens: int | None = None,
    matformer: Matformer = None,
    merge_adapter: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    cache: bool = False,
    prefix_cache: bool | str | os.PathLike[str] = True,
    prefix_cache_size: int | str | None = None,
    progress: Progress = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Model:
    """Loads a Gemma model of any family; ``source`` None is the small demo model that comes with gemlet.

    A folder is read as published on the Hugging Face hub: ``config.json``, ``model.safetensors`` (or its
    shards and their index), ``tokenizer.model`` or ``tokenizer.json``, ``generation_config.json`` if there is
    one: its end tokens end a text, and its sampling values are the model's defaults. A GGUF file (versions 2
    and 3; of a split model, any of its files) says the same in its metadata. Weights are converted one at a
    time; a folder that :func:`gemlet.convert` made is mapped and used in place, so it loads at once. The
    table of per-layer embeddings of Gemma 3n and 4 stays in its file and is read while the model runs.

    Args:
        source: the folder, or its safetensors file; or a GGUF file, or a folder with only one; or the name of
            a model on the hub, which is downloaded once: "google/gemma-3-1b-it", or with a GGUF file
            "someone/gemma-GGUF:gemma-Q4_0.gguf". Without a tokenizer in it the model still loads, and takes
            and gives token ids.
        weights: the format of the weights in memory: "bf16", "bf12" (the same values and results in three
            quarters of the memory; faster if decoding waits for memory), "f32", "q8" (int8 in blocks of
            32), "q6k", "q5k", "q5", "q4k", "q4" (six to four bits; the embedding table is q8). bf12 has codes
            for 15 consecutive exponents of each row, and room for few others; a matrix with more is refused.
            "auto": each matrix in a format that has all its values: for BF16 bf12 if it has room, but bf16
            in models that take less than 64 MB; bf16 for float16 that came from it, else f32; of GGUF's types
            q4, q5 and q8 for Q4_0, Q5_0 and Q8_0, q4k, q5k and q6k for Q4_K, Q5_K and Q6_K, and q8 for
            IQ4_NL. Types whose values no format can hold become q8 (Q4_1, Q5_1, IQ4_XS) or q4 (Q2_K, Q3_K),
            which adds little to their error. A packed folder keeps its format.
        threads: how many threads compute, 1 to 1024. None: as many as this process may use, at most the
            physical cores (``gemlet info`` shows the number and the reason), and fewer if the system does
            not grant so many.
        decode_threads: how many threads write the reply, once the prompt is read (passes of at most 8
            tokens). None: as many as ``threads``. Decoding waits for memory, and few cores can use all of its
            bandwidth.
        max_context: the longest text, prompt and reply together, in tokens. It bounds the memory of the KV
            cache. None: the model's own limit.
        embedding: the format of the embedding table, which is also the output matrix. None: as ``weights``,
            but "q8" for formats of fewer bits, because the model then answers better.
        kv_cache: the format of the KV cache: "f32", "bf16", "int8" (one scale per token and head), which
            takes half of bf16's memory, or "int4", which takes half of that and costs more quality. None:
            "bf16", but "f32" for weights in f32.
        max_memory: bytes, or text such as "2GB": refuses, before anything is allocated, a model that would
            make this process larger with one text of ``max_context`` tokens. The message shows the plan and
            what would fit. Adapters that are loaded later have to fit into the rest.
        embedding_on_disk: reads the embedding from its file and keeps at most 32 MiB of it in memory at a
            time, for the same results. It is read by row for the prompt, but whole for every token that is
            written: from the system's page cache if that has room, else from the disk. The model has to be
            packed, or ``cache`` True.
        exact_batches: makes a text the same, bit for bit, whatever else is computed at the same time and in
            whatever pieces its prompt is read. On CPUs without a matrix unit (AMX), and for weights in bf16,
            bf12 and f32, this is always so and costs nothing. With AMX and weights in q8 to q4, prompts are
            read without the matrix unit, at the speed of the next lower tier.
        device: "cpu", "cuda" for an NVIDIA GPU, or "auto", which is "cuda" if a GPU can be used. No GPU
            has run gemlet yet, and wheels are built without "cuda". On a GPU, ``max_memory`` bounds its
            memory, and a model that does not fit into what is free of it is refused.
        vision: False leaves out the tower for images of a model that has one, and its memory.
        audio: False leaves out the encoder for sound, and its memory.
        mmproj: the file of llama.cpp with the towers of a GGUF model. None: the one beside the model with
            "mmproj" in its name, if there is one for this model. False: none.
        drafter: a smaller Gemma of the same vocabulary, as in ``source``, which guesses how texts go on. The
            model checks several guessed tokens in one pass. The text is the same as without it, even with
            sampling, and it is used only when that measurably saves time. It is loaded with the same
            ``weights``, without its towers.
        draft_tokens: the most tokens that it guesses for a text at a time, 1 to 14. None: as many as save
            time.
        matformer: the smaller model to cut out of a Gemma 3n, of which only that part is read: "E2B" out of
            E4B, an MLP width for all layers, a list of widths, or ``{"intermediate_size": width or list of
            widths, "skip_layers": [...]}`` with a width for each layer that is kept.
        merge_adapter: an adapter of PEFT, mlx-lm or llama.cpp to add into the weights before they are packed
            (and before ``matformer`` cuts). To keep it apart and choose per request:
            :meth:`Model.load_adapter`.
        chat_template: the Jinja template to write conversations with, as text or as the path of a file,
            instead of the model's own. A template that is not one of Gemma's runs in a sandbox, and needs the
            extra ``templates``. Do not take it from users, who could change what the model is told.
        cache: keeps the packed weights and the parsed vocabulary in the user's cache directory
            (``$XDG_CACHE_HOME/gemlet`` or ``~/.cache/gemlet``, at most ``$GEMLET_CACHE_SIZE``, by default
            20 GB, the least recently used are removed first), and uses them the next time.
        prefix_cache: keeps the keys and values of texts. A text that begins like an
            earlier one, such as the next turn of a chat, reads only what is new. True: in memory, until the
            model is closed. False: not at all. A folder: on disk too, for the next process; only this user
            may have write access to it. Its files reveal what was in the texts.
        prefix_cache_size: the most that is kept, written as in ``max_memory``; the least recently used texts
            go first. With a folder it bounds the folder; None: 10 GB. Without one it bounds the memory and
            counts in the plan; None: a quarter of what all texts share, which is an eighth of what is left,
            but at most 2 GB.
        progress: None shows a line on terminals and in notebooks if packing takes a while (a bar if tqdm
            is installed), True everywhere, False nowhere; or a function that is called with the bytes done
            and the bytes in total. An exception of it, or Ctrl-C, cancels the loading and leaves nothing
            behind. The bars of the hub show with None and True.
        revision, token: which branch, tag or commit of a model on the hub, and the access token.

    Returns:
        The model, a context manager; ``close()`` gives its memory back.

    Raises:
        ModelFileError: the folder or one of its files is missing, cut short or inconsistent.
        ConfigError: ``config.json`` or GGUF's metadata describe something that gemlet does not run; names the
            key.
        TensorError: a tensor is missing, unexpected, mis-shaped, of another type or not finite; names it.
        TokenizerError: there is a tokenizer, but it cannot be used.
        InvalidRequestError: an argument is out of range.
        UnsupportedError: ``device`` is not one this build has, ``matformer`` for a model that is not a
            MatFormer, or an extra is not installed.
        HubError: the hub cannot be reached, or refuses to give the model.
        MemoryLimitError: the weights do not fit into memory, or the model not into ``max_memory``.

    >>> import gemlet
    >>> with gemlet.load(weights="q8", threads=1) as model:
    ...     model.weights, model.config.family
    ('q8', 'gemma3')
    """
    started = time.perf_counter()
    options = LoadOptions(
        weights=weights,
        threads=threads,
        decode_threads=decode_threads,
        max_context=max_context,
        embedding=embedding,
        kv_cache=kv_cache,
        max_memory=max_memory,
        embedding_on_disk=embedding_on_disk,
        prefix_cache=prefix_cache,
        prefix_cache_size=prefix_cache_size,
        exact_batches=exact_batches,
        device=device,
        vision=vision,
        audio=audio,
        mmproj=mmproj,
        drafter=drafter,
        draft_tokens=draft_tokens,
        matformer=matformer,
        cache=cache,
        progress=progress,
    )
    with open_model_files(
        source,
        revision=revision,
        token=token,
        merge_adapter=merge_adapter,
        chat_template=chat_template,
        mmproj=options.towers_file,
        cache=options.cache,
        progress=progress,
    ) as files:
        if matformer is not None:
            files = files.cut(matformer)
        files = files.with_towers(vision=options.vision, audio=options.audio)
        if options.embedding_on_disk and files.packed is None and not options.cache:
            raise not_packed(files)
        if files.passed_over:
            log.info("%s: ignored, because it changes nothing: %s", files.name, listed(files.passed_over))
        options = options.with_context(files.config.max_position_embeddings)
        if options.cache and options.weights == "auto":
            from gemlet.packing.cache import know_formats

            know_formats(files)
        with open_drafter(options, files, token=token) or nullcontext() as beside:
            options = options.with_formats(files)
            spare = None
            if (room := room_for(options)) is not None:
                spare = check_memory(room[0], files.config, options, name=room[1], drafter=beside)
            kept_texts = options.prefix_cache_options(digest_of(files, options))
            return finish_model(
                filled_builder(files, options),
                files.config,
                tokenizer=files.tokenizer,
                chat_format=files.chat_format,
                end_ids=files.end_ids,
                sampling=files.sampling,
                not_followed=files.not_followed,
                prompts=files.prompts,
                source=files.name,
                started=started,
                spare_memory=spare,
                prefix_cache=kept_texts,
                drafter=None if beside is None else beside.build,
                draft_tokens=options.draft_tokens,
            )
