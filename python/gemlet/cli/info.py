"""``gemlet info``: what this installation is and what it will use of this machine."""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from importlib.metadata import version
from typing import Any

from gemlet import _core
from gemlet.base.sizes import size_text
from gemlet.bench import cpu_name

__all__ = ["collect", "run"]


def collect() -> dict[str, Any]:
    """Version, CPU tiers, the tier in use and why, GPUs and why they are not used, threads and why."""
    threads, reason = _core.default_threads()
    return {
        "version": _core.__version__,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": cpu_name(), **_core.cpu_info()},
        "cuda": _core.cuda_info(),
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
    counts = Counter(cpu["kernels"].values())
    ordered = sorted(counts.items(), key=lambda entry: cpu["tiers"].index(entry[0]), reverse=True)
    # A tier has only the kernels that its instructions make faster; the others come from lower tiers.
    print(f"kernels  {', '.join(f'{count} of {tier}' for tier, count in ordered)}")
    print(f"cuda     {_cuda_text(info['cuda'])}")
    for gpu in info["cuda"]["gpus"]:
        capability = f"{gpu['capability'] // 10}.{gpu['capability'] % 10}"
        used = "" if gpu["refusal"] is None else f"; not used: {gpu['refusal']}"
        print(f"gpu      {gpu['name']}, compute capability {capability}, {size_text(gpu['memory'])}{used}")
    print(f"threads  {info['threads']} ({info['threads_reason']})")
    print(f"decode   {info['decode_threads']} ({info['decode_threads_reason']})")
    return 0


def _cuda_text(cuda: dict[str, Any]) -> str:
    version = cuda["version"]
    driver = f"driver for CUDA {version // 1000}.{version % 1000 // 10}; " if version else ""
    used = "can be used" if cuda["refusal"] is None else f"not used: {cuda['refusal']}"
    return driver + used
