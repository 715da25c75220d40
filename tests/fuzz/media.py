"""The readers for images and sounds, as functions of bytes: parameters of calls and parts of messages, as
JSON; the files that say how images and sounds are prepared; and files of images.

In a call, an object with the key "shape" stands for an array: of its "dtype" with the value "fill", in the
"order" of its memory. Large arrays take no memory, because all their values are the same number.
"""

from __future__ import annotations

import base64
import io
import json
import math
import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import gemlet
from gemlet import _core
from gemlet.chat.media_places import take_media
from gemlet.config.gemma4_vision import budget_size
from gemlet.config.image_settings import TOKEN_BUDGETS, ImageSettings, PanAndScan, read_image_settings
from gemlet.config.sound_settings import SoundSettings, read_sound_settings
from gemlet.media.images import MOST_PIXELS, decoded_bytes, read_image
from gemlet.media.preparing import crops_of, normalized
from gemlet.media.sounds import decoded_bytes as sound_bytes
from gemlet.media.sounds import read_sound, read_sound_of_video
from gemlet.media.videos import MOST_FRAMES, read_video
from golden.folders import HERE
from support.videos import clip

# The models that see and hear in different ways; Gemma 3n does both.
MODELS = ("vision/gemma3", "vision/gemma3n", "vision/gemma4-small", "vision/gemma4-unified", "audio/gemma4")
MODELS = (*MODELS, "audio/gemma4-unified")
_SMALL = 1 << 16  # an array has at most so many different values


@cache
def _model(index: int) -> gemlet.Model:
    return gemlet.load(HERE / MODELS[index % len(MODELS)], threads=1, max_context=512)


def _value(given: Any) -> Any:
    """The value that a description stands for."""
    if isinstance(given, list):
        return [_value(one) for one in given]
    if not isinstance(given, dict):
        return given
    if "tuple" in given and isinstance(given["tuple"], list):
        return tuple(_value(one) for one in given["tuple"])
    if "bytes" in given and isinstance(given["bytes"], str):
        return given["bytes"].encode("utf-8", "surrogatepass")
    if "file" in given:
        return _files().get(given["file"] if isinstance(given["file"], str) else "", b"")
    if "shape" not in given:
        return {key: _value(one) for key, one in given.items()}
    try:
        return _array(given)
    except (ValueError, TypeError, OverflowError, MemoryError):  # such an array does not exist
        return given


def _array(given: dict[str, Any]) -> Any:
    shape = tuple(given["shape"])
    one = np.asarray(given.get("fill", 0)).astype(np.dtype(given.get("dtype", "uint8")))
    count = math.prod(float(size) for size in shape)
    if 1 << 22 < count <= 1 << 29:
        raise ValueError("gemlet takes it, and more memory than a run of fuzz.py has")
    if count > _SMALL:
        return np.broadcast_to(one, shape)
    array = np.full(shape, one)
    if array.dtype.kind in "uif" and array.size and given.get("fill") is None:
        array = (np.arange(array.size) % 251).astype(array.dtype).reshape(shape)
    if given.get("order") == "F":
        return np.asfortranarray(array)
    return array[::-1] if given.get("order") == "back" and array.ndim else array


