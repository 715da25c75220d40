"""Writes tests/golden/rope_types.safetensors with transformers. For each case of rope_types.py:

{case}.logits [T, V]            for the prompt of the case's checkpoint
{case}.frequencies [h/2]        the angles per position of its kind of layer

python tests/golden/make_rope_types.py        # in the environment of make_goldens.py
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["ATEN_CPU_CAPABILITY"] = "default"  # see make_rope.py

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.folders import BY_NAME  # noqa: E402
from golden.official import open_official  # noqa: E402
from golden.rope_types import ROPE_TYPES, RopeTypeCase, with_changes  # noqa: E402


def run(case: RopeTypeCase) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / case.folder
        shutil.copytree(HERE / case.folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(with_changes(config, case.changes)))
        model = open_official(BY_NAME[case.folder], folder)
        ids = load_file(folder / "golden.safetensors")["ids"]
        with torch.no_grad():
            logits = model(ids[None]).logits[0].float()
    tables = {name: value for name, value in model.named_buffers() if name.endswith("inv_freq")}
    found = [
        value
        for name, value in tables.items()
        if "original" not in name and name.endswith(f"{case.kind}_inv_freq")
    ] or [value for name, value in tables.items() if name.endswith("rotary_emb.inv_freq")]
    return {f"{case.name}.logits": logits, f"{case.name}.frequencies": found[0]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors: dict[str, torch.Tensor] = {}
    for one in ROPE_TYPES:
        tensors |= run(one)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        HERE / "rope_types.safetensors",
    )
