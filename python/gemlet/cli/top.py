"""``gemlet top``: what a server does now, from its ``/status``."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from gemlet import _core
from gemlet.base.records import record
from gemlet.base.sizes import size_text
from gemlet.base.strict_json import parse_json_object
from gemlet.cli.common import bold, dim, one_line, table_lines
from gemlet.errors import InvalidRequestError, UnsupportedError

__all__ = ["Look", "RemoteServer", "lines_of", "quantile", "rates", "run"]

_MOST_BYTES = 8_000_000
_PATIENCE = 10.0  # seconds
# Switches to the terminal's alternate screen and hides the cursor; and back.
_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
# Tokens written and read per second, times to the first token (median and 95th percentile), the share of
# prompts found in the cache, memory of weights and of texts.
_TITLES = ("model", "run", "wait", "tok/s", "read/s", "first", "p95", "kept", "weights", "cache")
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


@record(frozen=True)
class Look:
    """A state of the server, and when it was seen."""

    state: Mapping[str, Any]
    seen: float


class RemoteServer:
    """The server at an address. Raises :class:`InvalidRequestError` if it is not an address."""

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise InvalidRequestError(f"url: got {url!r}, expected an address such as http://127.0.0.1:8000")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidRequestError("key: it has characters that no key has")
        self.url = url
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = host, port
        self._path = parts.path.rstrip("/") + "/status"
        self._headers = {"User-Agent": f"gemlet/{_core.__version__}"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def look(self) -> Look:
        """The state now. Raises :class:`UnsupportedError` if the server does not give it."""
        connection = self._kind(self._host, self._port, timeout=_PATIENCE)
        try:
            connection.request("GET", self._path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnsupportedError(f"{self.url}: does not answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if answer.status in (401, 403):
            why = (
                "the server does not take this key" if "Authorization" in self._headers else "it needs a key"
            )
            raise UnsupportedError(f"{self.url}: {why}; give one with --key or in GEMLET_KEY")
        if answer.status != 200:
            raise UnsupportedError(f"{self.url}: answers with {answer.status}; is it a gemlet serve?")
        return Look(parse_json_object(body, where=self.url, error=UnsupportedError), time.monotonic())


def quantile(share: float, steps: Sequence[tuple[float | None, int]]) -> float | None:
    """The value below which ``share`` of the counts of a histogram lie, interpolated between its steps.

    >>> quantile(0.5, [(1.0, 0), (2.0, 4), (None, 4)])
    1.5
    >>> quantile(0.5, [(1.0, 0), (None, 0)]), quantile(0.5, [(1.0, 1), (None, 9)])
    (None, 1.0)
    """
    whole = steps[-1][1] if steps else 0
    low, below = 0.0, 0
    for high, count in steps:
        if whole and count >= share * whole:
            return low if high is None else low + (high - low) * (share * whole - below) / (count - below)
        low, below = low if high is None else high, count
    return None


def rates(model: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    """The work of a model between two looks at its counters. Times to the first token are those of requests
    in between, or of all requests if there were none."""
    found: dict[str, Any] = dict.fromkeys(("tokens_per_second", "prompt_tokens_per_second", "cached_share"))
    now, then = model.get("engine"), (before or {}).get("engine")
    if now is not None and then is not None and seconds > 0:
        for name, count in (("", "generated_tokens"), ("prompt_", "prompt_tokens")):
            found[f"{name}tokens_per_second"] = max(0, now[count] - then[count]) / seconds
    if now is not None:
        asked = now["prompt_tokens"] + now["cached_tokens"]
        found["cached_share"] = now["cached_tokens"] / asked if asked else None
    steps = [(high, int(count)) for high, count in model.get("first_token_seconds", ())]
    old = [int(count) for _, count in (before or {}).get("first_token_seconds", ())]
    if len(old) == len(steps) and steps and steps[-1][1] > old[-1]:
        steps = [(high, count - earlier) for (high, count), earlier in zip(steps, old, strict=True)]
    for share in (50, 95):
        found[f"first_token_p{share}"] = quantile(share / 100, steps)
    return found


def _all_rates(now: Look, before: Look | None) -> list[dict[str, Any]]:
    then = {model["id"]: model for model in before.state["models"]} if before else {}
    seconds = now.seen - before.seen if before else 0.0
    return [rates(model, then.get(model["id"]), seconds) for model in now.state["models"]]


def lines_of(url: str, now: Look, before: Look | None) -> list[str]:
    """The lines of the screen. Raises :class:`UnsupportedError` for a state that is not gemlet's."""
    try:
        return _lines(url, now, before)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError):
        raise UnsupportedError(f"{url}: its /status is not that of a gemlet serve of this version") from None


