"""Gemma 3n's tower for images: MobileNet-v5, whose blocks ``config.json`` does not list."""

from __future__ import annotations

from gemlet import _core
from gemlet.base.records import record
from gemlet.config.image_settings import ImageSettings

__all__ = ["ABSENT_KEYS", "PUBLISHED_STAGES", "MobileNetBlock", "MobileNetConfig", "Stages"]

_SIZE = 768  # side of an image, if no file says it
# For keys that a preprocessor's file does not have: the defaults of the reference's SiglipImageProcessor.
ABSENT_KEYS = ImageSettings(resample="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, size=(224, 224))


@record(frozen=True)
class MobileNetBlock:
    """A block of the tower.

    Attributes:
        kind: "edge", "inverted" or "attention".
        in_channels, out_channels: the channels of its input and its output.
        inner: the channels of its expansion; 0 for an attention.
        start_kernel: the side of the convolution before the expansion, 0 for none; for an "edge" the side of
            the expansion's convolution.
        middle_kernel: the side of the convolution after it, 0 for none; for an attention that of keys and
            values.
        stride: the stride of the last of these convolutions.
        num_heads, head_dim: the sizes of an attention; 0 for other blocks.
    """

    kind: str
    in_channels: int
    out_channels: int
    inner: int = 0
    start_kernel: int = 0
    middle_kernel: int = 0
    stride: int = 1
    num_heads: int = 0
    head_dim: int = 0


Stages = tuple[tuple[MobileNetBlock, ...], ...]


@record(frozen=True)
class MobileNetConfig:
    """The tower: a convolution with ``stem_channels``, the blocks of each stage, and the fusion of the last
    two stages with an expansion to ``fused_inner`` channels.

    ``settings`` say how an image is prepared. ``token_id`` stands for one of its tokens in a prompt,
    ``begin_id`` and ``end_id`` stand around them.
    """

    stages: Stages
    stem_channels: int
    fused_inner: int
    hidden_size: int
    tokens_per_side: int
    rms_norm_eps: float
    token_id: int
    begin_id: int
    end_id: int
    settings: ImageSettings

    @property
    def fixed_settings(self) -> dict[str, object]:
        """The values that the preprocessor's settings must have if the file has these settings."""
        return {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in which every image is seen."""
        return self.settings.size or (_SIZE, _SIZE)

    @property
    def tokens(self) -> int:
        """Soft tokens of an image."""
        return self.tokens_per_side**2

    @property
    def most_tokens(self) -> int:
        """Soft tokens of an image."""
        return self.tokens

    def to_core(self) -> _core.MobileNetConfig:
        """The core's form. Raises :class:`ConfigError` for sizes that do not go together."""
        height, width = self.size
        return _core.MobileNetConfig(
            height=height,
            width=width,
            stem_channels=self.stem_channels,
            stages=[[_core.MobileNetBlock(**vars(block)) for block in stage] for stage in self.stages],
            fused_inner=self.fused_inner,
            hidden_size=self.hidden_size,
            tokens_per_side=self.tokens_per_side,
            rms_norm_eps=self.rms_norm_eps,
        )

    def tower(self, model: _core.Model) -> _core.MobileNetTower:
        """The core's encoder of images, which uses the weights of ``model``."""
        return _core.MobileNetTower(model, self.to_core())

    def activation_bytes(self, hidden_size: int, weights: str) -> int:
        """Bytes that an image takes on its way, in a text model of ``hidden_size``."""
        return self.to_core().activation_bytes(hidden_size, weights)


def _edge(channels: int, out: int, stride: int = 1) -> MobileNetBlock:
    return MobileNetBlock("edge", channels, out, 4 * channels, start_kernel=3, stride=stride)


def _inverted(channels: int, out: int, times: int, start: int = 0, middle: int = 0) -> MobileNetBlock:
    stride = 2 if middle else 1
    return MobileNetBlock("inverted", channels, out, times * channels, start, middle, stride)


def _attention(channels: int, heads: int, dim: int, stride: int) -> MobileNetBlock:
    kernel = 3 if stride > 1 else 0
    return MobileNetBlock(
        "attention", channels, channels, 0, 0, kernel, stride=stride, num_heads=heads, head_dim=dim
    )


# Those of the one published tower, mobilenetv5_300m_enc.
PUBLISHED_STAGES: Stages = (
    (_edge(64, 128, 2), _edge(128, 128), _edge(128, 128)),
    (
        _inverted(128, 256, 6, 3, 5),
        *[_inverted(256, 256, 4, kernel) for kernel in (5, 3, 5, 3)],
    ),
    (
        _inverted(256, 640, 6, 5, 5),
        *[_inverted(640, 640, 4, 5)] * 7,
        _inverted(640, 640, 1),
        *[_attention(640, 12, 64, 2), _inverted(640, 640, 2)] * 14,
    ),
    (
        _inverted(640, 1280, 6, 5, 5),
        *[_attention(1280, 16, 96, 1), _inverted(1280, 1280, 2)] * 19,
    ),
)
