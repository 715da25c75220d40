"""Byte-pair encoding with a list of merges, exactly as a ``tokenizer.json`` lists them.

A SentencePiece model joins any two neighbours whose joined text is a piece. A list of merges gives the same
result if it has *every* way to split each piece into two pieces, as Gemma's own vocabularies do. The list of
a BPE trainer has only one way for each piece. Only for such lists is this (slower) encoder used.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from gemlet.base.text import show
from gemlet.errors import TokenizerError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MergeEncoder", "merges_are_complete"]

_SAMPLES = 4096


def merges_are_complete(pieces: Mapping[str, int], ranks: Mapping[str, int], merges: Set[str]) -> bool:
    """Whether ``merges`` (``"left right"``) has every split of a joined piece into two pieces.

    ``ranks`` has the joined pieces. Of a large vocabulary an even sample is checked. This is enough, because
    a trainer's list has one merge for each piece and lacks many splits everywhere.
    """
    joined = list(ranks)
    for piece in joined[:: max(1, len(joined) // _SAMPLES)]:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces and f"{left} {right}" not in merges:
                return False
    return True


class MergeEncoder:
    """Encodes text with a table of merges. The merge with the lowest rank is done first, and of equal ranks
    the leftmost.

    Args:
        pieces: the id of each piece.
        merges: the rank of each merge ``"left right"``. Neither half has a space; U+2581 stands for it.
        unk_id: the id for a character that is not a piece, if there are no ``byte_ids`` to spell it.
        byte_ids: the ids of the 256 byte pieces; None: no byte fallback.

    >>> MergeEncoder({"a": 0, "b": 1, "ab": 2}, {"a b": 0}, unk_id=3, byte_ids=None).encode("abba")
    [2, 1, 0]
    """

    def __init__(
        self, pieces: Mapping[str, int], merges: Mapping[str, int], *, unk_id: int, byte_ids: list[int] | None
    ) -> None:
        self.pieces = pieces
        self.merges = merges
        self.unk_id = unk_id
        self.byte_ids = byte_ids

    def encode(self, text: str) -> list[int]:
        symbols: list[str | None] = list(text.replace(" ", "\u2581"))
        count = len(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        heap: list[tuple[int, int, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] < count:
                pair = f"{symbols[left]} {symbols[after[left]]}"
                rank = self.merges.get(pair)
                if rank is not None:
                    heapq.heappush(heap, (rank, left, pair))

        for index in range(count - 1):
            offer(index)
        while heap:
            _, left, pair = heapq.heappop(heap)
            right = after[left]
            if symbols[left] is None or right >= count or f"{symbols[left]} {symbols[right]}" != pair:
                continue  # one of the two has been merged with another neighbour since then
            symbols[left] = pair.replace(" ", "", 1)
            symbols[right] = None
            after[left] = after[right]
            if after[right] < count:
                before[after[right]] = left
            offer(before[left])
            offer(left)
        ids: list[int] = []
        for symbol in symbols:
            if symbol is not None:
                ids += self._spell(symbol)
        return ids

    def _spell(self, symbol: str) -> list[int]:
        identifier = self.pieces.get(symbol)
        if identifier is not None:
            return [identifier]
        if self.byte_ids is not None:
            return [self.byte_ids[byte] for byte in symbol.encode()]
        return [self.unk_id]


def merge_strings(file: str | Path, merges: list[Any]) -> list[str]:
    """The merges as ``"a b"``; the file may write them as ``"a b"`` or ``["a", "b"]``."""
    kinds = set(map(type, merges))
    if kinds <= {str}:
        return merges
    if kinds == {list} and set(map(len, merges)) == {2}:
        try:
            return list(map(" ".join, merges))
        except TypeError:
            pass  # an entry is not a string; the loop below finds it
    strings = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        # A piece has no space; U+2581 stands for it.
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(type(p) is str and " " not in p for p in pair)
        ):
            raise TokenizerError(f"{file}: merge {rank} is {show(merge)}; expected two pieces")
        strings.append(f"{pair[0]} {pair[1]}")
    return strings
