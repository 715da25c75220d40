"""Makes small videos with PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np

from support.extras import optional

av = optional("av")


def level_of(index: int) -> int:
    """The grey level of frame number ``index`` of :func:`clip`."""
    return 20 + 4 * index


def clip(
    frames: int = 50,
    *,
    rate: int = 25,
    size: tuple[int, int] = (48, 64),
    container: str = "mp4",
    codec: str = "mpeg4",
    sound: bool = False,
    seconds: float = 1.0,
    picture: bool = True,
) -> bytes:
    """A video whose frames get brighter. Each frame has the ``size`` (height, width) and a white corner at
    the top left. With ``sound``, the video has noise of ``seconds`` seconds."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate) if picture else None
        if stream is not None:
            stream.height, stream.width = size
            stream.bit_rate = 4_000_000
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        heard = file.add_stream("aac", rate=16000) if sound else None
        if heard is not None:
            heard.layout = "mono"
            noise = 0.1 * np.random.default_rng(1).standard_normal((1, int(16000 * seconds)))
            for at in range(0, noise.shape[1], 1024):
                part = np.ascontiguousarray(noise[:, at : at + 1024], np.float32)
                frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, at, Fraction(1, 16000)
                file.mux(heard.encode(frame))
            file.mux(heard.encode(None))
        if stream is not None:
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(levels_of(index, size), format="rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    return out.getvalue()


def recording(samples: Any, rate: int, *, container: str = "mp4", codec: str = "aac") -> bytes:
    """A video file with the sound ``samples`` [n, channels] and no picture."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        layout = ("mono", "stereo")[samples.shape[1] - 1]
        stream.layout = layout
        size = stream.codec_context.frame_size or 1024
        converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for at in range(0, len(samples), size):
            part = np.ascontiguousarray(samples[at : at + size].T)
            frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for converted in converter.resample(frame):
                file.mux(stream.encode(converted))
        file.mux(stream.encode(None))
    return out.getvalue()


def levels_of(index: int, size: tuple[int, int]) -> Any:
    levels = np.full((*size, 3), level_of(index), np.uint8)
    levels[: size[0] // 4, : size[1] // 4] = 255
    return levels


def turned(video: bytes, quarters: int) -> bytes:
    """The MP4 video with a header that tells players to rotate it clockwise by this many quarter turns."""
    one = 1 << 16
    a, b, c, d = {0: (one, 0, 0, one), 1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}[
        quarters % 4
    ]
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    at = video.index(b"tkhd") + 4 + 40
    return video[:at] + matrix + video[at + 36 :]


def with_empty_packets(frames: int, every: int) -> bytes:
    """A video with an extra packet after each ``every`` frames. The packet says that nothing has changed, so
    decoding it gives no frame. Hidden frames of VP8 have the same effect."""
    out = io.BytesIO()
    size = (48, 64)
    count = 0
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.bit_rate, stream.pix_fmt = 4_000_000, "yuv420p"
        for index in range(frames):
            packets = stream.encode(av.VideoFrame.from_ndarray(levels_of(index, size), format="rgb24"))
            if index % every == every - 1:  # a packet without coded data, with its time within the second
                header = int(f"0101{count % 25:05b}100", 2) << 4 | 0xF
                packets.append(av.Packet(b"\0\0\1\xb6" + header.to_bytes(2, "big")))
            for packet in packets:
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = count
                file.mux(packet)
                count += 1
    return out.getvalue()
