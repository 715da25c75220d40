"""``gemlet info``: what this installation is and what it will use of this machine."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import numpy as np
from gemlet import _core

__all__ = ["collect", "run"]


def collect() -> dict[str, Any]:
    """Version, CPU tiers, the tier in use and why, threads and why."""
    threads, reason = _core.default_threads()
    return {
        "version": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _core.cpu_info(),
        "threads": threads,
        "threads_reason": reason,
    }


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    info = collect()
    if arguments.json:
        print(json.dumps(info))
        return 0
    cpu = dict(info["cpu"])
    print(f"gemlet   {info['version']} (Python {info['python']}, NumPy {info['numpy']}, {info['system']})")
    print(f"tiers    {' '.join(cpu.pop('tiers'))}")
    print(f"tier     {cpu.pop('tier')} ({cpu.pop('reason')})")
    print(f"threads  {info['threads']} ({info['threads_reason']})")
    for key, value in cpu.items():
        shown = " ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else value
        print(f"{key:<8} {shown}")
    return 0
