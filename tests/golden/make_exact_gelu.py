"""Writes tests/golden/exact_gelu.safetensors with transformers: the logits [T, V] of checkpoints of
tests/golden whose config asks for the exact GELU, `hidden_activation: "gelu"`. Each uses its own prompt.

    pip install torch==2.13.0 transformers==5.24.0 safetensors
    python tests/golden/make_exact_gelu.py"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.folders import BY_NAME, EXACT_GELU, with_exact_gelu  # noqa: E402
from golden.official import open_official  # noqa: E402


def main() -> None:
    found = {}
    for name in EXACT_GELU:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / name
            shutil.copytree(HERE / name, folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(with_exact_gelu(config)))
            model = open_official(BY_NAME[name], folder)
            ids = load_file(folder / "golden.safetensors")["ids"]
            with torch.no_grad():
                found[name] = model(ids[None]).logits[0].float().contiguous()
    save_file(found, HERE / "exact_gelu.safetensors")


if __name__ == "__main__":
    main()