@cache
def _files() -> dict[str, bytes]:
    """Small files of formats that gemlet reads."""
    found: dict[str, bytes] = {}
    try:
        from PIL import Image

        for form, mode in (("PNG", "RGBA"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")):
            file = io.BytesIO()
            Image.new(mode, (5, 3)).save(file, form)
            found[form] = file.getvalue()
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, np.zeros((800, 2), np.float32), 8000, format="WAV")
        found["WAV"] = file.getvalue()
    except (ImportError, OSError):
        pass  # without the extras every file is a typed error
    return found


def media(data: bytes) -> None:
    """A call with images, videos and sounds, up to what the towers take."""
    try:
        call = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(call, dict):
        return
    number = call.get("model", 0)
    model = _model(number if type(number) is int else 0)
    sight, hearing = model._media, model._hearing
    problem = None
    try:
        options = _value(call.get("pan_and_scan")), _value(call.get("image_tokens"))
        seen = sight.images(_value(call["images"]), *options) if "images" in call else []
        seen += sight.videos(_value(call["videos"])) if "videos" in call else []
        for one in seen[:2]:
            for view in one.views[:2]:
                assert view.tokens > 0
                assert np.isfinite(view.pixels()).all()
        if "ids" in call:
            sight.place(model._reader.raw(call["ids"], "ids"), seen)
    except gemlet.GemletError as found:
        problem = found
    for sound in hearing.sounds(_value(call["audio"]))[:2] if "audio" in call else []:
        assert sound.tokens > 0
        hearing.prepared(sound)
    if "messages" in call:
        _, parts = take_media(_value(call["messages"]), model._requests.senses.kinds)
        for part in parts[:3]:
            read = hearing.sound if part.kind == "audio" else getattr(sight, part.kind)
            read(part.value, part.where)
    if problem is not None:
        raise problem


def preprocessor(data: bytes) -> None:
    """Both files that say how images and sounds are prepared, for every kind of model."""
    failed = []
    folder = _folder()
    for name in ("preprocessor_config.json", "processor_config.json"):
        for other in folder.iterdir():
            other.unlink()
        (folder / name).write_bytes(data)
        try:
            defaults = ImageSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
            settings = read_image_settings(str(folder), defaults)
            with np.errstate(over="ignore"):
                normalized(np.full((2, 2, 3), 200, np.uint8), settings)
            sounds = read_sound_settings(str(folder), SoundSettings.of_gemma4())
            sounds.to_core().extract(np.zeros(4000, np.float32))
        except gemlet.GemletError as problem:
            failed.append(problem)
    if failed:
        raise failed[0]


@cache
def _folder() -> Path:
    from fuzz.readers import _folder as shared

    folder = shared() / "preprocessor"
    folder.mkdir()
    return folder


def image(data: bytes) -> None:
    """The file of an image, in a data URL and as it is."""
    if decoded_bytes(data) > 1 << 24:  # gemlet accepts it, but needs more memory than a run of fuzz.py has
        return
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    levels = read_image(url)
    assert levels.dtype == np.uint8
    assert np.array_equal(read_image(data), levels)


def sound(data: bytes) -> None:
    """The file of a sound, by any of the readers."""
    found = read_sound(data, most=16000)
    assert np.isfinite(found.samples).all()
    assert 0 < len(found.samples) <= 16000
    assert sound_bytes(data) >= 0


def video(data: bytes) -> None:
    """The file of a video: its frames, and its sound."""
    problem = None
    try:
        frames, seconds = read_video(data, "video", np.shape, np.shape)
        assert len(frames) == len(seconds) <= MOST_FRAMES
    except gemlet.GemletError as found:
        problem = found
    read_sound_of_video(data, "video", most=16000)
    if problem is not None:
        raise problem


class _Numbers:
    """Numbers of any size from the beginning of the data, and then zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def size(self) -> int:
        """Mostly small, sometimes any number."""
        kind = self.byte()
        if kind < 200:
            return self.byte() % (8 if kind < 100 else 80)
        return (int.from_bytes(bytes(self.byte() for _ in range(8)), "little", signed=True)) >> (kind % 64)

    def number(self) -> float:
        if self.byte() < 200:
            return (self.byte() - 100) / (1 + self.byte() % 50)
        return float(struct.unpack("<d", bytes(self.byte() for _ in range(8)))[0])

    def rest(self, count: int) -> bytes:
        data = self._data[self._at :] or b"\0"
        return (data * (count // len(data) + 1))[:count]


def senses(data: bytes) -> None:
    """The functions that compute on levels and samples, with any sizes: parts of images, resizing,
    resampling, spectra, and the number of tokens of an encoder."""
    numbers = _Numbers(data)
    work = (_parts, _resized, _resampled, _spectra, _tokens)[numbers.byte() % 5]
    work(numbers)


def _parts(numbers: _Numbers) -> None:
    how = PanAndScan(numbers.size() % 4096 + 1, numbers.size() % 64 + 1, abs(numbers.number()) % 100 + 1)
    height, width = abs(numbers.size()) % MOST_PIXELS + 1, abs(numbers.size()) % MOST_PIXELS + 1
    covered = 0
    for top, left, rows, columns in crops_of(height, width, how):
        assert 0 <= top < top + rows <= height
        assert 0 <= left < left + columns <= width
        covered += rows * columns
    assert covered in (0, height * width)
    side, budget = numbers.size() % 100 + 1, TOKEN_BUDGETS[numbers.byte() % len(TOKEN_BUDGETS)]
    tall, wide = budget_size(height, width, side, budget)
    assert tall % side == wide % side == 0
    assert 0 < tall * wide <= budget * side * side


def _resized(numbers: _Numbers) -> None:
    height, width = numbers.size() % 64, numbers.size() % 64
    image = np.frombuffer(numbers.rest(height * width * 3), np.uint8).reshape(height, width, 3)
    new = numbers.size(), numbers.size()
    if new[0] > 0 and new[1] > 0 and 1 << 16 < new[0] * new[1] <= 1 << 28:
        return  # this input is valid, but slow
    found = _core.resize_image(
        image, height=new[0], width=new[1], filter=("bilinear", "bicubic", "cubic")[numbers.byte() % 3]
    )
    assert found.shape == (*new, 3)
    if height and width:
        one = np.unique(image.reshape(-1, 3), axis=0)
        assert len(one) > 1 or (found == one).all()


def _resampled(numbers: _Numbers) -> None:
    frames, channels = numbers.size() % 2000, numbers.size() % 70
    int16 = numbers.byte() % 2 == 0
    rate, most = numbers.size() * 100 if numbers.byte() < 200 else numbers.size(), numbers.size()
    raw = numbers.rest(frames * channels * (2 if int16 else 4))
    samples = np.frombuffer(raw, np.int16 if int16 else np.float32).reshape(frames, channels)
    if not -(1 << 63) <= rate < 1 << 63:
        return
    found = _core.mono(samples, rate=rate, most=most)
    assert np.isfinite(found).all()
    assert len(found) <= max(0, most)


def _spectra(numbers: _Numbers) -> None:
    mel = _core.LogMel(
        frame_length=numbers.size(),
        hop_length=numbers.size(),
        fft_length=1 << (abs(numbers.size()) % 12),
        bins=numbers.size(),
        min_frequency=numbers.number() * 100,
        max_frequency=numbers.number() * 1000,
        floor=abs(numbers.number()),
        preemphasis=numbers.number() / 100,
        centred=numbers.byte() % 2 == 0,
    )
    count = numbers.size() % 3000
    with np.errstate(invalid="ignore"):
        samples = np.frombuffer(numbers.rest(2 * count), np.int16).astype(np.float32) / np.float32(32768)
    features, valid = mel.extract(samples)
    assert (len(features), valid) == mel.count(count)
    assert 0 <= valid <= len(features)
    assert np.isfinite(features).all()


def _tokens(numbers: _Numbers) -> None:
    sizes = {name: numbers.size() for name in _ENCODER}
    config = _core.ConformerConfig(
        family=("gemma3n", "gemma4", "gemma5")[numbers.byte() % 3],
        logit_cap=numbers.number(),
        residual_weight=numbers.number(),
        rms_norm_eps=abs(numbers.number()),
        group_norm_eps=abs(numbers.number()),
        clipped=numbers.byte() % 2 == 0,
        **sizes,
    )
    frames, valid = numbers.size(), numbers.size()
    assert config.tokens(frames, valid) <= max(0, frames) + 1


_ENCODER = (
    "bins",
    "first_channels",
    "second_channels",
    "hidden_size",
    "num_layers",
    "num_heads",
    "conv_taps",
)
_ENCODER = (*_ENCODER, "keys", "output_size", "reduction")


def image_files() -> list[bytes]:
    return [data for name, data in _files().items() if name != "WAV"]


def sound_files() -> list[bytes]:
    import soundfile

    found = []
    wave = (0.1 * np.sin(np.arange(800) * 0.1)).astype(np.float32)
    for form, kind in (
        ("WAV", "PCM_16"),
        ("WAV", "ULAW"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", None),
    ):
        file = io.BytesIO()
        soundfile.write(file, np.stack([wave, wave], axis=1), 8000, format=form, subtype=kind)
        found.append(file.getvalue())
    return found


def video_files() -> list[bytes]:
    small: dict[str, Any] = {"rate": 4, "size": (16, 16), "sound": True, "seconds": 0.2}
    return [
        clip(2, **small),
        clip(2, container="matroska", codec="libvpx", **small),
        clip(3, container="avi", codec="mpeg4", rate=4, size=(16, 16)),
    ]


def numbers() -> list[bytes]:
    """Inputs for each kind of work, with small sizes."""
    chance = random.Random(3)
    found = [bytes([kind, *chance.randbytes(90)]) for kind in range(5) for _ in range(200)]
    return [data for data in found if _ends(senses, data)]


def settings_files() -> list[bytes]:
    found = []
    for name in ("vision/gemma3", "vision/gemma3n"):
        found.append((HERE / name / "preprocessor_config.json").read_bytes())
    nested = json.loads((HERE / "vision/gemma4-small/processor_config.json").read_text())
    sound = {"sampling_rate": 16000, "feature_size": 128, "frame_length": 320, "mel_floor": 0.001}
    return [*found, json.dumps(nested | {"feature_extractor": sound}).encode(), json.dumps(sound).encode()]


def calls() -> list[bytes]:
    picture = {"shape": [30, 40, 3], "dtype": "uint8", "order": "F"}
    wave = {"shape": [4000], "dtype": "float32", "fill": 0.25}
    stereo = {"tuple": [{"shape": [9000, 2], "dtype": "int16", "order": "back"}, 44100]}
    png, wav = (base64.b64encode(_files().get(name, b"")).decode() for name in ("PNG", "WAV"))
    message = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
        {"type": "image", "image": picture},
        {"type": "audio", "audio": wave},
        {"type": "text", "text": "What is this?"},
    ]
    options = {"min_crop_size": 10, "max_num_crops": 3, "min_ratio_to_activate": 1.1}
    found = [
        {"model": 0, "images": [picture], "ids": [2, *[143] * 16]},
        {"model": 0, "images": [{"shape": [20, 90], "dtype": "uint8"}], "pan_and_scan": options},
        {"model": 1, "images": [{"shape": [5, 9, 4]}]},
        {"model": 2, "images": [picture, {"shape": [1, 60, 3]}], "image_tokens": 70},
        {"model": 2, "videos": [{"tuple": [[picture, picture], 2.5]}]},
        {"model": 3, "images": [picture], "image_tokens": 140},
        {"model": 1, "audio": [wave]},
        {"model": 4, "audio": [wave, stereo]},
        {"model": 5, "audio": [stereo, [0.5, 0.25, -0.5] * 300]},
        {"model": 1, "messages": [{"role": "user", "content": message}]},
        *({"model": 0, "images": [{"file": name}]} for name in _files() if name != "WAV"),
        *({"model": 4, "audio": [{"file": name}]} for name in _files() if name == "WAV"),
    ]
    good = [json.dumps(call).encode() for call in found]
    return [call for call in good if _is_taken(call)]


def other_numbers(chance: random.Random, data: bytes) -> bytes:
    """Any kind of work with other sizes."""
    return chance.randbytes(len(data))


def _is_taken(call: bytes) -> bool:
    return _ends(media, call)


def _ends(read: Callable[[bytes], None], data: bytes) -> bool:
    try:
        read(data)
    except gemlet.GemletError:
        return False
    return True
