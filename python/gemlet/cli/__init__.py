"""The ``gemlet`` command: ``generate``, ``chat``, ``info``, ``bench`` and more.

Exit codes: 0 done, 1 an error (one line on standard error), 2 bad usage, 130 interrupted with Ctrl-C. A
reader that goes away early (``gemlet generate ... | head -1``) is not an error.

>>> import contextlib, io, json
>>> from gemlet.cli import main
>>> with contextlib.redirect_stdout(io.StringIO()) as output:
...     code = main(["generate", "The door opened", "--max-tokens", "4", "--json"])
>>> code, json.loads(output.getvalue())["completion_tokens"] <= 4
(0, True)
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from gemlet.base.handlers import importing

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (None: the process's own) and returns its exit code."""
    try:
        with importing():
            from gemlet.cli.parser import run

        return run(argv)
    except KeyboardInterrupt:  # this may come while the modules are still being imported
        print(file=sys.stderr)
        return 130
    finally:
        if argv is None:  # the process ends, and Python need not go through all objects for garbage first
            gc.freeze()
