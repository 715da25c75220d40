"""Turns the sounds of a call into soft tokens of the prompt: :class:`Hearing`."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from gemlet import _core
from gemlet.base.arrays import NDArray, is_array, np
from gemlet.base.handlers import importing
from gemlet.base.late import hashlib, log
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.chat.media_places import Place
from gemlet.config.audio_config import HEARD_SAMPLES, KEPT_SOUND_BYTES, AudioConfig
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.model.loaded_adapters import ChosenAdapter
from gemlet.model.resident import Resident
from gemlet.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemlet.media.sounds import Sound

__all__ = ["Heard", "Hearing", "SoftRows"]

_MOST_SOUNDS = 256  # the most sounds of a call

SoftRows = tuple[int, NDArray["np.float32"]]  # rows, after the index of the first token that they replace


@record(frozen=True)
class Heard:
    """A sound, prepared for the audio encoder.

    Attributes:
        samples: the part of the sound that the model hears: float32, mono, at 16 kHz.
        tokens: the number of placeholders that stand for the sound in a prompt.
        digest: a hash (32 bytes) of everything that the soft tokens depend on besides the model.
        seconds: the length of the whole sound in seconds.
    """

    samples: NDArray[np.float32]
    tokens: int
    digest: bytes
    seconds: float


class Hearing:
    """The audio encoder of a loaded model, and a cache with the soft tokens of the most recent sounds."""

    def __init__(self, resident: Resident, config: TextConfig) -> None:
        self._resident = resident
        self._config = config
        self._lock = Lock()
        self._encoder: _core.Conformer | None = None
        self._modalities: dict[str, _core.Modality] = {}
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    @property
    def token_id(self) -> int | None:
        """The id of the placeholder for a soft token of a sound; None for a model that does not hear."""
        return None if self._config.audio is None else self._config.audio.token_id

    def sounds(self, audio: object, name: str = "audio") -> list[Heard]:
        """Reads the sounds of a call; :meth:`rows` encodes them later.

        Raises :class:`UnsupportedError` for a model that does not hear, and :class:`InvalidRequestError` for
        anything that is not a list of sounds.
        """
        config = self._audio(name)
        if isinstance(audio, str | bytes | tuple) or is_array(audio) or not isinstance(audio, Sequence):
            raise InvalidRequestError(f"{name}: got {show_argument(audio)}, expected a list of sounds")
        if len(audio) > _MOST_SOUNDS:
            raise InvalidRequestError(
                f"{name}: got {len(audio)} sounds, expected at most {_MOST_SOUNDS} in one call; split them "
                "over several calls"
            )
        return [self._heard(one, config, f"{name}[{i}]") for i, one in enumerate(audio)]

    def sound(self, sound: object, name: str) -> Heard:
        """Reads one sound, as :meth:`sounds` does."""
        return self._heard(sound, self._audio(name), name)

    def sound_of_video(self, video: object, name: str) -> Heard | None:
        """The sound of a video; None if the video has no sound."""
        config = self._audio(name)
        with importing():
            from gemlet.media.sounds import read_sound_of_video
        found = read_sound_of_video(video, name, most=self._most(config))
        return None if found is None else self._of(found, config, name)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media that the model hears in messages."""
        return () if self._config.audio is None else ("audio",)

    def _pieces(self, tokenizer: Tokenizer, name: str) -> tuple[str, str, str]:
        """The texts of three tokens: the placeholder, the token before the placeholders of a sound, and the
        token after them."""
        config = self._audio(name)
        ids = (config.token_id, config.begin_id, config.end_id)
        if max(ids) >= tokenizer.vocab_size:
            raise UnsupportedError(
                f"{name}: the tokenizer of {self._resident.name} has no token {max(ids)}, which sounds need; "
                "load the tokenizer that was published with the model"
            )
        token, begin, end = map(tokenizer.id_to_piece, ids)
        return token, begin, end

    def marker(self, tokenizer: Tokenizer, name: str) -> str:
        """The marker in a text that stands for a sound."""
        return self._pieces(tokenizer, name)[0]

    def segments(self, sound: Heard, tokenizer: Tokenizer, name: str) -> Place:
        """The texts and control tokens that stand for ``sound`` in a prompt."""
        token, begin, end = self._pieces(tokenizer, name)
        around: Place = [("\n\n", False)] if self._config.family == "gemma3n" else []
        return [*around, (begin, True), *[(token, True)] * sound.tokens, (end, True), *around]

    def with_places(self, text: str, sounds: Sequence[Heard], tokenizer: Tokenizer | None, name: str) -> str:
        """``text`` with each marker of a sound replaced by all placeholders of that sound.

        Raises :class:`InvalidRequestError` if the number of markers is not the number of sounds.
        """
        if tokenizer is None:
            return text
        token, _, _ = self._pieces(tokenizer, name)
        before, *others = text.split(token)
        if len(others) != len(sounds):
            raise InvalidRequestError(
                f"{name}: it has the marker {token} {len(others)} times, but there are {len(sounds)} sounds; "
                "write the marker once for each sound, where the sound belongs"
            )
        written = [before]
        for sound, other in zip(sounds, others, strict=True):
            written += [piece for piece, _ in self.segments(sound, tokenizer, name)]
            written.append(other)
        return "".join(written)

    def media(
        self,
        ids: array[int],
        sounds: Sequence[Heard],
        seen: Sequence[tuple[int, int]],
        chosen: ChosenAdapter,
        name: str,
    ) -> list[tuple[int, _core.Media]]:
        """The rows that replace tokens of a prompt, in the engine's form. The spans ``seen`` have the tokens
        of images and are left out."""
        heard = self.place(ids, sounds, chosen, name)
        spans = [(first, first + len(rows)) for first, rows in heard]
        return [
            (first, _core.Media(one, digest=hashlib.sha256(one.data).digest(), sees_itself=False))
            for first, one in [*heard, *self.other_tables(ids, [*seen, *spans], chosen, name)]
        ]

    def _audio(self, name: str) -> AudioConfig:
        if self._config.audio is None:
            raise UnsupportedError(
                f"{name}: {self._resident.name} hears no sound: it has no audio encoder, or was loaded with "
                "audio=False"
            )
        return self._config.audio

    def _heard(self, sound: object, config: AudioConfig, name: str) -> Heard:
        with importing():
            from gemlet.media.sounds import read_sound
        return self._of(read_sound(sound, name, most=self._most(config)), config, name)

    def _most(self, config: AudioConfig) -> int | None:
        """The most samples of a sound that the model hears; None: all."""
        return None if config.encoder is None else HEARD_SAMPLES

    def _of(self, found: Sound, config: AudioConfig, name: str) -> Heard:
        most = self._most(config)
        if most is not None and found.seconds > most / _core.SOUND_RATE:
            log.warning(
                "%s: the sound has %.1f seconds; the model hears only the first %d seconds",
                name,
                found.seconds,
                most // _core.SOUND_RATE,
            )
        samples = found.samples
        tokens = self._tokens(len(samples), config)
        if tokens < 1:
            raise InvalidRequestError(
                f"{name}: got {len(samples)} samples at 16 kHz, which are too few for one token; expected at "
                f"least {self._shortest(config)} samples"
            )
        if config.places and tokens > config.places:
            raise InvalidRequestError(
                f"{name}: the sound takes {tokens} tokens, expected at most {config.places} tokens in this "
                "model; shorten the sound"
            )
        digest = hashlib.sha256(repr((samples.shape, config)).encode())
        digest.update(samples.data)
        return Heard(samples, config.places or tokens, digest.digest(), found.seconds)

    def _tokens(self, samples: int, config: AudioConfig) -> int:
        """The number of soft tokens of a sound with this many samples."""
        if config.encoder is None or config.settings is None:
            return -(-samples // config.frame_length)
        frames, valid = config.settings.to_core().count(samples)
        return config.encoder.to_core(config.settings.bins).tokens(frames, valid)

    def _shortest(self, config: AudioConfig) -> int:
        low, high = 0, HEARD_SAMPLES
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._tokens(middle, config) else (middle, high)
        return high

    def place(
        self, ids: array[int], sounds: Sequence[Heard], chosen: ChosenAdapter, name: str = "ids"
    ) -> list[SoftRows]:
        """The soft rows of ``sounds`` in a prompt, in the order of their placeholders.

        Raises :class:`InvalidRequestError` if the number of placeholders is not the number of tokens of all
        sounds.
        """
        if not sounds:
            return []
        config = self._audio(name)
        is_soft = np.asarray(ids) == config.token_id
        found, expected = int(is_soft.sum()), sum(sound.tokens for sound in sounds)
        if found != expected:
            raise InvalidRequestError(
                f"{name}: the prompt has {found} placeholders of sound (token {config.token_id}), but "
                f"{len(sounds)} sounds take {expected} tokens; write one placeholder for each token"
            )
        rows = np.concatenate([self.rows(sound, chosen) for sound in sounds])
        return _runs(is_soft, rows)

    def other_tables(
        self,
        ids: array[int],
        taken: Sequence[tuple[int, int]],
        chosen: ChosenAdapter,
        name: str = "ids",
    ) -> list[SoftRows]:
        """The rows for the ids that Gemma 3n embeds with another table than the table for text. Ids in the
        spans ``taken`` are left out.

        Raises :class:`UnsupportedError` if the table of an id is not loaded.
        """
        first = self._config.text_ids
        if first is None or max(ids, default=0) < first:
            return []
        tokens = np.asarray(ids)
        placed: list[SoftRows] = []
        rest = tokens >= first
        for begin, end in taken:
            rest[begin:end] = False
        for table in self._config.tables:
            inside = rest & (tokens >= table.offset) & (tokens < table.offset + table.size)
            if inside.any():
                indices = (tokens[inside] - table.offset).tolist()
                rows = self._modality(table.name).embed(indices, chosen.for_tower(table.name))
                placed += _runs(inside, rows)
            rest &= ~inside
        if rest.any():
            position = int(np.argmax(rest))
            raise UnsupportedError(
                f"{name}: token id {ids[position]} at position {position} stands for an image or a sound, "
                "but this model was loaded without vision or audio; leave the id out, or encode the "
                "text with allow_control=False"
            )
        return placed

    def rows(self, sound: Heard, chosen: ChosenAdapter) -> NDArray[np.float32]:
        """The soft tokens of ``sound``, float32 ``[tokens, hidden_size]``."""
        key = sound.digest + chosen.key("audio")
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        rows = self.prepared(sound)(chosen.for_tower("audio"))
        with self._lock:
            self._kept[key] = rows
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_SOUND_BYTES:
                self._kept.popitem(last=False)
        return rows

    def prepared(self, sound: Heard) -> Callable[[_core.Adapter | None], NDArray[np.float32]]:
        """Computes the input of the encoder, and returns a function that makes soft tokens of this input. The
        argument of the function is the adapter, or None."""
        config = self._audio("audio")
        if config.encoder is None or config.settings is None:
            padded = np.zeros((sound.tokens, config.frame_length), np.float32)
            padded.reshape(-1)[: len(sound.samples)] = sound.samples
            return lambda adapter: self._modality("audio").project(padded, adapter)
        features, valid = config.settings.to_core().extract(sound.samples)

        def encode(adapter: _core.Adapter | None) -> NDArray[np.float32]:
            rows = self._loaded(config).encode(features, valid, adapter)
            if len(rows) == sound.tokens:
                return rows
            table = next(table for table in self._config.tables if table.name == "audio")
            filler = self._modality("audio").embed([config.filler_id - table.offset], adapter)
            return np.concatenate([rows, np.repeat(filler, sound.tokens - len(rows), axis=0)])

        return encode

    def _loaded(self, config: AudioConfig) -> _core.Conformer:
        with self._lock:
            if self._encoder is None:
                self._resident.check_open()
                assert config.encoder is not None
                assert config.settings is not None
                core = config.encoder.to_core(config.settings.bins)
                self._encoder = _core.Conformer(self._resident.core, core)
            return self._encoder

    def _modality(self, name: str) -> _core.Modality:
        with self._lock:
            if name not in self._modalities:
                self._resident.check_open()
                table = next((table for table in self._config.tables if table.name == name), None)
                if table is not None:
                    width, rows, eps = table.width, table.size, table.eps
                else:
                    audio = self._audio(name)
                    width, rows, eps = audio.width, 0, audio.eps
                self._modalities[name] = _core.Modality(
                    self._resident.core, name, width=width, table_rows=rows, eps=eps
                )
            return self._modalities[name]

    def clear(self) -> None:
        """Frees the encoder and the cache when the model is closed."""
        with self._lock:
            self._kept.clear()
            self._encoder = None
            self._modalities.clear()


def _runs(inside: NDArray[np.bool_], rows: NDArray[np.float32]) -> list[SoftRows]:
    """Cuts ``rows`` into a piece for each run of tokens that are ``inside``. ``rows`` has a row for each of
    these tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8))).tolist()
    placed: list[SoftRows] = []
    taken = 0
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        placed.append((begin, np.ascontiguousarray(rows[taken : taken + end - begin])))
        taken += end - begin
    return placed
