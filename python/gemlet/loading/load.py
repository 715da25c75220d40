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
    (or the shards and their index), and ``tokenizer.model`` or ``tokenizer.json``. It may also have a
    ``generation_config.json``: its end tokens end the generation, and its sampling values are the model's
    defaults. A GGUF file (version 2 or 3) has the same information in its metadata. If a GGUF model is split,
    ``source`` may be any of its files.

    The weights are packed one tensor at a time. The weights in a folder that :func:`gemlet.convert` made are
    mapped into memory and used in place, so such a folder loads at once. The table of per-layer embeddings of
    Gemma 3n and 4 stays in its file and is read while the model runs.

    Args:
        source: one of these: a folder, or the safetensors file in it; a GGUF file, or a folder with only one;
            the name of a model on the hub, such as "google/gemma-3-1b-it", or with a GGUF file
            "someone/gemma-GGUF:gemma-Q4_0.gguf". A model from the hub is downloaded once. A model without a
            tokenizer also loads, but works only with token ids.
        weights: the format of the weights in memory. Smaller formats take less memory and make decoding
            faster, but formats with few bits make answers worse. "auto", the default, keeps the values of the
            file wherever a format can hold them. Choose "q8" or "q4" if memory is short.

            "f32" and "bf16" are the usual floating-point formats. "bf12" has the values of bf16 in three
            quarters of the memory, and the same results. It refuses a matrix in which a row has too many
            different exponents, because it has codes for 15 consecutive exponents and room for few others.
            "q8" is int8 in blocks of 32 values. "q6k", "q5k", "q5", "q4k" and "q4" have six to four bits;
            with these formats, the embedding table is in q8.

            "auto" chooses for each matrix by its type in the file. BF16 becomes bf12 if bf12 can hold the
            matrix, else bf16; if all BF16 matrices together have less than 64 MB, they stay bf16. Float16
            becomes bf16 if no value changes, else f32. GGUF's Q4_0, Q5_0, Q8_0, Q4_K, Q5_K and Q6_K become
            the format of the same name, and IQ4_NL becomes q8; all of these keep their values. No format can
            hold the values of the other types: Q4_1, Q5_1 and IQ4_XS become q8, and Q2_K and Q3_K become q4,
            which adds little to their error. A packed folder keeps its format.
        threads: the number of threads that compute, 1 to 1024. None: the number that this process may use,
            but at most the physical cores, and fewer if the system does not grant so many. ``gemlet info``
            shows the number and the reason.
        decode_threads: the number of threads for decoding (forward passes of at most 8 tokens). None: as many
            as ``threads``. Decoding is bound by memory, and a few cores can use the whole memory bandwidth.
        max_context: the longest text in tokens, prompt and reply together. It limits the memory of the KV
            cache. None: the model's own limit.
        embedding: the format of the embedding table, which is also the output matrix. None: as ``weights``,
            but "q8" for formats of fewer bits, because the model then answers better.
        kv_cache: the format of the KV cache: "f32", "bf16", "int8" or "int4". "int8" has one scale per token
            and head and takes half the memory of "bf16". "int4" takes a quarter of it, and makes answers
            worse. None: "bf16", but "f32" for weights in f32.
        max_memory: the most memory that this process may take, in bytes or as text such as "2GB". A model
            that would need more for one text of ``max_context`` tokens is refused before anything is
            allocated. The message shows the memory plan and options with which the model would fit. Adapters
            that are loaded later have to fit into the rest.
        embedding_on_disk: keeps the embedding table in its file, and at most 32 MiB of it in memory at a
            time. The results are the same. Prefill reads single rows of the table. Decoding reads the whole
            table for every token: from the system's page cache if the table fits there, else from the disk.
            The model has to be packed, or ``cache`` has to be True.
        exact_batches: makes the results for a request the same, bit for bit, whichever requests run at the
            same time, and however the prefill is split into chunks. On CPUs without a matrix unit (AMX), and
            for weights in bf16, bf12 and f32, this is always so, and the option costs nothing. With AMX and
            weights in q8 to q4, the option makes prefill run without the matrix unit, at the speed of the
            next lower tier.
        device: "cpu", "cuda" for an NVIDIA GPU, or "auto", which is "cuda" if a GPU can be used. No GPU
            has run gemlet yet, and wheels are built without "cuda". On a GPU, ``max_memory`` limits the GPU's
            memory. A model that does not fit into the GPU's free memory is refused.
        vision: False leaves out the model's tower for images, if it has one, and saves its memory.
        audio: False leaves out the encoder for sound, and saves its memory.
        mmproj: the file of llama.cpp with the towers of a GGUF model. None: the file beside the model with
            "mmproj" in its name, if there is one for this model. False: no file.
        drafter: a draft model for speculative decoding: a smaller Gemma with the same vocabulary, given like
            ``source``. It proposes draft tokens, and the model checks several of them in one pass. The text
            is the same as without a draft model, even with sampling. The draft model is used only when it
            measurably saves time. It is loaded with the same ``weights``, without its towers.
        draft_tokens: the most draft tokens for a sequence at a time, 1 to 14. None: as many as save time.
        matformer: the smaller model to cut out of a Gemma 3n. Only the needed part of the file is read.
            Possible are "E2B" out of E4B, an MLP width for all layers, a list of widths, or
            ``{"intermediate_size": width or list of widths, "skip_layers": [...]}`` with a width for each
            layer that is kept.
        merge_adapter: an adapter of PEFT, mlx-lm or llama.cpp to merge into the weights before they are
            packed (and before ``matformer`` cuts them). To keep an adapter separate and choose it for each
            request, use :meth:`Model.load_adapter`.
        chat_template: the Jinja template for conversations, as text or as the path of a file, instead of the
            model's own template. A template that is not one of Gemma's runs in a sandbox, and needs the extra
            ``templates``. Do not accept templates from users, because a template can change the conversation.
        cache: keeps the packed weights and the parsed vocabulary in the user's cache directory, and uses them
            the next time. The directory is ``$XDG_CACHE_HOME/gemlet`` or ``~/.cache/gemlet``. It holds at
            most ``$GEMLET_CACHE_SIZE``, by default 20 GB; the least recently used entries are removed first.
        prefix_cache: keeps the keys and values of texts. If a prompt begins like an earlier text, as in the
            next turn of a chat, the prefill then computes only the new part. True: keeps them in memory until
            the model is closed. False: keeps nothing. A folder: keeps them on disk too, for the next process;
            only this user may have write access to the folder. The files in it reveal the content of the
            texts.
        prefix_cache_size: the most bytes that are kept, given as in ``max_memory``; the least recently used
            texts are dropped first. With a folder, this is the limit of the folder, and None means 10 GB.
            Without a folder, it is a limit of memory, and the memory plan includes it. None then means a
            quarter of the memory that all sequences share, which is an eighth of the free memory, but at most
            2 GB.
        progress: None shows a line on terminals and in notebooks if packing takes a while (a bar if tqdm
            is installed). True shows it everywhere, False nowhere. A function is called with the bytes done
            and the bytes in total. If the function raises an exception, or on Ctrl-C, loading stops and
            leaves nothing behind. The hub's own progress bars are shown for None and True.
        revision: the branch, tag or commit of a model on the hub.
        token: the access token for the hub.

    Returns:
        The model, which is a context manager; ``close()`` frees its memory.

    Raises:
        ModelFileError: the folder or one of its files is missing, cut short or inconsistent.
        ConfigError: ``config.json`` or GGUF's metadata describe something that gemlet does not run. The
            message names the key.
        TensorError: a tensor is missing, is unexpected, has the wrong shape or type, or is not finite. The
            message names the tensor.
        TokenizerError: the tokenizer's files cannot be used.
        InvalidRequestError: an argument is out of range.
        UnsupportedError: this build does not have the ``device``, ``matformer`` is given for a model that is
            not a MatFormer, or an extra is not installed.
        HubError: the hub cannot be reached, or refuses to send the model.
        MemoryLimitError: the weights do not fit into memory, or the model does not fit into ``max_memory``.

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
