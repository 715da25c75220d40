"""The configuration of a model's encoder for sound in ``config.json``: :class:`AudioConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet import _core
from gemlet.base.keys import Keys
from gemlet.base.late import log
from gemlet.base.records import record, replace
from gemlet.config.families import WITH_GEMMA4_TOWERS
from gemlet.config.sound_settings import SoundSettings

__all__ = [
    "HEARD_SAMPLES",
    "KEPT_SOUND_BYTES",
    "AudioConfig",
    "ConformerConfig",
    "ModalityTable",
    "audio_bytes",
    "read_audio",
    "read_tables",
]

HEARD_SAMPLES = 480_000  # the longest sound that an encoder hears: 30 seconds
KEPT_SOUND_BYTES = 32 << 20  # soft tokens of the most recent sounds


@record(frozen=True)
class ConformerConfig:
    """The encoder of Gemma 3n and Gemma 4: ``family`` is "gemma3n" or "gemma4". ``keys`` is the number of
    keys that a query sees, including its own. One of ``reduction`` tokens is kept. ``output_size`` is the
    width of the encoder's output.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    first_channels: int
    second_channels: int
    conv_taps: int
    keys: int
    output_size: int
    reduction: int
    logit_cap: float
    residual_weight: float
    rms_norm_eps: float
    group_norm_eps: float
    clipped: bool

    def to_core(self, bins: int) -> _core.ConformerConfig:
        """The core's form, for spectra with this many bins."""
        return _core.ConformerConfig(bins=bins, **vars(self))


@record(frozen=True)
class AudioConfig:
    """The part of a model that encodes sound.

    Attributes:
        encoder: makes soft tokens from log-mel spectra; None for a model that takes the samples themselves.
        settings: the settings for making spectra from samples; None without an encoder.
        frame_length: the samples of a token in a model without an encoder; 0 with an encoder.
        token_id: the id that stands for one soft token in a prompt.
        begin_id, end_id: the ids before and after the tokens of a sound.
        places: the fixed number of tokens for every sound (Gemma 3n fills up unused ones); 0: as many as the
            sound has.
        filler_id: the id whose row fills up unused places.
        eps: the epsilon of the norm before the last projection.
    """

    encoder: ConformerConfig | None
    settings: SoundSettings | None
    frame_length: int
    token_id: int
    begin_id: int
    end_id: int
    places: int
    filler_id: int
    eps: float

    @property
    def width(self) -> int:
        """The size of the input of the last projection."""
        return self.frame_length if self.encoder is None else self.encoder.output_size


@record(frozen=True)
class ModalityTable:
    """The table of Gemma 3n that has the rows of ``size`` ids from ``offset`` on, for "vision" or "audio"."""

    name: str
    offset: int
    size: int
    width: int
    eps: float


def audio_bytes(config: AudioConfig, hidden_size: int, weights: str) -> int:
    """The memory that hearing takes besides the weights, for the longest sound."""
    if config.encoder is None or config.settings is None:
        return KEPT_SOUND_BYTES
    frames, _ = config.settings.to_core().count(HEARD_SAMPLES)
    core = config.encoder.to_core(config.settings.bins)
    return core.activation_bytes(frames, hidden_size, weights) + KEPT_SOUND_BYTES


_LIMIT = 1 << 20
_GEMMA4: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "output_proj_dims": 1536,
    "subsampling_conv_channels": [128, 32],
    "conv_kernel_size": 5,
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-6,
    "use_clipped_linears": True,
    "hidden_act": "silu",
    "gradient_clipping": 1e10,
}
_GEMMA3N: Mapping[str, Any] = {
    "hidden_size": 1536,
    "conf_num_hidden_layers": 12,
    "conf_num_attention_heads": 8,
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
    "sscp_conv_group_norm_eps": 1e-3,
    "input_feat_size": 128,
    "gradient_clipping": 1e10,
    "rms_norm_eps": 1e-6,
    "vocab_size": 128,
    "vocab_offset": 262272,
}
_GEMMA3N_VISION: Mapping[str, Any] = {
    "hidden_size": 2048,
    "vocab_size": 128,
    "vocab_offset": 262144,
    "rms_norm_eps": 1e-6,
}


def read_audio(outer: Keys, family: str) -> AudioConfig | None:
    """Reads the encoder for sound from ``outer``, the object of a multimodal file; None if it has none.

    Raises :class:`ConfigError` for a value that has a wrong type, is out of range, or occurs in no published
    model.
    """
    raw = outer.raw.get("audio_config")
    if raw is None or family not in ("gemma3n", *WITH_GEMMA4_TOWERS):
        return None
    unified = outer.raw.get("model_type") == "gemma4_unified"
    defaults = {"audio_embed_dim": 640, "rms_norm_eps": 1e-6} if unified else _GEMMA4
    if family == "gemma3n":
        defaults = _GEMMA3N
    keys = outer.inner(outer.mapping("audio_config"), "audio_config", defaults)
    kind = "gemma3n" if family == "gemma3n" else "gemma4_unified" if unified else "gemma4"
    if keys.raw.get("model_type", f"{kind}_audio") != f"{kind}_audio":
        raise keys.wrong("model_type", repr(f"{kind}_audio"))
    eps = keys.number("rms_norm_eps", 1e-12, 0.1)
    heads = "" if unified else "conf_num_attention_heads" if family == "gemma3n" else "num_attention_heads"
    if heads and keys.integer("hidden_size", 1 << 15) % keys.integer(heads, 1 << 15) != 0:
        # No program can build this encoder. The rest of a Gemma 3n reads its sizes, so such files exist.
        log.info(
            "the model does not hear: its audio_config describes no possible encoder (hidden_size, %s)", heads
        )
        return None
    if family == "gemma3n":
        places = outer.inner(outer.raw, "", {"audio_soft_tokens_per_image": 188})
        text = outer.mapping("text_config").get("vocab_size", 262400)
        return AudioConfig(
            encoder=_read_gemma3n(keys),
            settings=replace(SoundSettings(), bins=keys.integer("input_feat_size", 1024)),
            frame_length=0,
            token_id=_id(outer, ("audio_token_id",), 262273),
            begin_id=_id(outer, ("boa_token_id",), 256000),
            end_id=_id(outer, ("eoa_token_id",), 262272),
            places=places.integer("audio_soft_tokens_per_image", 1 << 16),
            filler_id=text - 1 if type(text) is int else 262399,
            eps=eps,
        )
    encoder = None if unified else _read_gemma4(keys)
    return AudioConfig(
        encoder=encoder,
        settings=None if unified else SoundSettings.of_gemma4(),
        frame_length=keys.integer("audio_embed_dim", 1 << 16) if unified else 0,
        token_id=_id(outer, ("audio_token_id",), 258881),
        begin_id=_id(outer, ("boa_token_id",), 256000),
        end_id=_id(outer, ("eoa_token_id", "eoa_token_index"), 258883),
        places=0,
        filler_id=0,
        eps=eps,
    )


