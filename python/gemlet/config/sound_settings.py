"""Reads ``preprocessor_config.json``, which says how a model's sounds are prepared:
:class:`SoundSettings`."""

from __future__ import annotations

import os
from typing import Any

from gemlet import _core
from gemlet.base.keys import Keys
from gemlet.base.records import record, replace
from gemlet.base.strict_json import read_json_object
from gemlet.errors import ConfigError

__all__ = ["SoundSettings", "parse_sound_settings", "read_sound_settings"]

# The newer file holds what the older one says as an object inside.
_FILES = ("processor_config.json", "preprocessor_config.json")
# Keys that only one value is known for.
_FIXED: dict[str, tuple[Any, ...]] = {
    "sampling_rate": (16000,),
    "dither": (0, None),
    "input_scale_factor": (1, None),
    "preemphasis_htk_flavor": (True, None),
    "per_bin_mean": (None,),
    "per_bin_stddev": (None,),
    "padding_value": (0, None),
}


@record(frozen=True)
class SoundSettings:
    """Log-mel spectra of samples at 16 kHz. The defaults are Gemma 3n's.

    Lengths are in samples, frequencies in Hz. ``centred`` spectra begin half a frame before the sound, and
    ``floor`` is added to them; otherwise ``floor`` is their least value.
    """

    frame_length: int = 512
    hop_length: int = 160
    fft_length: int = 1024
    bins: int = 128
    min_frequency: float = 125.0
    max_frequency: float = 7600.0
    floor: float = 1e-5
    preemphasis: float = 0.97
    centred: bool = False

    @classmethod
    def of_gemma4(cls) -> SoundSettings:
        """The settings in Gemma 4's files."""
        return cls(
            frame_length=320,
            fft_length=512,
            min_frequency=0.0,
            max_frequency=8000.0,
            floor=1e-3,
            preemphasis=0.0,
            centred=True,
        )

    def to_core(self) -> _core.LogMel:
        """The core's object that makes such spectra."""
        return _core.LogMel(**vars(self))


def read_sound_settings(folder: str, defaults: SoundSettings) -> SoundSettings:
    """The settings for sounds in the files of ``folder``; ``defaults`` for settings that are not there.

    Raises :class:`ConfigError` for a value that gemlet does not know.
    """
    for name in _FILES:
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            continue
        raw = read_json_object(path, error=ConfigError)
        inner = raw.get("feature_extractor") if name == _FILES[0] else raw
        if isinstance(inner, dict):
            return parse_sound_settings(
                Keys(inner, path, "" if inner is raw else "feature_extractor."), defaults
            )
    return defaults


def parse_sound_settings(keys: Keys, defaults: SoundSettings) -> SoundSettings:
    """The settings for sounds in ``keys``; ``defaults`` for settings that are not there."""
    for key, choices in _FIXED.items():
        if key in keys.raw and keys.raw[key] not in choices:
            raise keys.wrong(key, repr(choices[0]))

    def integer(key: str, default: int) -> int:
        return default if keys.raw.get(key) is None else keys.integer(key, 1 << 16)

    def number(key: str, default: float, low: float, high: float) -> float:
        return default if keys.raw.get(key) is None else keys.number(key, low, high)

    settings = replace(
        defaults,
        frame_length=integer("frame_length", defaults.frame_length),
        hop_length=integer("hop_length", defaults.hop_length),
        fft_length=integer("fft_length", defaults.fft_length),
        bins=integer("feature_size", defaults.bins),
        min_frequency=number("min_frequency", defaults.min_frequency, 0.0, 8000.0),
        max_frequency=number("max_frequency", defaults.max_frequency, 1.0, 8000.0),
        floor=number("mel_floor", defaults.floor, 1e-30, 1e30),
        preemphasis=number("preemphasis", defaults.preemphasis, 0.0, 1.0),
    )
    settings.to_core()  # checks what depends on several of them
    return settings