def _lines(url: str, now: Look, before: Look | None) -> list[str]:
    state = now.state
    requests, memory_now = state["requests"], size_text(int(state["memory_bytes"]))
    lines = [
        f"gemlet {_text(state['version'])} at {one_line(url)}",
        f"{'ready' if state['ready'] else 'loading'}, up {_span(state['uptime_seconds'])}, "
        f"{int(requests['running'])} of {int(requests['most'])} requests, {memory_now}",
        "",
    ]
    rows = []
    for model, speed in zip(state["models"], _all_rates(now, before), strict=True):
        counts, memory = model.get("requests"), model.get("memory")
        rows.append(
            [
                _text(model["id"]) if model["parent"] is None else f"  {_text(model['id'])}",
                "" if counts is None else str(int(counts["running"])),
                "" if counts is None else str(int(counts["waiting"])),
                *(_number(speed[f"{name}tokens_per_second"]) for name in ("", "prompt_")),
                *(_seconds(speed[f"first_token_p{share}"]) for share in (50, 95)),
                "" if speed["cached_share"] is None else f"{speed['cached_share']:.0%}",
                *(
                    [""] * 2
                    if memory is None
                    else [
                        size_text(int(memory["weights"] + memory["embedding"] + memory["adapters"])),
                        size_text(int(memory["kv_cache"] + memory["prefix_cache"])),
                    ]
                ),
            ]
        )
    lines += table_lines(_TITLES, rows, right=set(range(1, len(_TITLES))))
    usage = state.get("usage")
    if usage:
        names = ["day", "key", "model", "requests", "prompt_tokens", "completion_tokens"]
        cells = [[_text(row[name]) for name in names] for row in usage]
        shown = [name.replace("_", " ") for name in names]
        lines += ["", *table_lines(shown, cells, right={3, 4, 5})]
    return lines


def _text(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _span(seconds: float) -> str:
    """
    >>> _span(59), _span(3700), _span(200_000)
    ('59 s', '61 min', '55 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 60
        else f"{seconds // 60:.0f} min"
        if seconds < 7200
        else f"{seconds // 3600:.0f} h"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    interval = arguments.interval
    if not 0.1 <= interval <= 3600:
        raise InvalidRequestError(f"interval: got {interval:g}, expected seconds from 0.1 to 3600")
    server = RemoteServer(arguments.url, arguments.key or os.environ.get("GEMLET_KEY"))
    if arguments.once or arguments.json or not sys.stdout.isatty():
        before = server.look()
        time.sleep(interval)
        now = server.look()
        lines = lines_of(server.url, now, before)
        if arguments.json:
            models = [
                {**model, **speed}
                for model, speed in zip(now.state["models"], _all_rates(now, before), strict=True)
            ]
            print(json.dumps({**now.state, "models": models}))
        else:
            print("\n".join(lines))
        return 0
    _watch(server, interval)
    return 0


def _watch(server: RemoteServer, interval: float) -> None:
    """Shows the server until Ctrl-C."""
    before = server.look()  # if the first look fails, the command ends with an error
    lines = lines_of(server.url, before, None)
    sys.stdout.write(_BEGIN)
    try:
        while True:
            _draw(lines)
            time.sleep(interval)
            try:
                now = server.look()
                lines = lines_of(server.url, now, before)
                before = now
            except UnsupportedError as error:
                lines = [*lines[:1], one_line(str(error))]
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_END)
        sys.stdout.flush()


def _draw(lines: Sequence[str]) -> None:
    size = shutil.get_terminal_size()
    shown = [line[: size.columns] for line in lines[: size.lines - 1]]
    titles = {index for index, line in enumerate(shown) if index and not shown[index - 1] and line}
    marked = [
        bold(line) if index == 0 else dim(line) if index in titles else line
        for index, line in enumerate(shown)
    ]
    sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in marked) + _REST)
    sys.stdout.flush()
