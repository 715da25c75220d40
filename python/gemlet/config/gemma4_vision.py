"""The vision of Gemma 4: a tower for images of any aspect ratio, or, in the unified model, a single layer
without a tower."""

from __future__ import annotations

import math

from gemlet import _core
from gemlet.base.records import record
from gemlet.config.image_settings import TOKEN_BUDGETS, ImageSettings
from gemlet.errors import InvalidRequestError

__all__ = ["VIDEO_BUDGET", "Gemma4VisionConfig", "UnifiedVisionConfig", "budget_size"]

VIDEO_BUDGET = 70  # soft tokens of a frame


def budget_size(height: int, width: int, side: int, budget: int) -> tuple[int, int]:
    """Height and width of an image as it is seen: whole tokens of ``side`` pixels, at most ``budget`` of
    them, with about the same aspect ratio.

    Raises :class:`InvalidRequestError` for an image that is too narrow.

    >>> budget_size(300, 400, 48, 280)
    (672, 912)
    >>> budget_size(1, 90, 48, 70)
    (48, 3360)
    """
    factor = math.sqrt(budget * side * side / (height * width))
    rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
    if rows == 0 and columns == 0:
        raise InvalidRequestError(f"an image of {width} x {height} pixels is too narrow for {budget} tokens")
    if rows == 0:
        rows, columns = 1, min(width // height, budget)
    elif columns == 0:
        rows, columns = min(height // width, budget), 1
    return rows * side, columns * side


@record(frozen=True)
class _Budgeted:
    """The common part. In a prompt, ``token_id`` and ``video_id`` stand for a soft token of an image and of a
    video's frame, and ``begin_id`` and ``end_id`` enclose these tokens."""

    token_id: int
    video_id: int
    begin_id: int
    end_id: int
    settings: ImageSettings

    @property
    def most_tokens(self) -> int:
        """Soft tokens of an image, at most."""
        return TOKEN_BUDGETS[-1]


@record(frozen=True)
class Gemma4VisionConfig(_Budgeted):
    """The tower: patches, of which ``pool`` squared become a token."""

    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    pool: int
    positions: int
    clipped: bool
    standardize: bool
    rope_theta: float
    rms_norm_eps: float

    @property
    def token_side(self) -> int:
        """The side, in pixels, of the square that one token sees."""
        return self.patch_size * self.pool

    @property
    def fixed_settings(self) -> dict[str, object]:
        """The values that the preprocessor's settings must have if the file has these settings."""
        return {"patch_size": self.patch_size, "pooling_kernel_size": self.pool}

    def to_core(self) -> _core.Gemma4VisionConfig:
        """The core's form. Raises :class:`ConfigError` for sizes that do not go together."""
        return _core.Gemma4VisionConfig(
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            pool=self.pool,
            positions=self.positions,
            clipped=self.clipped,
            standardize=self.standardize,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
        )

    def tower(self, model: _core.Model) -> _core.Gemma4VisionTower:
        """The core's encoder of images, which uses the weights of ``model``."""
        return _core.Gemma4VisionTower(model, self.to_core())

    def activation_bytes(self, hidden_size: int, weights: str) -> int:
        """Bytes that the largest image takes on its way, in a text model of ``hidden_size``."""
        return self.to_core().activation_bytes(self.settings.max_soft_tokens, hidden_size, weights)


@record(frozen=True)
class UnifiedVisionConfig(_Budgeted):
    """No tower: each tile of ``token_side`` squared pixels is embedded as it is."""

    token_side: int
    hidden_size: int
    positions: int
    rms_norm_eps: float

    @property
    def fixed_settings(self) -> dict[str, object]:
        """As in :class:`Gemma4VisionConfig`; a token is a tile."""
        patch = self.settings.patch_size
        return {} if patch is None else {"pooling_kernel_size": self.token_side // patch}

    def tower(self, model: _core.Model) -> _core.UnifiedVisionEmbedder:
        """The core's encoder of images, which uses the weights of ``model``."""
        return _core.UnifiedVisionEmbedder(
            model,
            tile_size=self.token_side,
            hidden_size=self.hidden_size,
            positions=self.positions,
            rms_norm_eps=self.rms_norm_eps,
        )

    def activation_bytes(self, hidden_size: int, weights: str) -> int:
        """Bytes that the largest image takes on its way, in a text model of ``hidden_size``."""
        floats = 3 * self.token_side**2 * 3 + 2 * self.hidden_size + 2 * hidden_size
        return 4 * floats * self.settings.max_soft_tokens
