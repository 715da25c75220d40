"""The LoRA adapters that are loaded beside a model: :class:`LoadedAdapters`."""

from __future__ import annotations

import os

from gemlet import _core
from gemlet.adapters.adapter import Adapter, changes_tower
from gemlet.base.files import checked_path
from gemlet.base.front_door import public
from gemlet.base.handlers import importing
from gemlet.base.names import did_you_mean
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError
from gemlet.model.resident import Resident
from gemlet.sources.adapters import find_adapter

__all__ = ["ChosenAdapter", "LoadedAdapters"]


@record(frozen=True)
class ChosenAdapter:
    """The adapter that a request uses. Both members are None if the request uses no adapter."""

    adapter: Adapter | None = None
    core: _core.Adapter | None = None

    def for_tower(self, kind: str) -> _core.Adapter | None:
        """The adapter for the tower ``kind``, "vision" or "audio"; None if the adapter does not change this
        tower.

        Raises :class:`UnsupportedError` if the adapter changes a part of the tower that gemlet cannot change.
        """
        return self.core if self.adapter is not None and changes_tower(self.adapter, kind) else None

    def key(self, kind: str) -> bytes:
        """The part of a cache key that stands for the adapter. The cache has soft tokens of the tower
        ``kind``, which depend on the model, the image or sound, and the adapter."""
        core = self.for_tower(kind)
        return b"" if core is None else core.digest.encode()


class LoadedAdapters:
    """The adapters that requests to the model in ``resident`` can choose by name.

    Attributes:
        spare_memory: the bytes that ``max_memory`` leaves for adapters; None if there is no limit.
    """

    def __init__(self, resident: Resident, config: TextConfig, spare_memory: int | None) -> None:
        self.spare_memory = spare_memory
        self._in_text = self._in_towers = 0  # the bytes that adapters have added to buffers, see scratch
        self._resident = resident
        self._config = config
        self._loaded: dict[str, tuple[Adapter, _core.Adapter]] = {}  # change it only under resident.lock
        self._loading = _core.Turn()

    @property
    def scratch(self) -> int:
        """The bytes that adapters have added to the core's buffers for the text model and for the towers. The
        buffers never shrink."""
        return self._in_text + self._in_towers

    def by_name(self) -> dict[str, Adapter]:
        """The adapters that are loaded now."""
        with self._resident.lock:
            return {name: adapter for name, (adapter, _) in self._loaded.items()}

    @public
    def load_adapter(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Adapter:
        """Loads an adapter (LoRA, DoRA) beside the model. Requests choose it with ``adapter=name``.

        Any number of adapters may be loaded, also while the model generates. Their matrices stay separate
        from the model's matrices. They are in float32 for a model with f32 weights, otherwise in bfloat16.
        The memory of adapters counts against ``max_memory``.

        Args:
            path: a folder of PEFT or mlx-lm, a GGUF file of llama.cpp, or the name of an adapter on the hub.
            name: the name for requests. None: the name of the folder, the file or the repository.
            revision, token: as in :func:`gemlet.load`, for an adapter on the hub.

        Raises:
            InvalidRequestError: the name is empty or taken.
            ModelFileError, ConfigError, TensorError: the adapter is damaged, or gemlet or this model cannot
                use it.
            HubError: the hub cannot be reached, or refuses the adapter.
            MemoryLimitError: the adapter does not fit into memory, or into the rest of ``max_memory``.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/gemma3-270m") as model:  # in a checkout
        ...     adapter = model.load_adapter("tests/golden/adapters/gemma3-plain", name="mine")
        ...     result = model.generate([2, 7, 11], max_tokens=8, adapter="mine")
        >>> adapter.name, adapter.ranks
        ('mine', (4,))
        """
        self._resident.check_open()
        if name is None:
            name = os.path.basename(os.path.abspath(checked_path("path", path))).removesuffix(".gguf")
        self._check_name(name)
        with importing():
            from gemlet.adapters.opening import open_adapter
        found = find_adapter(path, revision=revision, token=token)
        resident = self._resident
        # Only one load runs at a time. Otherwise two loads could both count on the same rest of max_memory.
        with open_adapter(found, self._config) as files, self._loading:
            self._check_name(name)
            in_text = max(self._in_text, resident.core.adapter_scratch_bytes(files.max_rank))
            in_towers = max(self._in_towers, files.tower_bytes(resident.core))
            if self.spare_memory is not None:
                room = self.spare_memory - resident.core.memory()["adapters"] - self.scratch
                files.check_memory(room, resident.core, resident.weights, in_text + in_towers - self.scratch)
            core = files.build(resident.core)
            adapter = files.describe(name, core.bytes)
            with resident.lock:
                resident.check_open()
                self._loaded[name] = adapter, core
                self._in_text, self._in_towers = in_text, in_towers
        return adapter

    @public
    def unload_adapter(self, name: str) -> None:
        """Unloads the adapter ``name``. Its memory is freed when no stream uses the adapter any more.

        Raises:
            InvalidRequestError: no adapter of this name is loaded.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/gemma3-270m") as model:  # in a checkout
        ...     adapter = model.load_adapter("tests/golden/adapters/gemma3-plain")
        ...     model.unload_adapter(adapter.name)
        """
        with self._resident.lock:
            if name is None:
                raise InvalidRequestError("name: got None, expected the name of a loaded adapter")
            self.find(name)
            del self._loaded[name]

    def find(self, name: str | None) -> ChosenAdapter:
        """The adapter ``name``; no adapter if ``name`` is None. Raises :class:`InvalidRequestError` if no
        adapter of this name is loaded."""
        if name is None:
            return ChosenAdapter()
        entry = self._loaded.get(name) if isinstance(name, str) else None
        if entry is None:
            loaded = ", ".join(map(show_argument, self._loaded)) or "none"
            meant = did_you_mean(name, self._loaded)
            raise InvalidRequestError(
                f"adapter: got {show_argument(name)}, expected the name of a loaded one ({loaded}); "
                + (f"did you mean {show_argument(meant)}?" if meant else "see load_adapter()")
            )
        return ChosenAdapter(*entry)

    def clear(self) -> None:
        """Unloads all adapters."""
        with self._resident.lock:
            self._loaded.clear()

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
            raise InvalidRequestError(
                f"name: got {show_argument(name)}, expected 1 to 256 printable characters"
            )
        if name in self._loaded:
            raise InvalidRequestError(
                f"name: an adapter {show_argument(name)} is loaded already; unload it, or choose another name"
            )
