"""Requests with ready-made embeddings, as images and sound give them: their results are the same as in a
separate sequence, no pass cuts a span, and the prefix cache recognizes media by their digests."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import InvalidRequestError
from support.core_models import HIDDEN, layer_config, model_config, random_core, sampler
from support.engine_reader import Reader

pytestmark = pytest.mark.tier


IDS = np.random.default_rng(4).integers(0, 96, 4000).astype(np.int32)
MODEL = hashlib.sha256(b"a model").digest()
Placed = list[tuple[int, _core.Media]]


def core_of(window: int = 100, *, looks_ahead: bool = True, longest_span: int = 700) -> _core.Model:
    layers = (
        layer_config(sliding_window=window, bidirectional_spans=looks_ahead),
        layer_config(sliding_window=0, bidirectional_spans=looks_ahead),
    )
    return random_core(model_config(*layers, max_context=1400, longest_span=longest_span))


def rows_of(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


def media(count: int, seed: int = 1, *, sees_itself: bool = True) -> _core.Media:
    rows = rows_of(count, seed)
    return _core.Media(rows, digest=hashlib.sha256(rows.tobytes()).digest(), sees_itself=sees_itself)


def alone(
    core: _core.Model, ids: NDArray[np.int32], seed: int, count: int, *parts: tuple[int, int, int, bool]
) -> list[int]:
    """The continuation in a separate sequence. ``parts``: first token, rows, seed of the rows, is a span."""
    sequence, choose = _core.TokenSequence(core), sampler(seed=seed)
    soft = [(first, rows_of(rows, of)) for first, rows, of, _ in parts]
    spans = [(first, first + rows) for first, rows, _, is_span in parts if is_span]
    sequence.extend(ids, soft_rows=soft, spans=spans)
    found = [sequence.sample(choose)]
    while len(found) < count:
        sequence.extend(found[-1:])
        found.append(sequence.sample(choose))
    return found


def placed(*parts: tuple[int, int, int, bool]) -> Placed:
    return [(first, media(rows, of, sees_itself=is_span)) for first, rows, of, is_span in parts]


def cached(reader: Reader, ids: NDArray[np.int32], found: Placed, **options: int) -> int:
    request = reader.submit(ids, media=found, max_tokens=3, **options)
    reader.read(request)
    return request.cached_tokens


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_many_texts_with_media_at_once(looks_ahead: bool) -> None:
    """Random requests over the same few media, with a prefix cache and little memory. They are cut,
    preempted and shared in every way."""
    core, random = core_of(looks_ahead=looks_ahead), np.random.default_rng(8)
    engine = _core.Engine(core, most_running=4, kv_bytes=1 << 19, prefix_cache_bytes=1 << 18)
    reader = Reader(engine)
    asked, requests = [], []
    for seed in range(40):
        beginning, end, parts = int(random.integers(0, 3)) * 50, 0, []
        end = beginning
        for _ in range(int(random.integers(0, 4))):
            first, rows = end + int(random.integers(0, 2)), int(random.choice([1, 5, 70, 200]))
            parts.append((first, rows, int(random.integers(0, 3)), bool(random.integers(0, 2))))
            end = first + rows
        ids = IDS[: end + int(random.integers(1, 90))]
        asked.append((ids, seed, parts))
        requests.append(reader.submit(ids, seed=seed, max_tokens=12, media=placed(*parts)))
    found = reader.read(*requests)
    for (ids, seed, parts), (text, reason) in zip(asked, found, strict=True):
        assert reason == "length"
        assert text == alone(core, ids, seed, 12, *parts), (seed, parts)
    assert engine.stats()["cached_tokens"] > 0


def test_a_long_span_while_others_write() -> None:
    """The span is longer than a step, so it gets a separate pass. Others run before and after it."""
    core = core_of()
    reader = Reader(_core.Engine(core))
    writers = [reader.submit(IDS[:30], seed=seed, max_tokens=60) for seed in range(3)]
    part = (40, 700, 5, True)
    texts = reader.read(*writers, reader.submit(IDS[:800], seed=9, max_tokens=5, media=placed(part)))
    assert texts[3] == (alone(core, IDS[:800], 9, 5, part), "length")
    for seed in range(3):
        assert texts[seed][0] == alone(core, IDS[:30], seed, 60)


@pytest.mark.parametrize("first", [0, 30, 63, 64, 100])
@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_the_same_media_are_found_again(first: int, rows: int) -> None:
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=1 << 24))
    ids, part = IDS[: first + rows + 20], (first, rows, 1, True)
    assert cached(reader, ids, placed(part)) == 0
    assert cached(reader, ids, placed(part)) == len(ids) - 1
    assert cached(reader, ids, placed((first, rows, 2, True))) == first  # another image
    # The tokens of this image do not see each other.
    assert cached(reader, ids, placed((first, rows, 1, False))) == first
    assert cached(reader, ids, []) == first
    assert cached(reader, ids, placed(part)) == len(ids) - 1
    other = ids.copy()
    other[first + rows - 1] ^= 1  # another id of a token with a soft row takes another per-layer row
    assert cached(reader, other, placed(part)) == first


def test_one_image_of_several_is_another_one() -> None:
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=1 << 24))
    ids = IDS[:300]
    assert cached(reader, ids, placed((10, 60, 1, True), (80, 60, 2, True), (140, 60, 3, True))) == 0
    assert cached(reader, ids, placed((10, 60, 1, True), (80, 60, 4, True), (140, 60, 3, True))) == 80
    assert cached(reader, ids, placed((10, 60, 1, True), (80, 60, 2, True), (141, 59, 3, True))) == 140
    assert cached(reader, ids, placed((10, 60, 1, True), (80, 60, 2, True), (140, 60, 3, True))) == 299


def test_a_reused_prefix_does_not_end_within_a_span() -> None:
    """If two prompts differ within an image, the second request computes the image again."""
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=1 << 24))
    rows = rows_of(100, 1)
    image = _core.Media(rows, digest=MODEL, sees_itself=True)
    sound = _core.Media(rows, digest=MODEL, sees_itself=False)
    ids = IDS[:200]
    other = ids.copy()
    other[90] ^= 1
    assert cached(reader, ids, [(40, image)]) == 0
    assert cached(reader, other, [(40, image)]) == 40
    assert cached(reader, ids, [(40, sound)]) == 40
    assert cached(reader, other, [(40, sound)]) == 90


def test_the_prefix_cache_on_disk_tells_media_apart(tmp_path: pathlib.Path) -> None:
    core, part = core_of(), (50, 100, 1, True)
    options = {
        "prefix_cache_bytes": 1 << 24,
        "prefix_cache_folder": str(tmp_path),
        "prefix_cache_folder_bytes": 1 << 28,
        "model_digest": MODEL,
    }
    ids = IDS[:330]
    engine = _core.Engine(core, **options)  # type: ignore[arg-type]
    assert cached(Reader(engine), ids, placed(part)) == 0
    engine.close()
    for other, expected in [((50, 100, 2, True), 50), ((50, 100, 1, False), 50), (part, 329)]:
        engine = _core.Engine(core, **options)  # type: ignore[arg-type]
        reader = Reader(engine)
        request = reader.submit(ids, media=placed(other), seed=3, max_tokens=10)
        ((text, _),) = reader.read(request)
        assert request.cached_tokens == expected
        assert text == alone(core, ids, 3, 10, other)
        engine.close()


def test_a_saved_session_keeps_its_media(tmp_path: pathlib.Path) -> None:
    core, ids, found = core_of(), IDS[:300], placed((50, 100, 1, True))
    options = {"prefix_cache_bytes": 1 << 24, "model_digest": MODEL}
    reader = Reader(_core.Engine(core, **options))  # type: ignore[arg-type]
    reader.read(reader.submit(ids, media=found))
    with open(tmp_path / "kept", "wb", buffering=0) as file:
        assert reader.engine.prefix_cache.save(ids, file.fileno(), media=found) == 300
    other = Reader(_core.Engine(core, **options))  # type: ignore[arg-type]
    with open(tmp_path / "kept", "rb") as file:
        assert other.engine.prefix_cache.load(ids, file.fileno(), 0, media=found) == 300
    assert other.engine.prefix_cache.nearest(ids, media=found)[:2] == (300, 300)
    assert other.engine.prefix_cache.nearest(ids)[0] == 50
    assert cached(other, ids, found) == 299


@pytest.mark.parametrize("first_row", [0, 20, 120, 170])
def test_logits_of_a_text_with_a_span(first_row: int) -> None:
    """This is also true for tokens that come after others in a span."""
    core = core_of()
    news, part = _core.News(), (50, 100, 1, True)
    sequence = _core.TokenSequence(core)
    sequence.extend(IDS[:200], soft_rows=[(50, rows_of(100, 1))], spans=[(50, 150)], logits="all")
    engine = _core.Engine(core, prefix_cache_bytes=1 << 24)
    for _ in range(2):  # the second run reads the prefix cache
        request = engine.submit(
            IDS[:200], wanted="logits", news=news, first_row=first_row, media=placed(part)
        )
        rows, reason = [], None
        while reason is None:
            seen = news.value
            _, reason, some = request.take()
            rows += [] if some is None else [some]
            if reason is None:
                engine.wait(news, seen, 10.0)
        np.testing.assert_array_equal(np.concatenate(rows), sequence.logits()[first_row:])


def test_wrong_media() -> None:
    core = core_of(longest_span=600)
    reader = Reader(_core.Engine(core))
    image = media(20)
    wrong: list[tuple[Placed, str]] = [
        ([(-1, image)], "begin at token -1"),
        ([(85, image)], "begin at token 85"),
        ([(0, image), (19, image)], "begin at token 19"),
        ([(30, image), (0, image)], "begin at token 0"),
        ([(0, media(601))], "among the tokens"),
        ([(0, _core.Media(np.full((2, HIDDEN), np.nan, np.float32), digest=MODEL, sees_itself=True))], "nan"),
        ([(0, _core.Media(np.zeros((2, 7), np.float32), digest=MODEL, sees_itself=True))], "7 numbers each"),
    ]
    for found, message in wrong:
        with pytest.raises(InvalidRequestError, match=message):
            reader.submit(IDS[:100], media=found)
    with pytest.raises(InvalidRequestError, match="longest_span"):
        reader.submit(IDS[:900], media=[(0, media(601))])
    for rows in (np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((0, 3), np.float32)):
        with pytest.raises(InvalidRequestError, match="float32"):
            _core.Media(rows, digest=MODEL, sees_itself=True)
    for digest in (b"", b"short", bytes(32)):
        with pytest.raises(InvalidRequestError, match="digest"):
            _core.Media(np.zeros((1, HIDDEN), np.float32), digest=digest, sees_itself=True)
    assert len(image) == 20


def test_embeddings_of_texts_with_media() -> None:
    """Every token sees all others, and the ids under media mean nothing."""
    engine = _core.Engine(random_core(model_config(bidirectional=True)))

    def vector(ids: NDArray[np.int32], *parts: tuple[int, int, int, bool]) -> NDArray[np.float32]:
        news = _core.News()
        request = engine.submit(ids, wanted="embedding", news=news, media=placed(*parts))
        while True:
            seen = news.value
            _, reason, rows = request.take()
            if rows is not None:
                return rows[0]
            assert reason is None
            engine.wait(news, seen)

    ids, part = IDS[:50], (10, 20, 1, True)
    found = vector(ids, part)
    under = ids.copy()
    under[10:30] = 7
    np.testing.assert_array_equal(vector(under, part), found)
    np.testing.assert_array_equal(vector(ids, (10, 20, 1, False)), found)
    for other in (vector(ids), vector(ids, (11, 20, 1, True)), vector(ids, (10, 20, 2, True))):
        assert np.abs(other - found).max() > 1e-3 * np.abs(found).max()
    with pytest.raises(InvalidRequestError, match="40"):
        engine.submit(ids, wanted="embedding", news=_core.News(), media=[(40, media(20))])