def read_tables(outer: Keys, family: str) -> tuple[ModalityTable, ...]:
    """The tables that Gemma 3n has besides its text table."""
    if family != "gemma3n":
        return ()
    found = []
    for name, defaults in (("vision", _GEMMA3N_VISION), ("audio", _GEMMA3N)):
        key = f"{name}_config"
        keys = outer.inner(outer.mapping(key), key, defaults)
        table = ModalityTable(
            name,
            keys.integer("vocab_offset", (1 << 31) - 1, low=0),
            keys.integer("vocab_size", _LIMIT),
            keys.integer("hidden_size", 1 << 15),
            keys.number("rms_norm_eps", 1e-12, 0.1),
        )
        found.append(table)
    return tuple(found)


def _read_gemma4(keys: Keys) -> ConformerConfig:
    if keys.get("hidden_act") != "silu":
        raise keys.wrong("hidden_act", "'silu'")
    channels = _channels(keys, "subsampling_conv_channels")
    left = keys.integer("attention_context_left", 257, low=2)
    # With another chunk size, the reference uses the rows of its table for other distances.
    if keys.integer("attention_chunk_size", _LIMIT) not in (left - 1, left):
        raise keys.wrong("attention_chunk_size", f"{left - 1}, one less than attention_context_left")
    return _checked(
        keys,
        family="gemma4",
        num_layers=keys.integer("num_hidden_layers", 512),
        num_heads=keys.integer("num_attention_heads", 1 << 15),
        channels=channels,
        conv_taps=keys.integer("conv_kernel_size", 256),
        keys_seen=left - 1,
        output_size=keys.integer("output_proj_dims", 1 << 15),
        reduction=1,
        context_right="attention_context_right",
        logit_cap=keys.number("attention_logit_cap", 1e-3, 1e6),
        residual_weight=keys.number("residual_weight", 0.0, 1e3),
        group_norm_eps=0.0,
        clipped=keys.flag("use_clipped_linears"),
    )


def _read_gemma3n(keys: Keys) -> ConformerConfig:
    for key in ("sscp_conv_kernel_size", "sscp_conv_stride_size"):
        if keys.get(key) != _GEMMA3N[key]:
            raise keys.wrong(key, str(_GEMMA3N[key]))
    return _checked(
        keys,
        family="gemma3n",
        num_layers=keys.integer("conf_num_hidden_layers", 512),
        num_heads=keys.integer("conf_num_attention_heads", 1 << 15),
        channels=_channels(keys, "sscp_conv_channel_size"),
        conv_taps=keys.integer("conf_conv_kernel_size", 256),
        keys_seen=keys.integer("conf_attention_context_left", 256),
        output_size=keys.integer("hidden_size", 1 << 15),
        reduction=keys.integer("conf_reduction_factor", 64),
        context_right="conf_attention_context_right",
        logit_cap=keys.number("conf_attention_logit_cap", 1e-3, 1e6),
        residual_weight=keys.number("conf_residual_weight", 0.0, 1e3),
        group_norm_eps=keys.number("sscp_conv_group_norm_eps", 0.0, 1.0),
        clipped=False,
    )


def _checked(
    keys: Keys, *, channels: tuple[int, int], keys_seen: int, context_right: str, **values: Any
) -> ConformerConfig:
    if keys.integer(context_right, _LIMIT, low=0) != 0:
        raise keys.wrong(context_right, "0")
    # Training clips values far larger than any in inference.
    keys.number("gradient_clipping", 1e6, float("inf"))
    config = ConformerConfig(
        hidden_size=keys.integer("hidden_size", 1 << 15),
        first_channels=channels[0],
        second_channels=channels[1],
        keys=keys_seen,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-12, 0.1),
        **values,
    )
    config.to_core(128)  # checks what depends on several of them
    return config


def _channels(keys: Keys, key: str) -> tuple[int, int]:
    value = keys.get(key)
    if not isinstance(value, list) or len(value) != 2:
        raise keys.wrong(key, "two integers")
    if any(type(one) is not int or not 1 <= one <= 4096 for one in value):
        raise keys.wrong(key, "two integers from 1 to 4096")
    return value[0], value[1]


def _id(outer: Keys, names: tuple[str, ...], default: int) -> int:
    name = next((one for one in names if outer.raw.get(one) is not None), names[0])
    value = outer.raw.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise outer.wrong(name, "a token id")
    return value
