"""Functions that chat/test_template_sandbox.py runs in separate processes."""

from __future__ import annotations

import signal
import sys
import threading
import time
import warnings

from gemlet.base import limited_process
from gemlet.chat.template_process import can_run_templates, run_template
from gemlet.errors import UnsupportedError
from support.processes import in_fork

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads


def served() -> bool:
    return run_template("{{ a }}", [{"a": 1}, {"a": 2}]).texts == ["1", "2"]


def in_forks() -> None:
    in_fork(served)  # the parent has not yet started its process for templates
    assert served()
    for _ in range(2):
        in_fork(lambda: served() and served())
        assert served()
    in_fork(lambda: in_fork(served) is None)
    assert served()


def at_exit() -> None:
    """Exits while a thread renders an endless template."""
    assert served()
    threading.Thread(target=run_endless, daemon=True).start()
    time.sleep(0.1)


def run_endless() -> None:
    run_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", [{}])


def does_not_import_jinja() -> bool:
    return served() and "jinja2" not in sys.modules


def without_jinja() -> list[str]:
    """The messages of the errors when jinja2 is not installed."""
    limited_process.find_spec = lambda name: None  # type: ignore[assignment]
    assert not can_run_templates()
    try:
        served()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def where_nothing_starts() -> list[str]:
    """The messages of the errors when gemlet cannot start a Python process, as in a program that embeds
    Python."""
    said = []
    for executable in ("/bin/false", "/no/such/file", "", None):
        sys.executable = executable  # type: ignore[assignment]
        try:
            served()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def in_a_handler() -> int:
    """How often a signal handler could render a template while the thread that it interrupted waited for an
    endless template."""
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += served()

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        run_endless()
    except UnsupportedError:
        assert served()
    return count
