"""The models that the server serves, by alias. An adapter is a model with its own name."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from gemlet import _core
from gemlet.base.records import field, record
from gemlet.base.text import show
from gemlet.chat.shieldgemma import ShieldGemmaFormat
from gemlet.chat.shieldgemma2 import ShieldGemma2Format
from gemlet.errors import ConfigError, InvalidRequestError, ModelClosedError
from gemlet.loading.load import load
from gemlet.model.model import Model
from gemlet.server.problems import Problem
from gemlet.server.settings import ModelSpec

__all__ = ["Models", "Served"]

_log = logging.getLogger("gemlet.server")


@record(frozen=True)
class Served:
    """A model, or one of its adapters, with the name by which requests ask for it."""

    name: str
    model: Model
    adapter: str | None = None
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """The models by alias. It is empty until :meth:`load` has ended.

    Args:
        shield: the alias of a model that judges texts or images for the content filter. Requests cannot use
            it.

    Raises:
        InvalidRequestError: no model has this alias, or it is the only model.
    """

    def __init__(self, specs: Sequence[ModelSpec], shield: str | None = None) -> None:
        self.specs = list(specs)
        if shield is not None and shield not in [spec.name for spec in specs]:
            raise InvalidRequestError(f"filter_model: there is no model {show(shield)}; add it to the models")
        if len(self.specs) == (shield is not None):
            raise InvalidRequestError(
                f"filter_model: {show(shield)} is the only model, and serves no requests; add one that does"
            )
        self._shield_alias = shield
        self._shield: Model | None = None
        self.is_ready = False
        self._served: dict[str, Served] = {}
        self._models: list[Model] = []
        self._caches: dict[str, dict[str, str]] = {}

    def load(self) -> None:
        """Loads all models, in the thread that calls it. Raises what :func:`gemlet.load` raises."""
        for spec in self.specs:
            model = load(spec.source, progress=False, **spec.options)
            self._models.append(model)
            if spec.name == self._shield_alias:
                if not isinstance(model.chat_format, ShieldGemmaFormat | ShieldGemma2Format):
                    raise ConfigError(
                        f"filter_model: {spec.name} cannot judge texts or images; name a ShieldGemma model"
                    )
                self._shield = model
                continue
            self._add(Served(spec.name, model))
            for name, path in spec.adapters.items():
                model.load_adapter(path, name=name)
                self._add(Served(name, model, adapter=name, parent=spec.name))
        self.is_ready = True

    def shield(self) -> Model:
        """The model that judges texts or images."""
        if self._shield is None:
            raise ModelClosedError("the model of the content filter is not loaded")
        return self._shield

    def _add(self, served: Served) -> None:
        self._served[served.name] = served

    def close(self) -> None:
        self.is_ready = False
        for model in self._models:
            model.close()

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    @property
    def loaded(self) -> Sequence[tuple[str, Model]]:
        """The alias and the model of each model, without the adapters."""
        return [(served.name, served.model) for served in self if served.adapter is None]

    def adapters(self) -> list[str]:
        """The names of the adapters; empty until everything is loaded."""
        return [served.name for served in self if served.adapter is not None] if self.is_ready else []

    def caches(self) -> Mapping[str, Mapping[str, str]]:
        """Labels of the cache of keys and values of each model, by alias; empty until everything is loaded.
        The labels stay what they were at first, because changed labels would begin a new series."""
        if self.is_ready and not self._caches:
            self._caches = {alias: _cache_of(model) for alias, model in self.loaded}
        return self._caches

    def check_ready(self) -> None:
        """Raises :class:`Problem` until the models are loaded."""
        if not self.is_ready:
            raise Problem(
                503,
                "the model is being loaded",
                kind="unavailable_error",
                code="loading",
                headers={"Retry-After": "2"},
            )

    def find(self, name: str | None, shown: Collection[str] = ()) -> Served:
        """The model ``name``, or the first model for None. If there is none, raises :class:`Problem`, which
        names all models. If ``shown`` is given, it names only the models that are also in ``shown``."""
        self.check_ready()
        if name is None:
            return next(iter(self._served.values()))
        found = self._served.get(name)
        if found is None:
            known = ", ".join(one for one in self._served if not shown or one in shown)
            raise Problem(
                404,
                f"there is no model of this name here; there are {known or 'none for this key'}",
                kind="not_found_error",
                param="model",
                code="model_not_found",
            )
        return found


def _cache_of(model: Model) -> dict[str, str]:
    """The cache of keys and values as labels of vLLM's ``cache_config_info``. The number of blocks is how
    many have room while every layer still keeps all tokens, that is, while texts are not longer than the
    windows."""
    stats, memory = model.stats(), model.memory()
    block = _core.KV_BLOCK_TOKENS * max(1, memory["kv_cache_per_token"] + memory["kv_cache_per_window_token"])
    return {
        "block_size": str(_core.KV_BLOCK_TOKENS),
        "cache_dtype": model.kv_cache,
        "num_gpu_blocks": str(int(max(0, stats["kv_bytes"] + stats["kv_room_bytes"]) // block)),
    }
