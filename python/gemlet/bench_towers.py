"""The measurements of ``gemlet bench --image`` and ``--audio``: passes of towers, without the text model.

A pass goes from pixels or log-mel spectra to soft tokens. The preparation before it (resizing, spectra) is
timed separately.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gemlet import _core
from gemlet.base.arrays import np
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError
from gemlet.model.model import Model

__all__ = ["TowerResult", "iter_tower_bench"]

_Made = TypeVar("_Made")
_MOST_SECONDS = 30  # the longest sound


@record(frozen=True)
class TowerResult:
    """One row of the table.

    Attributes:
        test: the name of the test, such as "image 896x896" or "audio 30 s".
        tokens: the number of soft tokens that the tower returns.
        samples: seconds of each pass.
        prepare: seconds of the preparation before a pass.
    """

    test: str
    tokens: int
    samples: tuple[float, ...]
    prepare: float

    @property
    def seconds(self) -> float:
        """Mean over the repetitions."""
        return statistics.fmean(self.samples)

    @property
    def stdev(self) -> float:
        """Sample standard deviation over the repetitions; 0 for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Soft tokens per second of a pass."""
        return self.tokens / self.seconds

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "test": self.test,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stdev": self.stdev,
            "tokens_per_second": self.tokens_per_second,
            "prepare_seconds": self.prepare,
            "samples": list(self.samples),
        }


def iter_tower_bench(
    model: Model,
    *,
    image: tuple[int, int] | None = None,
    seconds: float | None = None,
    repetitions: int = 5,
) -> Iterator[TowerResult]:
    """Measures forward passes of the towers. The first pass of each tower is not timed.

    Args:
        model: the model to measure.
        image: width and height of an image of noise; None for no image.
        seconds: the length of a sound of noise, at most 30; None for no sound.
        repetitions: the number of timed passes of each tower.

    Raises:
        UnsupportedError: the model does not see or hear.
        InvalidRequestError: an impossible size or length, or nothing to run.

    >>> import gemlet
    >>> with gemlet.load("tests/golden/vision/gemma3", threads=1) as model:  # in a checkout
    ...     (row,) = iter_tower_bench(model, image=(64, 48), repetitions=1)
    >>> row.test, row.tokens
    ('image 64x48', 16)
    """
    if image is None and seconds is None:
        raise InvalidRequestError("nothing to measure: neither an image nor a sound")
    if type(repetitions) is not int or repetitions < 1:
        raise InvalidRequestError(
            f"repetitions: got {show_argument(repetitions)}, expected an integer of at least 1"
        )
    if image is not None:
        yield _image(model, image, repetitions)
    if seconds is not None:
        yield _sound(model, seconds, repetitions)


def _image(model: Model, size: tuple[int, int], repetitions: int) -> TowerResult:
    width, height = size
    if min(size) < 1 or width * height > 1 << 26:
        raise InvalidRequestError(f"image: got {width}x{height}, expected 1x1 to {1 << 26} pixels")
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    media = model._media
    (view,) = media.image(levels, "image", pan_and_scan=False).views
    pixels, prepare = _timed(view.pixels)
    tower = media.tower()
    return _measured(
        f"image {width}x{height}", view.tokens, lambda: tower.encode(pixels), prepare, repetitions
    )


def _sound(model: Model, seconds: float, repetitions: int) -> TowerResult:
    if not 0 < seconds <= _MOST_SECONDS:
        raise InvalidRequestError(f"audio: got {seconds:g} seconds, expected more than 0 to {_MOST_SECONDS}")
    noise = np.random.default_rng(0).standard_normal(round(seconds * _core.SOUND_RATE))
    hearing = model._hearing
    sound = hearing.sound((0.1 * noise).astype(np.float32), "audio")
    encode, prepare = _timed(lambda: hearing.prepared(sound))
    return _measured(f"audio {seconds:g} s", sound.tokens, lambda: encode(None), prepare, repetitions)


def _timed(make: Callable[[], _Made]) -> tuple[_Made, float]:
    started = time.perf_counter()
    made = make()
    return made, time.perf_counter() - started


def _measured(
    test: str, tokens: int, encode: Callable[[], object], prepare: float, repetitions: int
) -> TowerResult:
    encode()
    return TowerResult(test, tokens, tuple(_timed(encode)[1] for _ in range(repetitions)), prepare)
