"""Makes a :class:`~gemlet.model.model.Model` from files: :func:`load`."""

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
    """Loads a Gemma model of any family; without ``source``, the small demo model that comes with gemlet.

    A folder has the files that are published on the Hugging Face hub: ``config.json``, ``model.safetensors``
    (or its shards and their index), and ``tokenizer.model`` or ``tokenizer.json``. It may have a
    ``generation_config.json``. The end tokens in it end a text, and its sampling values are the model's
    defaults. A GGUF file (version 2 or 3) has the same facts in its metadata; for a split model, ``source``
    may be any of its files.

    Weights are converted one at a time. A folder that :func:`gemlet.convert` made is mapped into memory and
    used in place, so it loads at once. The table of per-layer embeddings of Gemma 3n and 4 stays in its file
    and is read while the model runs.

    Args:
        source: one of these: a folder, or the safetensors file in it; a GGUF file, or a folder with only one;
            the name of a model on the hub, such as "google/gemma-3-1b-it", or with a GGUF file
            "someone/gemma-GGUF:gemma-Q4_0.gguf". A model from the hub is downloaded once. A model without a
            tokenizer loads, too; it takes and gives token ids.
        weights: the format of the weights in memory. Smaller formats take less memory and make decoding
            faster, but the ones with few bits make answers worse. "auto" loses nothing where it can, so the
            default is right unless memory is short; then choose "q8" or "q4".

            "f32" and "bf16" are the usual floating-point formats. "bf12" has the values of bf16 in three
            quarters of the memory, and the same results. It refuses a matrix in which a row has too many
            different exponents: it has codes for 15 consecutive ones, and room for few others. "q8" is int8
            in blocks of 32 values. "q6k", "q5k", "q5", "q4k" and "q4" have six to four bits; with them, the
            embedding table is in q8.

            "auto" chooses for each matrix by its type in the file. BF16 becomes bf12 if that can hold it, or
            bf16 in models that take less than 64 MB. Float16 becomes bf16 if no value changes, else f32.
            GGUF's Q4_0, Q5_0, Q8_0, Q4_K, Q5_K and Q6_K become the format of the same name, and IQ4_NL
            becomes q8; all of these keep their values. No format can hold the values of the other types:
            Q4_1, Q5_1 and IQ4_XS become q8, and Q2_K and Q3_K become q4, which adds little to their error. A
            packed folder keeps its format.
        threads: the number of threads that compute, 1 to 1024. None: the number that this process may use,
            but at most the physical cores, and fewer if the system does not grant so many. ``gemlet info``
            shows the number and the reason.
        decode_threads: the number of threads that write the reply after the prompt is read (passes of at most
            8 tokens). None: as many as ``threads``. Decoding waits for memory, and few cores can use all of
            its bandwidth.
        max_context: the longest text, prompt and reply together, in tokens. It bounds the memory of the KV
            cache. None: the model's own limit.
        embedding: the format of the embedding table, which is also the output matrix. None: as ``weights``,
            but "q8" for formats of fewer bits, because the model then answers better.
        kv_cache: the format of the KV cache: "f32", "bf16", "int8" (one scale per token and head), which
            takes half of bf16's memory, or "int4", which takes half of that and costs more quality. None:
            "bf16", but "f32" for weights in f32.
        max_memory: the most memory that this process may take, in bytes or as text such as "2GB". A model
            that would need more for one text of ``max_context`` tokens is refused before anything is
            allocated. The message shows the plan and what would fit. Adapters that are loaded later have to
            fit into the rest.
        embedding_on_disk: reads the embedding from its file and keeps at most 32 MiB of it in memory at a
            time. The results are the same. For the prompt, single rows are read. For every token that is
            written, the whole table is read: from the system's page cache if that has room, else from the
            disk. The model has to be packed, or ``cache`` has to be True.
        exact_batches: makes a text the same, bit for bit, whatever else is computed at the same time, and
            whatever pieces its prompt is read in. On CPUs without a matrix unit (AMX), and for weights in
            bf16, bf12 and f32, texts are always the same, and this option costs nothing. With AMX and weights
            in q8 to q4, it makes prompts be read without the matrix unit, at the speed of the next lower
            tier.
        device: "cpu", "cuda" for an NVIDIA GPU, or "auto", which is "cuda" if a GPU can be used. No GPU
            has run gemlet yet, and wheels are built without "cuda". On a GPU, ``max_memory`` bounds the GPU's
            memory. A model that does not fit into its free memory is refused.
        vision: False leaves out the model's tower for images, if it has one, and saves its memory.
        audio: False leaves out the encoder for sound, and saves its memory.
        mmproj: the file of llama.cpp with the towers of a GGUF model. None: the file beside the model with
            "mmproj" in its name, if there is one for this model. False: no file.
        drafter: a smaller Gemma of the same vocabulary, given like ``source``, which guesses how texts go on.
            The model checks several guessed tokens in one pass. The text is the same as without a drafter,
            even with sampling. The drafter is used only when it measurably saves time. It is loaded with the
            same ``weights``, without its towers.
        draft_tokens: the most tokens that the drafter guesses for a text at a time, 1 to 14. None: as many as
            save time.
        matformer: the smaller model to cut out of a Gemma 3n. Only that part of the file is read. Possible
            are "E2B" out of E4B, an MLP width for all layers, a list of widths, or ``{"intermediate_size":
            width or list of widths, "skip_layers": [...]}`` with a width for each layer that is kept.
        merge_adapter: an adapter of PEFT, mlx-lm or llama.cpp to add into the weights before they are packed
            (and before ``matformer`` cuts). Use :meth:`Model.load_adapter` to keep an adapter apart and
            choose it per request.
        chat_template: the Jinja template to write conversations with, as text or as the path of a file,
            instead of the model's own. A template that is not one of Gemma's runs in a sandbox, and needs the
            extra ``templates``. Do not take it from users, who could change what the model is told.
        cache: keeps the packed weights and the parsed vocabulary in the user's cache directory, and uses them
            the next time. The directory is ``$XDG_CACHE_HOME/gemlet`` or ``~/.cache/gemlet``. It holds at
            most ``$GEMLET_CACHE_SIZE``, by default 20 GB; the least recently used entries are removed first.
        prefix_cache: keeps the keys and values of texts. Of a text that begins like an earlier one, such as
            the next turn of a chat, the model then reads only the new part. True: keeps them in memory until
            the model is closed. False: keeps nothing. A folder: keeps them on disk too, for the next process;
            only this user may have write access to the folder. Its files reveal what was in the texts.
        prefix_cache_size: the most bytes that are kept, written as in ``max_memory``; the least recently used
            texts are dropped first. With a folder it bounds the folder, and None means 10 GB. Without a
            folder it bounds the memory and counts in the plan. None then means a quarter of the memory that
            all texts share, which is an eighth of the memory that is left, but at most 2 GB.
        progress: None shows a line on terminals and in notebooks if packing takes a while (a bar if tqdm
            is installed). True shows it everywhere, False nowhere. A function is called with the bytes done
            and the bytes in total. If it raises, or on Ctrl-C, loading stops and leaves nothing behind. The
            hub's own bars show with None and True.
        revision: the branch, tag or commit of a model on the hub.
        token: the access token for the hub.

    Returns:
        The model, which is a context manager; ``close()`` gives its memory back.

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
