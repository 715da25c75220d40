"""What a :class:`~gemlet.Model` is while it is loaded: its parts, its adapters, its memory, its end."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemlet.adapters.adapter import Adapter, open_adapter
from gemlet.base.text import show_argument
from gemlet.chat.base import ChatFormat
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, ModelClosedError
from gemlet.generation.options import GenerationConfig
from gemlet.generation.stream import TextStream
from gemlet.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

    from gemlet import _core

__all__ = ["LoadedModel"]


class LoadedModel:
    """What every request of :class:`~gemlet.Model` rests on: the core's model and what belongs to it."""

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
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.end_ids = end_ids
        self.generation_config = generation_config or GenerationConfig()
        self.source = source
        self.prompts: Mapping[str, str] = {} if prompts is None else prompts.texts
        self._prompts = prompts
        self.load_seconds = load_seconds
        self._spare_memory = spare_memory  # what max_memory leaves for adapters; None: no bound
        self._core_model = core
        self._weights = core.weights
        self._threads = core.threads
        self._decode_threads = core.decode_threads
        self._kv_cache = core.kv_cache
        self._tier = core.tier
        self._context_length = core.config.max_context
        self._vocab_size = core.config.vocab_size
        self._closed = False
        # Guards _closed, _streams and _adapters: close() must see every stream, and none may begin after it.
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[TextStream] = weakref.WeakSet()
        self._adapters: dict[str, tuple[Adapter, _core.Adapter]] = {}
        self._loading = threading.Lock()
        self._adapter_scratch = 0  # what adapters add to the core's scratch, which never shrinks

    def __repr__(self) -> str:
        state = (
            "closed" if self._closed else f"weights={self.weights} threads={self.threads} tier={self.tier}"
        )
        return f"<gemlet.Model {self.source!r} {state}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def weights(self) -> str:
        """Format of the weights in memory: "f32", "bf16", "bf12", "q8" or "q4"."""
        return self._weights

    @property
    def threads(self) -> int:
        """Threads that a forward pass runs on."""
        return self._threads

    @property
    def decode_threads(self) -> int:
        """Threads that a forward pass over at most 8 tokens runs on."""
        return self._decode_threads

    @property
    def kv_cache(self) -> str:
        """Format of the KV cache in memory: "f32", "bf16" or "int8"."""
        return self._kv_cache

    @property
    def tier(self) -> str:
        """Instruction-set tier of the kernels in use, for example "avx2"."""
        return self._tier

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and continuation together, that a context holds."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Number of token ids, and so the width of the logits."""
        return self._vocab_size

    def memory(self) -> dict[str, int]:
        """Bytes in memory now, by use.

        "weights" and "embedding"; "kv_cache" of all streams that have not ended, with its places for tokens
        to come; "adapters", one that was unloaded among them as long as a stream uses it. And what one token
        takes of the cache in the layers without ("kv_cache_per_token") and with a sliding window
        ("kv_cache_per_window_token").

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     stream = model.stream("The door", max_tokens=4)
        ...     before, chunk, during = model.memory(), next(stream), model.memory()
        >>> before["kv_cache"], during["kv_cache"] > 4 * during["kv_cache_per_token"] > 0
        (0, True)
        """
        self._check_open()
        return self._core_model.memory()

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The LoRA adapters that are loaded, by name.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     model.adapters
        {}
        """
        with self._lock:
            return {name: adapter for name, (adapter, _) in self._adapters.items()}

    def load_adapter(self, path: str | os.PathLike[str], name: str | None = None) -> Adapter:
        """Loads a PEFT LoRA adapter beside the model, for requests to choose with ``adapter=name``.

        Any number of adapters may be loaded, also while the model generates. Their matrices stay apart from
        the model's, ``y = W x + scale * B (A x)``: in float32 for a model with f32 weights, else in bfloat16.
        Loads take turns, and count against ``max_memory`` with what forward passes need to compute with them.

        Args:
            path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
            name: what to call it; None: the folder's name.

        Raises:
            InvalidRequestError: the name is empty or taken.
            ModelFileError: a file is missing, cut short or inconsistent.
            ConfigError: the adapter is of a kind that gemlet does not compute (DoRA, biases, modules saved
                whole, ...); names the key.
            TensorError: a tensor is missing, unexpected, not finite or does not fit this model; names it.
            MemoryLimitError: it does not fit into memory, or into what ``max_memory`` leaves.
            ModelClosedError: the model is closed.

        Here one is made first, of rank 1 for one matrix of the demo model:

        >>> import json, pathlib, tempfile
        >>> import gemlet, numpy, safetensors.numpy
        >>> place = tempfile.TemporaryDirectory()
        >>> folder = pathlib.Path(place.name, "louder")
        >>> folder.mkdir()
        >>> module = "model.layers.0.self_attn.o_proj"
        >>> config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": module}
        >>> _ = (folder / "adapter_config.json").write_text(json.dumps(config))
        >>> a, b = numpy.ones((1, 256), "float32"), numpy.ones((256, 1), "float32")
        >>> tensors = {f"base_model.model.{module}.lora_{x}.weight": y for x, y in (("A", a), ("B", b))}
        >>> safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
        >>> with gemlet.load() as model:
        ...     adapter = model.load_adapter(folder)
        ...     plain = model.generate("The door", max_tokens=8, temperature=0)
        ...     changed = model.generate("The door", max_tokens=8, temperature=0, adapter="louder")
        ...     model.unload_adapter("louder")
        >>> place.cleanup()
        >>> adapter.targets, adapter.ranks, plain.text == changed.text
        (('o_proj',), (1,), False)
        """
        self._check_open()

        if name is None:
            name = os.path.basename(os.path.abspath(os.fspath(path)))
        self._check_adapter_name(name)
        # One load at a time, from the check to the end: what is left of max_memory is given out once.
        with open_adapter(path, self.config) as files, self._loading:
            self._check_adapter_name(name)
            scratch = max(self._adapter_scratch, self._core_model.adapter_scratch_bytes(files.max_rank))
            if self._spare_memory is not None:
                room = self._spare_memory - self._core_model.memory()["adapters"] - self._adapter_scratch
                files.check_memory(room, self.weights, scratch - self._adapter_scratch)
            core = files.build(self._core_model)
            adapter = files.describe(name, core.bytes)
            with self._lock:
                self._check_open()
                self._adapters[name] = adapter, core
                self._adapter_scratch = scratch
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Takes the adapter ``name`` out; its memory goes with the last stream that still uses it.

        Raises:
            InvalidRequestError: no adapter of this name is loaded.

        >>> import gemlet
        >>> with gemlet.load() as model:
        ...     try:
        ...         model.unload_adapter("louder")
        ...     except gemlet.InvalidRequestError as error:
        ...         print(error)
        adapter: got 'louder', expected the name of a loaded one (none); see load_adapter()
        """
        with self._lock:
            self._find_adapter(name)
            del self._adapters[name]

    def close(self) -> None:
        """Ends running streams ("cancelled"), then gives the memory back; closing twice is harmless.

        >>> import gemlet
        >>> model = gemlet.load()
        >>> stream = model.stream("The door opened", max_tokens=100)
        >>> chunk = next(stream)
        >>> model.close()
        >>> stream.result.finish_reason, stream.result.completion_tokens
        ('cancelled', 1)
        >>> try:
        ...     model.generate("The door opened")
        ... except gemlet.ModelClosedError as error:
        ...     print(error)
        the model from demo is closed; load it again
        """
        with self._lock:
            self._closed = True
            self._adapters.clear()
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        self._core_model.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosedError(f"the model from {self.source} is closed; load it again")

    def _check_adapter_name(self, name: object) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
            raise InvalidRequestError(
                f"name: got {show_argument(name)}, expected 1 to 256 printable characters"
            )
        if name in self._adapters:
            raise InvalidRequestError(
                f"name: an adapter {show_argument(name)} is loaded already; unload it, or choose another"
            )

    def _find_adapter(self, name: str | None) -> _core.Adapter | None:
        if name is None:
            return None
        entry = self._adapters.get(name) if isinstance(name, str) else None
        if entry is None:
            loaded = ", ".join(map(show_argument, self._adapters)) or "none"
            raise InvalidRequestError(
                f"adapter: got {show_argument(name)}, expected the name of a loaded one ({loaded}); see "
                "load_adapter()"
            )
        return entry[1]
