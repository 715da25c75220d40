"""Turns the images, videos and sounds of a call into soft tokens of a prompt: :class:`Senses`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet import _core
from gemlet.base.arrays import is_array
from gemlet.base.late import hashlib, log
from gemlet.base.records import field, record, replace
from gemlet.base.text import show_argument
from gemlet.chat.media_places import MediaPart, Place
from gemlet.config.families import WITH_GEMMA4_TOWERS
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.model.hearing import Heard, Hearing
from gemlet.model.loaded_adapters import ChosenAdapter
from gemlet.model.media import Media, Seen
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Inputs", "Senses", "of_prompts"]


@record
class Inputs:
    """The images, videos and sounds of a prompt, in order.

    Attributes:
        placed: the rows of soft tokens for these media, each after the index of the first token that it
            replaces. None if they have not been computed yet.
    """

    images: list[Seen] = field(default_factory=list)
    videos: list[Seen] = field(default_factory=list)
    sounds: list[Heard] = field(default_factory=list)
    placed: list[tuple[int, _core.Media]] | None = None

    def __bool__(self) -> bool:
        return bool(self.images or self.videos or self.sounds)

    def keep_small(self) -> None:
        """Replaces images and frames with the size that the model sees, to save memory."""
        for seen in (self.images, self.videos):
            seen[:] = [replace(one, views=tuple(view.kept_small() for view in one.views)) for one in seen]

    @property
    def seen(self) -> list[Seen]:
        return [*self.images, *self.videos]

    @property
    def image_tokens(self) -> int:
        return sum(one.tokens for one in self.seen)

    @property
    def audio_tokens(self) -> int:
        return sum(one.tokens for one in self.sounds)


@record(frozen=True)
class Senses:
    """Reads and encodes the media that the model sees and hears."""

    config: TextConfig
    sight: Media
    hearing: Hearing

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media that the model takes in messages."""
        return (*self.sight.kinds, *self.hearing.kinds)

    def inputs(
        self,
        images: Sequence[object],
        videos: Sequence[object],
        audio: Sequence[object],
        options: Mapping[str, Any],
    ) -> Inputs:
        """Reads the media of a call; :meth:`placed` encodes them later."""
        found = Inputs()
        if len(images):
            found.images = self.sight.images(images, options.get("pan_and_scan"), options.get("image_tokens"))
        if len(videos):
            found.videos = self.sight.videos(videos)
        if len(audio):
            found.sounds = self.hearing.sounds(audio)
        return found

    def of_parts(
        self, parts: Sequence[MediaPart], tokenizer: Tokenizer, options: Mapping[str, Any]
    ) -> tuple[Inputs, dict[str, Place]]:
        """Reads the media in the parts of messages. Also returns a mapping from each sentinel to the segments
        that replace it in the prompt."""
        found = Inputs()
        places: dict[str, Place] = {}
        for part in parts:
            if part.kind in ("audio", "track"):
                hear = self.hearing.sound if part.kind == "audio" else self.hearing.sound_of_video
                sound = hear(part.value, part.where)
                if sound is None:
                    log.warning("%s: the video has no sound", part.where)
                    places[part.sentinel] = []
                    continue
                found.sounds.append(sound)
                places[part.sentinel] = self.hearing.segments(sound, tokenizer, part.where)
                continue
            if part.kind == "image":
                how = options.get("pan_and_scan"), options.get("image_tokens")
                seen = self.sight.image(part.value, part.where, *how)
                found.images.append(seen)
            else:
                seen = self.sight.video(part.value, part.where)
                found.videos.append(seen)
            places[part.sentinel] = self._segments(seen, tokenizer, part.where)
        return found, places

    def with_places(self, text: str, inputs: Inputs, tokenizer: Tokenizer | None, name: str) -> str:
        """``text`` with each marker replaced by the placeholders of its image, video or sound.

        Raises :class:`InvalidRequestError` if the number of markers is not the number of media.
        """
        if tokenizer is None:
            return text
        for what, seen in (("images", inputs.images), ("videos", inputs.videos)):
            if not seen:
                continue
            marker = self._marker(what, tokenizer, name)
            before, *others = text.split(marker)
            if len(others) != len(seen):
                raise InvalidRequestError(
                    f"{name}: it has the marker {marker} {len(others)} times, but there are {len(seen)} "
                    f"{what}; write the marker once for each of the {what}"
                )
            written = [before]
            for one, other in zip(seen, others, strict=True):
                written += [piece for piece, _ in self._segments(one, tokenizer, name)]
                written.append(other)
            text = "".join(written)
        return self.hearing.with_places(text, inputs.sounds, tokenizer, name) if inputs.sounds else text

    def markers(self, inputs: Inputs, tokenizer: Tokenizer | None, name: str) -> str:
        """The text for an input that has only media: the markers of ``inputs`` with spaces between them, as
        in the reference processor."""
        if tokenizer is None:
            return ""
        seen = [("images", inputs.images), ("videos", inputs.videos)]
        found = [self._marker(what, tokenizer, name) for what, ones in seen for _ in ones]
        return " ".join([*found, *(self.hearing.marker(tokenizer, name) for _ in inputs.sounds)])

    def placed(
        self, ids: array[int], inputs: Inputs, chosen: ChosenAdapter, name: str
    ) -> list[tuple[int, _core.Media]]:
        """The rows that replace tokens of a prompt, in the engine's form. The rows are computed once, even
        for several continuations of the prompt."""
        if inputs.placed is not None:
            return inputs.placed
        seen = self.sight.place(ids, inputs.seen, name)
        spans = [(one.first, one.first + one.tokens) for one in seen]
        media = list(self.hearing.media(ids, inputs.sounds, spans, chosen, name))
        for one in seen:
            rows = self.sight.rows(one, chosen)
            digest = hashlib.sha256(rows.data).digest()
            media.append((one.first, _core.Media(rows, digest=digest, sees_itself=True)))
        inputs.placed = sorted(media, key=lambda placed: placed[0])
        return inputs.placed

    def _marker(self, what: str, tokenizer: Tokenizer, name: str) -> str:
        token, begin, _ = self._pieces(tokenizer, name, video=what == "videos")
        return begin if self.config.family == "gemma3" else token

    def _pieces(self, tokenizer: Tokenizer, name: str, *, video: bool) -> tuple[str, str, str]:
        """The texts of three tokens: the placeholder, the token before the placeholders of an image, and the
        token after them."""
        config = self.config.vision
        assert config is not None
        token_id = getattr(config, "video_id", config.token_id) if video else config.token_id
        ids = (token_id, config.begin_id, config.end_id)
        if max(ids) >= tokenizer.vocab_size:
            raise UnsupportedError(
                f"{name}: the tokenizer has no token {max(ids)}, which images need; load the tokenizer that "
                "was published with the model"
            )
        token, begin, end = map(tokenizer.id_to_piece, ids)
        return token, begin, end

    def _segments(self, seen: Seen, tokenizer: Tokenizer, name: str) -> Place:
        """The texts and control tokens that stand for an image or a video in a prompt."""
        video = seen.seconds is not None
        token, begin, end = self._pieces(tokenizer, name, video=video)
        like_gemma4 = self.config.family in WITH_GEMMA4_TOWERS
        around: list[tuple[str, bool]] = [] if like_gemma4 else [("\n\n", False)]
        blocks = [
            [*around, (begin, True), *[(token, True)] * view.tokens, (end, True), *around]
            for view in seen.views
        ]
        if seen.seconds is not None:
            times = [f"{int(at) // 60:02}:{int(at) % 60:02} " for at in seen.seconds]
            texts = times if self.config.family == "gemma4" else [""] * len(times)
        elif len(blocks) > 1:
            texts = [
                "Here is the original image ",
                " and here are some crops to help you see better ",
                *[" "] * (len(blocks) - 2),
            ]
        else:
            return blocks[0]
        place: list[tuple[str, bool]] = []
        for i, (text, block) in enumerate(zip(texts, blocks, strict=True)):
            joint = " " if i > 0 and seen.seconds is not None and self.config.family == "gemma4" else ""
            place += [(joint + text, False), *block]
        return place


def of_prompts(given: object, prompts: int | None, name: str, what: str) -> list[Sequence[object]]:
    """The media of each prompt. ``given`` is the argument ``name`` of a call: a list of media, or a list of
    lists if there are several prompts. ``prompts`` is the number of prompts; None for a single prompt.

    >>> of_prompts(None, 2, "images", "images"), of_prompts(["a.png"], None, "images", "images")
    ([(), ()], [['a.png']])
    """
    if given is None:
        return [()] * (1 if prompts is None else prompts)
    if isinstance(given, str | bytes | tuple) or is_array(given) or not isinstance(given, Sequence):
        raise InvalidRequestError(f"{name}: got {show_argument(given)}, expected a list of {what}")
    if prompts is None:
        return [given]
    if len(given) != prompts or not all(isinstance(one, list) for one in given):
        raise InvalidRequestError(
            f"{name}: got {show_argument(given)}, expected a list of {what} for each of {prompts} prompts"
        )
    return list(given)
