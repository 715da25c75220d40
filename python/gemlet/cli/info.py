"""``gemlet info``: what this installation is and what it will use of this machine."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import numpy as np

from gemlet import _core
from gemlet.bench import cpu_name

__all__ = ["collect", "run"]


def collect() -> dict[str, Any]:
    """Version, CPU tiers, the tier in use and why, threads and why."""
    threads, reason = _core.default_threads()
    return {
        "version": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": cpu_name(), **_core.cpu_info()},
        "threads": threads,
        "threads_reason": reason,
        "decode_threads": threads,
        "decode_threads_reason": "as many as threads unless --decode-threads says otherwise",
    }


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    info = collect()
    if arguments.json:
        print(json.dumps(info))
        return 0
    cpu = info["cpu"]
    print(f"gemlet   {info['version']} (Python {info['python']}, NumPy {info['numpy']}, {info['system']})")
    print(f"cpu      {cpu['name']}")
    print(f"tiers    {' '.join(cpu['tiers'])}")
    print(f"tier     {cpu['tier']} ({cpu['reason']})")
    lower = [f"{name} {tier}" for name, tier in cpu["kernels"].items() if tier != cpu["tier"]]
    print(f"kernels  {len(cpu['kernels']) - len(lower)} of {len(cpu['kernels'])} at this tier")
    if lower:
        print(f"         below it: {', '.join(lower)}")
    print(f"threads  {info['threads']} ({info['threads_reason']})")
    print(f"decode   {info['decode_threads']} ({info['decode_threads_reason']})")
    return 0
