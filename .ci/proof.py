"""Checks that an installed wheel works: it generates text, also from a packed folder, computes the golden
values of every family, and reads a GGUF file.

    python proof.py [TIER]

TIER is the tier that the machine must choose; without it, any tier is accepted. This script needs the folders
.ci and tests, and no packages except those that the wheel needs.
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path

from emulated import TESTS, check_formats, check_golden

FAMILIES = [
    "gemma1-2b",
    "gemma2-2b",
    "gemma3-270m",
    "gemma3n-e2b",
    "gemma4-e2b",
    "gemma4-26b-a4b",
    "vaultgemma",
    "embeddinggemma",
]


def main() -> None:
    warnings.simplefilter("error")
    # A free-threaded Python warns that it turns its lock on, because gemlet does not declare that it works
    # without the lock.
    warnings.filterwarnings("ignore", "The global interpreter lock", RuntimeWarning)
    import gemlet
    from gemlet import _core

    tier = sys.argv[1] if len(sys.argv) > 1 else str(_core.cpu_info()["tier"])
    name, suffix = Path(_core.__file__).name, str(sysconfig.get_config_var("EXT_SUFFIX"))
    if not name.endswith(suffix):
        raise SystemExit(f"the extension is {name}, but this Python's own end with {suffix}")
    with gemlet.load() as model:
        text = model.generate("The door opened", max_tokens=12, temperature=0)
    if not str(text).strip():
        raise SystemExit("the demo model generated nothing")
    print(f"demo: {text!s}")
    with tempfile.TemporaryDirectory() as folder:
        gemlet.convert(None, f"{folder}/packed", weights="q8")
        with gemlet.load(f"{folder}/packed") as model:
            print(f"packed: {model.generate('The door opened', max_tokens=12, temperature=0)!s}")
    for family in FAMILIES:
        print(check_golden(family, tier))
    check_formats("gemma3-270m")

    sys.path.insert(0, TESTS.as_posix())
    from golden.folders import HERE
    from support.gguf_models import convert_folder

    with tempfile.TemporaryDirectory() as folder:
        file = convert_folder(HERE / "gemma3-270m", Path(folder) / "model.gguf", "F32")
        print("GGUF,", check_golden("gemma3-270m", tier, file))


if __name__ == "__main__":
    main()
