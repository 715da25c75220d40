"""Tests of the progress line, with and without tqdm, and of the long work that shows it."""

from __future__ import annotations

import io
import re
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

import gemlet
from gemlet.base import progress
from gemlet.base.progress import reporting
from gemlet.bench import run_bench
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model
from support.pace import in_time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replaces standard error by a terminal that records every change of the line. tqdm is not used."""
    screen = Terminal()
    # This replaces ``sys`` only in the module progress, because pytest uses sys.stderr itself.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen, modules=sys.modules))
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_PAUSE", 0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    return screen


def shown(terminal: Terminal) -> list[str]:
    """The texts that the line has shown. Checks that the line is blank at the end."""
    begin, *texts = terminal.getvalue().split("\r")
    assert begin == ""
    assert texts[-1] == texts[-2].strip() == ""
    return [text.rstrip() for text in texts[:-2]]


def test_the_line_shows_bytes_and_time(terminal: Terminal) -> None:
    with reporting(None, "loading", 3_000_000) as advance:
        advance(600_000)
        advance(2_400_000)
    first, last = shown(terminal)
    assert re.fullmatch(r"loading:  20%, 600 kB of 3 MB, \d+ s left", first)
    assert last == "loading: 100%, 3 MB of 3 MB, 0 s left"


def test_quick_work_shows_no_progress(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY", 60)
    with reporting(True, "loading", 2) as advance:
        advance(2)
    assert terminal.getvalue() == ""


def test_the_line_is_removed_when_the_work_fails(terminal: Terminal) -> None:
    def work() -> None:
        with reporting(None, "loading", 2) as advance:
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(shown(terminal)) == 1


@pytest.mark.parametrize("what", ["a pipe", "a pipe, True", "a terminal, False", "a notebook", "nothing"])
def test_when_progress_is_shown(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    place, _, value = what.partition(", ")
    if place == "a notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    if place != "a terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    if place == "nothing":
        monkeypatch.setattr(progress.sys, "stderr", None)
    with reporting({"True": True, "False": False}.get(value), "loading", 2) as advance:
        advance(1)
    assert (terminal.getvalue() != "") == (what in ("a pipe, True", "a notebook"))


@pytest.mark.extra("progress")
def test_progress_uses_tqdm_if_it_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0)
    gemlet.load(threads=1).close()
    gemlet.load(threads=1, progress=False).close()
    assert capsys.readouterr().err == ""  # standard error is no terminal here
    gemlet.load(threads=1, progress=True).close()
    assert "loading" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gemlet.load(threads=1).close()
    assert "loading" in capsys.readouterr().err


def test_a_wrong_progress_argument_is_refused() -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="progress is 3"):
        gemlet.load(progress=3)  # type: ignore[arg-type]


def test_loading_shows_progress(terminal: Terminal) -> None:
    gemlet.load(threads=1).close()
    assert shown(terminal)[-1].startswith("loading: 100%")


def test_a_prefill_shows_progress(terminal: Terminal) -> None:
    with gemlet.load(threads=1, progress=False) as model:
        stream = model.stream([2] + [100] * 799, max_tokens=1)
        next(stream)
        assert terminal.getvalue() == ""  # by default, only notebooks show progress
        stream = model.stream([2] + [101] * 799, max_tokens=1)  # this prompt is not in the prefix cache
        stream.prompt_progress = None
        next(stream)
    *_, last = shown(terminal)
    assert last.startswith("reading the prompt: 100%, 800 tokens of 800 tokens")


def test_random_weights_show_progress(terminal: Terminal) -> None:
    random_model("gemma3-270m", LoadOptions(weights="q4", threads=1)).close()
    steps = shown(terminal)
    assert len(steps) > 50
    assert steps[-1].startswith("random weights: 100%")


def test_the_progress_of_random_weights_adds_up_and_can_cancel() -> None:
    seen: list[tuple[int, int]] = []
    options = LoadOptions(weights="q4", threads=1, progress=lambda *step: seen.append(step))
    random_model("gemma3-270m", options).close()
    assert seen[-1][0] == seen[-1][1]

    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        random_model("gemma3-270m", LoadOptions(weights="q4", threads=1, progress=stop))


def make_random_weights() -> None:
    random_model("gemma3-1b", LoadOptions(weights="q4", threads=1, progress=False))


def measure_bandwidth() -> None:
    with gemlet.load(threads=1, progress=False) as model:
        run_bench(model, prompt=[8], generate=[0], repetitions=2)


@pytest.mark.parametrize("work", [make_random_weights, measure_bandwidth])
def test_an_exception_of_a_signal_handler_ends_long_work_soon(work: Callable[[], None]) -> None:
    """Long work ends soon after a signal handler has raised an exception, as for Ctrl-C."""
    raised: list[float] = []

    def interrupt(*_: object) -> None:
        raised.append(time.process_time())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        taken = time.process_time() - raised[0]
        assert in_time(taken, 2)  # without other load, it takes a quarter of a second
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
