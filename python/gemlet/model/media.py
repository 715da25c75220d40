"""Turns the images and videos of a call into soft tokens of the prompt: :class:`Media`."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.handlers import importing
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.config.vision_config import KEPT_BYTES, SiglipConfig, VisionConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.media.images import Levels, read_image
from gemlet.media.preparing import (
    ImageView,
    chosen_budget,
    chosen_pan_and_scan,
    frame_view,
    views_of,
)
from gemlet.model.loaded_adapters import ChosenAdapter
from gemlet.model.resident import Resident

__all__ = ["Media", "Placed", "Seen"]

if TYPE_CHECKING:
    _Tower = _core.SiglipTower | _core.Gemma4VisionTower | _core.UnifiedVisionEmbedder | _core.MobileNetTower

_MOST_IMAGES = 1024  # the most images of a call


@record(frozen=True)
class Seen:
    """An image or a video, prepared for the vision tower.

    Attributes:
        views: the whole image and its parts, or the frames of a video.
        seconds: the time at which each frame is shown, in seconds; None for an image.
    """

    views: tuple[ImageView, ...]
    seconds: tuple[float, ...] | None = None

    @property
    def tokens(self) -> int:
        """The number of soft tokens of all views."""
        return sum(view.tokens for view in self.views)


@record(frozen=True)
class Placed:
    """Views whose soft tokens stand one after the other in a prompt. ``first`` is the index of the first of
    these tokens."""

    first: int
    views: tuple[ImageView, ...]

    @property
    def tokens(self) -> int:
        return sum(view.tokens for view in self.views)


class Media:
    """The vision tower of a loaded model, and a cache with the soft tokens of the most recent images."""

    def __init__(self, resident: Resident, config: TextConfig) -> None:
        self._resident = resident
        self._config = config
        self._lock = Lock()
        self._tower: _Tower | None = None
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media that the model sees in messages."""
        return () if self._config.vision is None else ("image", "video")

    def images(
        self, images: object, pan_and_scan: object = None, image_tokens: object = None, name: str = "images"
    ) -> list[Seen]:
        """Reads the images of a call; :meth:`rows` encodes them later.

        Raises :class:`UnsupportedError` for a model that does not see, and :class:`InvalidRequestError` for
        anything that is not a list of images.
        """
        self._vision(name)
        return [
            self.image(one, f"{name}[{i}]", pan_and_scan, image_tokens)
            for i, one in enumerate(_listed(images, name, "images"))
        ]

    def image(
        self, image: object, name: str, pan_and_scan: object = None, image_tokens: object = None
    ) -> Seen:
        """Reads one image, as :meth:`images` does."""
        config = self._vision(name)
        how = chosen_pan_and_scan(pan_and_scan, config.settings)
        if how is not None and not isinstance(config, SiglipConfig):
            raise UnsupportedError("pan_and_scan: only Gemma 3 sees images in parts; leave it out")
        budget = chosen_budget(image_tokens, config)
        return Seen(tuple(views_of(read_image(image, name), config, how, budget)))

    def videos(self, videos: object, name: str = "videos") -> list[Seen]:
        """Reads the videos of a call, each a file or ``(frames, frames per second)``."""
        self._vision(name)
        return [self.video(one, f"{name}[{i}]") for i, one in enumerate(_listed(videos, name, "videos"))]

    def video(self, video: object, name: str) -> Seen:
        """Reads one video, as :meth:`videos` does."""
        config = self._vision(name)

        def see(levels: Levels) -> ImageView:
            return frame_view(levels, config)

        with importing():
            from gemlet.media.videos import evenly, one_a_second, read_video
        choose = one_a_second if self._config.bidirectional else evenly
        views, seconds = read_video(video, name, see, lambda levels: see(levels).kept_small(), choose)
        return Seen(tuple(views), tuple(seconds))

    def _vision(self, name: str) -> VisionConfig:
        config = self._config.vision
        if config is None:
            raise UnsupportedError(
                f"{name}: {self._resident.name} sees no images: it has no vision tower, or was loaded with "
                "vision=False"
            )
        return config

    def place(self, ids: array[int], seen: Sequence[Seen], name: str = "ids") -> list[Placed]:
        """Finds the placeholders of each view in ``ids``, in order.

        Raises :class:`InvalidRequestError` if the number of placeholders is not the number of soft tokens of
        all views.
        """
        if not seen:
            return []
        rest: dict[int, list[ImageView]] = {}
        for view in (view for one in seen for view in one.views):
            rest.setdefault(view.token_id, []).append(view)
        for token_id, views in rest.items():
            found, expected = ids.count(token_id), sum(view.tokens for view in views)
            if found != expected:
                raise InvalidRequestError(
                    f"{name}: the prompt has {found} placeholders of images (token {token_id}), but "
                    f"{len(views)} images or parts of images have {expected} tokens; write one placeholder "
                    "for each token"
                )
        is_soft = np.concatenate([[False], np.isin(ids, list(rest)), [False]])
        edges = np.flatnonzero(is_soft[1:] != is_soft[:-1]).tolist()
        placed: list[Placed] = []
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            own: list[ImageView] = []
            at = begin
            while at < end:
                view = rest[ids[at]].pop(0)
                if ids[at : at + view.tokens].count(view.token_id) != view.tokens:
                    raise InvalidRequestError(
                        f"{name}: the placeholders of images at positions {begin} to {end - 1} do not fit "
                        f"the images; expected {view.tokens} placeholders with token id {view.token_id} from "
                        f"position {at} on, for an image or a frame"
                    )
                own.append(view)
                at += view.tokens
            placed.append(Placed(begin, tuple(own)))
        return placed

    def rows(self, placed: Placed, chosen: ChosenAdapter) -> NDArray[np.float32]:
        """The soft tokens of the views ``placed``, float32 ``[tokens, hidden_size]``."""
        return np.ascontiguousarray(np.concatenate([self._soft(view, chosen) for view in placed.views]))

    def _soft(self, view: ImageView, chosen: ChosenAdapter) -> NDArray[np.float32]:
        key = view.digest + chosen.key("vision")
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        rows = self.tower().encode(view.pixels(), chosen.for_tower("vision"))
        with self._lock:
            self._kept[key] = rows
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return rows

    def tower(self) -> _Tower:
        """The vision tower, which makes soft tokens of pixels. The first call loads it."""
        with self._lock:
            if self._tower is None:
                self._resident.check_open()
                assert self._config.vision is not None
                self._tower = self._config.vision.tower(self._resident.core)
            return self._tower

    def clear(self) -> None:
        """Frees the tower and the cache when the model is closed."""
        with self._lock:
            self._kept.clear()
            self._tower = None


def _listed(given: object, name: str, what: str) -> Sequence[object]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise InvalidRequestError(f"{name}: got {show_argument(given)}, expected a list of {what}")
    if len(given) > _MOST_IMAGES:
        raise InvalidRequestError(
            f"{name}: got {len(given)} {what}, expected at most {_MOST_IMAGES} in one call; split them over "
            "several calls"
        )
    return given
