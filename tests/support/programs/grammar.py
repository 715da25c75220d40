"""Functions that product/test_grammar.py and test_grammar_hostile.py run in separate processes."""

from __future__ import annotations

import contextlib
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import gemlet
from support.hostile_grammars import HOSTILE
from support.processes import in_fork, peak, resident

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads


def in_forks_and_threads() -> bool:
    """Generates text with a grammar before a fork, in the forked process and after the fork, while other
    threads do the same."""
    model = gemlet.load()

    def write(i: int) -> bool:
        text = model.generate("It was", regex=f"[a-z]{{3}}{i % 3}", max_tokens=20, seed=i).text
        return len(text) == 4 and text.endswith(str(i % 3))

    in_fork(lambda: write(0))
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, i) for i in range(40)]
        in_fork(lambda: write(1) and write(2))
        assert all(one.result() for one in done)
    stream = model.stream("It was", choice=["one two three four five"], max_tokens=40)
    begun = next(stream).text

    def end() -> bool:
        return begun + "".join(chunk.text for chunk in stream) == "one two three four five"

    in_fork(end)
    return end()


def without_llguidance() -> list[str]:
    """The name and the message of the error when llguidance is not installed."""
    sys.modules["llguidance"] = None  # type: ignore[assignment]
    try:
        gemlet.load().generate("It was", regex="a", max_tokens=3)
    except gemlet.GemletError as error:
        return [type(error).__name__, str(error)]
    return []


def peak_of_hostile() -> float:
    """Generates with each hostile grammar. Returns the growth of this process's peak memory in MiB."""
    with gemlet.load() as model:
        model.generate("It was", choice=["fine"], max_tokens=9)
        before = resident()
        for options in HOSTILE.values():
            with contextlib.suppress(gemlet.InvalidRequestError):
                model.generate("It was", max_tokens=60, temperature=5.0, seed=1, **options())
        return peak() - before
