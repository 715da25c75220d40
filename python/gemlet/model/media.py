"""What a model sees: from the images of a call to soft tokens in its prompt, :class:`Media`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.config.vision_config import KEPT_BYTES
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.media.images import read_image
from gemlet.media.preparing import ImageView, chosen_pan_and_scan, views_of
from gemlet.model.resident import Resident

__all__ = ["Media", "Placed"]

_MOST_IMAGES = 1024  # of a call


@dataclass(frozen=True)
class Placed:
    """Images whose soft tokens stand in a prompt from the token ``first`` on, one after the other."""

    first: int
    views: tuple[ImageView, ...]

    @property
    def tokens(self) -> int:
        return sum(view.tokens for view in self.views)


class Media:
    """The tower of a loaded model, and what it made of the images that were seen last."""

    def __init__(self, resident: Resident, config: TextConfig) -> None:
        self._resident = resident
        self._config = config
        self._lock = Lock()
        self._tower: _core.SiglipTower | None = None
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def views(
        self, images: object, pan_and_scan: object = None, name: str = "images"
    ) -> list[list[ImageView]]:
        """What the tower will see of each of ``images``, which are not computed yet.

        Raises :class:`UnsupportedError` for a model without tower, and :class:`InvalidRequestError`.
        """
        config = self._config.vision
        if config is None:
            raise UnsupportedError(
                f"{name}: {self._resident.name} sees no images: it has no tower for them, or was loaded with "
                "vision=False"
            )
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            raise InvalidRequestError(f"{name}: got {show_argument(images)}, expected a list of images")
        if len(images) > _MOST_IMAGES:
            raise InvalidRequestError(f"{name}: {len(images)} images, expected at most {_MOST_IMAGES}")
        how = chosen_pan_and_scan(pan_and_scan, config.settings)
        return [views_of(read_image(one, f"{name}[{i}]"), config, how) for i, one in enumerate(images)]

    def place(self, ids: NDArray[np.int32], views: Sequence[ImageView], name: str = "ids") -> list[Placed]:
        """Where the placeholders of each view are in ``ids``, in order.

        Raises :class:`InvalidRequestError` where there are more of them than the views have tokens, or fewer.
        """
        config = self._config.vision
        if config is None or not views:
            return []
        is_soft = np.concatenate([[False], ids == config.token_id, [False]])
        edges = np.flatnonzero(is_soft[1:] != is_soft[:-1]).tolist()
        found, expected = int(is_soft.sum()), sum(view.tokens for view in views)
        if found != expected:
            raise InvalidRequestError(
                f"{name}: the prompt has {found} placeholders of images (token {config.token_id}), but "
                f"{len(views)} images or parts of them take {expected}"
            )
        placed: list[Placed] = []
        rest = list(views)
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            own: list[ImageView] = []
            while rest and sum(view.tokens for view in own) < end - begin:
                own.append(rest.pop(0))
            if sum(view.tokens for view in own) != end - begin:
                raise InvalidRequestError(
                    f"{name}: {end - begin} placeholders of images stand together at position {begin}; "
                    f"expected {config.tokens} for each image"
                )
            placed.append(Placed(begin, tuple(own)))
        return placed

    def rows(self, placed: Placed) -> NDArray[np.float32]:
        """The soft tokens, float32 ``[tokens, hidden_size]``."""
        return np.ascontiguousarray(np.concatenate([self._soft(view) for view in placed.views]))

    def _soft(self, view: ImageView) -> NDArray[np.float32]:
        with self._lock:
            if (known := self._kept.get(view.digest)) is not None:
                self._kept.move_to_end(view.digest)
                return known
        rows = self._loaded().encode(view.pixels())
        with self._lock:
            self._kept[view.digest] = rows
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return rows

    def _loaded(self) -> _core.SiglipTower:
        with self._lock:
            if self._tower is None:
                self._resident.check_open()
                assert self._config.vision is not None
                self._tower = _core.SiglipTower(self._resident.core, self._config.vision.to_core())
            return self._tower

    def clear(self) -> None:
        """Lets go of everything, once the model is closed."""
        with self._lock:
            self._kept.clear()
