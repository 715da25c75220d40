"""Preparing sound for the models: one channel, 16 kHz, log-mel spectra. The goldens come from the official
extractors and soxr."""

from __future__ import annotations

import numpy as np
import pytest

from gemlet import _core
from gemlet.errors import ConfigError, InvalidRequestError
from golden.folders import HERE, read_tensors

GOLDEN = read_tensors(HERE / "sound.safetensors")
LENGTHS = sorted(int(name[5:]) for name in GOLDEN if name.startswith("wave."))
RATES = sorted(int(name[5:]) for name in GOLDEN if name.startswith("rate."))
FEATURES = {
    "gemma3n": dict(
        frame_length=512,
        fft_length=1024,
        min_frequency=125.0,
        max_frequency=7600.0,
        floor=1e-5,
        centred=False,
    ),
    "gemma4": dict(
        frame_length=320, fft_length=512, min_frequency=0.0, max_frequency=8000.0, floor=1e-3, centred=True
    ),
}
PREEMPHASIS = {"gemma3n": 0.97, "gemma4": 0.0}


def extractor(family: str, **changes: float) -> _core.LogMel:
    options = {"hop_length": 160, "bins": 128, "preemphasis": PREEMPHASIS[family], **FEATURES[family]}
    return _core.LogMel(**options | changes)


def noise(count: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(count).standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("family", FEATURES)
@pytest.mark.parametrize("length", LENGTHS)
def test_features_are_the_official_ones(family: str, length: int) -> None:
    features, valid = extractor(family).extract(GOLDEN[f"wave.{length}"])
    expected = GOLDEN[f"{family}.{length}"]
    assert len(features) == len(expected)
    assert valid == GOLDEN[f"{family}.{length}.valid"][0]
    if len(expected):
        # The official transform of Gemma 3n is in float32, and its logarithm magnifies the rounding.
        assert np.abs(features - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", FEATURES)
def test_the_number_of_frames_is_known_before(family: str) -> None:
    made = extractor(family)
    for length in (1, 127, 128, 160, 161, 385, 512, 513, 700, 1663, 1664, 16000):
        features, valid = made.extract(noise(length))
        assert made.count(length) == (len(features), valid)


def test_frames_of_silence_are_the_floor() -> None:
    features, valid = extractor("gemma3n").extract(np.zeros(2000, np.float32))
    assert valid == len(features)
    assert np.all(features == np.float32(np.log(1e-5)))
    features, valid = extractor("gemma4").extract(np.zeros(2060, np.float32))
    assert np.all(features[:valid] == np.float32(np.log(1e-3)))
    assert valid < len(features)
    assert not features[valid:].any()  # frames that reach into the padding


@pytest.mark.parametrize("rate", RATES)
def test_other_rates_are_resampled_like_soxr(rate: int) -> None:
    expected = GOLDEN[f"resampled.{rate}"]
    made = _core.mono(GOLDEN[f"rate.{rate}"], rate=rate, most=10**9)
    assert len(made) == len(expected)
    assert np.abs(made - expected).max() < 2e-6
    first = _core.mono(GOLDEN[f"rate.{rate}"], rate=rate, most=100)
    assert np.array_equal(first, made[:100])


@pytest.mark.parametrize("rate", [1000, 7999, 15999, 16001, 44101, 384000, 767999])
def test_any_rate_keeps_a_tone(rate: int) -> None:
    pitch = min(rate, 16000) / 5
    wave = np.sin(2 * np.pi * pitch * np.arange(rate // 2) / rate).astype(np.float32)
    made = _core.mono(wave, rate=rate, most=10**9)
    assert len(made) == -(-len(wave) * 16000 // rate)
    ideal = np.sin(2 * np.pi * pitch * np.arange(len(made)) / 16000)
    middle = slice(len(made) // 3, -len(made) // 3)
    assert np.abs(made - ideal)[middle].max() < 2e-6


def test_frequencies_above_8_khz_are_removed() -> None:
    wave = np.sin(2 * np.pi * 8100 * np.arange(44100) / 44100).astype(np.float32)
    assert np.abs(_core.mono(wave, rate=44100, most=10**9)[1000:-1000]).max() < 1e-5


def test_channels_become_their_mean() -> None:
    channels = np.stack([noise(500), 2 * noise(500), -noise(500)], axis=1)
    made = _core.mono(channels, rate=16000, most=10**9)
    assert np.allclose(made, channels.mean(axis=1), atol=1e-7)


def test_integers_are_divided_by_their_range() -> None:
    levels = np.array([-32768, -1, 0, 16384, 32767], np.int16)
    made = _core.mono(levels, rate=16000, most=10**9)
    assert np.array_equal(made, (levels / 32768).astype(np.float32))


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0, np.float32), 16000, "no samples"),
        (np.zeros((5, 0), np.float32), 16000, "0 channels"),
        (np.zeros((5, 65), np.float32), 16000, "65 channels, expected 1 to 64"),
        (np.zeros((2, 2, 2), np.float32), 16000, "[frames] or [frames, channels], got float32 (2, 2, 2)"),
        (
            np.zeros(5, np.float64),
            16000,
            "float32 or int16, [frames] or [frames, channels], got float64 (5,)",
        ),
        (np.zeros(9, np.float32)[::2], 16000, "C-contiguous"),
        (np.zeros(5, np.float32), 0, "a rate of 0"),
        (np.zeros(5, np.float32), -44100, "a rate of -44100"),
        (np.zeros(5, np.float32), 1 << 40, "expected 1000 to 768000"),
        (np.array([0, np.nan], np.float32), 16000, "sample 1 is nan"),
        (np.array([-np.inf], np.float32), 16000, "sample 0 is -inf"),
        (np.array([[0, 20000]], np.float32), 16000, "divide integers"),
        (np.zeros(1000 * 3600 + 1000, np.int16), 1000, "3601 seconds, expected at most 3600"),
    ],
)
def test_wrong_sounds_are_refused(samples: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _core.mono(samples, rate=rate, most=10**9)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frame_length", 1),
        ("hop_length", 0),
        ("fft_length", 256),
        ("fft_length", 1000),
        ("bins", 0),
        ("max_frequency", 8001.0),
        ("min_frequency", -1.0),
        ("min_frequency", 7600.0),
        ("floor", 0.0),
        ("floor", float("nan")),
        ("preemphasis", 2.0),
    ],
)
def test_impossible_features_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match="feature_size" if field == "bins" else field):
        extractor("gemma3n", **{field: value})
